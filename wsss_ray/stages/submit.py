"""``wsss submit``: a command line as a Ray job, its log here, its exit code ours.

Authentication is Ray's: RAY_AUTH_MODE=token with RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wsss_ray.config import UserError

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
    "*.pth",
    "*.pt",
    "*.db",
)
"""What is never sent: data, results and weights lie where the cluster finds them."""
COMMANDS_HERE = ("submit", "ui")
"""Commands that make no sense on a cluster."""


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
    if not keeps_results(arguments):
        raise UserError(
            "the folder a job works in is deleted after it: give --out an absolute path or URI the cluster can write"
        )
    if folder and not Path(folder).is_dir():
        raise UserError(f"--folder {folder}: no such folder")
    client = connect(address)
    environment: dict[str, Any] = {}
    if folder:
        environment = {"working_dir": str(Path(folder).resolve()), "excludes": [*EXCLUDES, *exclude]}
    try:
        job = client.submit_job(
            entrypoint=entrypoint(arguments),
            runtime_env=environment,
            metadata={"wsss": shlex.join(arguments)[:500]},
        )
    except Exception as error:
        raise UserError(f"{address}: the job was not taken ({_first_line(error)})") from error
    print(f"submitted {job} to {address}", flush=True)
    if not follow:
        print(f"follow it: ray job logs --address {address} --follow {job}")
        return 0
    try:
        asyncio.run(_print_log(client, job))
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"stopped {job}; submitting again goes on where it stopped", file=sys.stderr)
        raise
    return exit_code(client, job)


def entrypoint(arguments: Sequence[str]) -> str:
    """The job's shell command: with this Python where the cluster has it too, else with the one it finds first."""
    here = shlex.quote(sys.executable)
    return f"$(command -v {here} || echo python) -m wsss_ray.cli.main {shlex.join(arguments)}"


def keeps_results(arguments: Sequence[str]) -> bool:
    """Whether a command that writes results names a place that outlives its job."""
    if arguments[0] not in ("run", "sweep") and list(arguments[:2]) != ["study", "run"]:
        return True
    given = [value for name, value in zip(arguments, arguments[1:], strict=False) if name == "--out"]
    given += [name.removeprefix("--out=") for name in arguments if name.startswith("--out=")]
    return bool(given) and ("://" in given[-1] or given[-1].startswith(("/", "~")))


def connect(address: str) -> Any:
    """A client of the cluster's job server; UserError with the fix where it does not answer or refuses us."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    if not address.startswith(("http://", "https://")):
        address = f"http://{address}"
    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        given = "the token it was given is not the cluster's" if _has_token() else "no token was given"
        raise UserError(
            f"{address}: the cluster wants a token and {given}; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE "
            "(or RAY_AUTH_TOKEN) to the cluster's token"
        ) from error
    except (ConnectionError, RuntimeError, OSError) as error:
        raise UserError(
            f"{address}: no Ray dashboard answers ({_first_line(error)}); start one with 'ray start --head', "
            "or name it with --address http://HOST:8265"
        ) from error
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
    return client


async def _print_log(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def exit_code(client: Any, job: str) -> int:
    """The exit code of an ended job; 1 where it ended without one, with its reason on stderr."""
    info = client.get_job_info(job)
    if str(info.status) == "SUCCEEDED" or getattr(info.status, "value", "") == "SUCCEEDED":
        return 0
    code = info.driver_exit_code
    if code is None or code == 0:
        print(f"wsss: {job} {info.status}: {info.message or 'no reason given'}", file=sys.stderr)
        return 1
    return int(code) if code > 0 else 128 - int(code)


def _has_token() -> bool:
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return False
    places = (os.environ.get("RAY_AUTH_TOKEN_PATH"), str(Path.home() / ".ray" / "auth_token"))
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or any(place and Path(place).is_file() for place in places)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
