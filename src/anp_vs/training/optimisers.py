"""The two optimisers of a run: of the weights, and of the gates' parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs.methods.method import Objective
from anp_vs.pruning.gate import gate_parameters, weight_parameters
from anp_vs.pruning.shrinking import follow
from anp_vs.pruning.slicing import Slices
from anp_vs.recipes import Recipe
from anp_vs.training import schedule

Gradients = Sequence[Tensor | None]


class Optimisers:
    """What turns the losses of a step into new weights and gates.

    Args:
        recipe: optimiser, learning rates and their schedules.
        network: in training; handed over again after its parameters have changed (`renew`, `load_state_dict`).
        average: of several processes, the mean of their gradients.

    Attributes:
        weights: of all parameters that ask for a gradient and are not a gate's.
        gates: of the gates' parameters; None for a network without gates.
    """

    weights: torch.optim.Optimizer

    def __init__(self, recipe: Recipe, network: nn.Module, average: Callable[[Gradients], Gradients]) -> None:
        self.recipe, self._average = recipe, average
        self.renew(network)
        self.gates = torch.optim.Adam(gate_parameters(network), recipe.gate_lr) if recipe.method.gated else None

    def renew(self, network: nn.Module) -> None:
        """Let the weights' optimiser forget its past."""
        recipe, parameters = self.recipe, weight_parameters(network)
        decay = recipe.weight_decay if recipe.method.weight_decay else 0.0
        if recipe.optimiser == "sgd":
            self.weights = torch.optim.SGD(parameters, recipe.lr, momentum=0.9, nesterov=True, weight_decay=decay)
        else:  # the decay is the gradient of an L2 penalty in the loss, as published, not AdamW's
            self.weights = torch.optim.Adam(parameters, recipe.lr, weight_decay=decay)

    def set_rates(self, progress: float, eased: float) -> None:
        """The learning rates at a share `progress` of training, times `eased`."""
        recipe = self.recipe
        rates = [(self.weights, recipe.lr * schedule.of_weights(recipe, progress))]
        if self.gates is not None:
            rates.append((self.gates, recipe.gate_lr * schedule.of_gates(recipe, progress)))
        for optimiser, rate in rates:
            for group in optimiser.param_groups:
                group["lr"] = eased * rate

    def backward(self, network: nn.Module, loss: Tensor, objective: Objective, *, gates_learn: bool) -> None:
        """Each group of parameters gets the gradient of its own loss.

        Args:
            network: in training.
            loss: of the weights.
            objective: holds the gates' loss.
            gates_learn: whether the gates are still learning.
        """
        weights = weight_parameters(network)
        gates = objective.gates if gates_learn and self.gates is not None else None
        if gates is loss:
            parameters = [*weights, *gate_parameters(network)]
            self._assign(parameters, torch.autograd.grad(loss, parameters, allow_unused=True))
            return
        retain = gates is not None
        self._assign(weights, torch.autograd.grad(loss, weights, retain_graph=retain, allow_unused=True))
        if gates is not None:
            parameters = gate_parameters(network)
            self._assign(parameters, torch.autograd.grad(gates, parameters))

    def step(self, *, gates_learn: bool) -> None:
        """Change the parameters by their gradients."""
        self.weights.step()
        if self.gates is not None and gates_learn:
            self.gates.step()

    def follow(self, before: dict[str, nn.Parameter], after: dict[str, nn.Parameter], kept: Slices) -> None:
        """Let parameters and moments follow a network that has shrunk, see `anp_vs.pruning.shrinking.follow`."""
        for optimiser in filter(None, (self.weights, self.gates)):
            follow(optimiser, before, after, kept)

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        return {
            "weights_optimiser": self.weights.state_dict(),
            "gates_optimiser": self.gates.state_dict() if self.gates else None,
        }

    def load_state_dict(self, network: nn.Module, state: dict[str, Any]) -> None:
        """Go on with a network that has taken the shapes of the saved one."""
        self.renew(network)
        self.weights.load_state_dict(state["weights_optimiser"])
        if self.gates is not None and state["gates_optimiser"] is not None:
            self.gates = torch.optim.Adam(gate_parameters(network), self.recipe.gate_lr)
            self.gates.load_state_dict(state["gates_optimiser"])

    def _assign(self, parameters: list[nn.Parameter], gradients: Gradients) -> None:
        for parameter, gradient in zip(parameters, self._average(gradients), strict=True):
            parameter.grad = gradient
