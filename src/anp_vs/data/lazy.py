"""Splits larger than memory: pictures are decoded in worker threads when a batch asks for them."""

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from anp_vs.data.split import Split
from anp_vs.errors import InputError

_AHEAD = 2  # batches being decoded while one is used
_MOST_IN_MEMORY = 4 << 30  # bytes


class LazySplit(Split):
    """A split whose images lie elsewhere. Loops use `batch` and `batches`, as they do for any split.

    Args:
        decode: Number of a picture -> uint8, C x H x W. Called from several threads at once.
        numbers: int64, N: the picture that each image of the split is.
        labels: int64, N.
        shape: (C, H, W) of every image.
        workers: Threads that decode.
        device: Where batches are put.
    """

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        numbers: Tensor,
        labels: Tensor,
        shape: tuple[int, int, int],
        *,
        workers: int,
        device: torch.device | str = "cpu",
    ) -> None:
        # The base class is frozen, and its constructor wants the images.
        object.__setattr__(self, "labels", labels.to(device))
        self._decode = decode
        self._numbers = numbers
        self._shape = shape
        self._workers = workers
        self._device = torch.device(device)
        self._images: Tensor | None = None
        self._prepared: tuple[Tensor, list[Future[Tensor]]] | None = None

    @property
    def images(self) -> Tensor:
        """All images, uint8, N x C x H x W; decoded at the first use and kept.

        Raises:
            InputError: If they would take more than 4 GiB.
        """
        if self._images is None:
            size = len(self) * self._shape[0] * self._shape[1] * self._shape[2]
            if size > _MOST_IN_MEMORY:
                raise InputError(
                    f"the {len(self)} images of this split would take {size / 2**30:.1f} GiB of memory, more "
                    f"than {_MOST_IN_MEMORY >> 30}; use `batch` or `batches`, or a smaller `subset`."
                )
            self._images = self.batch(torch.arange(len(self)))
        return self._images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._shape

    def batch(self, indices: Tensor) -> Tensor:
        """Images by number, uint8, B x C x H x W; see `Split.batch`.

        Raises:
            DataError: If a picture cannot be decoded.
        """
        if self._images is not None:
            return self._images[indices.to(self._device)]
        announced, self._prepared = self._prepared, None
        if announced is not None and torch.equal(announced[0], indices.cpu()):
            return self._finish(announced[1])
        _cancel(announced)
        return self._finish(self._start(indices))

    def prepare(self, indices: Tensor) -> None:
        """Start to decode the batch that will be asked for next; one at a time, so memory stays bounded.

        A picture that cannot be decoded raises where the batch is asked for.
        """
        if self._images is None:
            self.close()
            self._prepared = indices.cpu(), self._start(indices)

    def close(self) -> None:
        """Stop decoding the batch that was announced."""
        announced, self._prepared = self._prepared, None
        _cancel(announced)

    def batches(self, order: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """(images, labels) of each batch of `order` in turn, the next two being decoded meanwhile."""
        ahead: deque[tuple[Tensor, list[Future[Tensor]]]] = deque()
        try:
            for indices in order:
                ahead.append((indices, self._start(indices)))
                if len(ahead) > _AHEAD:
                    yield self._labelled(*ahead.popleft())
            while ahead:
                yield self._labelled(*ahead.popleft())
        finally:
            for announced in ahead:
                _cancel(announced)

    def to(self, device: torch.device | str) -> "LazySplit":
        """The same split, its batches put on another device."""
        return self._like(self._numbers, self.labels, device)

    def subset(self, indices: Tensor) -> "LazySplit":
        """The images with these numbers, in the order given; nothing is decoded."""
        part = self._like(self._numbers[indices.cpu()], self.labels[indices.to(self._device)], self._device)
        part._images = None if self._images is None else self.batch(indices)
        return part

    def _like(self, numbers: Tensor, labels: Tensor, device: torch.device | str) -> "LazySplit":
        return LazySplit(self._decode, numbers, labels, self._shape, workers=self._workers, device=device)

    def _start(self, indices: Tensor) -> list[Future[Tensor]]:
        pool = _pool(self._workers, os.getpid())
        return [pool.submit(self._decode, number) for number in self._numbers[indices.cpu()].tolist()]

    def _finish(self, started: list[Future[Tensor]]) -> Tensor:
        try:
            images = torch.empty(len(started), *self._shape, dtype=torch.uint8)
            for image, future in zip(images, started, strict=True):
                image.copy_(future.result())
        finally:
            for future in started:
                future.cancel()
        return images.to(self._device)

    def _labelled(self, indices: Tensor, started: list[Future[Tensor]]) -> tuple[Tensor, Tensor]:
        return self._finish(started), self.labels[indices.to(self._device)]


def _cancel(announced: tuple[Tensor, list[Future[Tensor]]] | None) -> None:
    for future in announced[1] if announced else ():
        future.cancel()


@functools.lru_cache(maxsize=8)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """One pool of threads a size and process: a forked process has none of its parent's threads."""
    return ThreadPoolExecutor(workers, thread_name_prefix=f"anp-vs-decode-{process}")
