"""Augmentation of batches, against a loop over images and the distribution it must have."""

import numpy as np
import pytest
import torch
from scipy import stats

from anp_vs.data import CROP_FLIP, Augmentation, to_float
from anp_vs.errors import InputError


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8)


def one_by_one(images: torch.Tensor, pad: int, flip: bool, generator: torch.Generator) -> np.ndarray:
    """The same, image by image, with NumPy: pad, slice, mirror."""
    batch, _, height, width = images.shape
    rows = columns = torch.zeros(batch, dtype=torch.int64)
    if pad:
        rows, columns = torch.randint(2 * pad + 1, (2, batch, 1), generator=generator).squeeze(2)
    mirrored = torch.randint(2, (batch, 1), generator=generator) if flip else torch.zeros(batch, 1)
    result = []
    for image, top, left, mirror in zip(images.numpy(), rows.tolist(), columns.tolist(), mirrored, strict=True):
        large = np.pad(image, ((0, 0), (pad, pad), (pad, pad)))
        crop = large[:, top : top + height, left : left + width]
        result.append(crop[:, :, ::-1] if mirror else crop)
    return np.stack(result)


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shape", [(7, 3, 32, 32), (5, 1, 9, 6), (1, 2, 1, 1)])
def test_equals_the_loop_over_images(pad: int, flip: bool, shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    before = images.clone()
    augmented = Augmentation(pad, flip)(images, torch.Generator().manual_seed(1))
    expected = one_by_one(images, pad, flip, torch.Generator().manual_seed(1))
    assert augmented.dtype == torch.float32
    np.testing.assert_array_equal((augmented * 255).round().to(torch.uint8).numpy(), expected)
    assert torch.equal(images, before)


def test_every_crop_and_mirror_image_is_equally_likely(generator: torch.Generator) -> None:
    pad, batch = 2, 20_000
    image = torch.arange(1, 26, dtype=torch.uint8).view(1, 1, 5, 5)
    crops = Augmentation(pad, flip=True)(image.expand(batch, -1, -1, -1), generator)
    kinds, counts = (crops * 255).round().flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 2 * (2 * pad + 1) ** 2
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_none_changes_nothing_and_draws_nothing(generator: torch.Generator) -> None:
    images = noise(4, 3, 8, 8)
    state = generator.get_state()
    assert torch.equal(Augmentation()(images, generator), images.float() / 255)
    assert torch.equal(generator.get_state(), state)


def test_floats_are_exact_at_the_ends() -> None:
    ends = to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert ends.tolist() == pytest.approx([0.0, 0.2, 1.0], abs=1e-7)
    assert ends[0] == 0.0
    assert ends[2] == 1.0


def test_images_of_a_batch_draw_their_own(generator: torch.Generator) -> None:
    augmented = CROP_FLIP(noise(1, 3, 32, 32).expand(16, -1, -1, -1), generator)
    assert len(augmented.flatten(1).unique(dim=0)) >= 14


@pytest.mark.parametrize("pad", [-1, 1.5, True, "4"])
def test_a_pad_out_of_range_is_named(pad: int) -> None:
    with pytest.raises(InputError, match="pad is"):
        Augmentation(pad)
