"""Which images a network takes: what it declares in `input_shape`, or what it is seen to accept."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from anp_vs.errors import InputError
from anp_vs.modes import evaluating

LARGEST_SIDE = 4096


def take_images(network: nn.Module, shape: tuple[int, int, int]) -> None:
    """Set a network's `input_shape` to that of a data set, after it has been seen to accept such images.

    Args:
        network: a classifier.
        shape: (C, H, W) of the data set's images.

    Raises:
        InputError: it does not accept them.
    """
    declared = getattr(network, "input_shape", None)
    if declared == shape:
        return
    first = next(network.parameters())
    try:
        with evaluating(network), torch.no_grad():
            network(torch.full((2, *shape), 0.5, dtype=first.dtype, device=first.device))
    except Exception as error:  # a network may do anything with images it is not made for
        wanted = f"takes images of {_words(declared)}" if declared else "accepts other images"
        raise InputError(
            f"{type(network).__name__} {wanted}, but those of the data set are {_words(shape)} ({error}). Choose "
            f"another network, or for a folder of pictures another pictures.size or pictures.colour (rgb or grey)."
        ) from error
    network.input_shape = shape  # type: ignore[assignment]


def declared_shape(value: Any) -> tuple[int, int, int] | None:
    """(C, H, W) from a stranger's card, or None if it is no such thing."""
    whole = isinstance(value, list | tuple) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    if not whole or len(value) != 3 or not all(0 < n <= LARGEST_SIDE for n in value):
        return None
    channels, height, width = value
    return channels, height, width


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
