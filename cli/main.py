"""``wsss``: the commands; heavy imports wait until one runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from wsss_ray.cli.choices import (
    Json,
    Out,
    complete_recipe,
    complete_setting,
    find_data,
    find_scale,
    keep_stdout_clean,
    print_json,
)
from wsss_ray.cli.compare import compare
from wsss_ray.cli.data import app as data_app
from wsss_ray.cli.predict import predict
from wsss_ray.cli.report import report
from wsss_ray.cli.runs import check, clean, doctor, runs
from wsss_ray.cli.study import app as study_app
from wsss_ray.cli.submit import submit
from wsss_ray.cli.sweep import sweep
from wsss_ray.cli.weights import app as weights_app

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Weakly supervised segmentation from image-level labels, on Ray.",
)
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
app.add_typer(study_app, name="study")
app.command()(compare)
app.command()(sweep)
app.command()(submit)
app.command()(report)
app.command()(predict)
app.command()(runs)
app.command()(clean)
app.command()(check)
app.command()(doctor)

Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a field, e.g. train.epochs=2.", metavar="KEY=VALUE", autocompletion=complete_setting
    ),
]
ScaleOption = Annotated[str, typer.Option(help="toy, small or paper: the same recipe at three scales.")]
OptionalScale = Annotated[
    str | None, typer.Option(help="toy, small or paper; default: toy for synthetic images, else what fits the machine.")
]
ProfileOption = Annotated[
    str | None, typer.Option(help="paper or released: follow the paper or the authors' code where they differ.")
]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join ('auto', HOST:PORT); default: a local one.")]
RecipeArgument = Annotated[
    str,
    typer.Argument(help="A name from 'wsss list' or a recipe file.", metavar="RECIPE", autocompletion=complete_recipe),
]


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
    recipe: RecipeArgument,
    data: Annotated[
        str | None,
        typer.Option(help="Folder of images, VOC devkit, COCO export or prepared shards; default: synthetic images."),
    ] = None,
    out: Out = "results",
    set_: Sets = None,
    scale: OptionalScale = None,
    profile: ProfileOption = None,
    seed: Annotated[int | None, typer.Option(help="Random seed.")] = None,
    address: Address = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and do nothing.")] = False,
    json: Json = False,
) -> None:
    """Train, localize, refine, segment, predict and score. Finished steps are reused; resumes after interruption."""
    from wsss_ray.experiments.run import RunOptions
    from wsss_ray.experiments.run import run as run_recipe
    from wsss_ray.reports.closing import print_closing_table
    from wsss_ray.studies import resolve

    with keep_stdout_clean(json):
        scale = find_scale(scale, recipe, data, profile)
        found = find_data(data, out, address)
        resolved = resolve(recipe, scale=scale, profile=profile, data=found, seed=seed, settings=set_ or [])
        if plan:
            from wsss_ray.experiments.plan import plan_run, print_plan

            planned = plan_run(resolved, out)
            print_plan(planned)
        else:
            finished = run_recipe(resolved, RunOptions(out, address)).open()
            print_closing_table(finished)
    if json:
        print_json(planned if plan else {"run": finished.folder, **finished.record})


@app.command("list")
def list_recipes(json: Json = False) -> None:
    """List the recipes and the parts that a recipe can name, with the package of those that a plug-in brings."""
    from wsss_ray import studies
    from wsss_ray.data.saliency import DETECTORS
    from wsss_ray.data.sources import SOURCES
    from wsss_ray.nets import BACKBONES
    from wsss_ray.nets.deeplab import SEGMENTERS
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
def show(recipe: RecipeArgument, set_: Sets = None, scale: ScaleOption = "toy", profile: ProfileOption = None) -> None:
    """Print a resolved recipe as YAML that 'wsss run' accepts."""
    from wsss_ray.recipe import dump
    from wsss_ray.studies import resolve

    typer.echo(dump(resolve(recipe, scale=scale, profile=profile, settings=set_ or [])), nl=False)


@app.command()
def ui(out: Out = "results", port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Start the MLflow UI (http://127.0.0.1:PORT) for the runs below --out."""
    from wsss_ray.tracking import serve_ui

    raise typer.Exit(serve_ui(out, port))


@app.command()
def export(
    run_folder: Annotated[str, typer.Argument(help="Folder of a run (below --out/runs).", metavar="RUN")],
    to: Annotated[Path, typer.Option(help="Folder to write into.")],
    as_: Annotated[
        str, typer.Option("--as", help="png, coco (RLE), polygons (CVAT, Label Studio) or mlflow (the network).")
    ] = "png",
    what: Annotated[str, typer.Option(help="masks (pseudo masks) or predictions.")] = "masks",
    voc_server: Annotated[
        bool, typer.Option("--voc-server", help="Also write results.tgz for the VOC server.")
    ] = False,
    tolerance: Annotated[float, typer.Option(help="polygons: simplification tolerance in pixels (0 = exact).")] = 1.0,
    images: Annotated[bool, typer.Option("--images", help="coco, polygons: also write the images.")] = False,
) -> None:
    """Export masks or predictions as palette PNGs or as annotations to correct, or the network as a model to serve."""
    from wsss_ray.serve.export import ExportOptions, export_run

    typer.echo(export_run(run_folder, to, ExportOptions(what, as_, voc_server, tolerance, images)))  # type: ignore[arg-type]


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    from wsss_ray.config import UserError

    try:
        app()
    except UserError as error:
        print(f"wsss: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from wsss_ray import storage

        if not storage.is_disk_full(error):
            raise
        print(f"wsss: {storage.DISK_FULL}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("wsss: interrupted; run the same command to resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
