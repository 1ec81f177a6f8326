"""Collect evaluated runs into results/tables.json, and print the table that README and docs quote.

    python benchmarks/collect.py RUN...        # run directories that hold an evaluation.json
    python benchmarks/collect.py --markdown mnist    # the table of what results/tables.json holds of a data set
    python benchmarks/collect.py RUN... --results results/autoattack.json    # into another file

A run replaces the entry of the same dataset, recipe, seed and protocol. In the table a row of several seeds is their mean
and standard deviation; rows of other conditions (protocol, attack, number of images) stand alone.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from anp_vs.report.rows import CONDITIONS
from anp_vs.report.tables import COLUMNS, MEASURED_ONLY, cell, comparable, published

RESULTS = Path(__file__).resolve().parent.parent / "results" / "tables.json"
ORDER = ("standard", "bp", "at", "at-bnn", "pretrained-at", "admm", "trades", "at-vs", "anp", "anp-vs")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two entries the same run."""
    return row["dataset"], row["recipe"], row["row"], row["seed"], row["protocol"]


def collect(runs: list[Path], results: Path) -> None:
    """Add evaluated runs to the results."""
    rows = json.loads(results.read_text()) if results.exists() else []
    for run in runs:
        for file in sorted(set(run.glob("evaluation*.json")) - set(run.glob("evaluation*-images.json"))):
            new = json.loads(file.read_text())
            # Where the data lay on that machine is nobody's business and changes nothing.
            new["command"] = re.sub(r"--data-root \S+", "--data-root DATA", new["command"])
            new["recipe_values"] = without_places(new["recipe_values"])
            rows = [row for row in rows if key(row) != key(new)] + [new]
    rows.sort(
        key=lambda row: (
            row["dataset"],
            _beyond(row),
            row["table"],
            [*ORDER, row["row"]].index(row["row"]),
            row["row"],
            row["protocol"],
            row["images"],
            row["seed"],
        )
    )
    results.write_text(json.dumps(rows, indent=2) + "\n")


def _beyond(row: dict[str, Any]) -> bool:
    """Whether the recipe goes beyond the paper's; such rows come last and beside no published one."""
    return str(row["table"]).endswith("-best")


def without_places(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values without the folders of the machine it ran on."""
    near = {name: Path(recipe[name]).name for name in ("generated",) if recipe.get(name)}
    runs = {n: "/".join(Path(recipe[n]).parts[-4:]) for n in ("start", "teacher", "black_box") if recipe.get(n)}
    return recipe | near | runs | {"data_root": None}


def over_seeds(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of the means and standard deviations of several; a column that one lacks is left out."""
    merged = dict(rows[0])
    for column in (*COLUMNS, *MEASURED_ONLY):
        values = [row.get(column) for row in rows]
        known = [value for value in values if value is not None]
        merged[column] = fmean(known) if len(known) == len(values) else None
        if len(rows) > 1 and merged[column] is not None:
            merged[f"{column}_spread"] = stdev(known)
    return merged


def markdown(results: Path, dataset: str) -> str:
    """Measured rows of a data set beside the published ones."""
    rows = [row for row in json.loads(results.read_text()) if row["dataset"] == dataset]
    together = ("table", "row", *CONDITIONS)
    groups = [list(g) for _, g in groupby(rows, lambda row: tuple(row.get(name) for name in together))]
    merged = [over_seeds(seeds) for seeds in groups]
    columns = {**COLUMNS, **{c: name for c, name in MEASURED_ONLY.items() if any(row[c] is not None for row in merged)}}
    lines = ["| row | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    known = {(row["dataset"], row["method"]): row for row in published()}
    for seeds, row in zip(groups, merged, strict=True):
        label = row["row"] + (", best" if _beyond(row) else "")
        label += f", {len(seeds)} seeds" if len(seeds) > 1 else ""
        label += f", {row['images']:,} images" if row["images"] != 10_000 else ""
        label += f", AutoAttack on {row['autoattack_images']:,}" if row.get("autoattack_accuracy") is not None else ""
        label += f", {row['protocol']}" if row["protocol"] != "pixel-space" else ""
        lines.append(f"| {label} | " + " | ".join(cell(row, column) for column in columns) + " |")
        paper = known.get((dataset, row["row"]))
        if paper is not None and comparable(row) and not _beyond(row):
            cells = " | ".join(cell(paper, column) for column in columns)
            lines.append(f"| *{row['row']}, published* | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--markdown", metavar="DATASET")
    parser.add_argument("--results", type=Path, default=RESULTS)
    asked = parser.parse_args()
    if asked.runs:
        collect(asked.runs, asked.results)
    if asked.markdown:
        print(markdown(asked.results, asked.markdown))


if __name__ == "__main__":
    main()
