"""Data sets by name."""

import hashlib
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import interpolate

from anp_vs.data import Dataset, digits, load, sources
from anp_vs.errors import DataError, InputError


@pytest.mark.parametrize("name", ["", "MNIST", "imagenet", "digits "])
def test_an_unknown_name_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="digits, mnist, cifar10, cifar100, or folder:PATH"):
        load(name)


def rows(dataset: Dataset) -> list[bytes]:
    parts = (dataset.train, dataset.validation, dataset.test)
    return [image.numpy().tobytes() for part in parts for image in part.images]


def test_digits_are_those_of_scikit_learn_each_once() -> None:
    dataset = load("digits")
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [1200, 197, 400]
    assert dataset.classes == tuple("0123456789")
    small, labels = load_digits(return_X_y=True)
    exact = interpolate(torch.tensor(small).view(-1, 1, 8, 8), size=(28, 28), mode="bilinear") * 255 / 16
    found = []
    for part in (dataset.train, dataset.validation, dataset.test):
        distance, number = torch.cdist(part.images.flatten(1).double(), exact.flatten(1), p=float("inf")).min(dim=1)
        assert distance.max() <= 0.5 + 1e-9  # rounded to the nearest
        assert torch.equal(torch.tensor(labels)[number], part.labels)
        found += number.tolist()
    assert sorted(found) == list(range(1797))


def test_digits_are_the_same_bytes_on_every_machine() -> None:
    images, labels = digits.read()
    assert hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest() == DIGITS_SHA256


def test_digits_seeds_share_the_test_set_and_differ_in_validation() -> None:
    one, other = load("digits", seed=1), load("digits", seed=2, validation=197)
    assert torch.equal(one.test.images, other.test.images)
    assert not torch.equal(one.validation.images, other.validation.images)
    assert sorted(rows(one)) == sorted(rows(other))
    assert torch.equal(load("digits", seed=1).validation.images, one.validation.images)
    whole = load("digits", validation=0)
    assert len(whole.train) == 1397
    assert len(whole.validation) == 0


@pytest.mark.parametrize("validation", [-5, 1397, 2.5])
def test_a_validation_split_out_of_range_is_refused(validation: int) -> None:
    with pytest.raises(InputError, match="validation split"):
        load("digits", validation=validation)


@pytest.mark.parametrize(
    ("name", "source"),
    [("mnist", sources.MNIST), ("cifar10", sources.CIFAR10), ("cifar100", sources.CIFAR100)],
)
def test_files_with_the_right_names_and_wrong_bytes_are_refused(
    name: str, source: sources.Source, tmp_path: Path
) -> None:
    (tmp_path / source.folder).mkdir()
    for file in source.files:
        (tmp_path / source.folder / file.name).write_bytes(b"no such data")
    for root in (tmp_path, tmp_path / source.folder):
        with pytest.raises(DataError, match=f"12 bytes where the official file has {source.files[0].size}"):
            load(name, root)


# Computed once from scikit-learn's copy by `digits.read`, after its pixels were compared with `interpolate`.
DIGITS_SHA256 = "d33441ab4580c381ea50573800d7a4682b16680226bdade45152b75f57b7045a"

PUBLISHED = {  # first test labels, mean of the training pixels, image shape
    "mnist": ([7, 2, 1, 0, 4, 1, 4, 9, 5, 9], [0.1307], (1, 28, 28)),
    "cifar10": ([3, 8, 8, 0, 6, 6, 1, 6, 3, 1], [0.4914, 0.4822, 0.4465], (3, 32, 32)),
    "cifar100": ([49, 33, 72, 51, 71, 92, 15, 14, 23, 0], [0.5071, 0.4865, 0.4409], (3, 32, 32)),
}


@pytest.mark.real_data
@pytest.mark.parametrize("name", PUBLISHED)
def test_official_files_hold_what_is_published(name: str, data_root: Path) -> None:
    first, mean, shape = PUBLISHED[name]
    dataset = load(name, data_root)
    train = 55_000 if name == "mnist" else 45_000
    assert [len(part) for part in (dataset.train, dataset.validation, dataset.test)] == [train, 5000, 10_000]
    assert dataset.train.shape == shape
    assert dataset.test.labels[:10].tolist() == first
    pixels = [part.images.double().mean((0, 2, 3)) * len(part) for part in (dataset.train, dataset.validation)]
    assert (sum(pixels) / (255 * (train + 5000))).tolist() == pytest.approx(mean, abs=6e-5)
    counts = [part.labels.bincount(minlength=len(dataset.classes)) for part in (dataset.train, dataset.validation)]
    if name != "mnist":
        assert len(set((counts[0] + counts[1]).tolist())) == 1
        assert len(set(counts[1].tolist())) == 1
    held_share = counts[1].double() / (counts[0] + counts[1])
    assert (held_share - 5000 / (train + 5000)).abs().max() < 1 / (counts[0] + counts[1]).min()


@pytest.mark.real_data
def test_class_names_are_those_of_the_release(data_root: Path) -> None:
    for name, file in (
        ("cifar10", "cifar-10-batches-bin/batches.meta.txt"),
        ("cifar100", "cifar-100-binary/fine_label_names.txt"),
    ):
        if (data_root / file).exists():
            assert list(load(name, data_root).classes) == (data_root / file).read_text().split()
