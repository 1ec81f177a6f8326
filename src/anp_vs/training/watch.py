"""Looks at the numbers of a run and says when they have gone wrong, each thing once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs.attacks import frozen
from anp_vs.errors import InputError, RunError
from anp_vs.networks.latents import latent_paths, recorded
from anp_vs.pruning.gate import gates

FALL = 20.0
"""Points of validation accuracy under PGD below its best that count as a sharp fall; 10 is common noise."""
GAP = 30.0
"""Points of robust accuracy on training batches above that; robust overfitting takes many epochs to get there."""


class Trouble(RunError):
    """The numbers of a run have gone wrong; its last good checkpoint is intact."""


class Watch:
    """Remembers what was said, so that a resumed run neither repeats nor forgets it.

    Catastrophic overfitting (Wong et al. 2020, arXiv 2001.03994, section 5): from one epoch to the next a network
    learns to answer the weak attack of training right and loses its robustness to PGD.
    """

    def __init__(self) -> None:
        self.collapsed: list[str] = []
        self.silent: list[str] = []
        self.best = 0.0
        self.overfitted = False

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "collapsed": list(self.collapsed),
            "silent": list(self.silent),
            "best": self.best,
            "overfitted": self.overfitted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.collapsed, self.best = list(state["collapsed"]), float(state["best"])
        self.silent, self.overfitted = list(state["silent"]), bool(state["overfitted"])

    def look(self, network: nn.Module, values: Mapping[str, float], images: Tensor | None = None) -> list[str]:
        """What has gone wrong since the last look, in sentences.

        Args:
            network: in training.
            values: what is logged after this step: `train_robust_accuracy` and, after an epoch, `robust_accuracy`,
                in percent.
            images: clean, N x C x H x W as the network is shown them, after an epoch.
        """
        messages = self._new(
            self.collapsed,
            [name for name, gate in gates(network).items() if not gate.fixed and gate.collapsed()],
            "every unit of {} would be pruned; its strongest one is kept. Lower method.beta or gate_lr if this is not wanted",
        )
        if images is not None:
            messages += self._new(
                self.silent,
                silent_layers(network, images),
                "{} has died out: it is 0 for every validation image, so that nothing passes it. Lower lr or attack.eps, or "
                "lengthen eps_warmup",
            )
        robust, trained = values.get("robust_accuracy"), values.get("train_robust_accuracy")
        if robust is None or trained is None:
            return messages
        self.best = max(self.best, robust)
        fallen = robust <= self.best - FALL and robust <= trained - GAP
        if fallen and not self.overfitted:
            messages.append(
                f"catastrophic overfitting: PGD on the validation split fell to {robust:.1f} % from {self.best:.1f} %, while "
                f"the attack of training leaves {trained:.1f} %; give attack.steps more steps or make attack.step smaller"
            )
        self.overfitted = fallen
        return messages

    def _new(self, known: list[str], found: list[str], message: str) -> list[str]:
        """A message about each name that is not yet known."""
        new = [name for name in found if name not in known]
        known += new
        return [message.format(name) for name in new]


def silent_layers(network: nn.Module, images: Tensor) -> list[str]:
    """The latent layers that are 0 everywhere, for all of these images; none where the network has no latent layers."""
    try:
        latent_paths(network)
    except InputError:
        return []
    with frozen(network), torch.no_grad(), recorded(network) as features:
        network(images)
    return [name for name, feature in features.items() if not bool(feature.any())]


def check_finite(network: nn.Module, step: int) -> None:
    """Refuse to save a network that is not one any more.

    Raises:
        Trouble: a parameter or buffer holds NaN or infinity.
    """
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise Trouble(
                f"{name} holds values that are not finite after step {step}. They were not saved. "
                f"Lower lr or gate_lr, or lengthen eps_warmup."
            )
