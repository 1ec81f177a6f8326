"""The pictures that compare runs of one data set and test attack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anp_vs.report import compared_figures
from anp_vs.report.pictures import Picture, Sketch, put
from anp_vs.report.runs import RunRecord

COSTS = {"macs": "multiply-accumulates for one image", "parameters": "parameters"}
ACCURACIES = {
    "autoattack_accuracy": "AutoAttack accuracy, %",
    "white_box_accuracy_strongest": "accuracy under the strongest PGD, %",
}


def of_group(runs: Sequence[RunRecord], key: str, title: str) -> tuple[list[Picture], list[str]]:
    """Pictures of a comparison, and sentences about what was not measured for it."""
    lacking = []
    undiagnosed = [run.label for run in runs if run.diagnosis is None]
    if undiagnosed:
        lacking.append(f"Accuracy against eps and steps is not measured for {', '.join(undiagnosed)}.")
    costs = {cost: compared_figures.pareto_points(runs, cost) for cost in COSTS}
    if not any(points for _, points, _ in costs.values()):
        lacking.append("Robust accuracy against cost is not measured: no run was evaluated in pixel space.")
    if others := next((others for _, _, others in costs.values() if others), []):
        lacking.append(
            f"Measured on other images or from other starts, so not drawn against cost: {', '.join(others)}."
        )
    sketches = [*_curves(runs)]
    for cost, (column, points, _) in costs.items():
        if points:
            sketches.append(_pareto(points, cost, column))
    return put(sketches, key, title), lacking


def _curves(runs: Sequence[RunRecord]) -> Iterator[Sketch]:
    rows = [run for run in runs if run.row != "black-box-source"]
    diagnosed = [(run, run.diagnosis) for run in rows if run.diagnosis is not None]
    if not diagnosed:
        return
    counts = " or ".join(f"{count:,}" for count in sorted({found["images"] for _, found in diagnosed}))
    for what, title in (("eps", "Accuracy against eps"), ("steps", "Accuracy against the number of steps")):
        figure = compared_figures.against([run for run, _ in diagnosed], what)
        caption = f"PGD on the first {counts} test images, norm {diagnosed[0][1]['norm']}, pixel-space."
        names = ", ".join(run.label for run, _ in diagnosed)
        yield Sketch(
            title,
            figure,
            "evaluation.json or diagnosis.json",
            f"{caption} One line a run.",
            f"{title}: {names}. {caption}",
        )


def _pareto(points: Sequence[compared_figures.Point], cost: str, column: str) -> Sketch:
    title = f"Robust accuracy against {'MACs' if cost == 'macs' else cost}"
    front = ", ".join(point.label for point in compared_figures.front(points))
    return Sketch(
        title,
        compared_figures.pareto(points, COSTS[cost], ACCURACIES[column]),
        "evaluation.json",
        f"One mark a run. Dashed, the front, which no other run beats in both: {front}. Pixel space, attack and "
        f"images as in the tables.",
        f"{title}. " + "; ".join(f"{p.label}: {p.accuracy:.2f} % at {p.cost:,.0f}" for p in points),
    )
