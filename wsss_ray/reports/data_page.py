"""One page that shows prepared data before anybody trains on it: counts, classes, notes, and a sheet of images."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from PIL import Image

from wsss_ray import storage
from wsss_ray.config import UserError
from wsss_ray.data.image import IGNORE, decode_image, decode_mask
from wsss_ray.data.manifest import DataSet, open_data
from wsss_ray.data.shards import read_shard

_SIDE = 260
"""Long side of the images on the sheet."""
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:1180px;padding:0 1rem;color:#222}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}code{overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}
.note{background:#fff6dd;border-left:4px solid #d9a400;padding:.3rem .8rem;
margin:.3rem 0;overflow-wrap:anywhere}
.sheet{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(270px,1fr))}
figure{margin:0}img{max-width:100%;image-rendering:auto}figcaption{font-size:.85rem;overflow-wrap:anywhere}
.key{display:inline-block;width:.8em;height:.8em;margin-right:.4em;border:1px solid #888}
</style></head><body>
<h1>{{ title }}</h1>
<p>{{ manifest.num_images }} images, {{ manifest.classes|length }} classes, source <code>{{ manifest.source }}</code>,
<code>{{ uri }}</code></p>
<h2>Notes</h2>
{% for note in notes %}<p class="note">{{ note }}</p>{% else %}<p>None.</p>{% endfor %}
<h2>Splits</h2>
<table><tr><th>split</th><th>images</th><th>with mask</th><th>with saliency</th></tr>
{% for split in splits %}<tr><td>{{ split.name }}</td><td>{{ split.images }}</td><td>{{ split.masks }}</td>
<td>{{ split.saliency }}</td></tr>{% endfor %}</table>
<h2>Classes</h2>
<table><tr><th>class</th><th>index</th>{% for split in splits %}<th>{{ split.name }}</th>{% endfor %}</tr>
{% for one in classes %}<tr><td><span class="key" style="background:{{ one.colour }}"></span>{{ one.name }}</td>
<td>{{ loop.index }}</td>{% for count in one.counts %}<td>{{ count }}</td>{% endfor %}</tr>{% endfor %}</table>
<h2>Images</h2>
<p>{{ images|length }} of {{ manifest.num_images }}, each with its labels and its mask laid over it.</p>
<div class="sheet">{% for image in images %}<figure><img src="{{ image.data }}" alt="{{ image.name }}">
<figcaption><b>{{ image.name }}</b> ({{ image.splits }})<br>labels: {{ image.labels }}<br>mask: {{ image.mask }}
</figcaption></figure>{% endfor %}</div>
<h2>Choices</h2><pre>{{ options }}</pre>
</body></html>
"""


@dataclass
class _Seen:
    """What a pass over the shards gathers."""

    labels: dict[str, Counter[int]] = field(default_factory=dict)
    """Split -> class -> images."""
    masks: Counter[str] = field(default_factory=Counter)
    saliency: Counter[str] = field(default_factory=Counter)
    images: list[dict[str, Any]] = field(default_factory=list)


def write_data_page(uri: str, out: Path, num_images: int = 24) -> str:
    """Write the page of prepared data; says where. UserError where there is no data."""
    data = open_data(uri)
    seen = _gather(data, num_images)
    text = render_data_page(data, seen)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(str(out), text.encode())
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); choose another --out") from error
    return f"{data.manifest.num_images} images, {len(data.notes)} notes: {out}"


def render_data_page(data: DataSet, seen: _Seen) -> str:
    """The page as HTML; every text of the data is escaped."""
    manifest = data.manifest
    splits = [
        {"name": name, "images": info.num_images, "masks": seen.masks[name], "saliency": seen.saliency[name]}
        for name, info in manifest.splits.items()
    ]
    classes = [
        {
            "name": name,
            "colour": "rgb({},{},{})".format(*manifest.palette[index]),
            "counts": [seen.labels.get(split, Counter())[index - 1] for split in manifest.splits],
        }
        for index, name in enumerate(manifest.classes, start=1)
    ]
    template = Environment(autoescape=True).from_string(_PAGE)
    return template.render(
        title=f"Data: {data.uri.rstrip('/').rpartition('/')[2]}",
        uri=data.uri,
        manifest=manifest,
        notes=data.notes,
        splits=splits,
        classes=classes,
        images=seen.images,
        options="\n".join(f"{key}: {value}" for key, value in manifest.options.items()),
    )


def _gather(data: DataSet, num_images: int) -> _Seen:
    """Counts over all shards, and images from all of them in turn."""
    seen = _Seen()
    shards = data.manifest.shards
    per_shard = -(-num_images // max(1, len(shards)))
    for shard in shards:
        rows = read_shard(data.uri, shard)
        for split in shard.splits:
            counts = seen.labels.setdefault(split, Counter())
            for row in rows:
                counts.update(row["labels"] or ())
            seen.masks[split] += shard.num_masks
            seen.saliency[split] += shard.num_saliency
        places = np.linspace(0, len(rows) - 1, min(per_shard, len(rows))).astype(int) if rows else np.array([], int)
        for place in dict.fromkeys(places.tolist()):
            if len(seen.images) < num_images:
                seen.images.append(_describe_image(rows[place], data, shard.splits))
    return seen


def _describe_image(row: dict[str, Any], data: DataSet, splits: tuple[str, ...]) -> dict[str, Any]:
    names = data.labels
    pixels = decode_image(row["image"], row["image_id"])
    mask = None if row["mask"] is None else decode_mask(row["mask"], row["image_id"])
    found = [] if mask is None else np.unique(mask).tolist()
    said = ["ignored" if value == IGNORE else names[value] for value in found if value]
    labels = None if row["labels"] is None else [data.manifest.classes[label] for label in row["labels"]]
    return {
        "name": row["image_id"],
        "splits": ", ".join(splits),
        "labels": "unknown" if labels is None else ", ".join(labels) or "none",
        "mask": "none" if mask is None else ", ".join(said) or "background alone",
        "data": _draw(pixels, mask, np.array(data.manifest.palette, np.uint8)),
    }


def _draw(pixels: np.ndarray, mask: np.ndarray | None, palette: np.ndarray) -> str:
    """A small JPEG as a data URI, the mask's colours over the image."""
    if mask is not None:
        colours = palette[np.minimum(mask, len(palette) - 1)].astype(np.float32)
        over = (mask != 0)[..., None]
        pixels = np.where(over, 0.45 * pixels + 0.55 * colours, pixels).astype(np.uint8)
    image = Image.fromarray(pixels)
    image.thumbnail((_SIDE, _SIDE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
