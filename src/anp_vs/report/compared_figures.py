"""Pictures that compare runs: accuracy against eps and steps, and what robustness costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from anp_vs.report.runs import RunRecord
from anp_vs.report.style import CARD, MUTED, legend, look, name_axes, panel


@dataclass(frozen=True)
class Point:
    """One run in a picture of cost and robustness.

    Attributes:
        label: of the run.
        method: of its recipe.
        cost: parameters or multiply-accumulates.
        accuracy: under attack, in percent.
    """

    label: str
    method: str
    cost: float
    accuracy: float


def against(runs: Sequence[RunRecord], what: str) -> Figure:
    """Accuracy of each diagnosed run against the radius (`eps`) or the number of `steps`; one legend entry a row."""
    figure, (axes,) = panel(3.1)
    named: set[str] = set()
    for run in runs:
        points = _curve(run, what)
        label = None if run.row in named else run.row
        named.add(run.row)
        x, y = zip(*points, strict=True)
        axes.plot(x, y, label=label, linewidth=1.3, markersize=4, **look(run.recipe.method.name))  # type: ignore[arg-type]
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


def pareto_points(runs: Sequence[RunRecord], cost: str) -> tuple[str, list[Point]]:
    """Runs that were evaluated in pixel space, with their accuracy under attack.

    Args:
        runs: of one data set.
        cost: `parameters` or `macs`.

    Returns:
        The column of the accuracy: AutoAttack's where every run has it, else the strongest PGD's; and the points.
    """
    rows = [(run, row) for run in runs for row in run.evaluations if row["protocol"] == "pixel-space"]
    rows = [(run, row) for run, row in rows if row.get(cost) is not None]
    column = "autoattack_accuracy"
    if any(row.get(column) is None for _, row in rows):
        column = "white_box_accuracy_strongest"
    return column, [
        Point(run.label, str(row["method"]), float(row[cost]), float(row[column]))
        for run, row in rows if row.get(column) is not None
    ]  # fmt: skip


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
    for method in dict.fromkeys(point.method for point in points):
        mine = [point for point in points if point.method == method]
        style: dict[str, Any] = look(method) | {"linestyle": ""}
        axes.plot([p.cost for p in mine], [p.accuracy for p in mine], label=method, markersize=7,
                  markeredgecolor=CARD, markeredgewidth=0.8, **style)  # fmt: skip
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
