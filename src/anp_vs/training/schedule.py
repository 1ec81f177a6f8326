"""What changes as training goes on: the attack's radius, and the factors of the two learning rates."""

from __future__ import annotations

import math

from anp_vs.pruning.gate import THRESHOLD
from anp_vs.recipes import Recipe

FLOOR = 1e-4
"""Least factor of the weights' learning rate: a very small one keeps Adam's state moving at a schedule's ends."""


def eps(recipe: Recipe, progress: float) -> float:
    """The radius of the attack, in pixel units, at a share `progress` (0 to 1) of training."""
    warmup = recipe.eps_warmup
    return recipe.attack.eps * (min(1.0, progress / warmup) if warmup else 1.0)


def of_weights(recipe: Recipe, progress: float) -> float:
    """The factor of `recipe.lr` at a share `progress` (0 to 1) of training."""
    if recipe.schedule == "multistep":
        factor = _fallen(recipe, progress)
    elif recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = progress / 0.2 if progress < 0.2 else (1 - progress) / 0.8
    return max(factor, FLOOR)


def of_gates(recipe: Recipe, progress: float) -> float:
    """The factor of `recipe.gate_lr` at a share `progress` of training: constant unless it falls in steps."""
    return _fallen(recipe, progress) if recipe.schedule == "multistep" else 1.0


ARRIVES = 0.9
"""Share of the time under gates after which the target sparsity is to be reached: the gates follow with some delay."""


def beta_factor(recipe: Recipe, progress: float, level: float, first: float) -> float:
    """What beta is multiplied by at a share `progress` of training, so that the target sparsity is reached in time.

    Args:
        recipe: its gain, its target and when the gates are fixed.
        progress: 0 to 1.
        level: log E[pi] of the unit that is to go last, see `anp_vs.pruning.gate.last_to_go`.
        first: what it was before training.

    Returns:
        exp(gain (level - wanted) / (first - gone)): `gone` is the logarithm of the threshold under which a unit is pruned,
        and what is wanted goes there from `first` in a straight line.
    """
    gone = math.log(THRESHOLD)
    share = min(1.0, progress / (ARRIVES * recipe.decide_at))
    behind = (level - first) / (first - gone) + share
    return math.exp(recipe.beta_gain * max(-1.0, min(1.0, behind)))


def _fallen(recipe: Recipe, progress: float) -> float:
    return float(0.1 ** sum(progress >= milestone for milestone in recipe.milestones))
