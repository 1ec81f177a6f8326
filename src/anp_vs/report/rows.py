"""Rows of the tables: runs that differ in their seed alone become one, with mean and spread, beside the published."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from statistics import fmean, stdev
from typing import Any

from anp_vs import recipes
from anp_vs.methods import METHODS
from anp_vs.report.runs import RunRecord
from anp_vs.report.tables import PAPER_NAMES, attacked_as_published, comparable, published

BETTER = {
    "clean_accuracy": 1, "white_box_accuracy": 1, "white_box_accuracy_strongest": 1, "autoattack_accuracy": 1,
    "black_box_accuracy": 1, "white_box_vulnerability": -1, "black_box_vulnerability": -1, "memory_percent": -1,
    "flops_reduction": 1, "sparsity_percent": 1, "parameters": -1, "macs": -1,
}  # fmt: skip
"""Every column of a report's tables, and whether more (1) or less (-1) of it is better."""
DECIMALS = {"white_box_vulnerability": 3, "black_box_vulnerability": 3, "parameters": 0, "macs": 0}
CONDITIONS = ("protocol", "norm", "eps", "step", "steps", "restarts", "images", "reduction")
"""What must be the same for two evaluations to stand in one table."""
PAPER_RUNS, PAPER_EPOCHS = 5, "200"
"""Behind every published row: runs averaged, and epochs of training (Madaan, Shin, Hwang, ICML 2020, section 5)."""


@dataclass
class Cell:
    """One figure of a row.

    Attributes:
        value: the mean, None where nothing was measured.
        spread: standard deviation, None for a single figure.
        note: said beneath it.
        best: whether it is the best of its column.
        decimals: printed.
    """

    value: float | None
    spread: float | None = None
    note: str = ""
    best: bool = False
    decimals: int = 2

    @property
    def text(self) -> str:
        """The mean as it is printed, or that there is none."""
        return "not measured" if self.value is None else f"{self.value:,.{self.decimals}f}"

    @property
    def spread_text(self) -> str:
        """The spread as it is printed; nothing for a single figure."""
        return "" if self.spread is None else f"± {self.spread:,.{self.decimals}f}"


@dataclass
class Line:
    """One row of a table: a published one, or the measured ones of all seeds.

    Attributes:
        name: of the recipe's row, or of the published method.
        measured: whether it was measured here.
        runs: how many were averaged.
        epochs: of training, those of the networks it started from first: 5 + 6.
        seeds: of the runs; not known of a published row.
        detail: what differs from the built-in recipe.
        cells: column -> figure.
        suspicious: whether gradients of one of its runs seem to be masked; None where that was not looked for.
    """

    name: str
    measured: bool
    cells: dict[str, Cell]
    runs: int
    epochs: str
    seeds: tuple[int, ...] = ()
    detail: str = ""
    suspicious: bool | None = None


@dataclass
class Block:
    """One table: rows of one data set, network and recipe table, under the same attack on the same images.

    Attributes:
        dataset, network, table: what it is about.
        conditions: the values of `CONDITIONS`.
        lines: measured ones in the order of the recipes, each followed by the published one it compares with.
        elsewhere: published rows that do not compare with these: shown apart, by the first table of a report,
        reason: and why.
        absent: published methods without a measured row.
    """

    dataset: str
    network: str
    table: str
    conditions: dict[str, Any]
    lines: list[Line] = field(default_factory=list)
    elsewhere: list[Line] = field(default_factory=list)
    reason: str = ""
    absent: list[str] = field(default_factory=list)


def blocks(runs: Sequence[RunRecord]) -> list[Block]:
    """All tables of a report."""
    tables: dict[str, tuple[Block, list[tuple[RunRecord, Mapping[str, Any]]]]] = {}
    for run in runs:
        for row in run.evaluations:
            conditions = {name: row.get(name) for name in CONDITIONS}
            block = Block(row["dataset"], row["network"], str(row.get("table", "")), conditions)
            key = json.dumps([block.dataset, block.network, block.table, conditions], sort_keys=True)
            tables.setdefault(key, (block, []))[1].append((run, row))
    for block, members in tables.values():
        _fill(block, members)
    found = [block for block, _ in tables.values()]
    _show_once(found)
    return found


def _show_once(found: Sequence[Block]) -> None:
    """Let published rows that stand apart, and what is missing of them, stand at the first table of their network alone."""
    measured = {(block.dataset, block.network, line.name) for block in found for line in block.lines if line.measured}
    seen: set[tuple[str, str, str]] = set()
    for block in found:
        if not block.reason:
            continue
        if (apart := (block.dataset, block.network, block.reason)) in seen:
            block.elsewhere, block.absent = [], []
        block.absent = [name for name in block.absent if (block.dataset, block.network, name) not in measured]
        seen.add(apart)


def _fill(block: Block, members: Sequence[tuple[RunRecord, Mapping[str, Any]]]) -> None:
    groups: dict[str, list[tuple[RunRecord, Mapping[str, Any]]]] = {}
    for run, row in members:
        groups.setdefault(json.dumps(_configuration(row["recipe_values"]), sort_keys=True), []).append((run, row))
    lines = [_line(group) for group in groups.values()]
    paper = [
        row
        for row in published()
        if (row["dataset"], row["network"]) == (block.dataset, PAPER_NAMES.get(block.network, block.network))
    ]
    rows = {row["method"]: _published_line(row) for row in paper}
    names = [line.name for line in lines]
    block.absent = [name for name in rows if name not in names]
    block.reason = _why_apart(block, all(comparable(row) for _, row in members)) if rows else ""
    _mark_best(lines)
    _mark_best(list(rows.values()))
    if block.reason:
        block.lines, block.elsewhere = lines, list(rows.values())
        return
    for place, line in enumerate(lines):
        block.lines.append(line)
        if line.name in rows and line.name not in names[:place]:
            block.lines.append(rows[line.name])
    block.lines += [rows[name] for name in block.absent]


def _configuration(values: Mapping[str, Any]) -> dict[str, Any]:
    """What tells two rows apart: all of the recipe but the seed, where files lie, and what computes the same faster."""
    own = [name for name in ("start", "teacher", "generated") if values.get(name) not in (None, *recipes.RECIPES)]
    same = ("seed", "data_root", "source", "black_box", *recipes.MEASURED)
    kept = {name: value for name, value in values.items() if name not in same}
    for field_ in fields(recipes.Recipe):  # one that is newer than the row had its default's effect
        if field_.default is not MISSING and field_.name not in same:
            kept.setdefault(field_.name, field_.default)
    method = METHODS.get(kept["method"].get("name"))
    if method is not None:
        kept["method"] = asdict(method()) | kept["method"]
    return kept | dict.fromkeys(own, "of one's own")


def changes(values: Mapping[str, Any]) -> str:
    """How a recipe differs from the built-in one of its name, in words; nothing where it does not."""
    built_in = recipes.RECIPES.get(str(values.get("name")))
    if built_in is None:
        return "own recipe"
    known, found = _flat(_configuration(recipes.to_dict(built_in))), _flat(_configuration(values))
    return ", ".join(f"{name} {value}" for name, value in found.items() if known.get(name) != value)


def settled(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """In words, how runs of one recipe computed where they did not all compute alike: each settles that by measuring."""
    ways = {name: sorted({str(values[name]) for values in group if name in values}) for name in recipes.MEASURED}
    return [f"{name} {' or '.join(found)}" for name, found in ways.items() if len(found) > 1]


def epochs(card: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """Epochs of a run's recipe behind those of every training its weights went through; ? where a card does not tell."""
    own: list[dict[str, Any]] = [{"epochs": None}] if values.get("start") else []
    return " + ".join(str(stage["epochs"] or "?") for stage in [*(card.get("stages") or own), values])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def _line(group: Sequence[tuple[RunRecord, Mapping[str, Any]]]) -> Line:
    first = group[0][1]
    verdicts = [run.diagnosis["suspicious"] for run, _ in group if run.diagnosis is not None]
    return Line(
        name=str(first["row"]),
        measured=True,
        cells={column: _cell(column, [row for _, row in group]) for column in BETTER},
        runs=len(group),
        epochs=epochs(group[0][0].card, first["recipe_values"]),
        seeds=tuple(row["seed"] for _, row in group),
        detail=", ".join(
            filter(None, (changes(first["recipe_values"]), *settled([row["recipe_values"] for _, row in group])))
        ),
        suspicious=any(verdicts) if verdicts else None,
    )


def _cell(column: str, rows: Sequence[Mapping[str, Any]]) -> Cell:
    having = [row for row in rows if row.get(column) is not None]
    values = [float(row[column]) for row in having]
    if not values:
        return Cell(None)
    notes = [] if len(values) == len(rows) else [f"{len(values)} of {len(rows)} seeds"]
    spread = stdev(values) if len(values) > 1 else None
    if spread is None and having[0].get(f"{column}_spread") is not None:
        spread = float(having[0][f"{column}_spread"])
        notes.append("spread of repeated evaluations")
    if column == "autoattack_accuracy":
        counts = sorted({int(row["autoattack_images"]) for row in having if row.get("autoattack_images")})
        if counts and counts != [having[0].get("images")]:
            notes.append("on " + " or ".join(f"{count:,}" for count in counts) + " images")
    if column == "memory_percent":
        slips = [float(row["memory_percent_repeat_dense"]) for row in having if "memory_percent_repeat_dense" in row]
        if slips and abs(fmean(slips) - fmean(values)) > 0.005:
            notes.append(f"{fmean(slips):.2f} counted as published")
    return Cell(fmean(values), spread, "; ".join(notes), decimals=DECIMALS.get(column, 2))


def _published_line(row: Mapping[str, Any]) -> Line:
    cells = {column: Cell(row.get(column), decimals=DECIMALS.get(column, 2)) for column in BETTER}
    return Line(str(row["method"]), False, cells, PAPER_RUNS, PAPER_EPOCHS)


def _why_apart(block: Block, alike: bool) -> str:
    """Why published rows cannot stand beside these, or nothing where they can; `alike`: trained and attacked as those were."""
    attack = recipes.RECIPES[f"{block.dataset}/at"].test_attack
    if not alike:
        return (
            "another protocol: the released code standardises each image, trains and attacks on that tensor, clipped to [0, 1], so "
            f"its eps is not one of pixels. Train and measure under it with anp-vs reproduce {block.dataset} --recipe released"
        )
    if not attacked_as_published(block.dataset, block.conditions):
        return f"another attack: PGD-{attack.steps} with eps {attack.eps:g} and steps of {attack.step:g}"
    return ""


def _mark_best(lines: Sequence[Line]) -> None:
    """Mark the best of each column, ties in print included; a column that does not compare has none."""
    for column, sign in BETTER.items():
        cells = [cell for line in lines if (cell := line.cells[column]).value is not None]
        different = column == "autoattack_accuracy" and len({cell.note for cell in cells}) > 1
        if len(cells) < 2 or different:
            continue
        rounded = [sign * round(float(cell.value or 0.0), cell.decimals) for cell in cells]
        for cell, value in zip(cells, rounded, strict=True):
            cell.best = value == max(rounded) > min(rounded)
