# SPDX-License-Identifier: Apache-2.0
"""What a served model takes: limits that hold before anything is decoded, in front of MLflow's own server.

``Guard`` is an ASGI application around another one. It looks at the host, the kind and the length of a request before
a byte of it is read, and lets one request at a time into memory; the others wait with theirs on the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from wsss_ray.config import UserError
from wsss_ray.data.text import parse_json

ACCEPTED = (
    'send application/json: {"dataframe_records": [{"image": "<base64 of the image file>"}, ...]}, or "dataframe_split"'
)
COLUMNS = frozenset({"image", "path"})
FORMS = ("dataframe_records", "dataframe_split")
WAITING = 256
"""Requests that wait for their turn; more are told to come again."""
PATIENCE = 30.0
"""Seconds a caller may take to send what it announced."""
MEGABYTE = 1_000_000
DROPPED = 1000 * MEGABYTE
"""Bytes of a refused body that are still read, and thrown away, before the answer."""

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """What one request may hold; environment variables of the server change it."""

    megabytes: int = 32
    """``WSSS_SERVE_MAX_MB``: of a request's body."""
    rows: int = 64
    """``WSSS_SERVE_MAX_ROWS``: images of a request."""
    pixels: int = 25_000_000
    """``WSSS_SERVE_MAX_PIXELS``: of all images of a request together."""
    hosts: tuple[str, ...] = ()
    """``WSSS_SERVE_HOSTS``: further names, separated by commas, under which the server is asked. ``localhost`` and
    addresses always do: only a name can be pointed at this machine by somebody else's page."""


def read_limits(environment: Mapping[str, str] = os.environ) -> Limits:
    """The limits that the environment states; UserError for a value that is no positive whole number."""
    given = {}
    for field, name in (
        ("megabytes", "WSSS_SERVE_MAX_MB"),
        ("rows", "WSSS_SERVE_MAX_ROWS"),
        ("pixels", "WSSS_SERVE_MAX_PIXELS"),
    ):
        value = environment.get(name)
        if value is None:
            continue
        if not value.isascii() or not value.isdigit() or not 0 < int(value) < 10**12:
            raise UserError(f"{name}={value}: give a whole number above 0")
        given[field] = int(value)
    hosts = environment.get("WSSS_SERVE_HOSTS", "").split(",")
    return Limits(**given, hosts=tuple(host.strip().lower() for host in hosts if host.strip()))


class RefusalError(Exception):
    """A request that is not let in: its status and one line for the caller."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """The application ``inner`` behind the limits."""

    def __init__(self, inner: App, limits: Limits) -> None:
        self.inner, self.limits = inner, limits
        self._turn = asyncio.Semaphore(1)
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, or the server's own start and end."""
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        body = _Body(receive)
        try:
            headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
            self._check_host(headers.get("host", ""))
            if scope["path"] != "/invocations" or scope["method"] != "POST":
                await self.inner(scope, receive, send)
                return
            self._check_head(headers)
            await self._let_in(scope, body, send)
        except RefusalError as refused:
            await body.drop()
            await _answer(send, refused)

    async def _let_in(self, scope: Scope, sent: _Body, send: Send) -> None:
        if self._waiting >= WAITING:
            raise RefusalError(503, f"{WAITING} requests wait already; send it again later")
        self._waiting += 1
        try:
            async with self._turn:
                try:
                    body = await asyncio.wait_for(sent.read(self.limits), PATIENCE)
                except TimeoutError:
                    raise RefusalError(
                        408, f"the body took longer than {PATIENCE:.0f} s to arrive; send it again"
                    ) from None
                await asyncio.to_thread(check_request, body, self.limits)
                await self.inner(scope, _replay(body, sent.receive), send)
        finally:
            self._waiting -= 1

    def _check_host(self, host: str) -> None:
        name = host.strip().lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if name in ("localhost", *self.limits.hosts):
            return
        try:
            ipaddress.ip_address(name)
        except ValueError:
            raise RefusalError(
                421, f"host {name[:100]!r} is not served; start the server with WSSS_SERVE_HOSTS={name[:100]}"
            ) from None

    def _check_head(self, headers: Mapping[str, str]) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusalError(415, f"content type {kind[:100] or 'missing'!r} is not served; {ACCEPTED}")
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise RefusalError(415, "a compressed body is not served; send it as it is")
        length = headers.get("content-length", "0").strip()
        if not length.isdigit() or int(length) > self.limits.megabytes * MEGABYTE:
            raise _refuse_length(self.limits)


class _Body:
    """The body of a request, on its way."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self._ended = False

    async def read(self, limits: Limits) -> bytes:
        """All of it, whatever length was announced; refused as soon as it is too long."""
        parts, size = [], 0
        while not self._ended:
            part = await self._take()
            size += len(part)
            if size > limits.megabytes * MEGABYTE:
                raise _refuse_length(limits)
            parts.append(part)
        return b"".join(parts)

    async def drop(self) -> None:
        """Read what is left and keep none of it: a caller who is still sending would not read an answer.

        One who sends without end is cut off.
        """
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not self._ended and size < DROPPED:
                    size += len(await self._take())

    async def _take(self) -> bytes:
        message = await self.receive()
        self._ended = not message.get("more_body", False)
        part: bytes = message.get("body", b"")
        return part


def _refuse_length(limits: Limits) -> RefusalError:
    return RefusalError(413, f"the body is above {limits.megabytes} MB (WSSS_SERVE_MAX_MB); send fewer images")


def check_request(body: bytes, limits: Limits) -> None:
    """RefusalError unless a body has a known form, known columns and few enough rows; its images are not looked at."""
    try:
        value = parse_json(body.decode("utf-8"), "body")
    except UnicodeDecodeError:
        raise RefusalError(400, f"the body is not UTF-8; {ACCEPTED}") from None
    except UserError as error:
        raise RefusalError(400, f"{error}; {ACCEPTED}") from None
    if not isinstance(value, dict) or len(value) != 1 or next(iter(value)) not in FORMS:
        given = ", ".join(sorted(value))[:100] if isinstance(value, dict) else type(value).__name__
        raise RefusalError(400, f"a body of {given or 'nothing'} is not served; {ACCEPTED}")
    ((form, rows),) = value.items()
    columns, num_rows = _describe_records(rows) if form == FORMS[0] else _describe_split(rows)
    unknown = sorted(columns - COLUMNS)
    if unknown:
        raise RefusalError(400, f"column {unknown[0][:100]!r} is not known; {ACCEPTED}")
    if not num_rows:
        raise RefusalError(400, f"there are no rows; {ACCEPTED}")
    if num_rows > limits.rows:
        raise RefusalError(
            413, f"{num_rows} rows, but {limits.rows} at most (WSSS_SERVE_MAX_ROWS); send several requests"
        )


def _describe_records(rows: Any) -> tuple[set[str], int]:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RefusalError(400, f"dataframe_records is no list of objects; {ACCEPTED}")
    for number, row in enumerate(rows):
        _check_cells(number, row.values())
    return {key for row in rows for key in row}, len(rows)


def _describe_split(rows: Any) -> tuple[set[str], int]:
    columns, data = (rows.get("columns"), rows.get("data")) if isinstance(rows, dict) else (None, None)
    if (
        not isinstance(columns, list)
        or not isinstance(data, list)
        or not all(isinstance(name, str) for name in columns)
        or not all(isinstance(row, list) and len(row) == len(columns) for row in data)
        or len(set(columns)) != len(columns)
    ):
        raise RefusalError(400, f'dataframe_split is not {{"columns": [...], "data": [[...], ...]}}; {ACCEPTED}')
    for number, row in enumerate(data):
        _check_cells(number, row)
    return set(columns), len(data)


def _check_cells(number: int, cells: Any) -> None:
    if not all(cell is None or isinstance(cell, str) for cell in cells):
        raise RefusalError(400, f"row {number} holds something else than text; {ACCEPTED}")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read, for the application behind; afterwards what else the caller does."""
    waiting = [body]

    async def read() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return read


async def _answer(send: Send, refused: RefusalError) -> None:
    data = json.dumps({"error_code": "BAD_REQUEST", "message": refused.reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    # What was not read of a body is not to be taken for the next request.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


def guard_server() -> None:
    """Put the guard before MLflow's scoring server where this process is one, which serves this model alone.

    That server has no place for it: its application is built when the model is loaded. Applications of FastAPI ask for
    their middleware at their first request.
    """
    if "__pyfunc_model_path__" not in os.environ:  # the server's own process, not a program that loads the model
        return
    from fastapi import FastAPI

    build = FastAPI.build_middleware_stack
    if getattr(build, "guarded", False):
        return
    limits = read_limits()

    def build_guarded(self: Any) -> Any:
        return Guard(build(self), limits)

    build_guarded.guarded = True  # type: ignore[attr-defined]
    FastAPI.build_middleware_stack = build_guarded  # type: ignore[method-assign]
