# SPDX-License-Identifier: Apache-2.0
"""Weights on the Hugging Face Hub: ``hf://OWNER/REPO/FILE``, with ``@REVISION`` behind the repository or the file.

Files are read over the Hub's plain addresses, https://huggingface.co/docs/hub/models-downloading; ``HF_ENDPOINT`` names
another server, as it does for ``huggingface_hub``. Its answer to ``HEAD`` gives the commit and the digest of the file.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError

PREFIX = "hf://"
HUB = "https://huggingface.co"
TIMEOUT = 30.0
MAX_REDIRECTS = 5
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository of models."""

    repo: str
    """OWNER/REPO."""
    path: str
    revision: str
    """A branch, a tag or a commit."""

    @property
    def name(self) -> str:
        """As it is written in a recipe."""
        return f"{PREFIX}{self.repo}/{self.path}" + ("" if self.revision == "main" else f"@{self.revision}")

    @property
    def url(self) -> str:
        """Where it is downloaded from."""
        endpoint = (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        revision = urllib.parse.quote(self.revision, safe="")
        return f"{endpoint}/{self.repo}/resolve/{revision}/{urllib.parse.quote(self.path)}"

    def locate(self, folder: Path) -> Path:
        """Where it is kept below the folder of weights."""
        return folder / "hf" / self.repo / self.revision.replace("/", "--") / self.path


@dataclass(frozen=True)
class HubAnswer:
    """What the Hub says of a file."""

    commit: str
    digest: str
    """sha256 of a large file (64 hex digits), git's sha1 of a small one (40), empty where it names none."""


def is_hub_name(name: str) -> bool:
    """Whether weights are named by their place on the Hub."""
    return name.startswith(PREFIX)


def parse_hub_name(name: str) -> HubFile:
    """The file that ``hf://OWNER/REPO/FILE@REVISION`` names; UserError says how one is written."""
    rest, at, revision = name.removeprefix(PREFIX).rpartition("@")
    if not at:
        rest, revision = revision, "main"
    elif "/" in revision and rest.count("/") == 1:  # hf://OWNER/REPO@REVISION/FILE, as huggingface_hub writes it
        revision, _, path = revision.partition("/")
        rest = f"{rest}/{path}"
    owner, _, inner = rest.partition("/")
    repo, _, path = inner.partition("/")
    parts = path.split("/")
    if not (_NAME.fullmatch(owner) and _NAME.fullmatch(repo) and revision and all(parts)) or {".", ".."} & {
        *(owner, repo, revision, *parts)
    }:
        raise UserError(f"{name}: write {PREFIX}OWNER/REPO/FILE or {PREFIX}OWNER/REPO/FILE@REVISION")
    return HubFile(f"{owner}/{repo}", path, revision)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The first answer is wanted, since it alone names the digest."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def ask_hub(file: HubFile) -> HubAnswer:
    """Commit and digest of a file; UserError where the Hub does not have it or wants a login; OSError without network.

    Redirects inside the Hub (a renamed repository) are followed; one to another server is where large files lie.
    """
    url = file.url
    for _ in range(MAX_REDIRECTS):
        headers = _read_headers(file, url)
        target = headers.get("Location", "")
        if not target.startswith("/"):
            etag = headers.get("X-Linked-Etag") or headers.get("ETag") or ""
            digest = etag.removeprefix("W/").strip('"').lower()
            known = re.fullmatch(r"[0-9a-f]{64}|[0-9a-f]{40}", digest) is not None
            return HubAnswer(headers.get("X-Repo-Commit", ""), digest if known else "")
        url = urllib.parse.urljoin(url, target)
    raise OSError(f"{file.url}: more than {MAX_REDIRECTS} redirects")


def _read_headers(file: HubFile, url: str) -> Mapping[str, str]:
    opener = urllib.request.build_opener(_NoRedirect)
    try:
        with opener.open(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT) as answer:
            return dict(answer.headers.items())
    except urllib.error.HTTPError as error:
        if 300 <= error.code < 400:
            return dict(error.headers.items())
        if error.code in (401, 403):
            raise UserError(
                f"{file.name}: {url} wants a login, or there is no such repository; download a private file with "
                "'hf download' and give its path"
            ) from None
        if error.code == 404:
            raise UserError(f"{file.name}: not found at {url}; check repository, file and revision") from None
        raise


def digest_blob(path: Path) -> str:
    """Git's sha1 of a file, in hex."""
    found = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()
