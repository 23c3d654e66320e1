# SPDX-License-Identifier: Apache-2.0
"""The GPU kit's results as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = (
    "network",
    "batch x crop",
    "steps/s",
    "images/s",
    "of a bare loop",
    "waiting",
    "memory, MB",
    "maps, images/s (of bare)",
    "masks, images/s (of bare)",
    "fp32 against CPU",
)


def write_table(record: Mapping[str, Any]) -> str:
    """One line for every network."""
    facts = ", ".join(f"{name} {value}" for name, value in record["machine"].items())
    text = [f"{facts}; {record['images']}; {record['seconds'] / 60:.1f} minutes.", ""]
    text += [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    text += [f"| {' | '.join(_list_cells(case))} |" for case in record["cases"]]
    return "\n".join(text) + "\n"


def _list_cells(case: Mapping[str, Any]) -> list[str]:
    if "error" in case:
        return [case["name"], case["error"], *[""] * (len(HEAD) - 2)]
    train, parity = case["train"], case["parity"]
    if "error" in train:
        first = [train["error"].replace("|", "/"), *[""] * 5]
    else:
        first = [
            f"{train['batch']} x {train['crop']}",
            f"{train['steps_per_second']:.2f}",
            f"{train['images_per_second']:.1f}",
            f"{100 / train['ratio']:.0f} %",
            f"{100 * train['waiting']:.0f} %",
            f"{train['memory_mb']:.0f}",
        ]
    same = parity.get("error") or f"{100 * parity['equal_labels']:.2f} % of labels, {parity['largest_difference']:.0e}"
    return [
        f"{case['name']} ({case['backbone']})",
        *first,
        _name_speed(case, "localize"),
        _name_speed(case, "predict"),
        same,
    ]


def _name_speed(case: Mapping[str, Any], part: str) -> str:
    if part not in case:
        return ""
    found = case[part]
    if "error" in found:
        return str(found["error"]).replace("|", "/")
    return f"{found['images_per_second']:.2f} ({100 / found['ratio']:.0f} %)"
