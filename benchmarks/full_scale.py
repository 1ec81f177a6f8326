"""The most valuable full-scale runs, best first, in slices: run it again until it ends with 0 or 1.

    python benchmarks/full_scale.py --data-root DATA --out RUNS [--minutes 8.5] [--device cuda] [--seeds 1]

Each slice trains until its time is up, then asks the training to stop (it saves its state within seconds); the next
slice goes on. Finished runs are evaluated; their rows are written to OUT/rows.json as they come, and what is worth
keeping of each run to OUT/keep/ROW.tar.gz. Exit status: 0 when all is done, 3 when another slice is needed, 1 when all is
done but for what failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tarfile
import time
from itertools import product
from pathlib import Path

from anp_vs import recipes
from anp_vs.evaluation.row import row_file

FIRST = ("standard", "black-box-source", "anp-vs", "anp-vs-small", "at", "trades")
THEN = ("bp", "admm", "pretraining", "pretrained-at", "at-bnn")
PLAN = [f"{data}-gpu/{row}" for rows, data in product((FIRST, THEN), ("cifar10", "cifar100")) for row in rows]
PUBLISHED = ("mnist", "cifar10-released", "cifar100-released")
PLAN += [f"{table}/{row}" for table in PUBLISHED for row in (*FIRST, *THEN) if row != "anp-vs-small"]
SOURCE_SEED = "seed1000003"
"""The run directory of the one black-box source."""
AUTOATTACK_IMAGES = 1000
AT_BNN_IMAGES = 500
"""Every pass of it is averaged over 20 draws; AutoAttack, which would be, too, is left out."""
KEPT = ("recipe.yaml", "metrics.jsonl", "network.json", "compact.json", "compact.safetensors", "evaluation*.json")
STOPPED = 130
WORTH_STARTING = 45.0
"""Seconds of a slice: less would be spent on loading alone."""


def main() -> int:
    """Work through the plan for one slice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run directories")
    parser.add_argument("--minutes", type=float, default=8.5, help="length of a slice")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each row; the first of every row come first")
    parser.add_argument("--only", nargs="*", help="recipes, instead of the plan")
    asked = parser.parse_args()
    until = time.monotonic() + 60 * asked.minutes
    failed: list[str] = []
    for seed, recipe in product(range(asked.seeds), asked.only or PLAN):
        row = recipe.rpartition("/")[2]
        if row == "black-box-source" and seed:
            continue  # one for all seeds
        run = asked.out / recipe / (SOURCE_SEED if row == "black-box-source" else f"seed{seed}")
        common = ["--data-root", asked.data_root, "--device", asked.device]
        own = [] if row == "black-box-source" else ["--seed", str(seed)]
        status = (
            0 if (run / "network.json").exists() else ended(["train", recipe, "--out", str(run), *own, *common], until)
        )
        protocol = recipes.find(recipe).protocol
        if status == 0 and row not in ("black-box-source", "pretraining") and not evaluated(row_file(run, protocol)):
            limits = ["--limit", str(AT_BNN_IMAGES)] if row == "at-bnn" else []
            if not limits and protocol == "pixel-space":
                limits = ["--autoattack", str(AUTOATTACK_IMAGES)]
            status = ended(["evaluate", str(run), *limits, *common], until)
        if status is None:
            return 3
        if status:
            failed.append(recipe)
        else:
            keep(run, asked.out)
    print(f"failed: {', '.join(failed)}" if failed else "all is done", file=sys.stderr)
    return 1 if failed else 0


def evaluated(row: Path) -> bool:
    """Whether a run has this row, black-box columns included as soon as there is a source for them."""
    source = row.parent.parent.parent / "black-box-source" / SOURCE_SEED / "network.json"
    return row.exists() and (json.loads(row.read_text())["black_box_accuracy"] is not None or not source.exists())


def keep(run: Path, out: Path) -> None:
    """All but the dense networks and the checkpoints, in one file a run; and the rows of all runs."""
    archive = out / "keep" / f"{'_'.join(run.parts[-3:])}.tar.gz"
    files = sorted(path for pattern in KEPT for path in run.glob(pattern))
    if archive.exists() and archive.stat().st_mtime >= max(path.stat().st_mtime for path in files):
        return
    archive.parent.mkdir(exist_ok=True)
    with tarfile.open(archive, "w:gz") as file:
        for path in files:
            file.add(path, "/".join((*run.parts[-3:], path.name)))
    rows = [
        json.loads(path.read_text()) for path in sorted(out.glob("*/*/*/evaluation*.json")) if "images" not in path.stem
    ]
    (out / "rows.json").write_text(json.dumps(rows, indent=2))


def ended(words: list[str], until: float) -> int | None:
    """Run one command of anp-vs to its end; its status, or None when the slice ended first."""
    left = until - time.monotonic()
    if left < WORTH_STARTING:
        return None
    process = subprocess.Popen([sys.executable, "-m", "anp_vs", *words])
    try:
        status = process.wait(left)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.wait()
        return None
    if status not in (0, STOPPED):
        print(f"failed with status {status}: anp-vs {' '.join(words)}", file=sys.stderr)
    return None if status == STOPPED else status


if __name__ == "__main__":
    sys.exit(main())
