# SPDX-License-Identifier: Apache-2.0
"""Texts that come more than once, among any number of them."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

_CODING = "utf-8", "surrogatepass"
"""Names of files may hold bytes that are no text."""

_CACHE_KB = 512
"""Memory of SQLite, for the texts and again for sorting them."""


class Repeats:
    """Takes texts one by one and finds those that came twice; SQLite keeps them in a temporary file, not in memory."""

    def __init__(self) -> None:
        # A database without a name is a file that goes with its connection.
        self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._base.execute("PRAGMA journal_mode = OFF")
        self._base.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        self._base.execute("BEGIN")
        self._base.execute("CREATE TABLE texts (text BLOB)")

    def add(self, text: str) -> None:
        """One more; OSError where the temporary folder is full."""
        with _as_os_error():
            self._base.execute("INSERT INTO texts VALUES (?)", (text.encode(*_CODING),))

    def __iter__(self) -> Iterator[str]:
        """The texts that came more than once, each once, sorted."""
        with _as_os_error():
            found = self._base.execute("SELECT text FROM texts GROUP BY text HAVING count(*) > 1 ORDER BY text")
            for (text,) in found:
                yield text.decode(*_CODING)


@contextmanager
def _as_os_error() -> Iterator[None]:
    """No UserError: that would say that the data is bad, and the shards that are finished would be removed."""
    try:
        yield
    except sqlite3.OperationalError as error:
        kind = errno.ENOSPC if "full" in str(error) else errno.EACCES
        raise OSError(kind, str(error), "temporary folder (TMPDIR, SQLITE_TMPDIR)") from error
