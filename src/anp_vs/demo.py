"""The demonstration: handwritten digits, from nothing to a small robust network, without a download."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from anp_vs import recipes, serialization
from anp_vs.data import load as load_data
from anp_vs.data import to_float
from anp_vs.evaluation.row import evaluate_run
from anp_vs.report.tables import show
from anp_vs.terminal import plain_console
from anp_vs.training.run import train
from anp_vs.training.run_directory import RunDirectory

ROWS = ("digits/standard", "digits/at", "digits/anp-vs")


def run(root: Path) -> int:
    """Train a standard network, a black-box source, AT and ANP-VS; compact; evaluate; print the rows.

    Args:
        root: folder for the run directories.

    Returns:
        The exit status.
    """
    began = time.monotonic()
    console = plain_console()
    console.print(
        "1,797 handwritten digits of scikit-learn, LeNet-5-Caffe, attack eps 0.1; every figure on the test set."
    )
    for name in ("digits/black-box-source", *ROWS):
        train(name, out=RunDirectory.default(recipes.RECIPES[name], root))
    rows = [
        evaluate_run(RunDirectory.default(recipes.RECIPES[name], root), progress=False, masking=None) for name in ROWS
    ]
    path = RunDirectory.default(recipes.RECIPES[ROWS[-1]], root)
    gated, small = serialization.load(path / "network.safetensors"), serialization.load(path)
    images = to_float(load_data("digits").test.images)
    with torch.no_grad():
        difference = float((gated(images) - small(images)).abs().max())
    console.print()
    show(rows)
    at = serialization.load(RunDirectory.default(recipes.RECIPES["digits/at"], root) / "network.safetensors")
    full, left = (sum(parameter.numel() for parameter in network.parameters()) for network in (at, small))
    console.print(
        f"\nThe compact ANP-VS network has {left:,} of {full:,} parameters; its logits differ from the gated network's by "
        f"at most {difference:.1e}.\nRun directory: {path}\nIts row: {path}/evaluation.json   its network: "
        f"{path}/compact.safetensors\nPictures of what is inside: anp-vs report {path.parent.parent} --figures --out report.html\n"
        f"{time.monotonic() - began:.0f} seconds."
    )
    return 0
