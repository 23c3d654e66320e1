"""``wsss submit``: any other command as a job on a Ray cluster."""

from __future__ import annotations

from typing import Annotated

import typer

ADDRESS = "http://127.0.0.1:8265"


def submit(
    arguments: Annotated[
        list[str], typer.Argument(help="The command after --, for example: -- run cam --scale small.")
    ],
    address: Annotated[str, typer.Option(help="Dashboard of the cluster.", envvar="RAY_API_SERVER_ADDRESS")] = ADDRESS,
    folder: Annotated[str, typer.Option(help="Sent along as the job's working folder; '' sends nothing.")] = ".",
    exclude: Annotated[
        list[str] | None, typer.Option(help="Further patterns (as in .gitignore) that are not sent.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Leave after submitting; print how to follow.")] = False,
) -> None:
    """Run a wsss command as a Ray job, with its log here and its exit code."""
    from wsss_ray.cluster.submit import submit_job

    raise typer.Exit(submit_job(arguments, address, folder, exclude or [], follow=not detach))
