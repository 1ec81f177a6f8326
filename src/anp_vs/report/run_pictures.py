"""The pictures of one run: its training, what is left of it, and what an attack does inside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from anp_vs.report import inside_figures, training_figures
from anp_vs.report.pictures import Picture, Sketch, put, under
from anp_vs.report.runs import RunRecord

Data = Mapping[str, Any]


def of_run(run: RunRecord, key: str) -> tuple[list[Picture], list[str]]:
    """The pictures that a run's directory has the data for, and in words what it has no data for."""
    sketches = [*_training(run)]
    absent = [] if run.metrics else ["training curves (metrics.jsonl is empty or missing)"]
    for name, (words, draw) in _INSIDE.items():
        data = run.figures.get(name)
        if data is None:
            absent.append(words)
        else:
            sketches += draw(data)
    return put(sketches, key, run.label), absent


def _training(run: RunRecord) -> Iterator[Sketch]:
    lines, data = run.metrics, "metrics.jsonl"
    yield Sketch("Training loss", training_figures.losses(lines), data, "Means since the entry before.")
    yield Sketch(
        "Accuracy while training", training_figures.accuracies(lines), data,
        f"{end} Validation images only; robust: a short PGD with the eps of the test attack."
        if (end := _end(lines)) else "On the batches of training; no images were held out for validation.",
    )  # fmt: skip
    if run.recipe.method.gated:
        yield Sketch(
            "Sparsity while training", training_figures.sparsity(lines), data,
            "Units whose gate has E[π] of at most 0.001; evaluation sets them to exactly zero.",
        )  # fmt: skip


def _end(lines: Sequence[Data]) -> str:
    for line in reversed(lines):
        if "clean_accuracy" in line and "robust_accuracy" in line:
            clean, robust = line["clean_accuracy"], line["robust_accuracy"]
            return f"At the end {clean:.1f} % clean and {robust:.1f} % robust."
    return ""


def _units(data: Data) -> Iterator[Sketch]:
    left, original = (sum(layer[name] for layer in data["layers"]) for name in ("left", "original"))
    kind = data["kind"]
    if kind == "units" or left < original:  # a network that nothing was taken from has nothing to show
        yield Sketch(
            f"{kind.capitalize()} left in each layer", inside_figures.units_left(data), "figures/units.json",
            f"{left:,} of {original:,} {kind} are left.",
        )  # fmt: skip


def _vulnerability(data: Data) -> Iterator[Sketch]:
    zeros, units = (sum(layer[name] for layer in data["layers"]) for name in ("zeros", "original_units"))
    file = "figures/vulnerability.json"
    yield Sketch(
        "How far the attack moves each unit", inside_figures.histogram(data), file,
        f"{zeros:,} of {units:,} units are exactly zero (hatched): pruned, taken out, or dead. "
        f"V of the network: {data['value']:.3g} ({data['reduction']}). {under(data)}",
    )  # fmt: skip
    yield Sketch(
        "Vulnerability against the gates", inside_figures.against_gates(data), file,
        f"One mark for each unit that the network still holds. {under(data)}",
    )  # fmt: skip


def _maps(data: Data) -> Iterator[Sketch]:
    numbers, labels = (" and ".join(map(str, data[name])) for name in ("shown", "labels"))
    yield Sketch(
        "Feature maps, clean and attacked", inside_figures.maps(data), "figures/maps.json",
        f"Layer {data['path']}, the channels that the attack moves most, one scale for each image. Test images "
        f"{numbers}, labels {labels}; → is the prediction. {under(data)}",
    )  # fmt: skip
    yield Sketch(
        "Mean distortion of the input layer", inside_figures.distortion(data), "figures/maps.json",
        f"Layer {data['path']}, mean over its channels. {under(data)}",
    )  # fmt: skip


def _surface(data: Data) -> Iterator[Sketch]:
    yield Sketch(
        "Loss around the images", inside_figures.surface(data), "figures/surface.json",
        f"Cross: the clean images; dashed: the ball of radius eps. {under(data, attacked=False)}",
    )  # fmt: skip


def _corruptions(data: Data) -> Iterator[Sketch]:
    yield Sketch(
        "Accuracy on common corruptions", inside_figures.corruptions(data), "figures/corruptions.json",
        f"Mean over severities 1 to 5, and the range; {data['mean']:.1f} % over all, {data['clean']:.1f} % "
        f"clean. {data['images']:,} test images, corrupted here, no attack.",
    )  # fmt: skip


_INSIDE: dict[str, tuple[str, Callable[[Data], Iterator[Sketch]]]] = {
    "units": ("units left in each layer", _units),
    "vulnerability": ("vulnerability of the latent features", _vulnerability),
    "maps": ("feature maps", _maps),
    "surface": ("loss surface", _surface),
    "corruptions": ("common corruptions", _corruptions),
}
"""Name of the data -> what is missing without it, and what is drawn from it."""
