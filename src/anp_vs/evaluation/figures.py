"""The data behind a report's figures of one run, measured on the first test images under its test attack."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs import serialization
from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.attacks.protocols import Budget
from anp_vs.data import load as load_data
from anp_vs.errors import InputError
from anp_vs.evaluation.corruptions import evaluate_corruptions
from anp_vs.evaluation.curves import Sample
from anp_vs.evaluation.figure_files import DIAGNOSIS, rounded
from anp_vs.evaluation.landscape import feature_maps, histograms, loss_surface
from anp_vs.evaluation.masking import DIAGNOSED, diagnose
from anp_vs.evaluation.row import EOT_DRAWS, black_box_source, network_at
from anp_vs.evaluation.subject import Subject, batches, count_of
from anp_vs.evaluation.vulnerability import VulnerabilityMeter
from anp_vs.pruning.gate import gates
from anp_vs.training.run_directory import RunDirectory

IMAGES = DIAGNOSED
"""Test images that figures are measured on unless asked otherwise."""
_BATCH = 64
_SHOWN = 2  # images whose feature maps are shown,
_CHANNELS = 6  # and channels of each
_SURFACE_POINTS = 15


class Exhibit:
    """A finished run, loaded, with the test images that its figures are measured on.

    Args:
        path: the run directory.
        images: how many test images, the first ones.
        data_root: folder that holds the data set; the recipe's own by default.

    Attributes:
        recipe: of the run.
        network: what is attacked, the compact one where there is one.
        full: the trained network with its gates, if the method has them.
        images, labels: float32 N x C x H x W in [0, 1], int64 N.
        budget: of the recipe's test attack.
        draws: passes averaged, more than 1 for a random network.

    Raises:
        RunError: the run is not finished.
        DataError: the data set is not there.
    """

    def __init__(self, path: Path, images: int = IMAGES, data_root: str | None = None) -> None:
        self.path = path
        run = RunDirectory(path)
        self.recipe = run.read_recipe()
        self.network: nn.Module = serialization.load(path)
        self.full: nn.Module = serialization.load(run.network)
        root = data_root or self.recipe.data_root
        test = load_data(self.recipe.data, root, validation=self.recipe.validation, pictures=self.recipe.pictures).test
        count = count_of(test, images)
        pairs = [(x, y) for _, x, y in batches(test, count, _BATCH)]
        self.images, self.labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        attack = self.recipe.test_attack
        self.budget = Budget(attack.eps, attack.step, attack.steps)
        self.draws = EOT_DRAWS if self.recipe.method.random else 1

    @cached_property
    def sample(self) -> Sample:
        """The images with the classifier as it is judged."""
        return self.sampled(self.network)

    def sampled(self, network: nn.Module) -> Sample:
        """The images with another classifier."""
        subject = Subject(network, self.images[:_BATCH], self.labels[:_BATCH], draws=self.draws)
        return Sample(subject, self.images, self.labels, _BATCH, seed=0)

    @cached_property
    def adversarial(self) -> Tensor:
        """PGD images made on the network, under the budget."""
        return self.sample.attacked(self.budget, name="white-box")

    @cached_property
    def seconds_per_gradient(self) -> float:
        """Time that the gradient of one image takes here, all draws of it."""
        subject, x, y = self.sample.subject, self.images[:_BATCH], self.labels[:_BATCH]
        input_gradient(subject.attacked, x, y, ce, subject.draws)
        began = time.perf_counter()
        input_gradient(subject.attacked, x, y, ce, subject.draws)
        return (time.perf_counter() - began) / len(x)

    def conditions(self, images: int) -> dict[str, Any]:
        """What a figure was measured under, ready for JSON."""
        budget = self.budget
        return {
            "images": images, "split": "test", "protocol": "pixel-space", "norm": budget.norm,
            "eps": budget.eps, "step": budget.step, "steps": budget.steps, "draws": self.sample.subject.draws,
        }  # fmt: skip


def units(exhibit: Exhibit) -> dict[str, Any]:
    """What is left of each layer: units of each gate, or weights of a network in which single ones are zero."""
    found = gates(exhibit.full)
    if found:
        with torch.no_grad():
            layers = [(path, int(g.alive().sum()), g.original_units) for path, g in found.items()]
        return {"kind": "units", "layers": [_left(*layer) for layer in layers]}
    weights = [(n, p) for n, p in exhibit.full.named_parameters() if n.endswith("weight") and p.dim() > 1]
    layers = [(n.removesuffix(".weight"), int((p != 0).sum()), p.numel()) for n, p in weights]
    return {"kind": "weights", "layers": [_left(*layer) for layer in layers]}


def _left(path: str, left: int, original: int) -> dict[str, Any]:
    return {"path": path, "left": left, "original": original}


def vulnerability(exhibit: Exhibit) -> dict[str, Any]:
    """Vulnerability of every unit with its gate's E[pi], and a histogram of each layer."""
    meter = VulnerabilityMeter(exhibit.full)
    random = exhibit.sample.subject.random
    for start in range(0, len(exhibit.images), _BATCH):
        rows = slice(start, start + _BATCH)
        meter.update(exhibit.images[rows], exhibit.adversarial[rows], start if random else None)
    found = meter.result()
    layers = [
        {
            "path": layer.path, "value": layer.value, "original_units": layer.original_units,
            "units": rounded(layer.units.tolist()),
            "expected_pi": None if layer.expected_pi is None else rounded(layer.expected_pi.tolist()),
            "edges": rounded(histogram.edges), "counts": list(histogram.counts), "zeros": histogram.zeros,
        }
        for layer, histogram in zip(found.layers, histograms(found), strict=True)
    ]  # fmt: skip
    return {"value": found.value, "reduction": found.reduction, "layers": layers}


def maps(exhibit: Exhibit) -> dict[str, Any]:
    """Feature maps of the input layer, clean and attacked, and their mean distortion.

    Shown are the first image that the attack breaks and the first that it does not (where there are both), and
    the channels that the attack moves most.

    Raises:
        InputError: two passes of a random network differ by more than the attack.
    """
    if exhibit.sample.subject.random:
        raise InputError(f"{exhibit.path} holds a random network: its features differ from pass to pass.")
    count = min(_BATCH, len(exhibit.images))
    clean, attacked, labels = exhibit.images[:count], exhibit.adversarial[:count], exhibit.labels[:count]
    found = feature_maps(exhibit.full, clean, attacked)
    if found.clean.dim() != 4:
        raise InputError(f"the input layer of {exhibit.path} has no maps to show: its features are flat.")
    with torch.no_grad():
        before, after = (exhibit.network(x).argmax(1) for x in (clean, attacked))
    right = before == labels
    chosen = [
        int(which.nonzero()[0]) for which in (right & (after != labels), right & (after == labels)) if which.any()
    ]
    chosen = (chosen + [i for i in range(count) if i not in chosen])[:_SHOWN]
    moved = found.distortion.flatten(1).mean(1)
    channels = moved.topk(min(_CHANNELS, len(moved))).indices
    return {
        "path": found.path, "shown": chosen, "labels": labels[chosen].tolist(),
        "clean_predictions": before[chosen].tolist(), "adversarial_predictions": after[chosen].tolist(),
        "clean_images": rounded(clean[chosen].tolist()), "adversarial_images": rounded(attacked[chosen].tolist()),
        "channels": channels.tolist(),
        "clean": rounded(found.clean[chosen][:, channels].tolist()),
        "adversarial": rounded(found.adversarial[chosen][:, channels].tolist()),
        "distortion": rounded(found.distortion.mean(0).tolist()), "images": count,
    }  # fmt: skip


def surface(exhibit: Exhibit) -> dict[str, Any]:
    """The loss around the images along the gradient and along a random direction.

    Raises:
        InputError: the network is random, so a surface of one pass shows its noise; or eps is 0.
    """
    subject = exhibit.sample.subject
    if subject.random:
        raise InputError(f"{exhibit.path} holds a random network: a loss surface would show its noise.")
    x, y = exhibit.images[:_BATCH], exhibit.labels[:_BATCH]
    found = loss_surface(subject.attacked, x, y, eps=exhibit.budget.eps, points=_SURFACE_POINTS)
    return {
        "along": rounded(found.along), "aside": rounded(found.aside), "loss": rounded(found.loss.tolist()),
        "accuracy": rounded(found.accuracy.tolist()), "images": len(y),
    }  # fmt: skip


def corruptions(exhibit: Exhibit) -> dict[str, Any]:
    """Accuracy on common corruptions."""
    pair = (exhibit.images, exhibit.labels)
    return evaluate_corruptions(exhibit.network, pair, draws=exhibit.draws, progress=False).as_dict()


def diagnosis(exhibit: Exhibit) -> dict[str, Any]:
    """Signs of masked gradients, with the curves of accuracy against eps and steps."""
    budget = exhibit.budget
    source = black_box_source(RunDirectory(exhibit.path), exhibit.recipe)
    found = diagnose(
        exhibit.network, (exhibit.images, exhibit.labels), eps=budget.eps, step=budget.step, steps=budget.steps,
        source=network_at([source] if source else []), limit=None, batch_size=_BATCH, draws=exhibit.draws, progress=False,
    )  # fmt: skip
    return found.as_dict() | {"black_box_source": str(source) if source else None}


@dataclass(frozen=True)
class Measurement:
    """One kind of figure data: its name, how it is measured, and about how many gradients an image costs."""

    name: str
    measure: Callable[[Exhibit], dict[str, Any]]
    gradients: int


def measurements() -> Iterator[Measurement]:
    """All of them, cheapest first; a forward pass counts as a third of a gradient."""
    yield Measurement("units", units, 0)
    yield Measurement("vulnerability", vulnerability, 45)
    yield Measurement("maps", maps, 45)
    yield Measurement("corruptions", corruptions, 20)
    yield Measurement("surface", surface, 75)
    yield Measurement(DIAGNOSIS, diagnosis, 700)
