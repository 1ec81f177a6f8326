"""Pictures that compare runs: accuracy against eps and steps, and what robustness costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from anp_vs.report.rows import CONDITIONS
from anp_vs.report.runs import RunRecord
from anp_vs.report.style import CARD, MUTED, legend, look, methods, name_axes, panel


@dataclass(frozen=True)
class Point:
    """One run in a picture of cost and robustness.

    Attributes:
        label: of the run.
        name: of its configuration, in the legend.
        look: see `look`.
        cost: parameters or multiply-accumulates.
        accuracy: under attack, in percent.
    """

    label: str
    name: str
    look: dict[str, Any]
    cost: float
    accuracy: float


def configurations(runs: Sequence[RunRecord]) -> list[tuple[str, dict[str, Any]]]:
    """For each run the name of its configuration and how it is drawn: seeds together, all else told apart.

    The name is the row's, or the whole recipe's where rows of several recipes are called alike.
    """
    recipes = [f"{run.recipe.name.rpartition('/')[0]}/{run.row}".lstrip("/") for run in runs]
    rows = {run.row: {name for other, name in zip(runs, recipes, strict=True) if other.row == run.row} for run in runs}
    names = [run.row if len(rows[run.row]) == 1 else name for run, name in zip(runs, recipes, strict=True)]
    # A small network that trains on by another method is still what its row says.
    drawn = [run.row if run.row in methods() else run.recipe.method.name for run in runs]
    alike = {each: list(dict.fromkeys(n for n, d in zip(names, drawn, strict=True) if d == each)) for each in drawn}
    return [(name, look(each, alike[each].index(name))) for name, each in zip(names, drawn, strict=True)]


def against(runs: Sequence[RunRecord], what: str) -> Figure:
    """Accuracy of each diagnosed run against the radius (`eps`) or the number of `steps`; one legend entry a configuration."""
    figure, (axes,) = panel(3.1)
    named: set[str] = set()
    for run, (name, drawn) in zip(runs, configurations(runs), strict=True):
        points = _curve(run, what)
        label = None if name in named else name
        named.add(name)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, label=label, linewidth=1.3, markersize=4, **drawn)
    if what == "steps":
        axes.set_xscale("log")
        ticks = sorted({int(x) for run in runs for x, _ in _curve(run, what)})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        radii = sorted({run.recipe.test_attack.eps for run in runs})
        for eps in radii:
            axes.axvline(eps, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_ylim(-2, 102)
    name_axes(axes, "PGD steps" if what == "steps" else "eps (dashed: the attack of the tables)", "accuracy, %")
    legend(axes, columns=3)
    return figure


def _curve(run: RunRecord, what: str) -> list[tuple[float, float]]:
    """The curve of a run's diagnosis; without the unbounded radius, which would squeeze the rest."""
    assert run.diagnosis is not None
    points = [(float(point[what]), float(point["accuracy"])) for point in run.diagnosis[f"against_{what}"]]
    far = 2.01 * run.recipe.test_attack.eps
    return [point for point in points if what == "steps" or point[0] <= far]


def pareto_points(runs: Sequence[RunRecord], cost: str) -> tuple[str, list[Point], list[str]]:
    """Runs that were evaluated in pixel space on the same images from as many starts, with their accuracy under attack.

    Args:
        runs: of one data set.
        cost: `parameters` or `macs`.

    Returns:
        The column of the accuracy: AutoAttack's where every run has it, else the strongest PGD's; the points; and the labels
        of the runs that were measured otherwise than most.
    """
    rows = [
        (run, named, row)
        for run, named in zip(runs, configurations(runs), strict=True)
        for row in run.evaluations
        if row["protocol"] == "pixel-space" and row.get(cost) is not None
    ]
    column = "autoattack_accuracy"
    conditions: tuple[str, ...] = (*CONDITIONS, column.replace("accuracy", "images"))
    if any(row.get(column) is None for _, _, row in rows):
        column, conditions = "white_box_accuracy_strongest", CONDITIONS
    rows = [found for found in rows if found[2].get(column) is not None]
    measured = [tuple(row.get(name) for name in conditions) for _, _, row in rows]
    usual = max(measured, key=lambda each: (measured.count(each), each[CONDITIONS.index("images")]), default=None)
    points = [
        Point(run.label, *named, float(row[cost]), float(row[column]))
        for (run, named, row), each in zip(rows, measured, strict=True) if each == usual
    ]  # fmt: skip
    return column, points, [run.label for (run, _, _), each in zip(rows, measured, strict=True) if each != usual]


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other one beats: cheaper or as cheap, and more robust; by rising cost."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not best or point.accuracy > best[-1].accuracy:
            best.append(point)
    return best


def pareto(points: Sequence[Point], cost: str, accuracy: str) -> Figure:
    """Accuracy under attack against cost, with the front.

    Args:
        points: one a run.
        cost: label of the cost.
        accuracy: label of the accuracy.
    """
    figure, (axes,) = panel(3.1)
    edge = front(points)
    for before, after in pairwise(edge):
        axes.plot([before.cost, after.cost, after.cost], [before.accuracy, before.accuracy, after.accuracy],
                  color=MUTED, linewidth=0.9, linestyle="--", zorder=1)  # fmt: skip
    for name in dict.fromkeys(point.name for point in points):
        mine = [point for point in points if point.name == name]
        style = mine[0].look | {"linestyle": ""}
        if style["fillstyle"] == "full":
            style["markeredgecolor"] = CARD
        axes.plot([p.cost for p in mine], [p.accuracy for p in mine], label=name, markersize=7,
                  markeredgewidth=0.8, **style)  # fmt: skip
    axes.set_xscale("log")
    axes.margins(0.12)
    costs = [point.cost for point in points]
    subs = (1.0, 2.0, 5.0) if max(costs) < 100 * min(costs) else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    name_axes(axes, cost, accuracy)
    legend(axes, columns=3)
    return figure
