"""The transfer matrix: images made on each network of a group, classified by every other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anp_vs import recipes
from anp_vs.evaluation.figure_files import keep, kept, network_of
from anp_vs.evaluation.figures import IMAGES, Exhibit
from anp_vs.recipes import Recipe
from anp_vs.training.run_directory import RunDirectory

TRANSFER = "transfer"


def groups(paths: Sequence[Path]) -> list[list[Path]]:
    """Runs that can be attacked with each other's images: the same data, image size and test attack."""
    found: dict[tuple[Any, ...], list[Path]] = {}
    for path in paths:
        recipe = RunDirectory(path).read_recipe()
        found.setdefault(seen_and_attacked(recipe), []).append(path)
    return list(found.values())


def seen_and_attacked(recipe: Recipe) -> tuple[Any, ...]:
    """What runs that are compared image by image have in common: data, test attack, protocol, how pictures become images."""
    return recipe.data, recipe.test_attack, recipe.protocol, recipe.pictures


def missing(paths: Sequence[Path], images: int = IMAGES) -> list[Path]:
    """Sources of one group on which images are yet to be made for at least one target."""
    networks = {path: network_of(path) for path in paths}
    done = {path: _cells(path, images) for path in paths}
    return [source for source in paths if any(networks[source] not in cells for cells in done.values())]


@dataclass(frozen=True)
class Crafted:
    """Images made on a source.

    Attributes:
        facts: the source's run, recipe, seed and checksum.
        images: float32 N x C x H x W.
    """

    facts: dict[str, Any]
    images: Tensor


def craft(exhibit: Exhibit) -> Crafted:
    """PGD images made on a run's network, under its recipe's test attack, from every image of the exhibit."""
    facts = {
        "run": str(exhibit.path), "recipe": exhibit.recipe.name, "seed": exhibit.recipe.seed,
        "network_sha256": network_of(exhibit.path),
    }  # fmt: skip
    return Crafted(facts, exhibit.adversarial)


def judge(target: Path, crafted: Sequence[Crafted], images: int = IMAGES, data_root: str | None = None) -> None:
    """Classify the images made on each source and keep the accuracies in the target's figures/transfer.json.

    A row for each source holds its `facts` and `accuracy`, in percent over all the images, misclassified without
    an attack or not. The source itself as target is the white box.

    Args:
        target: run of the same group as the sources.
        crafted: what `craft` made on the same `images`.
        images: test images that were asked for, the first ones.
        data_root: where the data set is; the recipe's own place by default.
    """
    cells = _cells(target, images)
    new = [made for made in crafted if made.facts["network_sha256"] not in cells]
    if not new:
        return
    exhibit = Exhibit(target, images, data_root)
    for made in new:
        accuracy = exhibit.sample.accuracy(made.images)
        cells[made.facts["network_sha256"]] = {**made.facts, "accuracy": accuracy}
    facts = exhibit.conditions(len(exhibit.labels)) | {"asked": images}
    clean = exhibit.sample.accuracy(exhibit.images)
    keep(target, TRANSFER, facts | {"clean": clean, "sources": list(cells.values())})


def _cells(target: Path, images: int) -> dict[str, dict[str, Any]]:
    """Checksum of a source's network -> what is kept of it; nothing where it was measured on other images."""
    values = kept(target, TRANSFER)
    attack = recipes.to_dict(RunDirectory(target).read_recipe())["test_attack"]
    if values is None or values["asked"] != images or any(values[name] != attack[name] for name in attack):
        return {}
    return {cell["network_sha256"]: cell for cell in values["sources"]}
