from collections.abc import Callable

import pytest
import torch
from torch import nn

from anp_vs.errors import InputError
from anp_vs.methods import ANPVS, AT, TRADES, Method
from anp_vs.methods.awp import perturbed_objective, shifted, worst_shifts
from anp_vs.networks.bayesian import make_bayesian
from anp_vs.pruning.gate import Gate


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    images, adversarial = torch.rand(2, 8, 1, 2, 2, dtype=torch.float64)
    return images, adversarial, torch.tensor([0, 1, 2, 2, 1, 0, 0, 1])


def network(*between: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), *between, nn.ReLU(), nn.Linear(5, 3)).double()


def test_for_a_linear_loss_the_shift_is_the_worst_of_its_length() -> None:
    """L(W) = <A, W>: no matrix of norm gamma |W| raises it more than along A, by gamma |W| |A|."""
    layer = nn.Linear(3, 4, bias=False).double()
    a = torch.randn(4, 3, dtype=torch.float64)
    shift = worst_shifts(layer, (a * layer.weight).sum(), 0.01)["weight"]
    assert shift.norm().item() == pytest.approx(0.01 * layer.weight.norm().item())
    assert (a * shift).sum().item() == pytest.approx(0.01 * layer.weight.norm().item() * a.norm().item())


def test_processes_that_share_a_batch_shift_alike() -> None:
    """Each sees half of the batch; with its gradient averaged over both, it shifts as one that sees the whole."""
    net, (images, _, labels) = network(), batch()

    def loss(chosen: slice) -> torch.Tensor:
        return nn.functional.cross_entropy(net(images[chosen]), labels[chosen])

    weights = [net[1].weight, net[3].weight]
    other = torch.autograd.grad(loss(slice(4, 8)), weights)
    shifts = worst_shifts(
        net, loss(slice(4)), 0.05, lambda mine: [(m + o) / 2 for m, o in zip(mine, other, strict=True) if m is not None]
    )
    for name, expected in worst_shifts(net, loss(slice(8)), 0.05).items():
        torch.testing.assert_close(shifts[name], expected)


def test_biases_normalisation_and_gates_stay() -> None:
    net = network(nn.BatchNorm1d(5), Gate(5))
    shifts = worst_shifts(net, net(batch()[0]).square().sum(), 0.01)
    assert set(shifts) == {"1.weight", "5.weight"}


def test_the_spread_of_bayesian_weights_stays() -> None:
    net = make_bayesian(network(), 1.0, -3.0)
    assert set(worst_shifts(net, net(batch()[0]).square().sum(), 0.01)) == {"1.weight", "3.weight"}


def test_pruned_weights_stay_and_the_others_shift_by_the_whole_length() -> None:
    net = network()
    with torch.no_grad():
        net[1].weight[:, 1:3] = 0.0
    shift = worst_shifts(net, net(batch()[0]).square().sum(), 0.01)["1.weight"]
    assert not shift[:, 1:3].any()
    assert shift.norm().item() == pytest.approx(0.01 * net[1].weight.norm().item())


def test_a_tied_weight_is_shifted_wherever_it_is() -> None:
    """f(x) = W W x, with W + V in both places."""
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    net[1].weight = net[0].weight
    own, images = net[0].weight, torch.rand(2, 3, dtype=torch.float64)
    shifts = worst_shifts(net, net(images).square().sum(), 0.1)
    with shifted(net, shifts):
        answer = net(images)
    moved = own + shifts["0.weight"]
    torch.testing.assert_close(answer, images @ moved.T @ moved.T)
    assert net[0].weight is own
    assert net[1].weight is own


@pytest.mark.parametrize("method", [AT(), TRADES(beta=3.0)], ids=lambda m: m.name)
def test_its_gradient_is_the_one_at_the_moved_weights(method: Method) -> None:
    net, (images, adversarial, labels) = network(), batch()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    plain = method.objective(net, images, adversarial, labels, 100).weights
    shifts = worst_shifts(net, plain, 0.05)
    objective = perturbed_objective(method, net, images, adversarial, labels, 100, 0.05)
    found = torch.autograd.grad(objective.weights, list(net.parameters()))
    assert objective.weights > plain
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])
        assert isinstance(parameter, nn.Parameter)
    moved = network()
    moved.load_state_dict({name: value + shifts.get(name, 0) for name, value in before.items()})
    there = method.objective(moved, images, adversarial, labels, 100).weights
    for gradient, expected in zip(found, torch.autograd.grad(there, list(moved.parameters())), strict=True):
        torch.testing.assert_close(gradient, expected)


def test_statistics_of_normalisation_move_once() -> None:
    net, (images, adversarial, labels) = network(nn.BatchNorm1d(5)), batch()
    net.train()
    perturbed_objective(AT(), net, images, adversarial, labels, 100, 0.01)
    assert net[2].num_batches_tracked == 1
    features = net[1](torch.cat([images, adversarial]).flatten(1))
    # 0.9 * 0 + 0.1 * mean, of features that the shift of 1 % has hardly moved
    torch.testing.assert_close(net[2].running_mean, 0.1 * features.mean(0), rtol=0.1, atol=2e-3)


def test_gates_receive_their_gradient_too() -> None:
    net, (images, adversarial, labels) = network(Gate(5)), batch()
    objective = perturbed_objective(ANPVS(), net.eval(), images, adversarial, labels, 100, 0.05)
    assert objective.gates is not None
    gradients = torch.autograd.grad(objective.gates, [net[2].a_uc, net[2].b_uc])
    assert all(g.abs().max() > 0 for g in gradients)


def test_gamma_zero_is_the_method_itself() -> None:
    net, data = network(), batch()
    assert torch.equal(perturbed_objective(AT(), net, *data, 100, 0.0).weights, AT().objective(net, *data, 100).weights)


@pytest.mark.parametrize("gamma", [-0.1, 1.0, float("nan")])
def test_a_gamma_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma"):
        perturbed_objective(AT(), network(), *batch(), 100, gamma)


def test_an_error_inside_leaves_the_parameters() -> None:
    net = network()
    own = net[1].weight

    def forward_fails() -> None:
        with shifted(net, {"1.weight": torch.ones_like(own)}):
            assert net[1].weight is not own
            net(torch.zeros(1, 99))

    with pytest.raises(RuntimeError):
        forward_fails()
    assert net[1].weight is own


def test_it_finds_weights_whose_surroundings_are_flat(digits: tuple, build: Callable) -> None:
    """Moved adversarially by 5 %, weights that were trained with AWP lose less than those trained without."""
    data = digits[0]
    rise = {}
    for gamma in (0.0, 0.1):
        torch.manual_seed(0)
        net = build()
        optimiser = torch.optim.Adam(net.parameters(), 5e-3)
        for step in range(200):
            torch.manual_seed(step)
            chosen = torch.randint(len(data.labels), (64,))
            images, labels = data.images[chosen], data.labels[chosen]
            optimiser.zero_grad()
            perturbed_objective(AT(), net, images, images, labels, 1, gamma).weights.backward()
            optimiser.step()
        images, labels = digits[1].images, digits[1].labels
        here = AT().objective(net, images, images, labels, 1).weights
        there = perturbed_objective(AT(), net, images, images, labels, 1, 0.05).weights
        rise[gamma] = (there - here).item()
    assert rise[0.1] < 0.8 * rise[0.0], rise
