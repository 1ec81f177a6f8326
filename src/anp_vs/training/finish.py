"""The end of a training: what is saved, and what its card tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anp_vs import recipes, serialization
from anp_vs.provenance import commit, hardware
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates, sparsity_percent
from anp_vs.pruning.silent import without_silent
from anp_vs.recipes import Recipe
from anp_vs.training.loop import Trainer
from anp_vs.training.run_directory import RunDirectory


def save_network(
    recipe: Recipe, run: RunDirectory, classes: Sequence[str], trainer: Trainer, more: Mapping[str, Any]
) -> None:
    """Save the trained network with what its card tells, and the compact one beside it.

    Args:
        recipe: with how to compute settled.
        run: the directory.
        classes: of the data set.
        trainer: at its end.
        more: facts for the card.

    Raises:
        RunError: the files cannot be written.
    """
    network = trainer.evaluation_network().cpu()
    pixels = recipe.protocol == "pixel-space"
    space = "pixels in [0, 1]" if pixels else "standardised images, clipped to [0, 1] (protocol released-code)"
    facts: dict[str, Any] = {
        "classes": list(classes),
        "data": recipe.data,
        "threat_model": {"norm": "inf", "eps": recipe.test_attack.eps, "space": space},
        "recipe": recipes.to_dict(recipe),
        "seed": recipe.seed,
        "train_seconds": round(trainer.seconds, 1),
        "train_hardware": hardware(trainer.fabric.device),
        "train_commit": commit(),
        **more,
    }
    small = network
    if gates(network):
        small = compact(network)
        facts["sparsity_percent"] = sparsity_percent(network)
    silent: dict[str, int] = {}
    # What stays dense by design stays whole; standardised images are no images in [0, 1].
    if pixels and sum(parameter.numel() for parameter in small.parameters()) < trainer.whole:
        small, silent = without_silent(small)
    if gates(network) or silent:
        serialization.save(small, run.compact, **facts, silent_units=silent)
    serialization.save(network, run.network, **facts)
