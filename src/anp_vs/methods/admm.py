"""ADMM: adversarial training and weight pruning at once (Ye et al. 2019, arXiv 1903.12561).

The constraint "at most this many weights are not 0" is split off by the alternating direction method of
multipliers. For each layer's weight W there is an auxiliary Z that obeys it, and a scaled dual U:

    1. ADMM:       min CE(f(x~), y) + rho/2 sum |W - Z + U|^2;  from time to time
                   rho <- 1.3 rho,   Z <- project(W + U),   U <- U + W - Z
    2. hard mask:  W <- project(W)
    3. retraining: min CE(f(x~), y) over the weights that are left

`project` keeps the asked number of weights of largest magnitude, exactly that many: among equal magnitudes
the one with the lower index stays. What this gives is unstructured: zeros inside full-size tensors, which
dense arithmetic multiplies like other numbers. Storage falls only in a sparse format or an archive, and time hardly
ever (`benchmarks/sparse_storage.py` measures both).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError, RunError
from anp_vs.methods.method import Companion, Method, Objective
from anp_vs.methods.ranges import in_range


@dataclass(frozen=True)
class ADMM(Method):
    """min CE(f(x~), y) with the given share of the weights exactly 0. Starts best from a trained AT network.

    Attributes:
        sparsity_percent: weights of convolution and dense layers that become 0, in (0, 100); 80 for MNIST and
            75 for CIFAR in the published tables.
        rho: initial weight of the penalty, > 0.
        rho_growth: factor of rho at each update of Z and U, >= 1.
        updates: number of updates of Z and U, >= 1, spread evenly over the ADMM phase.
        admm_share: share of training before the hard mask, in (0, 1); the rest retrains what is left.
    """

    name: ClassVar[str] = "admm"
    source: ClassVar[str] = "Ye et al. 2019, arXiv 1903.12561, and released code"
    sparsity_percent: float = 80.0
    rho: float = 1e-3
    rho_growth: float = 1.3
    updates: int = 10
    admm_share: float = 0.5

    def __post_init__(self) -> None:
        in_range(self, "sparsity_percent", above=0, below=100)
        in_range(self, "rho", above=0)
        in_range(self, "rho_growth", at_least=1)
        in_range(self, "updates", at_least=1)
        in_range(self, "admm_share", above=0, below=1)

    def companion(self, network: nn.Module, total_steps: int) -> Companion:
        """Z, U, rho and the mask of this network."""
        return Splitting(network, total_steps, self)

    def objective(
        self, network: nn.Module, images: Tensor, adversarial: Tensor, labels: Tensor, training_images: int
    ) -> Objective:
        """CE(f(x~), y) of one batch; the clean images are not looked at, the penalty is the companion's."""
        logits = network(adversarial)
        loss = functional.cross_entropy(logits, labels)
        return Objective(loss, None, logits.detach(), None, {"loss_adversarial": loss})


class Splitting:
    """Z, U, rho and the mask, through the three phases of one run.

    Args:
        network: its weights at the start of the ADMM phase; those that ask for no gradient are frozen and stay.
        total_steps: of the run.
        method: the hyper-parameters.

    Raises:
        InputError: a layer would keep no weight.
    """

    def __init__(self, network: nn.Module, total_steps: int, method: ADMM) -> None:
        self.weights = {name: weight for name, weight in layer_weights(network).items() if weight.requires_grad}
        self.keep = kept_counts([w.numel() for w in self.weights.values()], method.sparsity_percent)
        for (name, weight), count in zip(self.weights.items(), self.keep, strict=True):
            if not count:
                raise InputError(
                    f"admm: sparsity_percent is {method.sparsity_percent}, which would leave {name} none of "
                    f"its {weight.numel()} weights and cut the network in two; lower it."
                )
        self.rho, self.growth = method.rho, method.rho_growth
        # Both counted in finished steps. Training goes on for a while after the last update.
        self.mask_at = max(1, round(method.admm_share * total_steps))
        self.update_at = {round(k * self.mask_at / (method.updates + 1)) for k in range(1, method.updates + 1)}
        self.masks: dict[str, Tensor] = {}
        with torch.no_grad():
            self.z = {name: self._projected(name, weight.detach()) for name, weight in self.weights.items()}
            self.u = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}

    def penalty(self) -> Tensor:
        """rho/2 sum |W - Z + U|^2 over all layers; 0 once the mask is set."""
        if self.masks:
            return next(iter(self.weights.values())).new_zeros(())
        terms = [(w - self.z[name] + self.u[name]).square().sum() for name, w in self.weights.items()]
        return self.rho / 2 * torch.stack(terms).sum()

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """In retraining: no gradient where the mask is 0, so that no momentum builds up there."""
        for name, mask in self.masks.items():
            gradient = self.weights[name].grad
            if gradient is not None:
                gradient.mul_(mask)

    @torch.no_grad()
    def after_step(self, step: int) -> bool:
        """Update Z and U, or set the mask, when it is time; True when the mask was set."""
        done = step + 1
        if self.masks:
            return False
        if done >= self.mask_at:
            for place, (name, weight) in enumerate(self.weights.items()):
                self.masks[name] = largest(weight, self.keep[place])
                weight.mul_(self.masks[name])
            self.z, self.u = {}, {}
            return True
        if done in self.update_at:
            self.rho *= self.growth
            for name, weight in self.weights.items():
                self.z[name] = self._projected(name, weight + self.u[name])
                self.u[name] += weight - self.z[name]
        return False

    def state_dict(self) -> dict[str, Any]:
        """rho, and Z, U or mask of every weight."""
        return {"rho": self.rho, "z": dict(self.z), "u": dict(self.u), "masks": dict(self.masks)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            RunError: it was saved for another network.
        """
        for key in ("z", "u", "masks"):
            for name, value in state[key].items():
                if name not in self.weights or value.shape != self.weights[name].shape:
                    raise RunError(
                        f"The checkpoint's ADMM state holds {name!r} of shape {tuple(value.shape)}, which "
                        f"this network does not have; go on with the network that it was saved with."
                    )
        self.rho = float(state["rho"])
        self.z, self.u, self.masks = (self._placed(state[key]) for key in ("z", "u", "masks"))

    def _projected(self, name: str, weight: Tensor) -> Tensor:
        return weight * largest(weight, self.keep[list(self.weights).index(name)])

    def _placed(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the weights' device and in their memory layout, so that sums add up in the same order."""
        return {
            name: torch.empty_like(self.weights[name], dtype=value.dtype).copy_(value) for name, value in values.items()
        }


def layer_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights that are pruned and counted: of every convolution and dense layer, without biases.

    Raises:
        InputError: the network has none.
    """
    found = {
        f"{name}.weight".lstrip("."): module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear)
    }
    if not found:
        raise InputError(f"{type(network).__name__} has no convolution or dense layer, so it has no weights to prune.")
    return found


def kept_counts(sizes: list[int], sparsity_percent: float) -> list[int]:
    """How many weights of each layer stay, such that their sum is exactly the asked share of the total.

    Args:
        sizes: numbers of weights of the layers.
        sparsity_percent: share that goes, in (0, 100).

    Returns:
        One number a layer, its own share to within one weight.
    """
    counts, seen, gone = [], 0, 0
    for size in sizes:
        seen += size
        due = math.floor(sparsity_percent * seen / 100 + 0.5)
        counts.append(size - (due - gone))
        gone = due
    return counts


def largest(weight: Tensor, count: int) -> Tensor:
    """Where the `count` entries of largest magnitude are (bool); of equal ones those with the lower index."""
    order = weight.detach().abs().flatten().argsort(descending=True, stable=True)
    mask = torch.zeros_like(order, dtype=torch.bool)
    mask[order[:count]] = True
    return torch.empty_like(weight, dtype=torch.bool).copy_(mask.view(weight.shape))
