# SPDX-License-Identifier: Apache-2.0
"""``wsss submit``: any other command as a job on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

ADDRESS = "http://127.0.0.1:8265"


def submit(
    arguments: Annotated[
        list[str], typer.Argument(help="The command, after --, e.g. wsss submit -- run cam --scale small.")
    ],
    address: Annotated[
        str, typer.Option(help="Dashboard address of the cluster.", envvar="RAY_API_SERVER_ADDRESS")
    ] = ADDRESS,
    folder: Annotated[str, typer.Option(help="Working directory to upload; '' = none.")] = ".",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Further patterns (.gitignore syntax) not to upload.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow the log.")] = False,
) -> None:
    """Run a wsss command as a job on a Ray cluster, follow its log and return its exit code."""
    from wsss_ray.cluster.submit import submit_job

    raise typer.Exit(submit_job(arguments, address, folder, exclude or [], follow=not detach))
