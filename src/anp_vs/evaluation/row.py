"""One row of a table: a run, evaluated with every column, with all that is needed to check it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from anp_vs import recipes, serialization
from anp_vs.data import load as load_data
from anp_vs.evaluation.protocols import ProtocolName
from anp_vs.evaluation.robustness import evaluate
from anp_vs.provenance import provenance
from anp_vs.pruning.gate import gates
from anp_vs.recipes import Recipe
from anp_vs.training.checkpoint import write_atomically
from anp_vs.training.run_directory import RunDirectory, root_of

EOT_DRAWS = 20
"""Passes averaged for a network that is random in evaluation, at least what its authors used."""


def black_box_source(run: RunDirectory, recipe: Recipe) -> Path | None:
    """The finished run that black-box attacks on this one are made on, or None when it is not there (yet)."""
    if recipe.black_box is None:
        return None
    if recipe.black_box not in recipes.RECIPES:
        return Path(recipe.black_box)
    source = RunDirectory(RunDirectory.default(recipes.RECIPES[recipe.black_box], root_of(run.path, recipe)))
    return source.path if source.finished else None


def evaluate_run(
    path: Path,
    *,
    data_root: str | None = None,
    source: Path | None = None,
    limit: int | None = None,
    autoattack: int | None = None,
    protocol: ProtocolName = "pixel-space",
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate a finished run on its test set, under its recipe's test attack, and keep the row beside it.

    The attacks are made on the compact network, the vulnerability is measured on the gated one; both compute
    the same function.

    Args:
        path: the run directory.
        data_root: where the data set is; the recipe's own place by default.
        source: run whose network black-box images are made on; by default the recipe's `black_box` run.
        limit: evaluate only the first so many images (the row says so).
        autoattack: images to run AutoAttack on.
        protocol: `pixel-space` or `released-code`.
        progress: show what is going on.

    Raises:
        RunError: the run is not finished.
        InputError: a value is outside what is accepted.
    """
    run = RunDirectory(path)
    recipe = run.read_recipe()
    network = serialization.load(serialization.locate(path))
    full = serialization.load(run.network)
    dataset = load_data(
        recipe.data, data_root or recipe.data_root, validation=recipe.validation, pictures=recipe.pictures
    )
    source = source or black_box_source(run, recipe)
    attack = recipe.test_attack
    result = evaluate(
        network,
        dataset.test,
        eps=attack.eps,
        step=attack.step,
        steps=attack.steps,
        restarts=recipe.restarts,
        source=serialization.load(source / "network.safetensors" if source.is_dir() else source) if source else None,
        gated=full if gates(full) else None,
        limit=limit,
        autoattack=autoattack,
        autoattack_state=path / "autoattack.state" if autoattack else None,
        draws=EOT_DRAWS if recipe.method.random else 1,
        classes=len(dataset.classes),
        protocol=protocol,
        progress=progress,
    )
    table, _, row = recipe.name.rpartition("/")
    facts = {
        "dataset": recipe.data, "network": recipe.network, "method": recipe.method.name, "row": row, "recipe": recipe.name,
        "table": table, "run_seed": recipe.seed, "recipe_values": recipes.to_dict(recipe),
        "black_box_source": str(source) if source else None,
        "train_seconds": serialization.card_of(full).get("train_seconds"),
    }  # fmt: skip
    line = {**facts, **dict(result), "evaluation_seed": result["seed"], "seed": recipe.seed, **provenance()}
    name = "evaluation.json" if protocol == "pixel-space" else f"evaluation-{protocol}.json"
    write_atomically(path / name, json.dumps(line, indent=2).encode())
    return line


def is_run(target: Path) -> bool:
    """Whether a path is a run directory."""
    return (target / "recipe.yaml").exists()
