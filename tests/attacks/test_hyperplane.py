"""The way to a hyperplane inside the box against SciPy's linear and quadratic programs."""

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.hyperplane import to_hyperplane
from attacks.small_networks import NORMS


def shortest(point: Tensor, slope: Tensor, offset: float, norm: str) -> float:
    """Norm of the smallest d with <slope, d> = offset in the box, by a solver; infinity if none."""
    x, w = point.flatten().numpy(), slope.flatten().numpy()
    n = len(x)
    bounds = [(-v, 1 - v) for v in x]
    if norm == "2":
        start = linprog(np.zeros(n), A_eq=w[None], b_eq=[offset], bounds=bounds)
        if start.status != 0:
            return float("inf")
        constraint = {"type": "eq", "fun": lambda d: w @ d - offset, "jac": lambda d: w}
        options = {"maxiter": 500, "ftol": 1e-14}
        found = minimize(
            lambda d: d @ d, start.x, jac=lambda d: 2 * d, bounds=bounds, constraints=constraint,
            method="SLSQP", options=options,
        )  # fmt: skip
        return float(np.sqrt(found.fun))
    if norm == "inf":  # minimise t with -t <= d_i <= t
        a_ub = np.block([[np.eye(n), -np.ones((n, 1))], [-np.eye(n), -np.ones((n, 1))]])
        cost, extra, eq = np.r_[np.zeros(n), 1], [(0, None)], np.r_[w, 0][None]
    else:  # minimise sum t_i with -t_i <= d_i <= t_i
        a_ub = np.block([[np.eye(n), -np.eye(n)], [-np.eye(n), -np.eye(n)]])
        cost, extra, eq = np.r_[np.zeros(n), np.ones(n)], [(0, None)] * n, np.r_[w, np.zeros(n)][None]
    found = linprog(cost, a_ub, np.zeros(2 * n), eq, [offset], bounds=bounds + extra)
    return float(found.fun) if found.status == 0 else float("inf")


@pytest.mark.parametrize("norm", NORMS)
def test_distance_is_the_solvers(norm: Norm, generator: torch.Generator) -> None:
    points = torch.rand(24, 1, 2, 4, generator=generator, dtype=torch.float64)
    slopes = torch.randn(points.shape, generator=generator, dtype=torch.float64)
    slopes[:, :, 0, 0] = 0.0
    points[:6, :, 1, :2] = torch.tensor([0.0, 1.0])
    offsets = 1.5 * torch.randn(24, generator=generator, dtype=torch.float64)
    d = to_hyperplane(points, slopes, offsets, norm)
    sizes = torch.linalg.vector_norm(d.flatten(1), ord=float(norm), dim=1)
    met = (slopes * d).flatten(1).sum(dim=1)
    assert float((points + d).min()) >= -1e-12
    assert float((points + d).max()) <= 1 + 1e-12
    expected = [shortest(*row, norm) for row in zip(points, slopes, offsets.tolist(), strict=True)]
    for size, reached, offset, best in zip(sizes.tolist(), met.tolist(), offsets.tolist(), expected, strict=True):
        if best < float("inf"):
            assert reached == pytest.approx(offset, abs=1e-9)
            assert size == pytest.approx(best, rel=1e-5)
        else:
            assert abs(reached) < abs(offset)
    assert any(best < float("inf") for best in expected)


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_it_goes_to_the_corner_of_the_box(norm: Norm) -> None:
    points = torch.tensor([0.2, 0.9, 0.5]).view(1, 1, 1, 3)
    slope = torch.tensor([1.0, -2.0, 0.0]).view(1, 1, 1, 3)
    d = to_hyperplane(points, slope, torch.tensor([100.0]), norm)
    assert torch.allclose(d.flatten(), torch.tensor([0.8, -0.9, 0.0]))


@pytest.mark.parametrize("norm", NORMS)
def test_scale_of_the_slope_does_not_matter(norm: Norm, generator: torch.Generator) -> None:
    points = torch.rand(10, 1, 3, 3, generator=generator)
    slope, offset = torch.randn(points.shape, generator=generator), torch.randn(10, generator=generator)
    d = to_hyperplane(points, slope, offset, norm)
    assert torch.allclose(to_hyperplane(points, slope * 1e-30, offset * 1e-30, norm), d, atol=1e-6)
    assert torch.equal(to_hyperplane(points, torch.zeros_like(slope), offset, norm), torch.zeros_like(d))
