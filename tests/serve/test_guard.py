# SPDX-License-Identifier: Apache-2.0
"""What a served model lets in, asked without a server: the guard alone before an application that answers anything."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from wsss_ray.config import UserError
from wsss_ray.serve.guard import MEGABYTE, Guard, Limits, read_limits

ROW = {"image": "AAAA"}
GOOD = json.dumps({"dataframe_records": [ROW, ROW]}).encode()


class Inner:
    """Answers every request, and remembers how many it answered and at most at once."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.now = self.most = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        self.bodies.append((await receive())["body"])
        await asyncio.sleep(0.001)
        self.now -= 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})


async def ask(guard: Guard, body: bytes, size: int = 100_000, path: str = "/invocations", **headers: str) -> Any:
    """(status, body) of a request whose body comes in parts."""
    parts = [body[start : start + size] for start in range(0, len(body), size)] or [b""]
    sent: list[Any] = []

    async def receive() -> Any:
        if not parts:
            await asyncio.sleep(3600)  # a caller that waits for its answer
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    named = {"host": "127.0.0.1:5001", "content-type": "application/json; charset=utf-8", **headers}
    told = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    await guard({"type": "http", "method": "POST", "path": path, "headers": told}, receive, send)
    return sent[0]["status"], sent[1]["body"].decode()


def test_good_requests_pass_one_at_a_time() -> None:
    inner = Inner()

    async def ask_many() -> list[Any]:
        guard = Guard(inner, Limits())
        return await asyncio.gather(*(ask(guard, GOOD, 7) for _ in range(100)))

    assert asyncio.run(ask_many()) == [(200, "answered")] * 100
    assert inner.bodies == [GOOD] * 100
    assert inner.most == 1


def records(*rows: object) -> bytes:
    return json.dumps({"dataframe_records": list(rows)}).encode()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (json.dumps({"instances": [ROW]}).encode(), 400, "a body of instances is not served"),
        (json.dumps({"inputs": [ROW]}).encode(), 400, "a body of inputs"),
        (json.dumps({"dataframe_records": [ROW], "params": {}}).encode(), 400, "dataframe_records, params"),
        (b"[]", 400, "a body of list"),
        (b"{}", 400, "a body of nothing"),
        (b"", 400, "not valid JSON"),
        (b"\xff", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deep"),
        (records(), 400, "there are no rows"),
        (records(*[ROW] * 65), 413, "65 rows, but 64 at most"),
        (records({"url": "http://x"}), 400, "column 'url' is not known"),
        (records({"image": 3}), 400, "row 0 holds something else than text"),
        (records({"image": ["a"]}), 400, "row 0 holds"),
        (records("AAAA"), 400, "no list of objects"),
        (
            json.dumps({"dataframe_split": {"columns": ["image"], "data": [["a", "b"]]}}).encode(),
            400,
            "dataframe_split",
        ),
        (json.dumps({"dataframe_split": {"columns": ["image"] * 2, "data": [["a", "b"]]}}).encode(), 400, "split"),
        (json.dumps({"dataframe_split": [ROW]}).encode(), 400, "dataframe_split"),
        (b"x" * (MEGABYTE + 1), 413, "above 1 MB"),
    ],
)
def test_bodies_that_are_not_let_in(body: bytes, status: int, reason: str) -> None:
    """Also the one that announces no length."""
    inner = Inner()
    told = asyncio.run(ask(Guard(inner, Limits(megabytes=1)), body))
    assert told[0] == status, told
    assert reason in json.loads(told[1])["message"]
    assert inner.bodies == []


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"host": "evil.example"}, 421, "host 'evil.example' is not served; start the server with WSSS_SERVE_HOSTS"),
        ({"host": ""}, 421, "is not served"),
        ({"content_type": "text/csv"}, 415, "content type 'text/csv' is not served; send application/json"),
        ({"content_type": "application/vnd.apache.parquet"}, 415, "send application/json"),
        ({"content_encoding": "gzip"}, 415, "compressed"),
        ({"content_length": "1000001"}, 413, "above 1 MB"),
        ({"content_length": "-1"}, 413, "above 1 MB"),
    ],
)
def test_heads_that_are_not_let_in(headers: dict[str, str], status: int, reason: str) -> None:
    inner = Inner()
    told = asyncio.run(ask(Guard(inner, Limits(megabytes=1)), GOOD, **headers))
    assert told[0] == status, told
    assert reason in json.loads(told[1])["message"]
    assert inner.bodies == []


def test_hosts_that_are_served() -> None:
    async def ask_all() -> list[int]:
        guard = Guard(Inner(), Limits(hosts=("model.lan",)))
        hosts = ("localhost:80", "LOCALHOST", "[::1]:5001", "10.0.0.7", "model.lan:5001")
        return [(await ask(guard, GOOD, host=host))[0] for host in hosts]

    assert asyncio.run(ask_all()) == [200] * 5


def test_limits_are_read_from_the_environment() -> None:
    given = {
        "WSSS_SERVE_MAX_MB": "5",
        "WSSS_SERVE_MAX_ROWS": "2",
        "WSSS_SERVE_MAX_PIXELS": "9",
        "WSSS_SERVE_HOSTS": "A, b",
    }
    assert read_limits(given) == Limits(5, 2, 9, ("a", "b"))
    assert read_limits({}) == Limits()
    for bad in ("0", "-1", "many", "1e9", "", "9" * 20):
        with pytest.raises(UserError, match="WSSS_SERVE_MAX_MB=.*: give a whole number above 0"):
            read_limits({"WSSS_SERVE_MAX_MB": bad})
