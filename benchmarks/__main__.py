# SPDX-License-Identifier: Apache-2.0
"""Measure claims about speed and memory, both sides of each in one process, in turn.

    python -m benchmarks [--quick] [--only NAME ...] [--out FOLDER] [--docs docs/costs.md]

Prints a table of ratios and writes ``benchmarks.json`` and ``benchmarks.md`` into FOLDER. Exit code 1 where a benchmark
failed; a goal that is not kept is said, and no failure.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.claim import Given
from benchmarks.machine import describe_machine
from benchmarks.registry import CLAIMS, load_claim
from benchmarks.report import count_missed, list_lines, replace_block, write_markdown
from benchmarks.runner import PATIENCE, QUICK_SECONDS, run_inside, run_outside


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds and cases, under ten minutes on two cores")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=CLAIMS, help=f"of: {', '.join(CLAIMS)}")
    parser.add_argument("--out", default="benchmark_results", help="folder of the tables (default: %(default)s)")
    parser.add_argument("--data", help="prepared data or a folder of photographs (JPEG); default: generated images")
    parser.add_argument("--docs", metavar="PAGE", help="also put the table between the marks of this page")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        scratch = Path(given.scratch)
        return run_inside(given.inside, Given(scratch, given.quick, given.data), scratch / f"{given.inside}.json")
    # As an error, so that the process of the claim under way is ended as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    start = time.monotonic()
    names = given.only or [name for name in CLAIMS if load_claim(name).quick or not given.quick]
    scratch = Path(tempfile.mkdtemp(prefix="benchmarks-"))
    until = start + QUICK_SECONDS if given.quick else None
    patience = math.inf if given.only else PATIENCE
    claims, machine = [], describe_machine()
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    out = Path(given.out)
    out.mkdir(parents=True, exist_ok=True)
    try:
        for name in names:
            claims.append(run_outside(name, Given(scratch, given.quick, given.data), until, patience))
            print("\n".join(list_lines(claims[-1])), flush=True)
            if claims[-1]["error"]:
                shutil.copy(scratch / f"{name}.log", out) if (scratch / f"{name}.log").exists() else None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    words = ["python -m benchmarks", "--quick" * given.quick, "--only " * bool(given.only) + " ".join(given.only or ())]
    record = {
        "command": " ".join(filter(None, words)),
        "machine": machine,
        "seconds": time.monotonic() - start,
        "claims": claims,
    }
    (out / "benchmarks.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    (out / "benchmarks.md").write_text(write_markdown(record), encoding="utf-8")
    if given.docs:
        replace_block(Path(given.docs), write_markdown(record))
    missed, failed = count_missed(claims)
    print(f"{record['seconds']:.0f} s; {missed} goals not kept, {failed} benchmarks failed; tables in {out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
