"""Collect evaluated runs into results/tables.json, and print the table that README and docs quote.

    python benchmarks/collect.py RUN...        # run directories that hold an evaluation.json
    python benchmarks/collect.py --markdown    # the table of what results/tables.json holds

A run replaces the entry of the same dataset, recipe, seed and protocol.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from anp_vs.report.tables import COLUMNS, MEASURED_ONLY, cell, published

RESULTS = Path(__file__).resolve().parent.parent / "results" / "tables.json"
ORDER = ("standard", "bp", "at", "at-bnn", "pretrained-at", "admm", "trades", "at-vs", "anp", "anp-vs")


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes two entries the same run."""
    return row["dataset"], row["recipe"], row["seed"], row["protocol"]


def collect(runs: list[Path]) -> None:
    """Add evaluated runs to the results."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for run in runs:
        for file in sorted(set(run.glob("evaluation*.json")) - set(run.glob("evaluation*-images.json"))):
            new = json.loads(file.read_text())
            # Where the data lay on that machine is nobody's business and changes nothing.
            new["recipe_values"]["data_root"] = None
            new["command"] = re.sub(r"--data-root \S+", "--data-root DATA", new["command"])
            rows = [row for row in rows if key(row) != key(new)] + [new]
    rows.sort(key=lambda row: (row["dataset"], row["table"], ORDER.index(row["method"]), row["seed"]))
    RESULTS.write_text(json.dumps(rows, indent=2) + "\n")


def markdown() -> str:
    """Measured rows beside the published ones."""
    rows = json.loads(RESULTS.read_text())
    columns = {**COLUMNS, **MEASURED_ONLY}
    lines = ["| row | " + " | ".join(columns.values()) + " |", "|---" * (1 + len(columns)) + "|"]
    known = {(row["dataset"], row["method"]): row for row in published()}
    for row in rows:
        lines.append(f"| {row['method']} | " + " | ".join(cell(row, column) for column in columns) + " |")
        paper = known.get((row["dataset"], row["method"]))
        if paper is not None and row["dataset"] == "mnist":
            cells = " | ".join(cell(paper, column) for column in columns)
            lines.append(f"| *{row['method']}, published* | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    if asked.runs:
        collect(asked.runs)
    if asked.markdown:
        print(markdown())


if __name__ == "__main__":
    main()
