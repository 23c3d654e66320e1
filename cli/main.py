# SPDX-License-Identifier: Apache-2.0
"""``wsss``: the commands; heavy imports wait until one runs."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from wsss_ray.cli.choices import (
    MAX_SEED,
    Address,
    Data,
    Json,
    OptionalProfile,
    OptionalScale,
    Out,
    RecipeName,
    Sets,
    complete_run_folder,
    find_data,
    find_scale,
    say_scale,
)
from wsss_ray.cli.compare import compare
from wsss_ray.cli.data import app as data_app
from wsss_ray.cli.messages import add_message_options
from wsss_ray.cli.output import keep_stdout_clean, print_json, print_parts
from wsss_ray.cli.predict import predict
from wsss_ray.cli.report import report
from wsss_ray.cli.runs import check, clean, doctor, runs
from wsss_ray.cli.study import app as study_app
from wsss_ray.cli.submit import submit
from wsss_ray.cli.sweep import sweep
from wsss_ray.cli.track import app as track_app
from wsss_ray.cli.weights import app as weights_app
from wsss_ray.config import Exported, ExportForm, Scale

INTERRUPTED = 130
REFUSALS = (
    *(errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.EDQUOT, errno.ENXIO),
)
"""What a system answers where a place cannot be used; a file that is merely not there is said where it is needed."""
app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Weakly supervised segmentation from image-level labels, on Ray.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from wsss_ray import __version__

        typer.echo(f"wsss-ray {__version__}")
        raise typer.Exit


@app.callback()
def _begin(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options before a command."""


@app.command()
def run(
    recipe: RecipeName,
    data: Data = None,
    out: Out = "results",
    set_: Sets = None,
    scale: OptionalScale = None,
    profile: OptionalProfile = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.", min=0, max=MAX_SEED)] = None,
    address: Address = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and do nothing.")] = False,
    json: Json = False,
) -> None:
    """Train, localize, refine, segment, predict and score. Finished steps are reused; resumes after interruption."""
    from wsss_ray.experiments.plan import describe_plan, plan_run
    from wsss_ray.experiments.run import RunOptions
    from wsss_ray.experiments.run import run as run_recipe
    from wsss_ray.reports.closing import describe_run
    from wsss_ray.studies import resolve

    with keep_stdout_clean(json):
        chosen = find_scale(scale, recipe, data, profile)
        found = find_data(data, out, address)
        resolved = resolve(recipe, scale=chosen.scale, profile=profile, data=found, seed=seed, settings=set_ or [])
        say_scale(chosen)
        if plan:
            planned = plan_run(resolved, out)
        else:
            finished = run_recipe(resolved, RunOptions(out, address)).open()
    if json:
        print_json(planned if plan else {"run": finished.folder, **finished.record})
    else:
        print_parts(describe_plan(planned) if plan else describe_run(finished))


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """List the recipes and the parts that a recipe can name, with the package of those that a plug-in brings."""
    from wsss_ray import studies
    from wsss_ray.data.saliency import DETECTORS
    from wsss_ray.data.sources import SOURCES
    from wsss_ray.nets import BACKBONES, SEGMENTERS
    from wsss_ray.refine.registry import REFINERS

    listed = studies.list_recipes()
    registries = (REFINERS, SEGMENTERS, BACKBONES, DETECTORS, SOURCES)
    if json:
        print_json({"recipes": listed, **{f"{parts.kind}s": parts.list_names() for parts in registries}})
        return
    width = max(len(recipe.origin) for recipe in listed)
    for recipe in listed:
        typer.echo(f"{recipe.name:<14} {recipe.origin:<{width}}  {recipe.summary}")
    typer.echo()
    for registry in registries:
        typer.echo(f"{registry.kind + 's':<19} {', '.join(registry.list_names())}")


@app.command()
def show(
    recipe: RecipeName,
    set_: Sets = None,
    scale: Annotated[Scale, typer.Option(help="The same recipe at three scales.")] = "toy",
    profile: OptionalProfile = None,
) -> None:
    """Print a resolved recipe as YAML that 'wsss run' accepts."""
    from wsss_ray.recipe import dump
    from wsss_ray.studies import resolve

    typer.echo(dump(resolve(recipe, scale=scale, profile=profile, settings=set_ or [])), nl=False)


@app.command()
def ui(
    out: Out = "results", port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 5000
) -> None:
    """Start the MLflow UI (http://127.0.0.1:PORT) for the runs below --out."""
    from wsss_ray.serve.ui import serve_ui

    raise typer.Exit(serve_ui(out, port))


@app.command()
def export(
    run_folder: Annotated[
        str,
        typer.Argument(help="Folder of a run (results/runs/NAME).", metavar="RUN", autocompletion=complete_run_folder),
    ],
    to: Annotated[Path, typer.Option(help="Folder to write into.")],
    as_: Annotated[
        ExportForm,
        typer.Option(
            "--as", help="PNGs, COCO's RLE, polygons for CVAT and Label Studio, or the network: mlflow, onnx."
        ),
    ] = "png",
    what: Annotated[Exported, typer.Option(help="Pseudo masks, or predictions on val.")] = "masks",
    voc_server: Annotated[
        bool, typer.Option("--voc-server", help="Also write results.tgz for the VOC server.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="polygons: simplification tolerance in pixels (0 = exact).")] = 1.0,
    images: Annotated[bool, typer.Option("--images", help="coco, polygons: also write the images.")] = False,
) -> None:
    """Export masks or predictions as palette PNGs or as annotations to correct, or the network as a model to serve."""
    from wsss_ray.serve.export import ExportOptions, export_run

    typer.echo(export_run(run_folder, to, ExportOptions(what, as_, voc_server, tolerance, images)))


for command in (predict, report, compare, runs, sweep, submit, check, clean, doctor):
    app.command()(command)
app.add_typer(data_app, name="data")
app.add_typer(study_app, name="study")
app.add_typer(weights_app, name="weights")
app.add_typer(track_app, name="track")
add_message_options(app)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2, a signal one line and 130, 143 or 129."""
    from wsss_ray.cli.stops import stop_on_signals

    with stop_on_signals() as stop:
        code = INTERRUPTED
        try:
            code = _call()
        except (KeyboardInterrupt, typer.Abort):  # Typer's versions differ in what they make of ctrl-C
            if stop.number is None:
                print("wsss: interrupted; run the same command to resume", file=sys.stderr)
        finally:
            if stop.number is not None:  # whatever an interruption came out as
                stop.end()
    sys.exit(code)


def _call() -> int:
    """The exit code of the command; what can be said in one line is."""
    from wsss_ray.config import UserError

    try:
        return app(standalone_mode=False, prog_name="wsss") or 0
    except UserError as error:
        _refuse(str(error))
    except Exception as error:
        from wsss_ray import storage

        if hasattr(error, "format_message"):  # Typer's own, whose class has another place in each of its versions
            _refuse_usage(error)
        if storage.is_disk_full(error):
            _refuse(storage.DISK_FULL)
        if isinstance(error, OSError) and error.errno in REFUSALS:
            _refuse(f"{str(error.filename or error)[:300]}: {error.strerror or 'cannot be used'}; give another place")
        raise


def _refuse(message: str) -> NoReturn:
    print(f"wsss: {message}", file=sys.stderr)
    sys.exit(2)


def _refuse_usage(error: Any) -> NoReturn:
    """One line for a wrong argument; the help where there is no argument at all."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(2)
    message = error.format_message().replace("Value error, ", "")
    where = error.ctx.command_path if getattr(error, "ctx", None) else "wsss"
    _refuse(f"{message}{'' if message[-1] in '.?!' else '.'} See '{where} --help'.")


if __name__ == "__main__":
    main()
