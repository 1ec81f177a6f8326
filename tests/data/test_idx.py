"""The idx reader."""

import gzip
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anp_vs.data import idx
from anp_vs.errors import DataError


def build(shape: tuple[int, ...], body: bytes, kind: int = 8) -> bytes:
    """An idx file as its description has it."""
    header = struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape)
    return gzip.compress(header + body, 1, mtime=0)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=4), st.data())
def test_reads_what_was_written(shape: list[int], data: st.DataObject) -> None:
    size = int(torch.tensor(shape).prod())
    body = data.draw(st.binary(min_size=size, max_size=size))
    read = idx.parse(build(tuple(shape), body), tuple(shape), "f")
    assert read.dtype == torch.uint8
    assert read.shape == tuple(shape)
    assert bytes(read.flatten().tolist()) == body


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (build((2, 3), bytes(6), kind=13), "00000d02"),
        (build((6,), bytes(6)), "1 dimensions where 2"),
        (build((3, 2), bytes(6)), r"\(3, 2\) where \(2, 3\)"),
        (build((2, 3), bytes(5)), "5 values where its header says 6"),
        (build((2, 3), bytes(7)), "more than the 18 bytes"),
        (build((2, 3), bytes(6))[:-1], "cut short"),
        (gzip.compress(b"\0\0\x08", mtime=0), "3 bytes, less than the 12"),
        (b"\x89PNG", "not a sound gzip file"),
    ],
)
def test_names_what_is_wrong(data: bytes, named: str) -> None:
    with pytest.raises(DataError, match=named) as error:
        idx.parse(data, (2, 3), "train-images")
    assert "train-images" in str(error.value)
    assert "delete it" in str(error.value)


@given(st.binary(max_size=60))
def test_raises_nothing_else(data: bytes) -> None:
    for attempt in (data, gzip.compress(data, mtime=0), gzip.compress(b"\0\0\x08\x02" + data)):
        try:
            read = idx.parse(attempt, (2, 3), "f")
        except DataError:
            continue
        assert read.shape == (2, 3)


def test_labels_are_in_range() -> None:
    values = torch.tensor([0, 9, 3], dtype=torch.uint8)
    assert idx.labels(values, 10, "f").tolist() == [0, 9, 3]
    assert idx.labels(values, 10, "f").dtype == torch.int64
    with pytest.raises(DataError, match=r"label 9 in record 1, outside 0\.\.8"):
        idx.labels(values, 9, "f")
