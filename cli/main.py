"""``wsss``: the commands, which only name what the library does; heavy imports wait until a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from wsss_ray.cli.compare import compare
from wsss_ray.cli.data import app as data_app
from wsss_ray.cli.predict import predict
from wsss_ray.cli.report import report
from wsss_ray.cli.study import app as study_app
from wsss_ray.cli.submit import submit
from wsss_ray.cli.sweep import sweep

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
weights_app = typer.Typer(no_args_is_help=True, help="Published weights: list, fetch, check.")
app.add_typer(data_app, name="data")
app.add_typer(weights_app, name="weights")
app.add_typer(study_app, name="study")
app.command()(compare)
app.command()(sweep)
app.command()(submit)
app.command()(report)
app.command()(predict)

Out = Annotated[str, typer.Option("--out", help="Folder or URI of artifacts and runs.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", help="Override a field, e.g. train.epochs=2.", metavar="KEY=VALUE")
]
ScaleOption = Annotated[str, typer.Option(help="toy, small or paper: the same recipe at three sizes.")]
ProfileOption = Annotated[str | None, typer.Option(help="paper or released, where they disagree.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster to join ('auto', HOST:PORT); default: a local one.")]
RecipeArgument = Annotated[str, typer.Argument(help="A name of 'wsss list' or a recipe file.", metavar="RECIPE")]


@app.command()
def run(
    recipe: RecipeArgument,
    data: Annotated[str | None, typer.Option(help="Prepared shards; default: generated toy images.")] = None,
    out: Out = "results",
    set_: Sets = None,
    scale: ScaleOption = "toy",
    profile: ProfileOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None,
    address: Address = None,
) -> None:
    """Train, localize, refine, segment, predict and score; finished steps are loaded, not redone."""
    from wsss_ray.studies import resolve

    from wsss_ray.experiments.run import run as walk

    walk(resolve(recipe, scale=scale, profile=profile, data=data, seed=seed, settings=set_ or []), out, address)


@app.command("list")
def list_recipes() -> None:
    """The recipes that come with wsss-ray."""
    from wsss_ray.studies import recipes

    for name, summary in recipes():
        typer.echo(f"{name:<14} {summary}")


@app.command()
def show(recipe: RecipeArgument, set_: Sets = None, scale: ScaleOption = "toy", profile: ProfileOption = None) -> None:
    """Print a recipe, resolved, as YAML that 'wsss run' accepts."""
    from wsss_ray.studies import resolve

    from wsss_ray.recipe import dump

    typer.echo(dump(resolve(recipe, scale=scale, profile=profile, settings=set_ or [])), nl=False)


@app.command()
def ui(out: Out = "results", port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """Open the MLflow server over the runs of --out, on the loopback address."""
    from wsss_ray.tracking import serve

    raise typer.Exit(serve(out, port))


@app.command()
def export(
    run_folder: Annotated[str, typer.Argument(help="Folder of a run (below --out/runs).", metavar="RUN")],
    to: Annotated[Path, typer.Option(help="Folder to write into.")],
    as_: Annotated[
        str, typer.Option("--as", help="png, coco (RLE), polygons (CVAT, Label Studio) or mlflow (the network).")
    ] = "png",
    what: Annotated[str, typer.Option(help="masks (pseudo masks) or predictions.")] = "masks",
    voc_server: Annotated[bool, typer.Option("--voc-server", help="Also pack the VOC server's archive.")] = False,
    tolerance: Annotated[float, typer.Option(help="polygons: pixels a line may be off; 0 follows every edge.")] = 1.0,
    images: Annotated[bool, typer.Option("--images", help="coco, polygons: also write the images.")] = False,
) -> None:
    """Write masks or predictions as palette PNGs or annotations to correct, or the network as a model to serve."""
    from wsss_ray.serve.export import export as write

    typer.echo(write(run_folder, to, what, as_, voc_server, tolerance, images))


@weights_app.command("list")
def list_weights() -> None:
    """Published weights this platform knows."""
    from wsss_ray.nets.weights import WEIGHTS
    from wsss_ray.nets.weights import check as check_file

    for entry in WEIGHTS.values():
        typer.echo(f"{entry.name:<28} {check_file(entry.name).verdict:<11} {entry.filename}")
        typer.echo(f"{'':<28} {', '.join(entry.backbones)}; {entry.source}; licence: {entry.licence}")


@weights_app.command()
def fetch(name: str, folder: Annotated[Path | None, typer.Option(help="Where to keep it.")] = None) -> None:
    """Download published weights (resumable, digest-verified)."""
    from wsss_ray.nets.weights import fetch as fetch_weights

    typer.echo(fetch_weights(name, folder))


@weights_app.command("check")
def check_weights(source: str) -> None:
    """Check a weights file by name or path."""
    from wsss_ray.config import UserError
    from wsss_ray.nets.weights import check as check_file

    state = check_file(source)
    if state.verdict in ("absent", "damaged"):
        raise UserError(state.message)
    typer.echo(state.message)


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
        print("wsss: interrupted; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
