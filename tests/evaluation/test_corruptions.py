"""Corruptions against their closed forms and SciPy, and the table on a network that sees only brightness."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from anp_vs.attacks.noise import per_image
from anp_vs.errors import InputError
from anp_vs.evaluation.corruptions import SEVERITIES, corrupt, evaluate_corruptions


@pytest.mark.parametrize("name", SEVERITIES)
def test_stays_an_image_and_grows_with_severity(name: str) -> None:
    images = 0.15 + 0.5 * torch.rand(4, 3, 32, 32)
    moved = []
    for severity in range(1, 6):
        found = corrupt(images, name, severity, torch.Generator().manual_seed(1))
        assert found.shape == images.shape
        assert found.dtype == torch.float32
        assert 0 <= found.min() <= found.max() <= 1
        moved.append(float((found - images).abs().mean()))
    assert moved[0] > 0
    assert moved[-1] > 1.05 * moved[0]


@pytest.mark.parametrize("name", SEVERITIES)
def test_what_an_image_meets_depends_on_its_own_generator(name: str) -> None:
    images = torch.rand(3, 1, 12, 12)
    whole = corrupt(images, name, 3, per_image(5, name, range(3)))
    last = corrupt(images[2:], name, 3, per_image(5, name, [2]))
    torch.testing.assert_close(whole[2:], last)


def test_noise_has_the_documented_moments() -> None:
    grey = torch.full((4, 1, 100, 100), 0.4)
    generator = torch.Generator().manual_seed(0)
    assert float(corrupt(grey, "gaussian-noise", 1, generator).std()) == pytest.approx(0.04, rel=0.03)
    shot = corrupt(grey, "shot-noise", 2, generator)
    assert float(shot.mean()) == pytest.approx(0.4, rel=0.01)
    assert float(shot.std()) == pytest.approx(math.sqrt(0.4 / 250), rel=0.03)  # Poisson
    impulse = corrupt(grey, "impulse-noise", 5, generator)
    assert float((impulse == 0).double().mean()) == pytest.approx(0.035, rel=0.1)
    assert float((impulse == 1).double().mean()) == pytest.approx(0.035, rel=0.1)


@pytest.mark.parametrize("shape", [(20, 60), (45, 31)])
def test_a_picture_that_is_not_square_is_turned_and_not_sheared(shape: tuple[int, int]) -> None:
    image = torch.rand(1, 1, *shape)
    turned = corrupt(image, "rotation", 5)[0, 0].numpy()
    both = [ndimage.rotate(image[0, 0].numpy(), angle, reshape=False, order=1) for angle in (30, -30)]
    middle = [(side - 1) / 2 for side in shape]
    inside = np.hypot(*(index - m for index, m in zip(np.indices(shape), middle, strict=True))) < min(middle) - 1
    assert min(np.abs(turned - one)[inside].max() for one in both) < 1e-4


def test_blur_rotation_and_translation_by_scipy() -> None:
    image = torch.rand(1, 1, 21, 21)
    plain = image[0, 0].numpy()
    blurred = ndimage.gaussian_filter(plain, 1.0, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(corrupt(image, "gaussian-blur", 5)[0, 0], blurred, atol=1e-5)
    turned = corrupt(image, "rotation", 5)[0, 0].numpy()
    both = [ndimage.rotate(plain, angle, reshape=False, order=1, mode="constant") for angle in (30, -30)]
    inside = np.hypot(*(np.indices((21, 21)) - 10)) < 9
    assert min(np.abs(turned - one)[inside].max() for one in both) < 1e-4
    shifted = corrupt(torch.rand(1, 1, 25, 25), "translation", 1)  # 4 % of 25 pixels: one pixel
    image = torch.rand(1, 1, 25, 25)
    shifted = corrupt(image, "translation", 1)[0, 0]
    rolls = [torch.roll(image[0, 0], (i, j), (0, 1)) for i in (-1, 1) for j in (-1, 1)]
    assert min(float((shifted - roll)[1:-1, 1:-1].abs().max()) for roll in rolls) < 1e-5


def test_brightness_contrast_pixelate_and_jpeg_by_hand() -> None:
    image = torch.rand(1, 1, 20, 20) * 0.5
    torch.testing.assert_close(corrupt(image, "brightness", 2), image + 0.1)
    found = corrupt(image, "contrast", 5)
    assert float(found.mean()) == pytest.approx(float(image.mean()), abs=1e-5)
    assert float(found.std() / image.std()) == pytest.approx(0.15, rel=1e-3)
    coarse = corrupt(image, "pixelate", 5)[0, 0]
    assert len(coarse.unique()) <= 13 * 13  # round(0.65 * 20) = 13 squares a side
    for channels in (1, 3):
        flat = torch.full((2, channels, 16, 16), 100 / 255)
        torch.testing.assert_close(corrupt(flat, "jpeg", 5), flat, atol=1.5 / 255, rtol=0)


class Bright(nn.Module):
    """Class 1 where the mean is above 1/2."""

    def forward(self, images: Tensor) -> Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def test_the_table_of_a_network_that_sees_the_mean() -> None:
    level = torch.tensor([0.1, 0.3, 0.42, 0.47, 0.6, 0.9])
    images = level.view(-1, 1, 1, 1).expand(-1, 1, 10, 10).clone()
    labels = (level > 0.5).long()
    table = evaluate_corruptions(
        Bright(),
        (images, labels),
        names=["brightness", "contrast"],
        severities=[1, 2, 5],
        batch_size=4,
        progress=False,
    )
    assert table.clean == 100.0
    # + 0.05 moves 0.47 over 1/2, + 0.1 also 0.42, + 0.3 also 0.3; contrast keeps the mean.
    assert table.accuracy["brightness"] == pytest.approx((500 / 6, 400 / 6, 300 / 6))
    assert table.accuracy["contrast"] == (100.0, 100.0, 100.0)
    assert table.mean == pytest.approx((1200 / 6 + 300) / 6)
    assert json.loads(json.dumps(table.as_dict()))["images"] == 6


@pytest.mark.parametrize(
    "options",
    [{"names": ["fog"]}, {"names": []}, {"severities": [0]}, {"severities": [6]}, {"severities": []}],
)
def test_bad_choices_are_refused(options: dict[str, list[str]]) -> None:
    with pytest.raises(InputError):
        evaluate_corruptions(Bright(), (torch.rand(2, 1, 4, 4), torch.tensor([0, 1])), progress=False, **options)  # type: ignore[arg-type]


def test_images_outside_the_range_are_refused() -> None:
    with pytest.raises(InputError):
        corrupt(torch.full((1, 1, 4, 4), 2.0), "contrast", 1)
