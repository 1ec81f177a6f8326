"""Whether the fast paths of training change what it ends at: whole runs with them and without.

    python benchmarks/plain_path.py [--recipes digits/anp-vs digits/at] [--seeds 5] [--out results/plain_path.json]

Each recipe is trained in several ways from the same seeds: the same start, batches and random draws.

    fast      as anp-vs trains: the attack runs on the compact twin, in channels-last layout; units that stay dead
              leave the network in training
    bfloat16  the same in bfloat16, which training takes where it measures that it is faster
    plain     the attack runs on the gated network itself in evaluation mode; contiguous layout, float32; the network
              keeps every unit until the gates decide

Every trained network is evaluated in float32, with its gates, on the whole test set. Sums in another order differ in
the last bit, and training enlarges that until two runs differ like two seeds: so what is compared are means over
seeds, and the spread is that of the difference between ways at one seed. Runs that --out holds are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from anp_vs import recipes, serialization
from anp_vs.attacks import pgd
from anp_vs.data import load as load_data
from anp_vs.provenance import provenance
from anp_vs.pruning.gate import sparsity_percent
from anp_vs.recipes import Recipe
from anp_vs.training.loop import Trainer
from anp_vs.training.run import train
from anp_vs.training.run_directory import RunDirectory

FIGURES = ("clean_accuracy", "pgd_accuracy", "sparsity", "cpu_seconds")
CHANGES: dict[str, dict[str, Any]] = {
    "fast": {"precision": "float32", "layout": "channels-last"},
    "bfloat16": {"precision": "bfloat16", "layout": "channels-last"},
    "plain": {"precision": "float32", "layout": "contiguous", "remove_after": 0},
}


class PlainTrainer(Trainer):
    """Training without the compact twin: the attack falls back to the network in training, in evaluation mode."""

    def _rebuild(self) -> None:
        super()._rebuild()
        self.adversary.twin = None


def run(recipe: Recipe, way: str, root: Path) -> dict[str, float]:
    """One training and its evaluation.

    Args:
        recipe: with its seed; what it starts from is trained first, as always, into its own run directory.
        way: one of `CHANGES`.
        root: folder of the run directories.

    Returns:
        `FIGURES`: percent of the test set, percent of the units, and the process's CPU seconds in training.
    """
    before, start = recipes.prerequisite(recipe), None
    if before is not None:
        place = train(before, out=RunDirectory.default(before, root), device="cpu", quiet=True).path
        saved = place / "network.safetensors"
        start = serialization.read_tensors(saved, serialization.read_card(saved))
    recipe = replace(recipe, **CHANGES[way])
    dataset = load_data(recipe.data, recipe.data_root, validation=recipe.validation)
    kind = PlainTrainer if way == "plain" else Trainer
    trainer = kind(recipe, dataset, Fabric(accelerator="cpu", devices=1), start)
    began = time.process_time()
    while trainer.step < trainer.total_steps:
        trainer.advance()
    seconds = time.process_time() - began
    network = trainer.evaluation_network()
    images, labels = dataset.test.images.float() / 255, dataset.test.labels
    budget = recipe.test_attack
    generator = torch.Generator().manual_seed(recipe.seed)
    attacked = pgd(network, images, labels, eps=budget.eps, step=budget.step, steps=budget.steps, generator=generator)
    with torch.no_grad():
        clean, robust = ((network(x).argmax(1) == labels).double().mean().item() for x in (images, attacked))
    sparsity = sparsity_percent(network) if recipe.method.gated else 0.0
    return dict(zip(FIGURES, (100 * clean, 100 * robust, sparsity, seconds), strict=True))


def summary(runs: dict[str, dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds of each way, and of each other way's difference to the plain one.

    Args:
        runs: way -> seed -> figures.
    """

    def spread(values: list[float]) -> dict[str, float | int | None]:
        deviation = round(statistics.stdev(values), 3) if len(values) > 1 else None
        return {"mean": round(statistics.fmean(values), 3), "standard_deviation": deviation, "seeds": len(values)}

    found: dict[str, Any] = {}
    for way, by_seed in runs.items():
        found[way] = {name: spread([figures[name] for figures in by_seed.values()]) for name in FIGURES}
    for way in sorted(runs.keys() - {"plain"}):
        pairs = [(runs[way][seed], figures) for seed, figures in runs.get("plain", {}).items() if seed in runs[way]]
        if pairs:
            found[f"{way} - plain"] = {name: spread([a[name] - b[name] for a, b in pairs]) for name in FIGURES}
    return found


def main() -> None:
    """Train what is missing, evaluate, write after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipes", nargs="+", default=["digits/anp-vs", "digits/at"], help="names, as in `anp-vs recipes`"
    )
    parser.add_argument("--ways", nargs="+", default=list(CHANGES), choices=CHANGES)
    parser.add_argument("--seeds", type=int, default=5, help="how many: 0, 1, ...")
    parser.add_argument("--data-root", help="folder that holds the data set, for another one than digits")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=Path("runs/plain-path"), help="for the runs that recipes start from"
    )
    parser.add_argument("--out", type=Path, default=Path("results/plain_path.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    results: dict[str, Any] = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    for seed in range(asked.seeds):
        for name in asked.recipes:
            recipe = replace(recipes.find(name), seed=seed, data_root=asked.data_root)
            found = results.setdefault(name, {"runs": {}})
            for way in asked.ways:
                done = found["runs"].setdefault(way, {})
                if str(seed) in done:
                    continue
                figures = run(recipe, way, asked.work)
                done[str(seed)] = {key: round(value, 3) for key, value in figures.items()}
                print(name, way, f"seed {seed}", json.dumps(done[str(seed)]), flush=True)
                found["summary"] = summary({way: by_seed for way, by_seed in found["runs"].items() if by_seed})
                source = provenance()
                found |= {"machine": source["hardware"], "command": source["command"], "commit": source["commit"]}
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                asked.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
