"""Splits and the hold-out."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from anp_vs.data import Dataset, Split, hold_out
from anp_vs.errors import InputError


def numbered(count: int) -> Split:
    """Images that tell their own number, so that every selection can be read back."""
    images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 2, 4)
    return Split(images, torch.arange(count) % 5)


def numbers(images: Tensor) -> list[int]:
    assert (images == images[:, :1, :1, :1]).all()
    return images[:, 0, 0, 0].tolist()


@given(st.lists(st.integers(0, 3), min_size=20, max_size=200), st.floats(0, 0.5), st.integers(0, 2**32 - 1))
def test_hold_out_divides_each_class_in_proportion(labels: list[int], share: float, seed: int) -> None:
    values = torch.tensor(labels)
    sizes = values.bincount()
    count = int(share * (len(labels) - (sizes > 0).sum()))
    try:
        kept, held = hold_out(values, count, seed)
    except InputError:
        # Only refused when some class has so few images that its rounded share is all of them.
        assert (sizes[sizes > 0] == 1).any()
        return
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(labels)))
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() == sorted(held.tolist())
    assert len(held) == count
    taken = values[held].bincount(minlength=len(sizes))
    exact = sizes.double() * count / len(labels)
    assert ((taken - exact).abs() < 1).all()
    again = hold_out(values, count, seed)
    assert torch.equal(again[0], kept)
    assert torch.equal(again[1], held)


def test_every_image_of_a_class_is_as_likely_to_be_held_out() -> None:
    labels = torch.arange(40) % 2
    draws = 400
    times = torch.zeros(40)
    for seed in range(draws):
        times[hold_out(labels, 10, seed)[1]] += 1
    # Each count is binomial with mean 100 and standard deviation 8.7; five of those either way.
    assert (times - draws / 4).abs().max() < 5 * (draws * 0.25 * 0.75) ** 0.5


@pytest.mark.parametrize("count", [-1, 19, 2.0, True, None])
def test_hold_out_names_an_impossible_count(count: int) -> None:
    with pytest.raises(InputError, match=r"from 0 to 18"):
        hold_out(torch.arange(20) % 2, count, 0)


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, "0"])
def test_hold_out_names_an_impossible_seed(seed: int) -> None:
    with pytest.raises(InputError, match="seed"):
        hold_out(torch.arange(20) % 2, 4, seed)


def test_hold_out_names_the_class_that_would_be_left_empty() -> None:
    with pytest.raises(InputError, match="class 7"):
        hold_out(torch.tensor([3] * 9 + [7]), 8, 0)


def test_selections_give_the_images_asked_for() -> None:
    split = numbered(20)
    assert len(split) == 20
    assert split.shape == (3, 2, 4)
    order = torch.tensor([7, 3, 3, 19])
    assert numbers(split.batch(order)) == [7, 3, 3, 19]
    assert numbers(split.subset(order).images) == [7, 3, 3, 19]
    assert split.subset(order).labels.tolist() == [2, 3, 3, 4]
    assert numbers(split.head(3).images) == [0, 1, 2]
    assert len(split.head(99)) == 20
    batches = list(split.batches([torch.tensor([5, 1]), torch.tensor([2])]))
    assert [numbers(images) for images, _ in batches] == [[5, 1], [2]]
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2]]


def test_a_data_set_moves_as_a_whole() -> None:
    split = numbered(6)
    moved = Dataset("n", split, split.head(2), split.head(1), ("a",) * 5).to("meta")
    devices = {
        tensor.device.type
        for part in (moved.train, moved.validation, moved.test)
        for tensor in (part.images, part.labels)
    }
    assert devices == {"meta"}


@pytest.mark.parametrize(
    ("images", "labels", "named"),
    [
        (torch.rand(4, 1, 2, 2), torch.zeros(4, dtype=torch.int64), "float32"),
        (torch.zeros(4, 2, 2, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), r"\(4, 2, 2\)"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(3,\)"),
        (torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4), "labels are torch.float32"),
    ],
)
def test_a_split_refuses_what_it_is_not_made_of(images: Tensor, labels: Tensor, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Split(images, labels)


def test_the_hold_out_is_the_frozen_stream_of_the_legacy_generator() -> None:
    labels = torch.zeros(50, dtype=torch.int64)
    expected = np.sort(np.random.RandomState(3).permutation(50)[:7])
    assert hold_out(labels, 7, 3)[1].tolist() == expected.tolist()
