"""Make a run's compact network part of the package, with what was measured in its card.

    python benchmarks/ship.py RUN TABLE/NAME        # such as runs/mnist-cpu/anp-vs/seed0 mnist/anp-vs
    python benchmarks/ship.py RUN TABLE/NAME --autoattack COPY    # AutoAttack was run on a copy of RUN, on fewer images

Every figure in the card is the run's evaluation; `anp_vs.load("TABLE/NAME")` then gives the network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from collect import without_places

from anp_vs import serialization

SHIPPED = Path(__file__).resolve().parent.parent / "src" / "anp_vs" / "shipped"
KEPT = (
    "classes", "data", "threat_model", "recipe", "seed", "train_seconds", "train_commit", "sparsity_percent", "extra_data", "stages",
)  # fmt: skip
MEASURED = (
    "clean_accuracy", "white_box_accuracy", "white_box_accuracy_strongest", "black_box_accuracy", "autoattack_accuracy",
    "autoattack_images", "white_box_vulnerability", "black_box_vulnerability", "parameters", "macs", "flops_reduction",
    "images", "norm", "eps", "step", "steps", "restarts", "commit", "hardware", "versions",
)  # fmt: skip
FIRST = 500
"""Images of which the card holds how many were classified correctly, so that a test can count them again."""


def main() -> None:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("name")
    parser.add_argument("--autoattack", type=Path, metavar="RUN")
    asked = parser.parse_args()
    network = serialization.load(serialization.locate(asked.run))
    card = serialization.card_of(network)
    facts = {name: card[name] for name in KEPT if name in card}
    facts["recipe"] = without_places(facts["recipe"])
    row = json.loads((asked.run / "evaluation.json").read_text())
    facts["measured"] = {name: row[name] for name in MEASURED if row.get(name) is not None}
    facts["measured"]["warnings"] = [sign["reason"] for sign in row["diagnosis"]["signs"] if sign["suspicious"]]
    if asked.autoattack:
        other = json.loads((asked.autoattack / "evaluation.json").read_text())
        if other["network_sha256"] != row["network_sha256"]:
            parser.error(f"{asked.autoattack} is another network than {asked.run}.")
        facts["measured"] |= {name: other[name] for name in ("autoattack_accuracy", "autoattack_images")}
    correct = json.loads((asked.run / "evaluation-images.json").read_text())["correct"]
    facts["first"] = {"images": FIRST} | {name: sum(correct[name][:FIRST]) for name in ("clean", "white_box")}
    target = SHIPPED / f"{asked.name}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    print(serialization.save(network, target, **facts))


if __name__ == "__main__":
    main()
