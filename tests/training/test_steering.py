"""Beta that follows the target sparsity."""

import math

import pytest
import torch
from torch import nn

from anp_vs.pruning.gate import THRESHOLD, Gate, gates, last_to_go
from anp_vs.training import schedule
from training.tiny import recipe, trainer


def two_gates() -> nn.Module:
    network = nn.Sequential(Gate(6), Gate(4))
    with torch.no_grad():
        for gate, values in zip(network, ([2.0, -9, 1, -1, 0, -3], [-2.0, 3, -12, 0.5]), strict=True):
            gate.a_uc.copy_(torch.tensor(values))
    return network


def test_the_unit_that_is_to_go_last() -> None:
    network = two_gates()
    ordered = sorted(float(e) for gate in gates(network).values() for e in gate.expected().detach())
    for percent, place in ((10, 0), (40, 3), (41, 4), (95, 9)):
        assert last_to_go(network, percent) == pytest.approx(math.log(ordered[place]))
    gates(network)["1"].original_units = 14  # ten have left: they were the weakest
    assert last_to_go(network, 60) == pytest.approx(math.log(ordered[1]))
    assert last_to_go(network, 20) == pytest.approx(math.log(ordered[0]))


def test_beta_grows_by_how_far_behind_the_gates_are() -> None:
    steered = recipe("anp-vs", beta_gain=4.0, target_sparsity=50.0, decide_at=0.5)
    first, gone = math.log(0.2), math.log(THRESHOLD)
    at = schedule.ARRIVES * 0.5  # of training: the whole way is to be behind them by then
    assert schedule.beta_factor(steered, 0.0, first, first) == 1.0
    assert schedule.beta_factor(steered, at, gone, first) == pytest.approx(1.0)
    assert schedule.beta_factor(steered, at / 2, (first + gone) / 2, first) == pytest.approx(1.0)
    assert schedule.beta_factor(steered, at, first, first) == pytest.approx(math.exp(4))
    assert schedule.beta_factor(steered, 0.9, first, first) == pytest.approx(math.exp(4))
    assert schedule.beta_factor(steered, 0.0, gone, first) == pytest.approx(math.exp(-4))
    assert schedule.beta_factor(steered, 0.0, 9 * gone, first) == pytest.approx(math.exp(-4))


def sparsity_reached(beta: float, gain: float) -> float:
    """Of 300 units that are worth more and less, at the end of 200 steps."""
    steered = recipe("anp-vs", beta_gain=gain, target_sparsity=60.0, decide_at=1.0)
    gate = Gate(300)
    worth = torch.exp(2 * torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    optimiser = torch.optim.Adam(gate.parameters(), 0.05)
    first = last_to_go(gate, 60.0)
    for step in range(200):
        factor = schedule.beta_factor(steered, step / 200, last_to_go(gate, 60.0), first) if gain else 1.0
        optimiser.zero_grad()
        (beta * factor * gate.kl() - (worth * gate.expected()).sum()).backward()
        optimiser.step()
    return 100 * (1 - float(gate.alive().double().mean()))


def test_the_target_is_reached_from_betas_a_hundred_times_apart() -> None:
    assert sparsity_reached(0.01, 0.0) < 10 < 75 < sparsity_reached(1.0, 0.0)
    for beta in (0.01, 0.1, 1.0):
        assert sparsity_reached(beta, 10.0) == pytest.approx(60, abs=1)


def test_the_prices_of_a_run_are_multiplied() -> None:
    training = trainer(
        "anp-vs", network="lenet5-caffe", beta_gain=10.0, target_sparsity=50.0, decide_at=0.9, cost_exponent=0.3
    )
    prices = {name: gate.price for name, gate in gates(training.network).items()}
    training.step = 6
    training.advance()
    factors = {gate.price / prices[name] for name, gate in gates(training.network).items()}
    (factor,) = {round(factor, 9) for factor in factors}
    assert factor > math.exp(4)
    assert len(set(prices.values())) > 1
