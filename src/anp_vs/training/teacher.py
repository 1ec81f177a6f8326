"""Distillation: a trained network's class probabilities, mixed into the labels (Hinton et al. 2015, arXiv 1503.02531).

    target = (1 - d) y + d softmax(t(x)),  for the clean and for the adversarial image of x

so that a cross-entropy with it is (1 - d) CE(y) + d KL(t(x) || p) up to a constant, at temperature 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.errors import InputError
from anp_vs.networks.bayesian import is_random
from anp_vs.networks.images import take_images
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.precision import Precision
from anp_vs.pruning.twin import Twin
from anp_vs.recipes import shown
from anp_vs.serialization import card_of


class Teacher:
    """A trained network as a constant.

    Args:
        network: trained, on the device of training; with the names of its classes if it was saved with them.
        weight: d, the share of its probabilities, 0 to 1.
        shape: (C, H, W) of the images.
        classes: names of the data's K classes.
        precision: that it computes in.
        channels_last: its memory layout.

    Raises:
        InputError: it does not take these images, knows other classes, or draws its weights anew in every pass.
    """

    def __init__(
        self,
        network: nn.Module,
        weight: float,
        shape: tuple[int, int, int],
        classes: Sequence[str],
        *,
        precision: Precision,
        channels_last: bool,
    ) -> None:
        if is_random(network):
            raise InputError(
                "The teacher draws its weights anew in every pass, so that it says something else each time; choose a "
                "teacher with fixed weights."
            )
        try:
            take_images(network, shape)
        except InputError as error:
            raise InputError(f"The teacher does not fit: {error}") from error
        example = example_for(network)
        self.network = Twin(network, example, channels_last=channels_last, precision=precision).build()
        self.weight = weight
        known, named = self.network(example).shape[1], card_of(network).get("classes")
        if known != len(classes) or (named and list(named) != list(classes)):
            listed = f"{known} classes" + (f" ({shown(', '.join(map(str, named)))})" if named else "")
            raise InputError(
                f"The teacher knows {listed}, the data have {len(classes)} ({shown(', '.join(classes))}); its "
                f"probabilities would be read as those of other classes. Choose another teacher."
            )

    @torch.no_grad()
    def targets(self, images: Tensor, labels: Tensor) -> Tensor:
        """What the losses compare with, B x K, from clean images and their labels."""
        taught = self.network(images).softmax(1)
        return torch.lerp(functional.one_hot(labels, taught.shape[1]).to(taught), taught, self.weight)
