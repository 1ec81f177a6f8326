"""The adapter for Hugging Face data sets, on objects that act like them."""

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, UnidentifiedImageError

from anp_vs.data import PictureOptions, from_hugging_face
from anp_vs.errors import DataError, InputError
from data import pictures


@dataclass
class ClassLabel:
    names: list[str]


@dataclass
class Table:
    """Rows by number, columns by name, as `datasets.Dataset` has them."""

    columns: dict[str, list[Any]]
    features: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: values[key] for name, values in self.columns.items()}


NAMES = ["blue", "green", "red"]
OPTIONS = PictureOptions(size=8, workers=2)


def encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def table(count: int = 20, **columns: list[Any]) -> Table:
    """Row k is of class k mod 3, its picture plain in that class's colour."""
    labels = [row % 3 for row in range(count)]
    images = [pictures.plain(pictures.COLOURS[NAMES[label]]) for label in labels]
    return Table({"image": images, "label": labels, **columns}, {"label": ClassLabel(NAMES)})


def check(dataset: Any) -> None:
    colours = torch.tensor([pictures.COLOURS[name] for name in NAMES])
    for part in (dataset.train, dataset.validation, dataset.test):
        assert torch.equal(part.images.int(), colours[part.labels].view(-1, 3, 1, 1).expand(-1, -1, 8, 8))


def test_pictures_come_with_their_classes() -> None:
    dataset = from_hugging_face({"train": table(40), "test": table(10)}, options=OPTIONS)
    assert dataset.classes == tuple(NAMES)
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [36, 4, 10]
    assert dataset.test.labels.tolist() == [row % 3 for row in range(10)]
    check(dataset)


@pytest.mark.parametrize("form", [np.asarray, encoded, lambda picture: {"bytes": encoded(picture), "path": None}])
def test_pictures_come_in_several_forms(form: Any) -> None:
    parts = {name: table() for name in ("train", "validation", "test")}
    for part in parts.values():
        part.columns["image"] = [form(picture) for picture in part.columns["image"]]
    dataset = from_hugging_face(parts, options=OPTIONS)
    assert len(dataset.validation) == 20
    check(dataset)


def test_labels_may_be_names_or_bare_numbers() -> None:
    named = [[NAMES[row % 3] for row in range(20)]] * 2
    parts = [
        Table({"pic": part.columns["image"], "kind": names})
        for part, names in zip([table(), table()], named, strict=True)
    ]
    dataset = from_hugging_face({"train": parts[0], "test": parts[1]}, "pic", "kind", OPTIONS)
    assert dataset.classes == tuple(NAMES)
    check(dataset)
    numbered = {name: Table(table().columns) for name in ("train", "test")}
    dataset = from_hugging_face(numbered, options=OPTIONS)
    assert dataset.classes == ("0", "1", "2")
    check(dataset)


def test_damaged_pictures_are_named_and_refused_or_skipped() -> None:
    parts = {"train": table(), "test": table()}
    parts["train"].columns["image"][4] = {"bytes": b"no picture", "path": "x.png"}
    parts["test"].columns["image"][7] = None
    with pytest.raises(DataError, match=r"train\[4\] cannot be decoded"):
        from_hugging_face(parts, options=OPTIONS)
    with pytest.warns(UserWarning, match="1 of 20 pictures") as warnings:
        dataset = from_hugging_face(parts, options=PictureOptions(size=8, damaged="skip"), validation=0)
    assert len(warnings) == 2
    assert len(dataset.train) == len(dataset.test) == 19
    check(dataset)


class Decoding(Table):
    """As `datasets` does it: a row's picture is decoded when the row is asked for, and may fail."""

    def __getitem__(self, key: int | str) -> Any:
        if key == 5:
            raise UnidentifiedImageError("cannot identify image file")
        return super().__getitem__(key)


def test_a_row_that_the_library_cannot_decode_is_named() -> None:
    part = table()
    parts = {"train": Decoding(part.columns, part.features), "test": table()}
    with pytest.raises(DataError, match=r"train\[5\] cannot be read \(cannot identify"):
        from_hugging_face(parts, options=OPTIONS)
    with pytest.warns(UserWarning, match=r"train\[5\]"):
        dataset = from_hugging_face(parts, options=PictureOptions(size=8, damaged="skip"), validation=0)
    assert len(dataset.train) == 19
    check(dataset)


def relabelled(labels: list[Any], features: bool = False) -> dict[str, Table]:
    part = table()
    part.columns["label"] = labels
    return {"train": Table(part.columns, part.features if features else {}), "test": table()}


@pytest.mark.parametrize(
    ("dataset", "error", "named"),
    [
        (table(), InputError, "Table where splits named"),
        ({"train": table()}, InputError, "has train where"),
        ({"train": table(), "test": Table({"label": [0]})}, InputError, "no column 'image'"),
        ({"train": Table({"image": [1]}), "test": table()}, InputError, "no column 'label'"),
        (relabelled([-1] * 20, features=True), DataError, "row 0 of split 'train' has the label -1"),
        (relabelled([0, 1, 3] + [2] * 17, features=True), DataError, "row 2 .* label 3"),
        (relabelled([-1] * 20), DataError, "0 class"),
        (relabelled([0] * 20), DataError, "1 class"),
        (relabelled([0] * 19 + [10**12]), DataError, "neither"),
        (relabelled([[0], [1]] * 10), DataError, "neither"),
        (relabelled([None, 0] * 10), DataError, "neither"),
        (relabelled([0, 2] * 10), DataError, "class '1' has no training picture"),
        (relabelled(["a", "b"] * 10), DataError, "row 2 of split 'test' has the label 2"),
    ],
)
def test_what_cannot_be_used_is_named(dataset: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        from_hugging_face(dataset, options=OPTIONS)


def test_validation_is_given_once() -> None:
    with pytest.raises(InputError, match="leave one out"):
        from_hugging_face({name: table() for name in ("train", "validation", "test")}, validation=2, options=OPTIONS)
