"""Randomness as a function of (seed, purpose, step), so that a resumed run draws what the first one would have."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, independent of every other purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(device: torch.device, seed: int, *purpose: str | int) -> torch.Generator:
    """A generator on a device for one purpose."""
    return torch.Generator(device).manual_seed(derive(seed, *purpose))
