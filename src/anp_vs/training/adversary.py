"""The attack of a training step: on the compact twin, or on the network itself where that draws its weights anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anp_vs.attacks import frozen
from anp_vs.attacks.pgd import ascend
from anp_vs.attacks.protocols import protocol_by_name
from anp_vs.errors import RunError
from anp_vs.pruning.compiled import Compiled
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.precision import Precision, on_pixels
from anp_vs.pruning.twin import Twin
from anp_vs.recipes import Recipe
from anp_vs.training.parallel import Share
from anp_vs.training.seeding import generator


class Adversary:
    """Attacks a network in training.

    Args:
        recipe: its method, attack, batch size, seed and compilation are used.
        share: of several processes, this one's.
        precision: of the twin.
        channels_last: memory layout of the twin.
    """

    first: set[str]
    """Paths of the layers that mix pixels and stay float32; empty in float32."""

    def __init__(self, recipe: Recipe, share: Share, precision: Precision, *, channels_last: bool) -> None:
        self.recipe, self.share, self.method = recipe, share, recipe.method
        self.protocol = protocol_by_name(recipe.protocol)
        self.precision, self.channels_last = precision, channels_last
        self.compiled = Compiled() if recipe.compilation == "on" else None
        self.first = set()

    def trace(self, network: nn.Module) -> None:
        """The network to attack; again after its shape has changed."""
        self.network, example = network, example_for(network)
        self.twin = (
            Twin(network, example, channels_last=self.channels_last, precision=self.precision)
            if self.method.adversarial and not self.method.random
            else None
        )
        if self.precision != "float32":
            self.first = self.twin.first if self.twin else on_pixels(Graph(network, example).points)[1]

    def attack(self, images: Tensor, labels: Tensor, eps: float, step: int, *, settled: bool) -> Tensor:
        """Adversarial images of the present network in evaluation mode.

        Args:
            images: this process's share of a batch.
            labels: as many.
            eps: radius, in units of [0, 1] pixels or, under the protocol released-code, of an image's deviation.
            step: of training, which decides the random start.
            settled: the network's shape will not change any more, so that compiling it pays.

        Raises:
            RunError: the recipe asks to compile, which fails on this machine.
        """
        if eps == 0:
            return images
        recipe = self.recipe.attack
        lower, upper = self.protocol.box(images, eps)
        draws = generator(images.device, self.recipe.seed, "attack", step)
        noise = images.new_empty(self.recipe.batch_size, *images.shape[1:])
        if self.method.start_radius is None:
            noise.uniform_(-eps, eps, generator=draws)
        else:
            noise.normal_(0, self.method.start_radius, generator=draws)
        start = torch.clamp(images + self.share.rows(noise), lower, upper)
        if self.twin is None:
            with frozen(self.network):
                loss = self.method.attack_loss(self.network, images)
                return ascend(self.network, start, lower, upper, labels, recipe.step, recipe.steps, loss)
        compiled = self.compiled if settled else None
        twin = self.twin.build(own_kernels=compiled is None)
        if compiled is not None:
            try:
                twin = compiled.take(twin, images, labels)
            except RunError as error:
                raise RunError(f"{error} The last checkpoint is intact; go on with --compilation off.") from error
        loss = self.method.attack_loss(twin, images)
        return ascend(twin, start, lower, upper, labels, recipe.step, recipe.steps, loss)
