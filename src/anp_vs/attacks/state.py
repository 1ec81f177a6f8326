"""Where an evaluation stands, image by image, kept in a file so that it can go on after an interruption."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anp_vs.errors import RunError
from anp_vs.storage import pack, unpack, write_atomically

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
        """Keep the state in its file.

        Raises:
            RunError: the disk refuses; what was there before is untouched.
        """
        if self.path is None:
            return
        content: dict[str, Any] = {name: getattr(self, name) for name in (*_TENSORS, *_VALUES)}
        write_atomically(self.path, pack(content))

    def _restore(self, path: Path) -> None:
        try:
            content = unpack(path.read_bytes(), path)
            stored = {name: content[name] for name in (*_TENSORS, *_VALUES)}
        except (KeyError, OSError, RunError) as error:
            raise RunError(
                f"{path} is not the state of an evaluation, or is damaged. Delete it, or name another file."
            ) from error
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
