"""What leaves a network with the units that are zero on every image, and that nothing else changes.

    python benchmarks/silent.py NETWORK --data-root DATA [--out results/silent_units.json]

NETWORK is a shipped name, a run or a saved network; its card says the data, eps and steps.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from anp_vs import attacks, data, serialization
from anp_vs.evaluation.cost import macs
from anp_vs.evaluation.published_cost import published_cost
from anp_vs.provenance import provenance
from anp_vs.pruning.silent import without_silent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/silent_units.json"))
    asked = parser.parse_args()
    network = serialization.load(serialization.locate(asked.network))
    card = serialization.card_of(network)
    small, left = without_silent(network)
    test = data.load(card["data"], asked.data_root).test
    budget = card["recipe"]["test_attack"]
    same, furthest, counts = True, 0.0, {"clean": [0, 0], "white_box": [0, 0]}
    for start in range(0, len(test), 500):
        images, labels = data.to_float(test.images[start : start + 500]), test.labels[start : start + 500]
        torch.manual_seed(start)
        attacked = attacks.pgd(network, images, labels, **budget)
        for name, shown in (("clean", images), ("white_box", attacked)):
            with torch.no_grad():
                answers = [one(shown) for one in (network, small)]
            furthest = max(furthest, float((answers[0] - answers[1]).abs().max()))
            same = same and torch.equal(answers[0].argmax(1), answers[1].argmax(1))
            for place, answer in enumerate(answers):
                counts[name][place] += int((answer.argmax(1) == labels).sum())
    sizes = [
        {
            "parameters": sum(p.numel() for p in one.parameters()),
            "macs": macs(one, data.to_float(test.images[:1])),
            "flops_reduction": published_cost(one).flops_reduction,
            "memory_percent": published_cost(one).memory_percent,
        }
        for one in (network, small)
    ]
    found = {
        "what": f"{asked.network} before and after the units leave that are zero on every image of [0, 1]",
        "units_by_the_layer_that_read_them": left, "before": sizes[0], "after": sizes[1], "images": len(test),
        "correct_before_and_after": counts, "every_prediction_the_same": same, "largest_difference_of_a_logit": furthest,
        "seed": 0, **provenance(),
    }  # fmt: skip
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
