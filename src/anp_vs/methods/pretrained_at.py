"""Pretrained AT: adversarial pre-training on another data set, then a short fine-tuning.

    1.  f_s    = AT on the source data set                          (a run of its own)
    2.  f      = f_s with a new last layer                          (`transfer_weights`)
    3.  weights: min (CE(f(x), y) + w CE(f(x~), y)) / (1 + w)       (few epochs, small learning rate)

Source: Hendrycks et al. 2019, "Using Pre-Training Can Improve Model Robustness and Uncertainty",
arXiv 1901.09960, section 3.

The pre-training must be adversarial itself: robustness of features is what transfers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.methods.at import AT


@dataclass(frozen=True)
class PretrainedAT(AT):
    """Fine-tuning by the objective of AT, from the transferred weights of an adversarially trained network.

    Attributes:
        adversarial_weight: w, > 0.
    """

    name: ClassVar[str] = "pretrained-at"
    source: ClassVar[str] = "Hendrycks et al. 2019, arXiv 1901.09960; objective as in the AT rows"

    transfers: ClassVar[bool] = True

    def begin(self, network: nn.Module, start: Mapping[str, Tensor]) -> list[str]:
        """The transferred weights, with a fresh last layer."""
        return transfer_weights(network, start)


def head_of(network: nn.Module) -> str:
    """Path of the layer that makes the logits.

    It is `network.head` where that holds a path, else the last dense or convolutional layer registered.

    Raises:
        InputError: the network has no such layer.
    """
    declared: object = getattr(network, "head", None)
    if isinstance(declared, str):
        return declared
    layers: list[str] = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not layers:
        raise InputError(
            f"{type(network).__name__} has no dense or convolutional layer, so there is no last one to "
            f"replace; set its attribute `head` to the path of the layer that makes the logits."
        )
    return layers[-1]


@torch.no_grad()
def transfer_weights(network: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Give a freshly built network the weights of one trained on another data set, all but the last layer.

    The last layer stays as it was initialised even where its shape fits: its classes are other ones.

    Args:
        network: freshly initialised, for the new classes; changed in place.
        state: `state_dict` of the trained network of the same architecture.

    Returns:
        Names of the parameters and buffers that keep their fresh values: the last layer's, and whatever the
        trained network does not have in the same shape (a first convolution for another number of colours).

    Raises:
        InputError: no layer before the last one fits: another architecture; or the weights hold gates.
    """
    if any(name.endswith("a_uc") for name in state):
        raise InputError(
            "The network to start from has gates, which fine-tuning does not take over. Start from one without, or from the "
            "compact one that is saved beside it."
        )
    head = head_of(network)
    own = network.state_dict()
    fits = {
        name
        for name, tensor in own.items()
        if not name.startswith(f"{head}.") and name in state and state[name].shape == tensor.shape
    }
    if not any(own[name].dim() > 1 for name in fits & {name for name, _ in network.named_parameters()}):
        raise InputError(
            f"None of the {len(state)} saved tensors fits a layer of {type(network).__name__} before the "
            f"last; fine-tuning needs the same architecture. Pre-train with the same `network`."
        )
    for name in fits:
        own[name].copy_(state[name])
    return [name for name in own if name not in fits]
