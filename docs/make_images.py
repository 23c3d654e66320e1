# SPDX-License-Identifier: Apache-2.0
"""The images of the documents, cut from the panel sheets of finished runs.

    python docs/make_images.py results

For each sheet below it takes the newest run of that recipe in RESULTS/runs, picks a few rows, writes the captions above
them and saves docs/images/<name>.png with 256 colours. Run ``wsss run cam`` and ``wsss run ktse`` first.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

IMAGES = Path(__file__).parent / "images"
PAPER, INK = (250, 250, 248), (40, 44, 52)
GAP, BAR = 6, 24
LIMIT = 150_000
"""Bytes of a file at most."""
TRAIN = ("image", "ground truth", "class map", "pseudo mask")
VAL = ("image", "ground truth", "prediction", "prediction + CRF")


@dataclass(frozen=True)
class Figure:
    """One file: which sheet of which recipe, and which of its rows."""

    name: str
    recipe: str
    sheet: str
    captions: tuple[str, ...]
    rows: tuple[int, ...]
    """0-based rows of the sheet; good and bad ones, so that the figure promises no more than the scores."""


FIGURES = (
    Figure("toy_cam_train", "cam", "train", TRAIN, (0, 2, 6, 1)),
    Figure("toy_cam_val", "cam", "val", VAL, (1, 3, 5)),
    Figure("toy_ktse_train", "ktse", "train", TRAIN, (0, 2, 6)),
)


def find_sheet(results: Path, figure: Figure) -> Path:
    """The sheet of the newest run of the figure's recipe."""
    runs = sorted((results / "runs").glob(f"{figure.recipe}-*/run.json"), key=lambda path: path.stat().st_mtime)
    if not runs:
        raise SystemExit(f"{results}/runs: no finished run of {figure.recipe}; run 'wsss run {figure.recipe}' first")
    return runs[-1].parent / "panels" / f"{figure.sheet}.png"


def spans(filled: np.ndarray) -> list[tuple[int, int]]:
    """(n,) bool -> start and end of every stretch of at least 16 true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], filled.astype(np.int8), [0]])))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2) if end - start >= 16]


def find_tiles(sheet: Image.Image) -> list[list[Image.Image]]:
    """The tiles of a panel sheet, row by row: what lies between stripes of plain paper."""
    pixels = np.asarray(sheet.convert("RGB")).astype(int)
    paper = (np.abs(pixels - np.array(PAPER)).max(axis=2) <= 1).astype(float)
    tall = spans(paper.mean(axis=1) < 0.4)
    wide = spans(np.mean([paper[top:bottom].mean(axis=0) for top, bottom in tall], axis=0) < 0.9)
    return [[sheet.crop((left, top, right, bottom)) for left, right in wide] for top, bottom in tall]


def draw_figure(tiles: list[list[Image.Image]], captions: tuple[str, ...]) -> Image.Image:
    """Rows of tiles under one line of captions."""
    width, height = tiles[0][0].size
    size = (GAP + len(captions) * (width + GAP), BAR + len(tiles) * (height + GAP))
    canvas = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, caption in enumerate(captions):
        left = GAP + column * (width + GAP)
        draw.text((left, 4), caption, fill=INK, font=ImageFont.load_default(size=14))
        for row, line in enumerate(tiles):
            canvas.paste(line[column], (left, BAR + row * (height + GAP)))
    return canvas


def save_small(image: Image.Image, path: Path) -> None:
    """Save as PNG with 256 colours, shrunk until it fits ``LIMIT``."""
    while True:
        image.quantize(256, kmeans=10, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LIMIT:
            return
        image = image.resize((image.width * 9 // 10, image.height * 9 // 10), Image.Resampling.LANCZOS)


def main() -> None:
    """Write every figure."""
    parser = argparse.ArgumentParser(description="Cut the images of the documents from the panels of finished runs.")
    parser.add_argument("results", type=Path, help="folder of artifacts and runs: --out of 'wsss run'")
    results = parser.parse_args().results
    IMAGES.mkdir(parents=True, exist_ok=True)
    for figure in FIGURES:
        source = find_sheet(results, figure)
        tiles = find_tiles(Image.open(source))
        if len(tiles[0]) != len(figure.captions):
            raise SystemExit(f"{source}: {len(tiles[0])} columns, not {', '.join(figure.captions)}; correct FIGURES")
        path = IMAGES / f"{figure.name}.png"
        save_small(draw_figure([tiles[row] for row in figure.rows], figure.captions), path)
        print(f"{path}: {path.stat().st_size // 1000} kB, from {source}")


if __name__ == "__main__":
    main()
