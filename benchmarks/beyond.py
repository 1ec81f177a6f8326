"""Corruptions and certificates of finished runs, side by side in results/beyond.json.

    python benchmarks/beyond.py RUN... [--corruptions 2000] [--certify 200] [--data-root DATA]

The same as `anp-vs evaluate RUN --corruptions N --certify N`, without the attacks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from anp_vs import load
from anp_vs.data import load as load_data
from anp_vs.evaluation.beyond import beyond_attacks, described
from anp_vs.provenance import provenance
from anp_vs.serialization import card_of
from anp_vs.storage import write_atomically
from anp_vs.terminal import exit_status
from anp_vs.training.run_directory import RunDirectory

RESULTS = Path(__file__).resolve().parent.parent / "results" / "beyond.json"


def main() -> int:
    """Measure each run, and write after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--corruptions", type=int, default=2000, help="test images, the first ones")
    parser.add_argument("--certify", type=int, default=200, help="test images, the first ones")
    parser.add_argument("--data-root")
    asked = parser.parse_args()
    rows = []
    for path in asked.runs:
        recipe = RunDirectory(path).read_recipe()
        network = load(path)
        test = load_data(recipe.data, asked.data_root or recipe.data_root, validation=recipe.validation).test
        row = {
            "recipe": recipe.name, "seed": recipe.seed, "dataset": recipe.data, "network_sha256": card_of(network)["sha256"],
            **beyond_attacks(
                network, test, eps=recipe.test_attack.eps, corruptions=asked.corruptions, certify=asked.certify, progress=False,
            ),
        }  # fmt: skip
        rows.append(row)
        print(recipe.name, *described(row), sep="\n  ", flush=True)
        write_atomically(RESULTS, json.dumps({"rows": rows, **provenance()}, indent=2).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
