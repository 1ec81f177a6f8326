"""Adversarial neural pruning with latent vulnerability suppression: robust, small image classifiers."""

from __future__ import annotations

from anp_vs import attacks, data
from anp_vs.deploy.export import export
from anp_vs.errors import AnpVsError, DataError, InputError, RunError
from anp_vs.evaluation.robustness import evaluate
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import Gate
from anp_vs.pruning.insertion import insert_gates
from anp_vs.serialization import load, save
from anp_vs.training.run import Run, train

__version__ = "0.1.0"

__all__ = [
    "AnpVsError",
    "DataError",
    "Gate",
    "InputError",
    "Run",
    "RunError",
    "attacks",
    "compact",
    "data",
    "evaluate",
    "export",
    "insert_gates",
    "load",
    "save",
    "train",
]  # fmt: skip
