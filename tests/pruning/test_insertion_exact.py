"""Gates in any network: every structure of the zoo compacts exactly, for any pattern, and comes out smaller."""

import copy

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.opening import open_gates
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.twin import Twin
from anp_vs.serialization import load, save
from pruning import zoo
from pruning.patterns import (
    HALF_DEAD,
    MOST_DEAD,
    assert_same_function,
    dead_patterns,
    images_for,
    kill,
    no_gate_left,
    parameters,
    perturb,
)
from pruning.zoo import NAMES, gated

RESIDUALS = ("keep", "share")


def macs(network: nn.Module, images: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(images)
    return counter.get_total_flops() // 2


def dead(network: nn.Module) -> dict[str, Tensor]:
    return {name: ~gate.alive() for name, gate in gates(network).items()}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", NAMES)
def test_compaction_is_exact_and_really_smaller(name: str, residual: str) -> None:
    plain = zoo.build(name)
    paths = set(plain.state_dict())
    network = gated(name, residual)
    images = images_for(network, 3)
    kill(network, MOST_DEAD)
    small = compact(network)
    assert no_gate_left(small)
    assert_same_function(network, small, images)
    assert parameters(small) < 0.85 * parameters(plain)
    assert macs(small, images) < 0.85 * macs(plain.eval(), images)
    # The user's own names are back, but for layers behind a selection.
    selected = {path.replace(".layer.", ".") for path in small.state_dict() if ".select." not in path}
    assert selected == paths


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4)
@given(pattern=dead_patterns())
def test_any_pattern(name: str, pattern: tuple[int, dict[int, float]]) -> None:
    for residual in RESIDUALS:
        network = gated(name, residual)
        kill(network, pattern)
        assert_same_function(network, compact(network), images_for(network))


@pytest.mark.parametrize("name", NAMES)
def test_shrinking_then_compacting_and_the_twin(name: str) -> None:
    network = gated(name)
    images = images_for(network, 3)
    kill(network, HALF_DEAD)
    reference = copy.deepcopy(network)
    shrink(network, dead(network))
    assert parameters(network) < parameters(reference)
    assert_same_function(reference, network, images)
    kill(network, (3, HALF_DEAD[1]))
    reference = copy.deepcopy(network)
    assert_same_function(reference, compact(network), images)
    open_gates(network)
    assert_same_function(reference, network, images)
    shrink(network, dead(network))
    assert_same_function(reference, network, images)
    twin = Twin(network, example_for(network)).build()
    values, gradients = [], []
    for each in (network.eval(), twin):
        x = images.clone().requires_grad_()
        logits = each(x)
        values.append(logits)
        gradients.append(torch.autograd.grad(logits.logsumexp(1).sum(), x)[0])
    torch.testing.assert_close(values[1], values[0], rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_of_the_plain_network(name: str) -> None:
    network = perturb(zoo.build(name)).eval()
    images = images_for(network, 3)
    twin = Twin(network, example_for(network)).build()
    results = []
    for each in (network, twin):
        x = images.clone().requires_grad_()
        logits = each(x)
        results.append((logits.detach(), torch.autograd.grad(logits.logsumexp(1).sum(), x)[0]))
    for found, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", ["gated", "shrunk", "compact"])
@pytest.mark.parametrize("name", NAMES)
def test_every_form_loads_into_a_fresh_instance(name: str, form: str, tmp_path: object) -> None:
    network = gated(name)
    images = images_for(network)
    kill(network, HALF_DEAD)
    saved = compact(network) if form == "compact" else network
    if form == "shrunk":
        shrink(network, dead(network))
    fresh = zoo.build(name)
    again = load(save(saved, f"{tmp_path}/net"), network=fresh)
    assert_same_function(saved, again, images)
    assert {n: g.original_units for n, g in gates(again).items()} == {
        n: g.original_units for n, g in gates(saved).items()
    }
    assert_same_function(saved, compact(again), images)


@pytest.mark.slow
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", ["resnet18", "preactresnet18", "wideresnet28-4"])
def test_built_in_networks_at_full_size(name: str, residual: str) -> None:
    network = perturb(insert_gates(build(name).double(), residual=residual))  # type: ignore[arg-type]
    kill(network, MOST_DEAD)
    small = compact(network)
    assert_same_function(network, small, images_for(network))
    assert parameters(small) < 0.4 * parameters(network)
