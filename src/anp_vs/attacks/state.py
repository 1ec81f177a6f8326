"""Where an evaluation stands, image by image, kept in a file so that it can go on after an interruption."""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anp_vs.errors import RunError

_FORMAT = 1


@dataclass
class State:
    """The best image so far of each image, and which batch of which attack comes next."""

    identity: str
    """Digest of settings, images and labels."""
    logits: Tensor
    """Of the clean images, N x K: they tell the network."""
    adversarial: Tensor
    wrong: Tensor
    """bool, N: `adversarial` is misclassified."""
    margin: Tensor
    """z_y - max_{i != y} z_i at `adversarial`, N."""
    source: Tensor
    """int64, N: the attack that found `adversarial`, by its number; -1 for the clean image."""
    queue: Tensor
    """int64: the images that the current attack is given."""
    attack: int = -1
    """Number of the current attack; -1 before the first."""
    done: int = 0
    """Images of `queue` that it has been through."""
    after: list[float] = field(default_factory=list)
    """Robust accuracy after each finished attack."""
    path: Path | None = None

    @property
    def accuracy(self) -> float:
        """Robust accuracy so far, in [0, 1]."""
        return float((~self.wrong).double().mean())

    @classmethod
    def open(
        cls, path: Path | None, settings: tuple[object, ...], images: Tensor, labels: Tensor, logits: Tensor
    ) -> "State":
        """The state at `path` when it is of this evaluation; the first one if there is no file.

        Args:
            path: where the state is kept; None keeps it in memory.
            settings: everything that decides the result, beside the tensors.
            images: N x C x H x W.
            labels: N.
            logits: of the clean images, N x K.

        Raises:
            RunError: the file cannot be read, or is of another evaluation.
        """
        digest = hashlib.sha256(repr((_FORMAT, settings, images.shape, images.dtype)).encode())
        for tensor in (images, labels):
            digest.update(_bytes(tensor))
        own = logits.gather(1, labels[:, None]).squeeze(1)
        margin = own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        state = cls(
            identity=digest.hexdigest(),
            logits=logits,
            adversarial=images.clone(),
            wrong=logits.argmax(dim=1) != labels,
            margin=margin,
            source=torch.full_like(labels, -1),
            queue=labels.new_empty(0),
            path=path,
        )
        if path is not None and path.exists():
            state._restore(path)
        return state

    def begin(self, attack: int) -> None:
        """Queue the images still classified as labelled, unless this attack is under way already."""
        if self.attack < attack:
            self.attack, self.done = attack, 0
            self.queue = (~self.wrong).nonzero().squeeze(1)

    def finish(self, attack: int) -> None:
        """Note the accuracy after this attack, once."""
        if len(self.after) == attack:
            self.after.append(self.accuracy)
            self.save()

    def take(self, rows: Tensor, images: Tensor, wrong: Tensor, margin: Tensor) -> None:
        """Keep what the current attack found for `rows` where it is nearer to a wrong class."""
        better = wrong | (~wrong & (margin < self.margin[rows]))
        chosen = rows[better]
        self.adversarial[chosen] = images[better]
        self.margin[chosen] = margin[better]
        self.wrong[chosen] = wrong[better]
        self.source[chosen] = self.attack
        self.done += len(rows)
        self.save()

    def save(self) -> None:
        """Write the state beside its file, onto the disk, and then put it in the file's place."""
        if self.path is None:
            return
        content: dict[str, Any] = {name: getattr(self, name) for name in (*_TENSORS, *_VALUES)}
        for name in _TENSORS:
            content[name] = getattr(self, name).cpu()
        content["checksum"] = _checksum(content)
        temporary = self.path.with_name(self.path.name + ".tmp")
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
        except OSError as error:
            raise RunError(
                f"the evaluation's state cannot be written to {self.path}: {error}. Name a file in a "
                "directory that exists, is writable and has room."
            ) from error

    def _restore(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            stored = {name: content[name] for name in (*_TENSORS, *_VALUES)}
            whole = content["checksum"] == _checksum(stored)
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise RunError(_damaged(path)) from error
        if not whole:
            raise RunError(_damaged(path))
        if stored["identity"] != self.identity:
            raise RunError(
                f"{path} belongs to an evaluation with other images, labels or settings. Name another file, "
                "or repeat the arguments it was made with."
            )
        scale = float(self.logits.abs().max())
        if not torch.allclose(stored["logits"], self.logits.cpu(), rtol=1e-3, atol=1e-4 * scale):
            raise RunError(
                f"{path} belongs to another network's evaluation: the clean logits differ. Name another file."
            )
        for name in _TENSORS:
            setattr(self, name, stored[name].to(getattr(self, name)))
        for name in _VALUES:
            setattr(self, name, stored[name])


_TENSORS = ("logits", "adversarial", "wrong", "margin", "source", "queue")
_VALUES = ("identity", "attack", "done", "after")


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def _checksum(content: dict[str, Any]) -> str:
    digest = hashlib.sha256(repr([content[name] for name in _VALUES]).encode())
    for name in _TENSORS:
        digest.update(repr((name, content[name].dtype, content[name].shape)).encode())
        digest.update(_bytes(content[name]))
    return digest.hexdigest()


def _damaged(path: Path) -> str:
    return f"{path} is not the state of an evaluation, or is damaged. Delete it, or name another file."
