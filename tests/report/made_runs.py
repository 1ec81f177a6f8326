"""Run directories with figures that a test can choose, without training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch

from anp_vs import recipes, serialization
from anp_vs.evaluation.figure_files import keep
from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.training.run_directory import RunDirectory

ATTACKED = {"images": 256, "split": "test", "protocol": "pixel-space", "norm": "inf", "steps": 40, "asked": 256}


def evaluation(recipe: recipes.Recipe, **figures: Any) -> dict[str, Any]:
    """A row as `evaluate` writes it."""
    table, _, row = recipe.name.rpartition("/")
    attack = recipe.test_attack
    return {
        "dataset": recipe.data, "network": recipe.network, "method": recipe.method.name, "row": row,
        "recipe": recipe.name, "table": table, "recipe_values": recipes.to_dict(recipe), "seed": recipe.seed,
        "clean_accuracy": 99.0, "white_box_accuracy": 90.0, "white_box_accuracy_strongest": 89.0,
        "black_box_accuracy": 95.0, "white_box_vulnerability": 0.02, "black_box_vulnerability": 0.018,
        "memory_percent": 100.0, "flops_reduction": 1.0, "sparsity_percent": 0.0, "autoattack_accuracy": None,
        "autoattack_images": None, "parameters": 431_080, "macs": 2_293_000, "images": 10_000, "norm": "inf",
        "eps": attack.eps, "step": attack.step, "steps": attack.steps, "restarts": recipe.restarts,
        "protocol": "pixel-space", "reduction": "mean", "random": False, "draws": 1, "train_seconds": 60.0,
        "command": "anp-vs evaluate RUN", "commit": "0123abcd", "hardware": "a processor, 2 threads",
        "versions": {"python": "3.11", "torch": "2.9"},
    } | figures  # fmt: skip


def metrics(recipe: recipes.Recipe) -> list[dict[str, Any]]:
    """Lines as training writes them: 100 steps an epoch."""
    lines: list[dict[str, Any]] = []
    for epoch in range(4):
        line = {
            "step": 100 * (epoch + 1), "epoch": epoch, "loss_clean": 2.0 / (epoch + 1), "loss_adversarial": 2.3 / (epoch + 1),
            "clean_accuracy": 80.0 + 4 * epoch, "robust_accuracy": 40.0 + 10 * epoch, "train_accuracy": 81.0 + 4 * epoch,
        }  # fmt: skip
        lines.append(line | ({"sparsity": 20.0 * epoch} if recipe.method.gated else {}))
    lines.insert(1, {"step": 101, "epoch": 1, "message": "3 units left the network"})
    return lines


def diagnosis(recipe: recipes.Recipe, *, suspicious: bool) -> dict[str, Any]:
    """Signs of masked gradients as they are kept."""
    attack = recipe.test_attack
    radii = [(0.0, 99.0), (0.5 * attack.eps, 95.0), (attack.eps, 90.0), (2 * attack.eps, 20.0), (1.0, 0.0)]
    return ATTACKED | {
        "eps": attack.eps, "step": attack.step, "suspicious": suspicious, "zero_gradients": 12.5, "verdict": "…",
        "signs": [
            {"name": "unbounded attack reaches 0 %", "suspicious": suspicious, "made": True, "reason": "accuracy 30 % at eps 1."},
            {"name": "accuracy falls with steps", "suspicious": False, "made": True, "reason": "95 % at 1, 90 % at 40."},
            {"name": "white box is not weaker than black box", "suspicious": False, "made": False, "reason": "no source."},
        ],
        "against_eps": [{"eps": eps, "steps": 40, "accuracy": value} for eps, value in radii],
        "against_steps": [{"eps": attack.eps, "steps": n, "accuracy": 95.0 - n / 8} for n in (1, 4, 10, 40)],
    }  # fmt: skip


def make_run(
    root: Path, name: str, seed: int = 0, *, row: dict[str, Any] | None = None, suspicious: bool | None = None, **changed: Any
) -> Path:  # fmt: skip
    """A finished run directory below `root`, its network untrained.

    Args:
        root: folder of the runs.
        name: of a recipe.
        seed: of the run.
        row: figures of its evaluation that differ from the made-up ones; None leaves it unevaluated.
        suspicious: verdict of its diagnosis; None leaves it undiagnosed.
        changed: fields of the recipe.
    """
    recipe = recipes.override(recipes.RECIPES[name], {"seed": seed, **changed})
    run = RunDirectory(RunDirectory.default(recipe, root))
    torch.manual_seed(seed)
    network = build(recipe.network).eval()
    with run:
        run.claim(recipe)
    facts = {"recipe": recipes.to_dict(recipe), "seed": seed, "train_seconds": 60.0, "extra_data": recipe.extra_data}
    if recipe.method.gated:
        insert_gates(network)
        with torch.no_grad():
            for gate in gates(network).values():
                gate.a_uc[::2] = -9.0
        serialization.save(compact(copy.deepcopy(network)), run.compact, **facts)
    serialization.save(network, run.network, **facts)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in metrics(recipe)), encoding="utf-8")
    if row is not None:
        protocol = row.get("protocol", "pixel-space")
        file = "evaluation.json" if protocol == "pixel-space" else f"evaluation-{protocol}.json"
        (run.path / file).write_text(json.dumps(evaluation(recipe, **row)), encoding="utf-8")
    if suspicious is not None:
        keep(run.path, "diagnosis", diagnosis(recipe, suspicious=suspicious))
    return run.path
