"""Draw docs/speed.svg from results/speed.json: how many times faster, and against whom.

python benchmarks/speed_figure.py
"""

from __future__ import annotations

import json
from pathlib import Path

from ablation import BLUE, GREY, ORANGE, finish
from matplotlib.figure import Figure

HOME = Path(__file__).resolve().parent.parent
LABELS = {
    "pgd_lenet": "PGD-20, LeNet", "pgd_vgg16": "PGD step, VGG-16", "at_lenet": "training step, LeNet",
    "at_vgg16": "training step, VGG-16, float32", "at_vgg16_bfloat16": "training step, VGG-16, bfloat16",
    "at_vgg16_bfloat16_against_autocast": "training step, VGG-16, bfloat16", "whole_run_lenet": "whole ANP-VS run, LeNet",
    "inference_lenet_batch_1": "compact LeNet, batch 1", "inference_lenet_batch_128": "compact LeNet, batch 128",
    "inference_vgg16_batch_1": "compact VGG-16, batch 1", "inference_vgg16_batch_128": "compact VGG-16, batch 128",
}  # fmt: skip
OTHERS = {
    "peer under autocast by hand": "the fastest peer, put under autocast by hand",
    "full network": "the full network",
}
"""What the contestants of the file are called in the picture."""


def main() -> None:
    """Read and draw."""
    results = json.loads((HOME / "results" / "speed.json").read_text())
    shown = [key for key in LABELS if key in results]
    figure = Figure(figsize=(7.5, 0.45 * len(shown) + 1), layout="constrained")
    axes = figure.subplots()
    names = []
    for place, key in enumerate(shown):
        value = results[key]
        error = [[value["ratio"] - value["low"]], [value["high"] - value["ratio"]]]
        axes.errorbar(
            value["ratio"], place, xerr=error, fmt="o", color=BLUE, capsize=3, label=None if place else "measured"
        )
        if "macs_ratio" in value:
            first = not any("macs_ratio" in results[before] for before in shown[:place])
            axes.plot(value["macs_ratio"], place, "D", color=ORANGE, label="ratio of MACs" if first else None)
        left = "macs_ratio" in value  # whose mark stands on the right
        axes.annotate(
            f"{value['ratio']:.2f}", (value["low" if left else "high"], place), (-6 if left else 6, 0),
            textcoords="offset points", ha="right" if left else "left", va="center", color=GREY, fontsize=8,
        )  # fmt: skip
        threads = " (2 threads)" if value["machine"].endswith("2 threads") else ""
        names.append(f"{LABELS[key]}{threads}\nagainst {OTHERS.get(value['against'], value['against'])}")
    axes.axvline(1, color=GREY, linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlim(0.7, 20)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.minorticks_off()
    axes.set_yticks(range(len(shown)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("times faster (median and quartiles; logarithmic)")
    finish(figure, [axes], HOME / "docs" / "speed.svg")


if __name__ == "__main__":
    main()
