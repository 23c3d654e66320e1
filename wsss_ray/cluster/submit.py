# SPDX-License-Identifier: Apache-2.0
"""``wsss submit``: a command line as a Ray job, its log here, its exit code ours.

Authentication is Ray's: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError

log = logging.getLogger(__name__)
EXCLUDES = (
    ".git",
    ".venv",
    "venv",
    "__pycache__",
    "*.egg-info",
    "/data",
    "/results",
    "/runs",
    "/weights",
    "*.parquet",
    "*.safetensors",
    "!/wsss_ray/nets/*.safetensors",
    "*.pth",
    "*.pt",
    "*.db",
)
"""What is never sent: data, results and weights lie where the cluster finds them; ``!`` keeps the package's own."""
COMMANDS_HERE = ("submit", "ui")
"""Commands that make no sense on a cluster."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
"""States of a job that do not change any more."""
PATIENCE = 300.0
"""Seconds without an answer of the cluster after which a job is no longer followed."""
PAUSE = 2.0
"""Seconds between two tries to hand in or follow a job."""
WARM_UP = 60.0
"""Seconds a cluster may take from its start until it can take jobs."""
AGAIN = "hand in the same command again: it goes on from what is finished"
"""What is said of a job that ended before its time."""
NOT_YET = "No available agent"
"""What Ray answers until then."""


@dataclass(frozen=True)
class Place:
    """The option by which a command says where its results go."""

    option: str
    needed: bool = True
    """Without it results go into the working folder."""
    uri: bool = True
    """Whether a URI or ~ will do, too."""


PLACES = {
    "run": Place("--out"),
    "sweep": Place("--out"),
    "study run": Place("--out"),
    "study report": Place("--to", needed=False),
    "data prepare": Place("--out"),
    "data saliency": Place("--out"),
    "data show": Place("--out", uri=False),
    "export": Place("--to", uri=False),
    "predict": Place("--out"),
    "report": Place("--out"),
    "clean": Place("--out"),
    "weights fetch": Place("--folder", needed=False, uri=False),
}
"""Every command that writes."""


def submit_job(
    arguments: Sequence[str], address: str, folder: str = ".", exclude: Sequence[str] = (), follow: bool = True
) -> int:
    """Submit ``wsss ARGUMENTS``, stream its log, and return its exit code (0 at once without ``follow``).

    ctrl-C stops the job. Raises UserError where the cluster does not answer or refuses the token.
    """
    if not arguments:
        raise UserError("nothing to submit: wsss submit -- run cam --out /shared/results")
    if arguments[0] in COMMANDS_HERE:
        raise UserError(f"wsss {arguments[0]} runs on this machine; submit 'run', 'sweep', 'study' or 'data'")
    refuse_lost_results(arguments)
    if folder and not Path(folder).is_dir():
        raise UserError(f"--folder {folder}: no such folder")
    client = connect(address)
    environment: dict[str, Any] = {}
    if folder:
        environment = {"working_dir": str(Path(folder).resolve()), "excludes": [*EXCLUDES, *exclude]}
    job = hand_in_job(
        client,
        address,
        entrypoint=build_entrypoint(arguments),
        runtime_env=environment,
        metadata={"wsss": shlex.join(arguments)[:500]},
    )
    log.info(f"submitted {job} to {address}")
    if not follow:
        log.info(f"follow it: ray job logs --address {address} --follow {job}")
        return 0
    try:
        return follow_job(client, job, address)
    except KeyboardInterrupt:
        try:
            client.stop_job(job)
            log.info(f"stopped {job}; submit it again to resume")
        except Exception as error:
            log.warning(f"could not stop {job} ({_first_line(error)}); it may still run")
        raise


def hand_in_job(client: Any, address: str, **job: Any) -> str:
    """The name of a job handed in; waits up to WARM_UP seconds for a cluster that has only just started.

    Raises UserError where the cluster does not take it.
    """
    since: float | None = None
    while True:
        try:
            return str(client.submit_job(**job))
        except Exception as error:
            if NOT_YET not in str(error):
                raise UserError(f"{address}: the job was not taken ({_first_line(error)})") from error
            if since is None:
                log.warning(f"{address} takes no jobs yet; trying for up to {WARM_UP:.0f} s")
                since = time.monotonic()
            if time.monotonic() - since > WARM_UP:
                raise UserError(
                    f"{address}: the job was not taken ({_first_line(error)}); another Ray of that machine may hold "
                    "the port of its agent: give 'ray start' a free one by --dashboard-agent-listen-port"
                ) from error
        time.sleep(PAUSE)


def build_entrypoint(arguments: Sequence[str]) -> str:
    """The job's shell command: with this Python where the cluster has it too, else with the one it finds first."""
    here = shlex.quote(sys.executable)
    return f"$(command -v {here} || echo python) -m wsss_ray.cli.main {shlex.join(arguments)}"


def refuse_lost_results(arguments: Sequence[str]) -> None:
    """UserError where a command would write its results into the folder that is deleted with its job."""
    command = next((name for name in (" ".join(arguments[:2]), arguments[0]) if name in PLACES), None)
    if command is None or "--help" in arguments:
        return
    place = PLACES[command]
    given = [value for name, value in zip(arguments, arguments[1:], strict=False) if name == place.option]
    given += [name.removeprefix(f"{place.option}=") for name in arguments if name.startswith(f"{place.option}=")]
    if not given and not place.needed:
        return
    last = given[-1] if given else ""
    if not (last.startswith("/") or (place.uri and ("://" in last or last.startswith("~")))):
        kind = "an absolute path or URI" if place.uri else "an absolute path"
        raise UserError(
            f"the folder a job works in is deleted after it: give 'wsss {command}' {place.option} with {kind} the "
            "cluster can write"
        )


def connect(address: str) -> Any:
    """A client of the cluster's job server; UserError with the fix where it does not answer or refuses us."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        address = f"http://{address}"
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        given = "the token it was given is not the cluster's" if sends_token() else "no token was given"
        raise UserError(
            f"{address}: the cluster wants a token and {given}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
            "(or RAY_AUTH_TOKEN, or ~/.ray/auth_token) to the cluster's token"
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"{address}: no Ray dashboard answers ({_first_line(error)}); start one with 'ray start --head', "
            "or name it with --address http://HOST:8265"
        ) from error
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    return client


def follow_job(client: Any, job: str, address: str) -> int:
    """Print a job's log until the job has ended, through lost connections, and return its exit code.

    Raises UserError where the cluster does not answer for PATIENCE seconds, or does not know the job any more.
    """
    shown = _Log(client, job)
    silent_since: float | None = None
    while True:
        lost: BaseException | None = None
        try:
            asyncio.run(shown.show())
        except Exception as error:  # Ray and aiohttp raise plain and own exceptions for a broken connection
            lost = error
        try:
            info = client.get_job_info(job)
        except Exception as error:
            if "does not exist" in str(error):
                raise UserError(
                    f"{address}: the cluster does not know {job} any more: was it restarted? Then {AGAIN}"
                ) from error
            if silent_since is None:
                silent_since = time.monotonic()
                log.warning(f"{address}: no answer; trying for up to {PATIENCE:.0f} s")
            if time.monotonic() - silent_since > PATIENCE:
                raise UserError(
                    f"{address}: no answer for {PATIENCE:.0f} s ({_first_line(error)}); {job} may go on: "
                    f"ray job logs --address {address} --follow {job}; where its head is gone, {AGAIN} when it is back"
                ) from error
        else:
            silent_since = None
            if str(info.status) in ENDED:
                if lost is not None:
                    with contextlib.suppress(Exception):
                        asyncio.run(shown.show())
                return read_exit_code(info, job)
        time.sleep(PAUSE)


class _Log:
    """A job's log, of which every character is shown once: the cluster sends it from its start to each listener."""

    def __init__(self, client: Any, job: str) -> None:
        self.client, self.job, self.shown = client, job, 0

    async def show(self) -> None:
        """Print what was not shown yet, until the connection closes."""
        place = 0
        async for text in self.client.tail_job_logs(self.job):
            new = text[max(0, self.shown - place) :]
            place += len(text)
            self.shown = max(self.shown, place)
            sys.stdout.write(new)
            sys.stdout.flush()


def read_exit_code(info: Any, job: str) -> int:
    """The exit code of an ended job, by the shell's rule for signals; 1 where it ended without one.

    Where no command of ours has said why it ended, a line on stderr does.
    """
    if str(info.status) == "SUCCEEDED":
        return 0
    stopped = str(info.status) == "STOPPED"
    code = info.driver_exit_code or (128 + signal.SIGTERM if stopped else 1)
    code = int(code) if code > 0 else 128 - int(code)
    if stopped:
        log.error(f"{job} was stopped; {AGAIN}")
    elif code > 128:
        log.error(f"{job} was ended by {_name_signal(code - 128)}; {AGAIN}")
    elif not info.driver_exit_code:
        log.error(f"{job} {info.status}: {_first_line(RuntimeError(info.message or 'no reason given'))}; {AGAIN}")
    return code


def _name_signal(number: int) -> str:
    known = {one.value: one.name for one in signal.Signals}
    return known.get(number, f"signal {number}")


def sends_token() -> bool:
    """Whether Ray is told to send a token and finds one."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return False
    places = (os.environ.get("RAY_AUTH_TOKEN_PATH"), str(Path.home() / ".ray" / "auth_token"))
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or any(place and Path(place).is_file() for place in places)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # A server's error comes with its traceback, which says in its last line what went wrong.
    return lines[-1 if lines[0].endswith("Traceback (most recent call last):") else 0][:200]
