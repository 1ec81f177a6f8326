"""The most valuable full-scale runs, best first, in slices: run it again until it says that nothing is left.

    python benchmarks/full_scale.py --data-root DATA --out RUNS [--minutes 8.5] [--device cuda]

Each slice trains until its time is up, then asks the training to stop (it saves its state within seconds); the next
slice goes on. Finished runs are evaluated, and their rows are written to OUT/tables.json as they come.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

FIRST = ("standard", "black-box-source", "anp-vs", "at", "trades")
THEN = ("bp", "admm", "at-bnn", "pretraining", "pretrained-at")
PLAN = [f"cifar10-gpu/{row}" for row in FIRST] + [f"mnist/{row}" for row in (*FIRST, *THEN)]
PLAN += [f"{data}-gpu/{row}" for data, rows in (("cifar10", THEN), ("cifar100", (*FIRST, *THEN))) for row in rows]
PLAN += [f"{data}/{row}" for data in ("cifar10", "cifar100") for row in (*FIRST, *THEN)]
AUTOATTACK_IMAGES = 1000
STOPPED = 130


def main() -> int:
    """Work through the plan for one slice; returns 0 when all is done, 3 when another slice is needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--minutes", type=float, default=8.5, help="length of a slice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--only", nargs="*", help="recipes, instead of the plan")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    for recipe in asked.only or PLAN:
        seed = "seed1000003" if recipe.endswith("black-box-source") else "seed0"
        run = asked.out / recipe / seed
        train = ["train", recipe, "--out", str(run), "--data-root", asked.data_root, "--device", asked.device]
        if not (run / "network.json").exists() and not ended(train, until):
            return 3
        if recipe.endswith(("black-box-source", "pretraining")) or (run / "evaluation.json").exists():
            continue
        evaluate = [
            "evaluate",
            str(run),
            "--data-root",
            asked.data_root,
            "--autoattack",
            str(AUTOATTACK_IMAGES),
        ]
        if not ended(evaluate, until):
            return 3
        rows = [json.loads(file.read_text()) for file in sorted(asked.out.glob("*/*/*/evaluation.json"))]
        (asked.out / "tables.json").write_text(json.dumps(rows, indent=2))
    return 0


def ended(words: list[str], until: float) -> bool:
    """Run one command of anp-vs until it ends (True) or the slice does (False); a failure is said and skipped."""
    process = subprocess.Popen([sys.executable, "-m", "anp_vs", *words])
    try:
        status = process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return False
    if status not in (0, STOPPED):
        print(f"failed with status {status}: anp-vs {' '.join(words)}", file=sys.stderr)
    return status != STOPPED


if __name__ == "__main__":
    sys.exit(main())
