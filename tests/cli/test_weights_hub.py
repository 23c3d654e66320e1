# SPDX-License-Identifier: Apache-2.0
"""``wsss weights fetch hf://...`` against a server that answers as the Hugging Face Hub does."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.installed import run_wsss
from wsss_ray.config import UserError
from wsss_ray.nets import build_backbone
from wsss_ray.nets.weight_hub import parse_hub_name
from wsss_ray.nets.weights import load_weights

NAME = "hf://some-owner/some.repo/deep/toy.safetensors"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has, how it behaves, and what it was asked."""

    large: bytes
    small: bytes = b"class,file\n"
    digest: str = ""
    cut_once: bool = False
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """(method, path, range) of every request."""
    endpoint: str = ""


class Handler(BaseHTTPRequestHandler):
    """The Hub's answers for one large file (a redirect to where it lies) and a small one."""

    server: HubServer

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        hub = self.server.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range", "")))
        blob = hashlib.sha1(b"blob %d\0" % len(hub.small) + hub.small).hexdigest()
        digest = hub.digest or hashlib.sha256(hub.large).hexdigest()
        linked = {"X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{digest}"', "Location": f"{hub.endpoint}/cdn/large"}
        repo = "/some-owner/some.repo/resolve"
        known = {
            f"{repo}/main/deep/toy.safetensors": (302, linked, b""),
            f"{repo}/v1.0/deep/toy.safetensors": (302, linked, b""),
            f"{repo}/main/classes.csv": (200, {"X-Repo-Commit": COMMIT, "ETag": f'"{blob}"'}, hub.small),
            "/cdn/large": (200, {"ETag": '"other"'}, hub.large),
            "/private/repo/resolve/main/file.pth": (401, {"X-Error-Code": "RepoNotFound"}, b""),
            "/old-owner/some.repo/resolve/main/deep/toy.safetensors": (
                307,
                {"Location": f"{repo}/main/deep/toy.safetensors"},
                b"",
            ),
        }
        self.send(*known.get(self.path, (404, {"X-Error-Code": "EntryNotFound"}, b"")))

    def send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if status == 200 and start else status)
        for name, value in {**headers, "Content-Length": str(len(body[start:]))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and body:
            cut, self.server.hub.cut_once = self.server.hub.cut_once, False
            self.wfile.write(body[start : len(body) // 2] if cut else body[start:])


class HubServer(ThreadingHTTPServer):
    """The server of one ``Hub``."""

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hub = hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    torch.manual_seed(0)
    save_file(build_backbone("toy", width=8).state_dict(), tmp_path / "own.safetensors")
    hub = Hub((tmp_path / "own.safetensors").read_bytes())
    server = HubServer(hub)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def call(hub: Hub, folder: Path, *args: str):  # noqa: ANN201
    """A command on weights that are kept in ``folder``."""
    return run_wsss("weights", *args, cwd=folder, HF_ENDPOINT=hub.endpoint, WSSS_WEIGHTS=str(folder / "weights"))


def test_a_file_is_fetched_checked_and_loaded(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = call(hub, tmp_path, "fetch", NAME, "--json")
    assert told.returncode == 0, told.stderr
    fetched = json.loads(told.stdout)
    path = Path(fetched["path"])
    assert fetched["verdict"] == "ok"
    assert path.read_bytes() == hub.large
    assert path.is_relative_to(tmp_path / "weights" / "hf")
    note = json.loads(path.with_name(path.name + ".origin.json").read_text())
    assert note["commit"] == COMMIT
    assert note["sha256"] == hashlib.sha256(hub.large).hexdigest()
    before = len(hub.asked)
    assert call(hub, tmp_path, "fetch", NAME).stdout.strip() == str(path)
    assert len(hub.asked) == before, "a file that is there was asked for again"
    assert "sha256 matches" in call(hub, tmp_path, "check", NAME).stdout
    listed = json.loads(call(hub, tmp_path, "list", "--json").stdout)
    assert {"name": NAME, "verdict": "ok"}.items() <= listed[-1].items()
    assert call(hub, tmp_path, "list").stdout.splitlines()[-1].split() == [NAME, "ok", str(path)]
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path / "weights"))
    assert load_weights(build_backbone("toy", width=8), NAME).leftovers == ()
    with pytest.raises(UserError, match=f"wsss weights fetch {NAME}@v1.0"):
        load_weights(build_backbone("toy", width=8), f"{NAME}@v1.0")
    path.write_bytes(b"x" + hub.large[1:])
    assert "checksum mismatch" in call(hub, tmp_path, "check", NAME).stderr
    assert call(hub, tmp_path, "fetch", NAME).returncode == 0
    assert path.read_bytes() == hub.large


def test_a_cut_download_is_resumed(hub: Hub, tmp_path: Path) -> None:
    hub.cut_once = True
    cut = call(hub, tmp_path, "fetch", NAME)
    assert (cut.returncode, cut.stdout) == (2, "")
    assert len(cut.stderr.splitlines()) == 1
    assert "the connection ended" in cut.stderr
    done = call(hub, tmp_path, "fetch", NAME)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).read_bytes() == hub.large
    assert hub.asked[-1] == ("GET", "/cdn/large", f"bytes={len(hub.large) // 2}-")


def test_a_wrong_digest_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.digest = "0" * 64
    told = call(hub, tmp_path, "fetch", NAME)
    assert (told.returncode, told.stdout) == (2, "")
    assert "checksum mismatch" in told.stderr
    assert not [name for _, _, names in os.walk(tmp_path / "weights") for name in names]


def test_small_files_revisions_and_renamed_repositories(hub: Hub, tmp_path: Path) -> None:
    small = call(hub, tmp_path, "fetch", "hf://some-owner/some.repo/classes.csv")
    assert Path(small.stdout.strip()).read_bytes() == hub.small
    tagged = call(hub, tmp_path, "fetch", f"{NAME}@v1.0")
    assert "/v1.0/" in tagged.stdout
    moved = call(hub, tmp_path, "fetch", NAME.replace("some-owner", "old-owner"))
    assert moved.returncode == 0, moved.stderr
    note = Path(moved.stdout.strip() + ".origin.json")
    assert json.loads(note.read_text())["verified"] is True


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("hf://some-owner/some.repo/none.pth", "not found at"),
        ("hf://private/repo/file.pth", "hf download"),
        ("hf://some-owner/file.pth", "write hf://OWNER/REPO/FILE"),
        ("hf://some-owner/some.repo/../../x", "write hf://OWNER/REPO/FILE"),
    ],
)
def test_what_cannot_be_fetched_is_one_line(name: str, words: str, hub: Hub, tmp_path: Path) -> None:
    told = call(hub, tmp_path, "fetch", name)
    assert (told.returncode, told.stdout) == (2, "")
    (line,) = told.stderr.splitlines()
    assert words in line


def test_both_places_of_a_revision_are_read() -> None:
    named = parse_hub_name("hf://a/b/c/d.pth@refs/pr/1")
    assert (named.repo, named.path, named.revision) == ("a/b", "c/d.pth", "refs/pr/1")
    assert parse_hub_name("hf://a/b@v2/c/d.pth") == parse_hub_name("hf://a/b/c/d.pth@v2")
    assert parse_hub_name("hf://a/b/d.pth").name == "hf://a/b/d.pth"
