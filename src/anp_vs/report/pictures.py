"""The pictures of a report, each with a title, what it shows in words, and where its data lies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from anp_vs.evaluation.figure_files import place
from anp_vs.report import compared_figures, inside_figures, training_figures
from anp_vs.report.runs import RunRecord
from anp_vs.report.style import svg

COSTS = {"macs": "multiply-accumulates for one image", "parameters": "parameters"}
ACCURACIES = {
    "autoattack_accuracy": "AutoAttack accuracy, %",
    "white_box_accuracy_strongest": "accuracy under the strongest PGD, %",
}


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        title: heading.
        drawing: SVG.
        caption: what is seen, on how many images, under which attack.
        data: the file that holds the figures, in the run directory.
    """

    title: str
    drawing: Markup
    caption: str
    data: str


def of_run(run: RunRecord, key: str) -> tuple[list[Picture], list[str]]:
    """All pictures of one run that its directory has the data for, and the names of those it has not."""
    made = _Maker(run, key)
    pictures = [picture for group in (made.training(), made.inside()) for picture in group]
    return pictures, made.absent


class _Maker:
    """Draws the pictures of one run and notes what it could not draw."""

    def __init__(self, run: RunRecord, key: str) -> None:
        self.run, self.key = run, key
        self.absent: list[str] = []
        self._count = 0

    def training(self) -> Iterator[Picture]:
        lines, source = self.run.metrics, "metrics.jsonl"
        yield from self._picture(
            "Training loss", training_figures.losses(lines), source, "Means since the last entry of the log."
        )
        yield from self._picture(
            "Accuracy while training", training_figures.accuracies(lines), source,
            f"{_ends(lines)} Validation images only; robust is under a short PGD with the eps of the test attack.",
        )  # fmt: skip
        if self.run.recipe.method.gated:
            yield from self._picture(
                "Sparsity while training", training_figures.sparsity(lines), source,
                "Units whose gate has E[π] of at most 0.001, which evaluation sets to exactly zero.",
            )  # fmt: skip

    def inside(self) -> Iterator[Picture]:
        if left := self._data("units", "what is left of each layer"):
            total = (
                sum(layer["left"] for layer in left["layers"]),
                sum(layer["original"] for layer in left["layers"]),
            )
            caption = f"{total[0]:,} of {total[1]:,} {left['kind']} are left."
            yield from self._picture(
                f"{left['kind'].capitalize()} left in each layer",
                inside_figures.units_left(left),
                self._file("units"),
                caption,
            )
        if moved := self._data("vulnerability", "vulnerability of the latent features"):
            zeros, units = (
                sum(layer[name] for layer in moved["layers"]) for name in ("zeros", "original_units")
            )
            yield from self._picture(
                "How far the attack moves each unit", inside_figures.histogram(moved), self._file("vulnerability"),
                f"{zeros:,} of {units:,} units are exactly zero (hatched): pruned, taken out, or dead. "
                f"Network {moved['value']:.3g} ({moved['reduction']}). {under(moved)}",
            )  # fmt: skip
            yield from self._picture(
                "Vulnerability against the gates", inside_figures.against_gates(moved), self._file("vulnerability"),
                f"One mark a unit that the network still holds. {under(moved)}",
            )  # fmt: skip
        if maps := self._data("maps", "feature maps"):
            yield from self._picture(
                "Feature maps, clean and attacked", inside_figures.maps(maps), self._file("maps"),
                f"Layer {maps['path']}, the channels that the attack moves most, on one scale an image; test images "
                f"{' and '.join(map(str, maps['shown']))} with labels {' and '.join(map(str, maps['labels']))}; → is the "
                f"prediction. {under(maps)}",
            )  # fmt: skip
            yield from self._picture(
                "Mean distortion of the input layer", inside_figures.distortion(maps), self._file("maps"),
                f"Layer {maps['path']}, mean over channels. {under(maps)}",
            )  # fmt: skip
        if plane := self._data("surface", "loss surface"):
            yield from self._picture(
                "Loss around the images", inside_figures.surface(plane), self._file("surface"),
                f"Cross for the clean images, dashed square for the ball of radius eps. {under(plane, attacked=False)}",
            )  # fmt: skip
        if noisy := self._data("corruptions", "common corruptions"):
            yield from self._picture(
                "Accuracy on common corruptions", inside_figures.corruptions(noisy), self._file("corruptions"),
                f"Mean over severities 1 to 5, the bar from the best to the worst; {noisy['mean']:.1f} % over all, "
                f"{noisy['clean']:.1f} % clean. {noisy['images']:,} test images, made here, without an attack.",
            )  # fmt: skip

    def _data(self, name: str, words: str) -> dict[str, Any] | None:
        data = self.run.figures.get(name)
        if data is None:
            self.absent.append(words)
        return data

    def _file(self, name: str) -> str:
        return place(self.run.path, name).relative_to(self.run.path).as_posix()

    def _picture(self, title: str, figure: Figure | None, source: str, caption: str) -> Iterator[Picture]:
        if figure is not None:
            self._count += 1
            yield _picture(
                f"{title}: {self.run.label}. {caption}",
                title,
                figure,
                source,
                caption,
                f"{self.key}-{self._count}",
            )
        elif title != "Vulnerability against the gates":  # that one has no meaning without gates
            self.absent.append(title.lower())


def _picture(alt: str, title: str, figure: Figure, source: str, caption: str, key: str) -> Picture:
    return Picture(title, svg(figure, alt, key), caption, source)


def _ends(lines: Sequence[dict[str, Any]]) -> str:
    """The last validation figures, in words."""
    for line in reversed(lines):
        if "clean_accuracy" in line and "robust_accuracy" in line:
            return (
                f"At the end {line['clean_accuracy']:.1f} % clean and {line['robust_accuracy']:.1f} % robust."
            )
    return ""


def under(data: dict[str, Any], *, attacked: bool = True) -> str:
    """The conditions of a figure, in words."""
    attack = f"PGD-{data['steps']} with steps of {data['step']:.4g}, " if attacked else ""
    return f"{data['images']:,} test images, {attack}eps {data['eps']:.4g} in norm {data['norm']}, {data['protocol']}."


def of_group(runs: Sequence[RunRecord], key: str) -> tuple[list[Picture], list[str]]:
    """Pictures that compare runs of one data set and test attack, and sentences about what they lack."""
    pictures, lacking = [], []
    diagnosed = [run for run in runs if run.diagnosis is not None]
    missing = [run.label for run in runs if run.diagnosis is None]
    if missing:
        lacking.append(f"Accuracy against eps and steps is not measured for {', '.join(missing)}.")
    if diagnosed:
        first = diagnosed[0].diagnosis
        assert first is not None
        for what, title in (
            ("eps", "Accuracy against eps"),
            ("steps", "Accuracy against the number of steps"),
        ):
            counts = " or ".join(
                sorted({f"{run.diagnosis['images']:,}" for run in diagnosed if run.diagnosis})
            )
            caption = f"PGD on the first {counts} test images, norm {first['norm']}, {first['protocol']}; one line a run."
            alt = f"{title} of {', '.join(run.label for run in diagnosed)}. {caption}"
            figure = compared_figures.against(diagnosed, what)
            pictures.append(_picture(alt, title, figure, "diagnosis.json", caption, f"{key}-{what}"))
    for cost, label in COSTS.items():
        column, points = compared_figures.pareto_points(runs, cost)
        if not points:
            lacking.append(f"Robust accuracy against {label} is not measured.")
            continue
        edge = ", ".join(point.label for point in compared_figures.front(points))
        caption = (
            f"One mark a run; dashed, the front: {edge}. Pixel space, the images and attack of the tables."
        )
        title = f"Robust accuracy against {'MACs' if cost == 'macs' else cost}"
        alt = f"{title}. " + "; ".join(f"{p.label}: {p.accuracy:.2f} % at {p.cost:,.0f}" for p in points)
        figure = compared_figures.pareto(points, label, ACCURACIES[column])
        pictures.append(_picture(alt, title, figure, "evaluation.json", caption, f"{key}-{cost}"))
    return pictures, lacking
