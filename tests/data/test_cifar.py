"""The reader of CIFAR's binary records."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anp_vs.data import cifar
from anp_vs.errors import DataError


def record(labels: list[int], red: int, green: int, blue: int) -> bytes:
    """One record as the data set's page describes it: labels, then three planes, row by row."""
    planes = [bytearray([value]) * 1024 for value in (red, green, blue)]
    planes[0][33] = 255  # red, second row, second column
    return bytes(labels) + b"".join(map(bytes, planes))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 254), st.integers(0, 255)), max_size=5))
def test_reads_what_was_written(rows: list[tuple[int, int, int]]) -> None:
    data = b"".join(record([label], red, green, 7) for label, red, green in rows)
    images, labels = cifar.parse(data, (10,), len(rows), "f")
    assert labels.tolist() == [label for label, _, _ in rows]
    assert images.shape == (len(rows), 3, 32, 32)
    for image, (_, red, green) in zip(images, rows, strict=True):
        assert image[0, 1, 1] == 255
        assert image[0].flatten().bincount(minlength=256)[red] == 1023
        assert (image[1] == green).all()
        assert (image[2] == 7).all()


def test_the_fine_label_is_the_second_byte() -> None:
    data = record([19, 99], 1, 2, 3) + record([0, 4], 1, 2, 3)
    assert cifar.parse(data, (20, 100), 2, "f")[1].tolist() == [99, 4]


@pytest.mark.parametrize(
    ("labels", "counts", "named"),
    [
        ([10], (10,), r"label 10 in record 1, outside 0\.\.9"),
        ([20, 0], (20, 100), "label 20"),
        ([0, 100], (20, 100), "100"),
    ],
)
def test_a_label_out_of_range_is_named(labels: list[int], counts: tuple[int, ...], named: str) -> None:
    data = record([0] * len(counts), 0, 0, 0) + record(labels, 0, 0, 0)
    with pytest.raises(DataError, match=named):
        cifar.parse(data, counts, 2, "test.bin")


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_a_wrong_size_is_named(change: int) -> None:
    with pytest.raises(DataError, match=f"test.bin has {6146 + change} bytes where 2 records of 3073"):
        cifar.parse(bytes(6146 + change), (10,), 2, "test.bin")


@given(st.binary(max_size=40), st.integers(0, 2), st.integers(0, 3))
def test_raises_nothing_else(start: bytes, records: int, columns: int) -> None:
    whole = start + bytes(max(0, records * (columns + cifar.PIXELS) - len(start)))
    for data in (start, whole):
        try:
            images, labels = cifar.parse(data, (10,) * columns or (1,), records, "f")
        except DataError:
            continue
        assert len(images) == len(labels) == records


def test_class_names_are_complete() -> None:
    assert len(set(cifar.CIFAR10_CLASSES)) == 10
    assert len(set(cifar.CIFAR100_CLASSES)) == 100
    assert list(cifar.CIFAR100_CLASSES) == sorted(cifar.CIFAR100_CLASSES)


def test_a_bytearray_is_read_in_place() -> None:
    data = bytearray(record([3], 0, 0, 0))
    images, _ = cifar.parse(data, (10,), 1, "f")
    data[1] = 200
    assert images[0, 0, 0, 0] == 200
    assert images.dtype == torch.uint8
