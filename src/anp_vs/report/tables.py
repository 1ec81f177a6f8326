"""Measured rows beside the published ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from anp_vs import recipes
from anp_vs.terminal import OutputConsole

COLUMNS = {
    "clean_accuracy": "clean", "white_box_accuracy": "white-box", "black_box_accuracy": "black-box",
    "white_box_vulnerability": "V white", "black_box_vulnerability": "V black", "memory_percent": "memory %",
    "flops_reduction": "FLOPs x", "sparsity_percent": "sparsity",
}  # fmt: skip
"""The columns of the published tables and their headings."""
PAPER_NAMES = {"vgg16-standardised": "vgg16"}
"""What the published tables call a network."""
MEASURED_ONLY = {"white_box_accuracy_strongest": "strongest PGD", "autoattack_accuracy": "AutoAttack"}
DIGITS = {"white_box_vulnerability": 3, "black_box_vulnerability": 3}


def published() -> list[dict[str, Any]]:
    """The published rows: dataset, network, method and the columns, as numbers."""
    text = (resources.files("anp_vs.report") / "published.csv").read_text(encoding="utf-8")
    words = ("dataset", "network", "method")
    return [{k: v if k in words else float(v) for k, v in line.items()} for line in csv.DictReader(text.splitlines())]


def comparable(row: Mapping[str, Any]) -> bool:
    """Whether a measured row was trained and attacked as the published ones of its data set were."""
    trained = (row.get("recipe_values") or {}).get("protocol", "pixel-space")
    return bool(row["dataset"] == "mnist" or trained == row.get("protocol") == "released-code")


def attacked_as_published(dataset: str, conditions: Mapping[str, Any]) -> bool:
    """Whether eps, step and steps are those of the published rows of a data set."""
    attack = recipes.RECIPES[f"{dataset}/at"].test_attack
    return tuple(conditions.get(name) for name in ("eps", "step", "steps")) == (attack.eps, attack.step, attack.steps)


def cell(row: Mapping[str, Any], column: str) -> str:
    """One figure as text, with its spread where there is one; a dash where nothing was measured."""
    value, spread = row.get(column), row.get(f"{column}_spread")
    if value is None:
        return "-"
    digits = DIGITS.get(column, 2)
    return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def beside_published(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A table of measured rows, each followed by the published row of its name where there is one."""
    columns = {**COLUMNS, **MEASURED_ONLY}
    table = Table("row", *columns.values(), box=None, pad_edge=False)
    known = {(row["dataset"], row["network"], row["method"]): row for row in published()}
    for row in rows:
        label = row["row"] + (f" ({row['images']} images)" if row.get("images") not in (None, 10_000) else "")
        table.add_row(label, *(cell(row, column) for column in columns))
        network = PAPER_NAMES.get(row["network"], row["network"])
        paper = known.get((row["dataset"], network, row["row"]))
        if paper and comparable(row) and attacked_as_published(row["dataset"], row):
            table.add_row("  published", *(cell(paper, column) for column in columns), style="dim")
    return table


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print measured rows beside the published ones; wide when the output is a file or a pipe."""
    _print(beside_published(rows), 160)


def show_blocks(runs: Sequence[Path]) -> None:
    """Print the tables of evaluated runs: mean and spread over seeds, each row before the published one."""
    from anp_vs.report.rows import blocks
    from anp_vs.report.runs import read_runs

    columns = {**COLUMNS, **MEASURED_ONLY}
    for block in blocks(read_runs(runs)):
        title = f"{block.table} ({block.conditions['protocol']})"
        table = Table(title, "runs", "epochs", *columns.values(), box=None, pad_edge=False)
        for line in (*block.lines, *block.elsewhere):
            cells = (line.cells.get(column) for column in columns)
            texts = [
                " ".join(filter(None, (c.text, c.spread_text))) if c and c.value is not None else "-" for c in cells
            ]
            name = line.name if line.measured else f"  {line.name}, published"
            style = "" if line.measured else "dim"
            table.add_row(name, str(line.runs), line.epochs, *texts, style=style, end_section=line is block.lines[-1])
        _print(table, 200)
        if block.elsewhere:
            OutputConsole().print(f"The published rows do not compare with these: {block.reason}.\n", highlight=False)


def _print(table: Table, wide: int) -> None:
    """Print a table: as wide as the terminal, so many characters in a file or a pipe."""
    console = OutputConsole()
    OutputConsole(width=console.width if console.is_terminal else wide).print(table)
