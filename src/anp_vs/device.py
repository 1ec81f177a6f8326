"""Where to compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

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
    """While open, what is float32 is computed in float32: by default a GPU's convolutions keep 10 bits (TF32)."""
    switches, before = _switches(), []
    for read, write, _ in switches:
        with suppress(RuntimeError):  # PyTorch does not tell an old flag that contradicts its successor
            before.append((write, read()))
    try:
        for _, write, off in switches:
            write(off)
        yield
    finally:
        for write, value in before:
            write(value)


def _switches() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Reader, writer and value for full precision; the old flags first, since writing one changes its successors."""
    backends: Any = torch.backends  # the stubs do not know the newer parts
    cudnn, products, cpu = backends.cudnn, backends.cuda.matmul, backends.mkldnn
    names: list[tuple[Any, str, Any]] = [(cudnn, "allow_tf32", False)]
    if hasattr(products, "fp32_precision"):  # since PyTorch 2.9
        parts = (cudnn.conv, cudnn.rnn, products, cpu.conv, cpu.rnn, cpu.matmul)
        names += [(part, "fp32_precision", "ieee") for part in parts]
    attributes = [(partial(getattr, part, name), partial(setattr, part, name), off) for part, name, off in names]
    return [(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"), *attributes]
