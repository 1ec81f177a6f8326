"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anp_vs.data import cifar, digits, idx, sources
from anp_vs.data.download import locate, read, user_path
from anp_vs.data.folder import load_folder
from anp_vs.data.picture import PictureOptions
from anp_vs.data.split import Dataset, Split, hold_out
from anp_vs.errors import InputError

Pair = tuple[Tensor, Tensor]
"""Images, uint8, N x C x H x W, and labels, int64, N."""

_FOLDER = "folder:"

NAMES = ("digits", "mnist", "cifar10", "cifar100")
"""What `load` knows, besides a folder of pictures."""


def load(
    name: str,
    root: str | Path | None = None,
    *,
    validation: int | None = None,
    seed: int = 0,
    pictures: PictureOptions | None = None,
) -> Dataset:
    """Load a data set, downloading it when it is not there.

    | name | images | classes | training, validation, test (defaults) |
    |---|---|---|---|
    | digits | 1 x 28 x 28 | 10 | 1,200, 197, 400 |
    | mnist | 1 x 28 x 28 | 10 | 55,000, 5,000, 10,000 |
    | cifar10 | 3 x 32 x 32 | 10 | 45,000, 5,000, 10,000 |
    | cifar100 | 3 x 32 x 32 | 100 | 45,000, 5,000, 10,000 |

    The test split is the official one, whole and in order (for digits, which has none: 400 images, the same
    for every seed). The validation split is held out of the training images, each class in proportion;
    training and validation images keep the official order.

    Args:
        name: One of the above, or `folder:PATH` for your own pictures, laid out as PATH/split/class/file
            (see `folder.load_folder`).
        root: Folder in which the official files lie or are put: `mnist/*.gz`, `cifar-10-batches-bin/*.bin`,
            `cifar-100-binary/*.bin`, or directly one of those folders. None: the user's cache folder. Each
            file is checked against its official SHA-256.
        validation: Images held out for validation; None: the default of the table.
        seed: Chooses which are held out, 0..2**32 - 1.
        pictures: Size, colour and limits of a folder's pictures; not used for the others.

    Returns:
        The data set, on the CPU.

    Raises:
        InputError: If the name is unknown, or validation or seed is out of range.
        DataError: If a file is damaged, or missing and not to be had.
    """
    if name.startswith(_FOLDER):
        return load_folder(name.removeprefix(_FOLDER), pictures, validation=validation, seed=seed)
    if name not in _READERS:
        raise InputError(
            f"data set {name!r} is not known; choose one of {', '.join(NAMES)}, or {_FOLDER}PATH for your own pictures."
        )
    reader, classes, default = _READERS[name]
    train, test = reader(None if root is None else user_path(root))
    kept, held = hold_out(train[1], default if validation is None else validation, seed)
    splits = (Split(*train).subset(kept), Split(*train).subset(held), Split(*test))
    return Dataset(name, *splits, classes)


def _digits(root: Path | None) -> tuple[Pair, Pair]:
    images, labels = digits.read()
    train, test = hold_out(labels, digits.TEST, seed=0)  # always the same: results stay comparable across seeds
    return (images[train], labels[train]), (images[test], labels[test])


def _mnist(root: Path | None) -> tuple[Pair, Pair]:
    files = {file.name: file for file in sources.MNIST.files}
    paths = locate(sources.MNIST, root)

    def part(prefix: str, count: int) -> Pair:
        shapes = {"images-idx3": (count, 28, 28), "labels-idx1": (count,)}
        names = [f"{prefix}-{kind}-ubyte.gz" for kind in shapes]
        images, labels = (
            idx.parse(bytes(read(paths[name], files[name])), shape, str(paths[name]))
            for name, shape in zip(names, shapes.values(), strict=True)
        )
        return images.unsqueeze(1), idx.labels(labels, 10, str(paths[names[1]]))

    return part("train", 60_000), part("t10k", 10_000)


def _cifar(source: sources.Source, label_counts: tuple[int, ...], root: Path | None) -> tuple[Pair, Pair]:
    paths = locate(source, root)

    def part(file: sources.File) -> Pair:
        records = file.size // (len(label_counts) + cifar.PIXELS)
        return cifar.parse(read(paths[file.name], file), label_counts, records, str(paths[file.name]))

    *train, test = (part(file) for file in source.files)
    images = torch.cat([pair[0] for pair in train])
    labels = torch.cat([pair[1] for pair in train])
    return (images, labels), test


_READERS: dict[str, tuple[Callable[[Path | None], tuple[Pair, Pair]], tuple[str, ...], int]] = {
    "digits": (_digits, digits.CLASSES, digits.VALIDATION),
    "mnist": (_mnist, tuple(str(digit) for digit in range(10)), 5000),
    "cifar10": (lambda root: _cifar(sources.CIFAR10, (10,), root), cifar.CIFAR10_CLASSES, 5000),
    "cifar100": (lambda root: _cifar(sources.CIFAR100, (20, 100), root), cifar.CIFAR100_CLASSES, 5000),
}
