"""The threat model against exact arithmetic, bisection and the distributions that it claims."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from torch import Tensor

from anp_vs.attacks import geometry
from anp_vs.errors import InputError
from attacks.small_networks import NORMS, distances

IMAGES = torch.full((2, 1, 3, 3), 0.5)
LABELS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 3, 3, dtype=torch.uint8), "uint8"),
        (IMAGES.half(), "float16"),
        ([[0.5]], "list"),
        (torch.zeros(1, 3, 3), r"\(1, 3, 3\)"),
        (torch.zeros(0, 1, 3, 3), r"\(0, 1, 3, 3\)"),
        (IMAGES * 3, "1.5"),
        (IMAGES - 0.6, "-0.1"),
        (IMAGES * math.nan, "nan"),
        (IMAGES / 0, "inf"),
    ],
)
def test_images_outside_pixel_space_are_refused(images: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.check_images(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS.float(), "float32"),
        (LABELS[:1], r"\(1,\)"),
        (torch.eye(2, dtype=torch.int64), "one-hot"),
        (LABELS - 1, r"\[-1, 0\]"),
        (LABELS + 9, r"\[9, 10\]"),
        ([0, 1], "list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        geometry.check_images(IMAGES, labels, classes=10)
    geometry.check_images(IMAGES, LABELS, classes=2)


def test_budgets_outside_their_range_are_refused() -> None:
    for bad in ({"eps": -0.1}, {"eps": math.nan}, {"norm": "0"}, {"norm": 2}, {"step": 0.0}, {"steps": 0}):
        with pytest.raises(InputError):
            geometry.check_budget(**({"eps": 0.1, "norm": "inf"} | bad))  # type: ignore[arg-type]


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_box_is_exact_and_as_wide_as_float32_allows(values: list[float], eps: float) -> None:
    images = torch.tensor(values).view(1, 1, 1, -1)
    lower, upper = geometry.box(images, eps)
    for sign, bounds in ((-1, lower), (1, upper)):
        beyond = torch.nextafter(bounds, torch.full_like(bounds, float(sign * 2)))
        for value, bound, next_one in zip(values, bounds.flatten().tolist(), beyond.flatten().tolist(), strict=True):
            assert abs(Fraction(bound) - Fraction(value)) <= Fraction(eps)
            assert 0 <= bound <= 1
            # One float further is outside: of [0, 1], or of the ball to within the rounding of eps itself.
            assert not 0 <= next_one <= 1 or abs(next_one - value) > eps * (1 - 2e-7)
    assert float((upper - images).abs().max()) <= eps
    assert float((lower - images).abs().max()) <= eps


@pytest.mark.parametrize("eps", [0.1, 1.0, 4.0, 8.0, 100.0])
def test_l1_projection_is_the_one_that_bisection_finds(eps: float, generator: torch.Generator) -> None:
    images = torch.rand(50, 1, 5, 5, generator=generator, dtype=torch.float64)
    delta = torch.randn(50, 1, 5, 5, generator=generator, dtype=torch.float64)
    size, room = delta.abs().flatten(1), torch.where(delta > 0, 1 - images, images).flatten(1)

    def kept(threshold: Tensor) -> Tensor:
        return torch.minimum((size - threshold).clamp(min=0), room)

    low, high = torch.zeros(50, 1, dtype=torch.float64), size.amax(dim=1, keepdim=True)
    for _ in range(100):
        middle = (low + high) / 2
        over = kept(middle).sum(dim=1, keepdim=True) > eps
        low, high = torch.where(over, middle, low), torch.where(over, high, middle)
    free = kept(torch.zeros_like(low)).sum(dim=1, keepdim=True) <= eps
    expected = kept(torch.where(free, torch.zeros_like(low), high))
    assert torch.allclose(geometry.project_l1_box(images, delta, eps).abs().flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_projection_leaves_allowed_images_and_is_the_nearest_elsewhere(
    norm: geometry.Norm, generator: torch.Generator
) -> None:
    images = 0.3 + 0.4 * torch.rand(20, 2, 4, 4, generator=generator)
    outside = images + 0.2 * torch.randn(images.shape, generator=generator)
    projected = geometry.project(images, outside, 0.25, norm)
    assert bool((distances(images, projected, norm) <= 0.25).all())
    assert torch.allclose(geometry.project(images, projected, 0.25, norm), projected, atol=1e-6)
    # Nearest: <outside - p, q - p> <= 0 for every allowed q (the box is too far away to matter here).
    for _ in range(20):
        other = geometry.random_start(images, 0.25, norm, generator)
        product = ((outside - projected).double() * (other - projected).double()).flatten(1).sum(dim=1)
        assert float(product.max()) <= 1e-5


@pytest.mark.parametrize("norm", ["2", "1"])
def test_confined_images_obey_the_ball_in_double_precision(norm: geometry.Norm, generator: torch.Generator) -> None:
    images = torch.rand(30, 3, 8, 8, generator=generator)
    for spread in (1e-4, 1e-2, 1.0):
        candidate = images + spread * torch.randn(images.shape, generator=generator)
        for eps in (0.01, 0.5, 3.0):
            confined = geometry.confine(images, candidate, eps, norm)
            assert bool((distances(images, confined, norm) <= eps).all())
            assert float(confined.min()) >= 0
            assert float(confined.max()) <= 1
            inside = distances(images, candidate.clamp(0, 1), norm) <= eps * (1 - 2e-6)
            assert torch.equal(confined[inside], candidate.clamp(0, 1)[inside])


def test_a_step_raises_a_linear_function_by_its_length_times_the_dual_norm(
    generator: torch.Generator,
) -> None:
    images = torch.full((8, 1, 6, 6), 0.5, dtype=torch.float64)
    gradient = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    for norm, dual in (("inf", 1.0), ("2", 2.0), ("1", torch.inf)):
        moved = geometry.step(images, gradient, 0.1, norm)  # type: ignore[arg-type]
        rise = ((moved - images) * gradient).flatten(1).sum(dim=1)
        assert torch.allclose(rise, 0.1 * torch.linalg.vector_norm(gradient.flatten(1), ord=dual, dim=1))
        assert torch.allclose(distances(images, moved, norm), torch.tensor(0.1, dtype=torch.float64))


def test_a_1_norm_step_passes_over_pixels_without_room() -> None:
    images = torch.full((1, 1, 2, 2), 0.5)
    images[0, 0, 0, 0] = 1.0
    gradient = torch.tensor([9.0, -5.0, 1.0, 1.0]).view(1, 1, 2, 2)
    expected = torch.tensor([1.0, 0.4, 0.5, 0.5]).view(1, 1, 2, 2)
    assert torch.allclose(geometry.step(images, gradient, 0.1, "1"), expected)


def test_steps_survive_gradients_whose_squares_underflow() -> None:
    gradient = torch.full((1, 1, 2, 2), 1e-30)
    assert torch.allclose(geometry.normalised(gradient), torch.full((1, 1, 2, 2), 0.5))
    assert torch.equal(geometry.normalised(torch.zeros(1, 1, 2, 2)), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_are_uniform_in_the_ball(norm: geometry.Norm, generator: torch.Generator) -> None:
    images = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)
    starts = geometry.random_start(images, 0.3, norm, generator, by_volume=True)
    radii = distances(images, starts, norm) / 0.3
    # A share r^d of the ball's volume lies within radius r.
    assert kstest(radii.numpy() ** 4, "uniform").pvalue > 0.01
    assert float((starts - images).mean(dim=0).abs().max()) < 0.02


@pytest.mark.parametrize("norm", ["2", "1"])
def test_ascent_starts_at_every_length_alike_in_every_direction(
    norm: geometry.Norm, generator: torch.Generator
) -> None:
    images = torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64)
    offsets = geometry.random_start(images, 0.3, norm, generator) - images
    lengths = distances(images, images + offsets, norm) / 0.3
    assert kstest(lengths.numpy(), "uniform").pvalue > 0.01
    assert float(offsets.mean(dim=0).abs().max()) < 0.02
    if norm == "1":  # on the 1-sphere of d = 4 coordinates |x_1| follows Beta(1, 3)
        first = offsets[:, 0, 0, 0].abs() / offsets.abs().flatten(1).sum(dim=1)
        assert kstest(first.numpy(), "beta", args=(1, 3)).pvalue > 0.01


def test_a_generator_an_image_makes_its_start_independent_of_the_batch() -> None:
    from anp_vs.attacks.noise import per_image

    images = torch.rand(6, 1, 4, 4)
    together = geometry.random_start(images, 0.1, "2", per_image(3, "apgd", range(6)))
    alone = geometry.random_start(images[4:5], 0.1, "2", per_image(3, "apgd", [4]))
    assert torch.equal(together[4:5], alone)
    assert not torch.equal(geometry.random_start(images[4:5], 0.1, "2", per_image(4, "apgd", [4])), alone)
