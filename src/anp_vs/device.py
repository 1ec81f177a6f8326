"""Where to compute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anp_vs.errors import InputError

DEVICES = ("auto", "cpu", "cuda")


def choose(name: str) -> torch.device:
    """The device of this name; auto is a GPU where PyTorch finds one.

    Raises:
        InputError: the name is not one of `DEVICES`, or a GPU was asked for where none is.
    """
    if name not in DEVICES:
        raise InputError(f"device is {name!r}; choose auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("A GPU was asked for (device cuda), but PyTorch finds none here. Use device cpu or auto.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


@contextmanager
def full_float32() -> Iterator[None]:
    """While open, a GPU computes in float32 what is float32: by default its convolutions keep 10 bits (TF32)."""
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = convolutions.allow_tf32, products.allow_tf32
    convolutions.allow_tf32 = products.allow_tf32 = False
    try:
        yield
    finally:
        convolutions.allow_tf32, products.allow_tf32 = before
