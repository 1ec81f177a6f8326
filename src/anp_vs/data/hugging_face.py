"""Data sets of the Hugging Face `datasets` library, by what they can do: that library is not imported."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from anp_vs.data.check import damaged, refuse_or_warn
from anp_vs.data.lazy import LazySplit
from anp_vs.data.picture import PictureOptions, decode
from anp_vs.data.split import Dataset, Split, hold_out
from anp_vs.errors import DataError, InputError


class Table(Protocol):
    """What is used of a `datasets.Dataset`: rows by number, columns by name."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


def from_hugging_face(
    dataset: Mapping[str, Table] | Table,
    image_column: str = "image",
    label_column: str = "label",
    options: PictureOptions | None = None,
    *,
    validation: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Use a `datasets.DatasetDict` that has the splits "train" and "test", and perhaps "validation".

    Every picture is decoded once as a check; afterwards pictures are decoded when they are needed.

    Args:
        dataset: The splits by name, each a `datasets.Dataset`.
        image_column: Column of pictures: Pillow images, encoded bytes (also as {"bytes": ...}), or uint8
            arrays.
        label_column: Column of class numbers or class names.
        options: Size, colour, and what to do with damaged pictures.
        validation: Pictures held out of the training set, each class in proportion; None: a tenth. Not to be
            given when there is a validation split.
        seed: Chooses which are held out.

    Returns:
        The data set, named "hugging-face", its splits decoding on demand.

    Raises:
        InputError: If a split or column is missing, or validation or seed is out of range.
        DataError: If labels are missing or unknown, there are fewer than two classes, a class has no training
            picture, or pictures are damaged and to be refused.
    """
    options = options or PictureOptions()
    if not isinstance(dataset, Mapping) or not {"train", "test"} <= dataset.keys():
        found = ", ".join(map(str, dataset)) if isinstance(dataset, Mapping) else type(dataset).__name__
        raise InputError(
            f"the data set has {found} where splits named 'train' and 'test' are expected; give a "
            "DatasetDict, such as dataset.train_test_split(0.1) returns."
        )
    if "validation" in dataset and validation is not None:
        raise InputError(f"validation is {validation!r}, but the data set has a validation split; leave one out.")
    classes = _classes(dataset["train"], label_column)
    names = [name for name in ("train", "validation", "test") if name in dataset]
    splits = {name: _split(name, dataset[name], image_column, label_column, classes, options) for name in names}
    train = splits["train"]
    counts = train.labels.bincount(minlength=len(classes))
    if not counts.all():
        raise DataError(
            f"class {classes[int(counts.argmin())]!r} has no training picture; add some, or remove the class."
        )
    if "validation" not in splits:
        kept, held = hold_out(train.labels, len(train) // 10 if validation is None else validation, seed)
        train, splits["validation"] = train.subset(kept), train.subset(held)
    return Dataset("hugging-face", train, splits["validation"], splits["test"], classes)


def _column(table: Table, name: str) -> list[Any]:
    try:
        return list(table[name])
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise InputError(f"the data set has no column {name!r}; name the right one.") from error


def _classes(table: Table, column: str) -> tuple[str, ...]:
    """Class names: the feature's own, the sorted names in the column, or "0", "1", ... up to the largest."""
    names = getattr((getattr(table, "features", None) or {}).get(column), "names", None)
    if names is None:
        labels = _column(table, column)
        if all(isinstance(label, str) for label in labels):
            names = sorted(set(labels))
        elif all(isinstance(label, int) and label < len(labels) for label in labels):
            names = [str(number) for number in range(max(labels) + 1)]
        else:
            raise DataError(
                f"column {column!r} holds neither class names nor class numbers counted from 0; name another."
            )
    if len(names) < 2:
        raise DataError(f"column {column!r} has {len(names)} class; a classifier needs at least two.")
    return tuple(names)


def _split(
    name: str,
    table: Table,
    image_column: str,
    label_column: str,
    classes: tuple[str, ...],
    options: PictureOptions,
) -> Split:
    numbers = {key: number for number, label in enumerate(classes) for key in (label, number)}
    raw = _column(table, label_column)
    for row, label in enumerate(raw):
        if not isinstance(label, int | str) or label not in numbers:
            raise DataError(
                f"row {row} of split {name!r} has the label {label!r}; known are {len(classes)} classes, "
                "numbered from 0. Leave out rows without a label (test splits of competitions have none)."
            )
    labels = torch.tensor([numbers[label] for label in raw], dtype=torch.int64)
    titles = [f"{name}[{row}]" for row in range(len(labels))]

    def picture(row: int) -> object:
        try:
            values = table[row]
        except Exception as error:  # the library decodes pictures here, with anything that a decoder may raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise DataError(f"{titles[row]} cannot be read ({reason}); replace or remove that row.") from error
        try:
            value = values[image_column]
        except (KeyError, TypeError) as error:
            raise InputError(f"the data set has no column {image_column!r}; name the right one.") from error
        return value["bytes"] if isinstance(value, dict) and "bytes" in value else value

    def image(row: int) -> Tensor:
        return decode(picture(row), titles[row], options)

    reasons = damaged(len(labels), picture, titles, options)
    refuse_or_warn(reasons, len(labels), options)
    sound = torch.tensor([row for row in range(len(labels)) if row not in reasons], dtype=torch.int64)
    return LazySplit(image, sound, labels[sound], options.shape, workers=options.workers)
