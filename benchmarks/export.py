"""What a run's network is in each exported format: size, speed, clean and robust accuracy; results/export.json.

    python benchmarks/export.py RUN --data-root DATA [--images 1000]

Adversarial images are made once, by PGD-40 on the float network, and classified by all: rounding to eight bits has no
useful gradient, so an attack on the quantised network itself would flatter it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import anp_vs
from anp_vs import recipes
from anp_vs.attacks import pgd
from anp_vs.deploy.export import export, onnx_logits
from anp_vs.deploy.quantise import calibration_images, quantise
from anp_vs.networks import build
from anp_vs.provenance import provenance

RUNS = 15
BATCH = 128


def main() -> None:
    """Measure one run and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root", default=None)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("results/export.json"))
    asked = parser.parse_args()
    recipe = recipes.find(asked.run)
    data = anp_vs.data.load(recipe.data, asked.data_root, validation=recipe.validation, pictures=recipe.pictures)
    network = anp_vs.load(asked.run)
    test = data.test.head(asked.images)
    images, labels = test.images / 255, test.labels
    attack = recipe.test_attack
    attacked = pgd(
        network, images, labels, eps=attack.eps, step=attack.step, steps=attack.steps,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    folder = asked.run / "exported"
    files = {name: export(network, folder / "network", name) for name in ("safetensors", "torch-export", "onnx")}
    files["onnx-int8"] = quantise(files["onnx"], calibration_images(data.train))
    full = build(recipe.network, len(data.classes)).eval().requires_grad_(False)
    onnx_full = export(full, folder / "full", "onnx")
    runners: dict[str, Callable[[Tensor], Tensor]] = {
        "full-size, PyTorch": full, "full-size, onnx": onnx_logits(onnx_full),
        "safetensors": anp_vs.load(files["safetensors"]).requires_grad_(False),
        "torch-export": torch.export.load(files["torch-export"]).module(),
        "onnx": onnx_logits(files["onnx"]), "onnx-int8": onnx_logits(files["onnx-int8"]),
    }  # fmt: skip
    seconds = timed(runners, images[:BATCH].clone())
    float_logits = network(images).detach()
    lines: list[dict[str, Any]] = []
    for name, run in runners.items():
        line: dict[str, Any] = {"name": name, "milliseconds_a_batch": 1000 * seconds[name], "batch": BATCH}
        if name in files:
            clean = run(images).detach()
            line |= {
                "bytes": files[name].stat().st_size,
                "clean_accuracy": percent(clean, labels), "robust_accuracy": percent(run(attacked).detach(), labels),
                "largest_difference_of_logits": float((clean - float_logits).abs().max()),
            }  # fmt: skip
        lines.append(line)
    result = {
        "run": recipe.name, "seed": recipe.seed, "network": recipe.network, "images": len(labels),
        "attack": f"PGD-{attack.steps} on the float network, eps {attack.eps}, transferred to every format",
        "threads": torch.get_num_threads(), "load_average": os.getloadavg()[0],
        "clock": "processor" if torch.get_num_threads() == 1 else "wall", "formats": lines, **provenance(),
        "command": f"python benchmarks/export.py runs/{recipe.name}/seed{recipe.seed} --data-root DATA --images {len(labels)}",
    }  # fmt: skip
    asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(lines, indent=2))


def percent(logits: Tensor, labels: Tensor) -> float:
    """Accuracy of logits."""
    return 100 * float((logits.argmax(1) == labels).double().mean())


@torch.no_grad()
def timed(runners: dict[str, Callable[[Tensor], Tensor]], images: Tensor) -> dict[str, float]:
    """Median seconds of a batch, the runners taking turns, so that a machine that changes its speed does so for all.

    With one thread these are seconds of the processor, so that waiting for other programs does not count.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runners}
    for repeat in range(RUNS + 2):
        for name, run in runners.items():
            began = clock()
            run(images)
            if repeat >= 2:
                times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
