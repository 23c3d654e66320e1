# SPDX-License-Identifier: Apache-2.0
"""``-v``, ``-q`` and ``--log-file``, the same for every command: which messages of the library are shown, and where."""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

PACKAGE = "wsss_ray"
PROGRESS = "wsss_ray.cluster.progress"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show more messages, Ray's own among them.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only, and no progress.")]
LogFile = Annotated[Path | None, typer.Option("--log-file", help="Also append all messages to this file.")]
OPTIONS: dict[str, tuple[Any, Any]] = {
    "verbose": (Verbose, False),
    "quiet": (Quiet, False),
    "log_file": (LogFile, None),
}
"""Parameter -> its type and its default."""


class ConsoleHandler(logging.Handler):
    """Messages on stderr, above a bar where one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        """One message, as it is; warnings in colour on a terminal."""
        from rich.text import Text

        from wsss_ray.cluster.progress import console

        style = "bold yellow" if record.levelno >= logging.WARNING else ""
        console.print(Text(record.getMessage(), style=style), soft_wrap=True)


def add_message_options(app: typer.Typer) -> None:
    """Give every command of ``app``, also in its groups, the options of this module."""
    for command in app.registered_commands:
        if command.callback is not None:
            command.callback = _wrap(command.callback)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            add_message_options(group.typer_instance)


def _wrap(function: Callable[..., Any]) -> Callable[..., Any]:
    """A command that takes the options and runs with the messages they ask for."""
    signature = inspect.signature(function, eval_str=True)

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Any:
        verbose, quiet, log_file = (given.pop(name) for name in OPTIONS)
        with show_messages(verbose, quiet, log_file):
            return function(*args, **given)

    extra = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)
        for name, (kind, default) in OPTIONS.items()
    ]
    parameters = [*signature.parameters.values(), *extra]
    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


@contextlib.contextmanager
def show_messages(verbose: bool, quiet: bool, log_file: Path | None) -> Iterator[None]:
    """Messages on stderr, and all of them in ``log_file``; UserError where both levels are asked for or the file
    cannot be written.
    """
    from wsss_ray.config import UserError

    if verbose and quiet:
        raise UserError("-v and -q: give one of them")
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handlers: list[logging.Handler] = [ConsoleHandler(level)]
    if log_file is not None:
        try:
            handlers.append(logging.FileHandler(log_file, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--log-file {log_file}: {error.strerror}; give a file that can be written") from None
        handlers[-1].setFormatter(logging.Formatter(FORMAT))
    logger, progress = logging.getLogger(PACKAGE), logging.getLogger(PROGRESS)
    before = logger.level, progress.level
    for handler in handlers:
        logger.addHandler(handler)
    # Handlers choose by their own level: the file keeps what the screen does not show.
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if log_file is not None else level)
    progress.setLevel(logging.WARNING if quiet else logging.NOTSET)
    try:
        yield
    except Exception as error:
        if log_file is not None and not isinstance(error, typer.Exit):
            trace = None if isinstance(error, UserError) else sys.exc_info()
            handlers[-1].handle(logger.makeRecord(PACKAGE, logging.ERROR, "", 0, f"wsss: {error}", (), trace))
        raise
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        logger.setLevel(before[0])
        progress.setLevel(before[1])
