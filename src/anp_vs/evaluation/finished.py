"""What a stopped evaluation had finished, kept beside its row, so that the same command goes on from there."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs.data import Split
from anp_vs.errors import RunError, Stopped
from anp_vs.evaluation.subject import LabelledImages
from anp_vs.provenance import command
from anp_vs.signals import on_stop_signals
from anp_vs.storage import pack, unpack, write_atomically

logger = logging.getLogger(__name__)
_TOGETHER = 250  # images whose checksum is taken at once
ATTACKS = "attacks"
"""The part that holds what the attacks did to the first images; it has an entry `done`, their number."""


class Finished:
    """The parts of one evaluation by name, in a file that is written again with every part that is added.

    A part is plain data and tensors, and must be a function of the settings and of its name alone. Parts of other
    settings and of a damaged file are left out, which is said; the first new part replaces them.

    Args:
        row: file of the row, which the file lies beside; None keeps the parts in memory.
        settings: all that decides the parts, by names that a user knows; plain data.
        images: how many are evaluated in all.
    """

    def __init__(self, row: Path | None = None, settings: Mapping[str, Any] | None = None, images: int = 0) -> None:
        self.path: Path | None = None
        self.autoattack: Path | None = None
        if row is not None:
            self.path, self.autoattack = _files(row)
        self.settings, self.images = dict(settings or {}), images
        self._parts: dict[str, Any] = {}
        if self.path is not None and self.path.exists():
            try:
                held = _read(self.path)
            except RunError as error:
                logger.warning("%s It is ignored, and the evaluation starts afresh.", error)
                return
            self._parts, theirs = held["parts"], held["settings"]
            if other := [name for name in {**theirs, **self.settings} if theirs.get(name) != self.settings.get(name)]:
                self._forget(f"with another {', '.join(other)}")

    @property
    def done(self) -> int:
        """Images that the attacks are through with."""
        return int(self._parts.get(ATTACKS, {"done": 0})["done"])

    def get(self, name: str) -> Any:
        """A part, or None where it is not finished."""
        return self._parts.get(name)

    def keep(self, name: str, value: Any) -> Any:
        """Add a part, or replace it; returns it.

        Raises:
            RunError: the disk refuses; what was there before is untouched.
        """
        if self.path is not None and self.autoattack is not None:
            if not self.done:  # what AutoAttack kept is of an evaluation that this one replaces
                self.autoattack.unlink(missing_ok=True)
            parts = {**self._parts, name: value}
            write_atomically(self.path, pack({"settings": self.settings, "images": self.images, "parts": parts}))
        self._parts[name] = value
        return value

    def recognise(self, role: str, logits: Tensor) -> None:
        """Forget all parts if they are of a network that gave other logits: code can change where weights do not."""
        if not same_logits(self._parts.setdefault(f"logits of the {role}", logits.cpu()), logits):
            self._forget(f"of a {role} that gives other logits")
            self._parts[f"logits of the {role}"] = logits.cpu()

    def _forget(self, whose: str) -> None:
        if self.done:
            logger.warning(
                "%s keeps %d images of an evaluation %s. This one starts afresh and replaces that; to have both, stop now "
                "and name another file with --out.",
                self.path, self.done, whose,
            )  # fmt: skip
        self._parts = {}

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """While open, SIGINT, SIGTERM and SIGUSR1 end the evaluation and say how to go on.

        Raises:
            Stopped: one of them came.
        """

        def stop() -> None:
            raise KeyboardInterrupt

        try:
            with on_stop_signals(stop):
                yield
        except KeyboardInterrupt:
            raise Stopped(
                f"Stopped with {self.done} of {self.images} images attacked; what is finished is kept in {self.path}. "
                f"Go on with: {command()}"
            ) from None


def same_logits(known: Tensor, logits: Tensor) -> bool:
    """Whether logits are those that were kept, but for rounding."""
    scale = float(logits.abs().max())
    return known.shape == logits.shape and torch.allclose(known, logits.cpu(), rtol=1e-3, atol=1e-4 * scale)


def how_far(row: Path) -> tuple[int, int] | None:
    """How many images the attacks of a running or stopped evaluation are through with, and of how many.

    Args:
        row: file that the row will be written to; a run's is `RunDirectory.evaluation`.

    Returns:
        None where no evaluation has begun, or its row is written.
    """
    path = _files(row)[0]
    try:
        return _attacked(path, path.stat().st_mtime_ns)
    except (OSError, RunError):
        return None


@lru_cache  # whoever watches an evaluation asks far more often than the file changes
def _attacked(path: Path, written: int) -> tuple[int, int] | None:
    held = _read(path)
    attacks = held["parts"].get(ATTACKS)
    return (attacks["done"], held["images"]) if attacks else None


def remove(row: Path) -> None:
    """Remove what was kept for a row, now that it is written, and what processes killed while they kept it have left."""
    for path in _files(row):
        for file in (path, *path.parent.glob(f".{path.name}.*.tmp")):
            file.unlink(missing_ok=True)


def checksum(of: nn.Module | LabelledImages) -> str:
    """SHA-256 of a network's parameters and buffers, or of images and labels."""
    digest = hashlib.sha256()
    for tensor in _tensors(of):
        digest.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(of: nn.Module | LabelledImages) -> Iterable[Tensor]:
    if isinstance(of, nn.Module):
        yield from (*of.parameters(), *of.buffers())
    elif isinstance(of, Split):  # batch by batch: a folder of pictures may be larger than memory
        for batch in of.batches(torch.split(torch.arange(len(of)), _TOGETHER)):
            yield from batch
    else:
        yield from of


def _files(row: Path) -> tuple[Path, Path]:
    """The file of the parts, and AutoAttack's own."""
    return row.with_name(f"{row.stem}-progress.state"), row.with_name(f"{row.stem}-autoattack.state")


def _read(path: Path) -> dict[str, Any]:
    try:
        held = unpack(path.read_bytes(), path)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}.") from error
    if not all(isinstance(held.get(name), dict) for name in ("settings", "parts")):
        raise RunError(f"{path} is not what an evaluation keeps.")
    return held
