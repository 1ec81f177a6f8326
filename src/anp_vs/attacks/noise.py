"""Random numbers for a batch of images, from one generator or from one for each image.

With a generator an image, what an image meets depends on its own seed alone, not on which images share its
batch.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Source = torch.Generator | Sequence[torch.Generator] | None
"""A generator for the batch, one an image, or None for the global one."""


def per_image(seed: int, name: str, indices: Iterable[int]) -> list[torch.Generator]:
    """One generator an image, seeded by (seed, name, index of the image)."""
    return [torch.Generator().manual_seed(seed_of(seed, name, index)) for index in indices]


def seed_of(seed: int, name: str, index: int) -> int:
    """A 63-bit seed that is a function of its arguments alone."""
    digest = hashlib.sha256(f"{seed}/{name}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def select(source: Source, indices: Tensor) -> Source:
    """The source for a part of the batch, `indices` int64."""
    return [source[i] for i in indices.tolist()] if isinstance(source, Sequence) else source


def uniform(shape: Sequence[int], source: Source, like: Tensor) -> Tensor:
    """Uniform values in [0, 1), `shape` starting with the number of images; type and device of `like`."""
    if isinstance(source, Sequence):
        rows = [torch.rand(*shape[1:], generator=generator, dtype=like.dtype) for generator in source]
        return torch.stack(rows).to(like.device)
    device = like.device if source is None else source.device
    return torch.rand(*shape, generator=source, dtype=like.dtype, device=device).to(like.device)


def normal(shape: Sequence[int], source: Source, like: Tensor) -> Tensor:
    """Standard normal values, otherwise as `uniform`."""
    if isinstance(source, Sequence):
        rows = [torch.randn(*shape[1:], generator=generator, dtype=like.dtype) for generator in source]
        return torch.stack(rows).to(like.device)
    device = like.device if source is None else source.device
    return torch.randn(*shape, generator=source, dtype=like.dtype, device=device).to(like.device)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators, which networks draw from, inside the block; put them back afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
