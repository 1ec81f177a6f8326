"""Pictures of a run's training, drawn from its metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from anp_vs.report.style import SERIES, legend, name_axes, panel

Lines = Sequence[Mapping[str, Any]]

LOSSES = {"loss_clean": "clean", "loss_adversarial": "adversarial", "loss": "loss"}
ACCURACIES = {
    "clean_accuracy": ("clean, validation", 0, "-"),
    "robust_accuracy": ("robust, validation", 1, "-"),
    "train_accuracy": ("clean, training", 0, ":"),
    "train_robust_accuracy": ("robust, training", 1, ":"),
}
"""Name in the metrics -> label, colour, line."""


def curve(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """Epochs done and the values of one metric there."""
    per_epoch = steps_per_epoch(lines)
    found = [(line["step"] / per_epoch, float(line[name])) for line in lines if line.get(name) is not None]
    return [epoch for epoch, _ in found], [value for _, value in found]


def steps_per_epoch(lines: Lines) -> float:
    """Steps of an epoch: the validation ends each, or else the run ends the last one; `epoch` counts from 0."""
    ends = [line for line in lines if "clean_accuracy" in line] or lines[-1:]
    return ends[-1]["step"] / (ends[-1]["epoch"] + 1) if ends else 1.0


def losses(lines: Lines) -> Figure | None:
    """Training losses against epochs; None where none was kept."""
    curves = {label: curve(lines, name) for name, label in LOSSES.items()}
    return _drawn(
        lines, {label: (xy, n, "-") for n, (label, xy) in enumerate(curves.items()) if xy[0]}, "training loss"
    )


def accuracies(lines: Lines) -> Figure | None:
    """Accuracies against epochs."""
    curves = {label: (curve(lines, name), n, line) for name, (label, n, line) in ACCURACIES.items()}
    return _drawn(lines, {label: values for label, values in curves.items() if values[0][0]}, "accuracy, %", (0, 101))


def sparsity(lines: Lines) -> Figure | None:
    """Share of the gates' units that are pruned; None for a network without gates."""
    xy = curve(lines, "sparsity")
    return _drawn(lines, {"": (xy, 0, "-")}, "pruned units, %", (0, 101)) if xy[0] else None


def _drawn(
    lines: Lines, curves: Mapping[str, tuple[tuple[list[float], list[float]], int, str]], what: str,
    limits: tuple[float, float] | None = None,
) -> Figure | None:  # fmt: skip
    if not curves:
        return None
    figure, (axes,) = panel()
    for label, ((x, y), number, line) in curves.items():
        marker = "o" if len(x) == 1 else ""
        axes.plot(x, y, color=SERIES[number], linestyle=line, linewidth=1.4, marker=marker, label=label or None)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if limits:
        axes.set_ylim(*limits)
    name_axes(axes, "epochs", what)
    legend(axes)
    return figure
