import copy
import io
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.published_cost import zero_weights_percent
from anp_vs.methods import ADMM, AT
from anp_vs.methods.admm import Splitting, kept_counts, largest, layer_weights
from anp_vs.networks import build as build_network
from anp_vs.networks.bayesian import make_bayesian


def splitting(network: nn.Module, total_steps: int = 100, **options: float) -> Splitting:
    companion = ADMM(**options).companion(network, total_steps)
    assert isinstance(companion, Splitting)
    return companion


def test_the_projection_is_the_nearest_tensor_with_that_many_weights() -> None:
    """Against every way to keep three of seven."""
    weight = torch.randn(7, dtype=torch.float64)
    distance = (weight - weight * largest(weight, 3)).norm()
    others = [weight.index_fill(0, torch.tensor([i for i in range(7) if i not in kept]), 0.0)
              for kept in combinations(range(7), 3)]  # fmt: skip
    assert distance.item() == pytest.approx(min((weight - other).norm().item() for other in others))


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.data())
def test_it_keeps_exactly_the_asked_number_whatever_is_equal(values: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(values)))
    weight = torch.tensor(values, dtype=torch.float32)
    mask = largest(weight, count)
    assert int(mask.sum()) == count
    ranked = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert set(mask.nonzero()[:, 0].tolist()) == set(ranked[:count])


def test_equal_weights_stay_by_index_in_any_memory_layout() -> None:
    weight = torch.ones(4, 3, 2, 2)
    expected = (torch.arange(48) < 17).view(4, 3, 2, 2)
    assert torch.equal(largest(weight, 17), expected)
    assert torch.equal(largest(weight.to(memory_format=torch.channels_last), 17), expected)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20), st.floats(0.1, 99.9))
def test_the_counts_of_the_layers_add_up_to_the_asked_share(sizes: list[int], sparsity: float) -> None:
    kept = kept_counts(sizes, sparsity)
    assert abs(sum(sizes) - sum(kept) - sparsity * sum(sizes) / 100) <= 0.5 + 1e-6
    for size, count in zip(sizes, kept, strict=True):
        assert 0 <= count <= size
        assert abs(size - count - sparsity * size / 100) <= 1 + 1e-6


def test_the_weights_counted_are_those_of_convolution_and_dense_layers() -> None:
    sizes = {name: weight.numel() for name, weight in layer_weights(build_network("lenet5-caffe")).items()}
    assert sizes == {"conv1.weight": 500, "conv2.weight": 25000, "fc1.weight": 400000, "fc2.weight": 5000}
    vgg = layer_weights(build_network("vgg16"))
    assert len(vgg) == 15
    assert not any("bn" in name or "bias" in name for name in vgg)


def test_the_sparsity_is_counted_from_the_tensors() -> None:
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 6))
    assert zero_weights_percent(network) == 0
    network[0].weight.data.view(-1)[:13] = 0.0
    network[2].weight.data[0, 0] = -0.0
    network[2].bias.data.zero_()
    assert zero_weights_percent(network) == pytest.approx(100 * 14 / 50)
    with pytest.raises(InputError, match="no weights to prune"):
        layer_weights(nn.Sequential(nn.ReLU()))


def test_penalty_and_updates_are_those_of_the_equations() -> None:
    layer = nn.Linear(5, 4).double()
    companion = splitting(layer, 60, sparsity_percent=75.0, rho=0.1, updates=2, admm_share=0.5)
    assert companion.mask_at == 30
    assert companion.update_at == {10, 20}
    rho, u = 0.1, np.zeros((4, 5))

    def project(values: np.ndarray) -> np.ndarray:
        least = np.sort(np.abs(values).ravel())[-5]
        return np.where(np.abs(values) >= least, values, 0.0)

    z = project(layer.weight.detach().numpy())
    for step in range(29):
        layer.weight.data += 0.1 * torch.randn_like(layer.weight)
        w = layer.weight.detach().numpy()
        penalty = companion.penalty()
        assert penalty.item() == pytest.approx(rho / 2 * ((w - z + u) ** 2).sum(), rel=1e-10)
        (gradient,) = torch.autograd.grad(penalty, layer.weight)
        np.testing.assert_allclose(gradient, rho * (w - z + u), rtol=1e-10)
        assert not companion.after_step(step)
        if step + 1 in (10, 20):
            rho *= 1.3
            z = project(w + u)
            u = u + w - z


def test_the_mask_is_set_once_and_asks_for_a_fresh_optimiser() -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    companion = splitting(network, 40, sparsity_percent=60.0, admm_share=0.25)
    before = network[0].weight.detach().clone()
    fresh = [companion.after_step(step) for step in range(40)]
    assert [step for step, value in enumerate(fresh) if value] == [9]
    assert companion.penalty() == 0
    assert zero_weights_percent(network) == 60.0
    kept = network[0].weight != 0
    assert before[kept].abs().min() >= before[~kept].abs().max()
    torch.testing.assert_close(network[0].weight[kept], before[kept])


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
def test_what_is_masked_never_moves_again(optimiser: str) -> None:
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    companion = splitting(network, 10, sparsity_percent=60.0, admm_share=0.1)
    assert companion.after_step(0)
    weights = list(network.parameters())
    made = {
        "adam": lambda: torch.optim.Adam(weights, 0.01, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(weights, 0.01, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(weights, 0.01, momentum=0.9, nesterov=True, weight_decay=0.1),
    }[optimiser]()
    gone, before = network[0].weight == 0, network[0].weight.detach().clone()
    for step in range(1, 10):
        made.zero_grad()
        (network(torch.randn(8, 6)).square().mean() + companion.penalty()).backward()
        assert network[0].weight.grad[gone].abs().max() > 0
        companion.before_step(step)
        assert network[0].weight.grad[gone].abs().max() == 0
        made.step()
        assert not companion.after_step(step)
    assert torch.equal(network[0].weight == 0, gone)
    assert (network[0].weight != before)[~gone].all()


def test_before_the_mask_gradients_are_left_alone() -> None:
    layer = nn.Linear(3, 3)
    companion = splitting(layer, 10)
    layer.weight.grad = torch.ones(3, 3)
    companion.before_step(0)
    assert torch.equal(layer.weight.grad, torch.ones(3, 3))


def state_of(companion: Splitting) -> dict:
    """Through a file, as a checkpoint goes: without running code from it."""
    file = io.BytesIO()
    torch.save(companion.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("stopped_at", [15, 25, 45])
def test_a_resumed_run_ends_bit_for_bit_alike(digits: tuple, build: Callable, training: type, stopped_at: int) -> None:
    """Stopped before an update, after one, and in retraining."""
    method = ADMM(sparsity_percent=70.0, updates=2)
    torch.manual_seed(0)
    initial = build(hidden=16)
    whole = training(method, copy.deepcopy(initial), digits[0], 60)
    whole.advance(60)
    first = training(method, copy.deepcopy(initial), digits[0], 60)
    first.advance(stopped_at)
    second = training(method, copy.deepcopy(first.network), digits[0], 60, step=stopped_at)
    second.companion.load_state_dict(state_of(first.companion))
    second.optimiser.load_state_dict(copy.deepcopy(first.optimiser.state_dict()))
    second.advance(60 - stopped_at)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[name]), name


def test_loading_keeps_the_layout_of_the_weights_in_memory() -> None:
    """Sums over Z and W must add up in the same order in a resumed run."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3)).to(memory_format=torch.channels_last)
    companion, weight = splitting(network), network[0].weight
    assert companion.z["0.weight"].stride() == companion.u["0.weight"].stride() == weight.stride()
    state = state_of(companion)
    state["z"] = {name: value.contiguous() for name, value in state["z"].items()}
    companion.load_state_dict(state)
    assert companion.z["0.weight"].stride() == weight.stride()


def test_a_state_of_another_network_is_refused() -> None:
    companion = splitting(nn.Linear(3, 3))
    with pytest.raises(RunError, match="shape"):
        companion.load_state_dict(splitting(nn.Linear(3, 4)).state_dict())


def test_a_layer_is_not_emptied() -> None:
    with pytest.raises(InputError, match="lower it"):
        splitting(nn.Sequential(nn.Linear(50, 20), nn.Linear(20, 1)), sparsity_percent=99.0)


def test_the_loss_is_adversarial_cross_entropy_alone() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images, adversarial = torch.rand(2, 3, 1, 2, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    objective = ADMM().objective(network, images, adversarial, labels, 10)
    expected = -np.mean([network(adversarial).log_softmax(1)[i, i].item() for i in range(3)])
    assert objective.weights.item() == pytest.approx(expected, rel=1e-12)
    assert objective.gates is None


def test_a_bayesian_network_is_pruned_by_its_means() -> None:
    network = make_bayesian(nn.Sequential(nn.Linear(4, 4)), 1.0, -3.0)
    assert set(layer_weights(network)) == {"0.weight"}


def test_it_reaches_the_asked_sparsity_and_keeps_what_was_learnt(
    digits: tuple, train: Callable, build: Callable, accuracy: Callable
) -> None:
    """90 % of the weights of an AT network go; its robustness stays, where masking alone loses it."""
    torch.manual_seed(0)
    dense = train(AT(), build(), digits[0], 120)
    before = accuracy(dense, digits[1], 0.15)
    masked = copy.deepcopy(dense)
    splitting(masked, 1, sparsity_percent=90.0).after_step(0)
    pruned = train(ADMM(sparsity_percent=90.0, rho=0.02), copy.deepcopy(dense), digits[0], 120)
    assert zero_weights_percent(pruned) == zero_weights_percent(masked) == pytest.approx(90.0, abs=0.01)
    assert accuracy(pruned, digits[1], 0.15) > max(before - 6, accuracy(masked, digits[1], 0.15) + 6)
    assert accuracy(pruned, digits[1]) > 70


def test_the_penalty_draws_the_weights_to_the_constraint(digits: tuple, build: Callable, training: type) -> None:
    """At the end of the ADMM phase the mask takes less of the weights' length than without a penalty."""
    lost = {}
    for rho in (1e-9, 0.05):
        torch.manual_seed(0)
        run = training(ADMM(sparsity_percent=80.0, rho=rho, admm_share=0.9), build(), digits[0], 120)
        network = run.advance(100)
        weight = network[1].weight.detach()
        kept = weight * largest(weight, weight.numel() // 5)
        lost[rho] = ((weight - kept).norm() / weight.norm()).item()
    assert lost[0.05] < 0.8 * lost[1e-9], lost
