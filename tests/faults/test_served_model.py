# SPDX-License-Identifier: Apache-2.0
"""MLflow's real server with a model of ours: hostile bodies are refused, a crowd is answered, memory stays small."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.fake_model import fake_model
from wsss_ray.serve.export import ExportOptions, export_run

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Server:
    """A server that runs: its port and its processes' group."""

    port: int
    group: int

    def ask(self, body: bytes, **headers: str) -> tuple[int, str]:
        """Status and text of a request to predict."""
        named = {"Content-Type": "application/json", **headers}
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/invocations", data=body, headers=named)
        try:
            with urllib.request.urlopen(asked, timeout=200) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def measure_peak(self) -> float:
        """The largest memory of one of its processes so far, in MB."""
        peaks = [0.0]
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                if os.getpgid(int(status.parent.name)) == self.group:
                    line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
                    peaks.append(int(line.split()[1]) / 1000)
            except (OSError, StopIteration):
                continue
        return max(peaks)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("served")
    export_run(str(fake_model(root / "store") / "runs" / "cam-1"), root / "model", ExportOptions(form="mlflow"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    # MLflow starts uvicorn by its name.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(root / "model"), "--env-manager", "local"]
        + ["-h", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until = time.monotonic() + 120
        while True:
            assert process.poll() is None
            assert time.monotonic() < until
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                time.sleep(0.3)
        yield Server(port, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def encode_png(width: int, height: int) -> str:
    stream = io.BytesIO()
    Image.new("L", (width, height), 90).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def make_body(*images: str) -> bytes:
    return json.dumps({"dataframe_records": [{"image": image} for image in images]}).encode()


def test_hostile_bodies_and_a_crowd(server: Server) -> None:
    """Four hostile bodies, unknown forms, another host; then 100 callers at once, some of them hostile."""
    good, large = make_body(encode_png(320, 240)), make_body(encode_png(13_300, 13_300))
    long = b'{"dataframe_records": [{"image": "' + b"A" * 150_000_000 + b'"}]}'
    hostile = {"long": (long, 413), "pixels": (large, 400), "deep": (b"[" * 1_000_000, 400)}
    hostile["rows"] = (make_body(*["AAAA"] * 10_000), 413)
    for name, (body, status) in hostile.items():
        start = time.monotonic()
        told = server.ask(body)
        assert told[0] == status, (name, told)
        assert time.monotonic() - start < 20, name
    assert "13300 x 13300" in server.ask(large)[1]
    assert server.ask(json.dumps({"instances": [{"image": "AAAA"}]}).encode())[0] == 400
    assert server.ask(b"image\nAAAA", **{"Content-Type": "text/csv"})[0] == 415
    assert server.ask(good, Host="evil.example")[0] == 421
    crowd = [good] * 96 + [body for body, _ in hostile.values()]
    with ThreadPoolExecutor(len(crowd)) as pool:
        states = [told[0] for told in pool.map(server.ask, crowd)]
    assert states == [200] * 96 + [status for _, status in hostile.values()]
    assert server.ask(good)[0] == 200
    peak = server.measure_peak()
    print(f"peak memory of the server: {peak:.0f} MB")
    assert peak < 2000
