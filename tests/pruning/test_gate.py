"""The Beta-Bernoulli gate against SciPy, numerical integration, Monte Carlo and finite differences."""

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor, nn

from anp_vs.networks.layers import Dropout
from anp_vs.pruning.gate import (
    ALPHA,
    THRESHOLD,
    Gate,
    gate_parameters,
    gates,
    shared_mask,
    sparsity_percent,
    total_kl,
    weight_parameters,
)

PARAMETERS = [(a, b) for a in (-3.0, -1.0, 0.0, 2.0, 8.0) for b in (-2.0, 0.5413, 3.0, 12.0)]
# Beyond both ends of the clipping, at its ends, and in between.
A_GRID = torch.tensor([-60.0, -30.0, -10.0, -9.99, -5.0, -1.0, 0.0, 0.5, 2.0, 10.0, 30.0, 60.0])
B_GRID = torch.tensor([-60.0, -30.0, -10.0, -9.99, -5.0, -1.0, 0.0, 0.5413, 2.0, 10.0, 49.9, 50.0, 100.0])


def concentrations(a_uc: float, b_uc: float) -> tuple[float, float]:
    """Softplus of the clipped parameters, by NumPy."""
    return float(np.logaddexp(0, max(a_uc, -10.0))), float(np.logaddexp(0, min(max(b_uc, -10.0), 50.0)))


def gate_of(a_uc: Tensor, b_uc: Tensor) -> Gate:
    gate = Gate(a_uc.numel()).to(a_uc.dtype)
    with torch.no_grad():
        gate.a_uc.copy_(a_uc)
        gate.b_uc.copy_(b_uc)
    return gate


def grid(dtype: torch.dtype = torch.float32) -> Gate:
    a_uc, b_uc = torch.meshgrid(A_GRID.to(dtype), B_GRID.to(dtype), indexing="ij")
    return gate_of(a_uc.flatten(), b_uc.flatten())


# -- E[pi] and KL ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a_uc", "b_uc"), PARAMETERS)
def test_expectation_and_divergence_are_the_integrals_over_the_posterior(a_uc: float, b_uc: float) -> None:
    """With pi = (1 - u^(1/b))^(1/a), u uniform, both are integrals over the unit interval."""
    a, b = concentrations(a_uc, b_uc)
    gate = Gate(1, a_uc, b_uc).double()

    def log_pi(v: float) -> float:  # v = -log u, exponential: resolves small u
        return float(np.log(-np.expm1(-v / b)) / a)

    def divergence(v: float) -> float:  # log q(pi) - log p(pi), where 1 - pi^a = u^(1/b)
        log_posterior = np.log(a * b) + (a - 1) * log_pi(v) - (b - 1) * v / b
        return float(np.exp(-v) * (log_posterior - np.log(ALPHA) - (ALPHA - 1) * log_pi(v)))

    def integral(of: Callable[[float], float]) -> float:
        ends = [0, min(b, 1.0) / 100, min(b, 1.0), 10 * min(b, 1.0), 60]
        parts = (integrate.quad(of, *ends[i : i + 2], limit=200, epsabs=1e-13, epsrel=1e-10)[0] for i in range(4))
        return float(sum(parts))

    expected = integral(lambda v: float(np.exp(-v + log_pi(v))))
    assert gate.expected().item() == pytest.approx(expected, rel=1e-7, abs=1e-12)
    assert gate.kl().item() == pytest.approx(integral(divergence), rel=1e-6)


def test_expectation_and_divergence_in_float32_at_the_ends_of_the_range() -> None:
    gate = grid()
    closed = []
    kl = mpmath.mpf(0)
    for a_uc, b_uc in zip(gate.a_uc.tolist(), gate.b_uc.tolist(), strict=True):
        a = mpmath.log1p(mpmath.exp(max(a_uc, -10.0)))
        b = mpmath.log1p(mpmath.exp(min(max(b_uc, -10.0), 50.0)))
        closed.append(float(b * mpmath.beta(1 + 1 / a, b)))
        kl += (1 - ALPHA / a) * (-mpmath.euler - mpmath.digamma(b) - 1 / b)
        kl += mpmath.log(a * b / ALPHA) - (b - 1) / b
    expected = gate.expected().detach().numpy()
    np.testing.assert_allclose(expected, closed, rtol=1e-6, atol=1e-30)
    assert (expected > 0).any()
    assert (expected <= 1).all()
    assert gate.kl().item() == pytest.approx(float(kl), rel=1e-7)


def test_one_half_of_the_closed_form_at_b_equal_one() -> None:
    gate = Gate(3, b_uc=float(np.log(np.expm1(1.0))))
    with torch.no_grad():
        gate.a_uc.copy_(torch.tensor([-9.0, -1.0, 2.0]))
    a = np.logaddexp(0, [-9.0, -1.0, 2.0])
    np.testing.assert_allclose(gate.expected().detach().numpy(), a / (1 + a), rtol=1e-6)


def test_gradients_are_finite_differences() -> None:
    """In float64, away from the clips' kinks."""
    a_uc, b_uc = torch.meshgrid(
        torch.tensor([-9.0, -3.0, -1.0, 0.5, 4.0]),
        torch.tensor([-6.0, -1.0, 0.5413, 8.0, 40.0]),
        indexing="ij",
    )
    gate = gate_of(a_uc.flatten().double(), b_uc.flatten().double())

    def as_function(name: str) -> object:
        def call(a: Tensor, b: Tensor) -> Tensor:
            torch.manual_seed(3)
            held = torch.func.functional_call(_Method(gate, name), {"gate.a_uc": a, "gate.b_uc": b}, ())
            assert isinstance(held, Tensor)
            return held

        return call

    point = (gate.a_uc.detach().clone().requires_grad_(), gate.b_uc.detach().clone().requires_grad_())
    for name in ("expected", "kl"):
        assert torch.autograd.gradcheck(as_function(name), point, eps=1e-5, atol=1e-6, rtol=1e-4)
    # A sample's slope reaches 1/tau^2 and more: a smaller step, and a bound relative to it.
    assert torch.autograd.gradcheck(as_function("sample"), point, eps=1e-7, atol=1e-4, rtol=1e-3)


class _Method(nn.Module):
    """A gate's method as a forward pass, for `functional_call`."""

    def __init__(self, gate: Gate, name: str) -> None:
        super().__init__()
        self.gate, self.name = gate, name

    def forward(self) -> Tensor:
        result: Tensor = self.gate.sample(4) if self.name == "sample" else getattr(self.gate, self.name)()
        return result


@given(st.floats(-60, 60, width=32), st.floats(-60, 100, width=32))
def test_nothing_overflows_at_any_parameter(a_uc: float, b_uc: float) -> None:
    gate = Gate(8, a_uc, b_uc)
    _assert_finite(gate, 64)


def test_nothing_overflows_on_the_grid() -> None:
    gate = grid()
    for _ in range(50):
        _assert_finite(gate, 16)


def _assert_finite(gate: Gate, batch: int) -> None:
    z = gate.sample(batch)
    assert bool(((z >= 0) & (z <= 1)).all())
    for value in (z, gate.expected(), gate.kl()):
        assert bool(torch.isfinite(value).all())
        for gradient in torch.autograd.grad(value.sum(), [gate.a_uc, gate.b_uc]):
            assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("extreme", [1e-30, 1 - 1e-16])
def test_the_rarest_draws_are_finite(extreme: float, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = grid()
    monkeypatch.setattr(torch, "rand_like", lambda t: torch.full_like(t, extreme))
    monkeypatch.setattr(torch, "rand", lambda *size, **kind: torch.full(size, extreme, **kind))
    _assert_finite(gate, 2)


# -- sampling -------------------------------------------------------------------------------------------------


def formula(a: float, b: float, batches: int, batch: int) -> np.ndarray:
    """z by the published formula: pi once a batch, z for every image, temperature 0.1."""
    random = np.random.default_rng(0)
    u = random.uniform(1e-10, 1 - 1e-10, (batches, 1))
    pi = (1 - u ** (1 / b)) ** (1 / a)
    v = random.uniform(1e-7, 1 - 1e-7, (batches, batch))
    with np.errstate(divide="ignore", over="ignore"):
        return 1 / (1 + np.exp(-(np.log(v / (1 - v)) + np.log(pi / (1 - pi))) / 0.1))


@pytest.mark.parametrize(("a_uc", "b_uc"), [(-1.0, 0.5413), (2.0, 0.5413), (0.0, 3.0), (-3.0, -1.0)])
def test_samples_follow_the_formula(a_uc: float, b_uc: float) -> None:
    draws = 20_000
    with torch.no_grad():
        z = Gate(draws, a_uc, b_uc).sample(2).T.double().numpy()
    wanted = formula(*concentrations(a_uc, b_uc), draws, 2)
    # Nearer to 0 or 1 than this float32 rounds, so that the two would differ in their ties.
    z, wanted = z.clip(1e-30, 1 - 1e-6), wanted.clip(1e-30, 1 - 1e-6)
    assert stats.ks_2samp(z[:, 0], wanted[:, 0]).pvalue > 1e-3
    # pi is shared by the batch and the concrete noise is not: the product of two images' z has its own law.
    assert stats.ks_2samp(z[:, 0] * z[:, 1], wanted[:, 0] * wanted[:, 1]).pvalue > 1e-3
    assert not np.allclose(z[:, 0], z[:, 1])
    # 99.9 % interval of the mean of a variable in [0, 1] against E[P(z > 1/2)] = E[pi].
    expected = Gate(1, a_uc, b_uc).expected().item()
    assert (z[:, 0] > 0.5).mean() == pytest.approx(expected, abs=3.3 * 0.5 / draws**0.5)


# -- evaluation -----------------------------------------------------------------------------------------------


def at_expectation(values: list[float]) -> Gate:
    """A gate with these E[pi]: at b = 1, a = E / (1 - E)."""
    a = torch.tensor(values, dtype=torch.float64)
    a = a / (1 - a)
    return gate_of(torch.log(torch.expm1(a)), torch.full_like(a, float(np.log(np.expm1(1.0)))))


def test_a_unit_at_the_threshold_is_exactly_zero_and_survivors_are_scaled() -> None:
    values = [0.5, THRESHOLD * 0.999, THRESHOLD * 1.001, 0.9]
    gate = at_expectation(values).eval()
    features = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    features[:, 1] = 1e30
    wanted = features * torch.tensor([0.5, 0.0, THRESHOLD * 1.001, 0.9], dtype=torch.float64).view(1, 4, 1, 1)
    torch.testing.assert_close(gate(features), wanted, rtol=1e-9, atol=0)
    assert gate.alive().tolist() == [True, False, True, True]
    assert not gate.collapsed()
    assert sparsity_percent(nn.Sequential(gate)) == 25.0


def test_the_strongest_unit_is_kept_where_all_would_die() -> None:
    gate = at_expectation([2e-4, 7e-4, 5e-4]).eval()
    assert gate.collapsed()
    assert gate.alive().tolist() == [False, True, False]
    torch.testing.assert_close(gate.mask()[1].item(), 7e-4, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dim", [1, -1])
def test_the_gated_axis_is_the_one_asked_for(dim: int) -> None:
    gate = at_expectation([0.25, 0.5, 0.75]).eval()
    gate.dim = dim
    features = torch.randn(3, 3, 3, dtype=torch.float64)
    mask = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    wanted = features * (mask.view(1, 3, 1) if dim == 1 else mask)
    torch.testing.assert_close(gate(features), wanted, rtol=1e-9, atol=0)
    torch.manual_seed(0)
    sampled = gate.train()(torch.ones(3, 3, 3, dtype=torch.float64))
    torch.manual_seed(0)
    z = gate.sample(3)
    torch.testing.assert_close(sampled.select(2 if dim == 1 else 1, 0), z)


def test_a_fixed_gate_trains_as_it_evaluates_and_its_index_selects() -> None:
    gate = at_expectation([0.5, 1e-5]).train()
    gate.fixed, gate.index = True, torch.tensor([3, 1])
    features = torch.randn(2, 4, dtype=torch.float64)
    torch.testing.assert_close(gate(features), torch.stack([0.5 * features[:, 3], 0 * features[:, 1]], 1))


# -- many gates -----------------------------------------------------------------------------------------------


def test_both_halves_of_a_batch_share_the_mask_only_inside_the_context() -> None:
    network = nn.Sequential(Gate(40, 0.0), Dropout(0.5)).train()
    images = torch.rand(3, 40, 2, 2).repeat(2, 1, 1, 1)
    with shared_mask(network):
        clean, attacked = network(images).chunk(2)
    assert torch.equal(clean, attacked)
    assert not torch.equal(clean[0] / images[0], clean[1] / images[1])
    outside, other = network(images).chunk(2)
    assert not torch.equal(outside, other)
    with pytest.raises(ZeroDivisionError), shared_mask(network, 3):
        raise ZeroDivisionError
    assert not torch.equal(*network(images).chunk(2))


def test_parameters_are_gates_or_weights_and_divergences_add() -> None:
    network = nn.Sequential(nn.Linear(4, 3), Gate(3, 1.0), nn.Linear(3, 2), Gate(2, -1.0))
    assert list(gates(network)) == ["1", "3"]
    assert len(gate_parameters(network)) == 4
    assert {id(p) for p in (*gate_parameters(network), *weight_parameters(network))} == {
        id(p) for p in network.parameters()
    }
    wanted = 3 * Gate(1, 1.0).kl() + 2 * Gate(1, -1.0).kl()
    torch.testing.assert_close(total_kl(network), wanted)
    assert total_kl(nn.Linear(2, 2)).item() == 0
    assert sparsity_percent(nn.Linear(2, 2)) == 0
