"""Standard, BP, AT, AT-VS, ANP, ANP-VS: their losses from the formulas, and who receives which gradient."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anp_vs.attacks import losses, pgd
from anp_vs.methods import ANP, ANPVS, AT, ATVS, BP, Method, Objective, PretrainedAT, Standard
from anp_vs.pruning.gate import Gate, gate_parameters, weight_parameters
from methods_reference import Gated, cross_entropy, mart, trades

N = 50


class Case:
    """A gated network of two layers in float64 and one batch, here and in NumPy."""

    def __init__(self, gated: bool = True) -> None:
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), Gate(3) if gated else nn.Identity(), nn.Linear(3, 3)
        ).double()
        self.network.latents = ("3",)
        if gated:
            gate = self.network[3]
            gate.a_uc.data = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
            gate.b_uc.data = torch.tensor([0.5, -0.2, 1.5], dtype=torch.float64)
        self.network.eval()  # the gate multiplies by E[pi]: nothing is random
        self.images = torch.rand(6, 1, 2, 2, dtype=torch.float64)
        self.adversarial = (self.images + 0.2 * torch.randn_like(self.images)).clamp(0, 1)
        self.labels = torch.tensor([0, 1, 2, 2, 1, 0])

    def objective(self, method: Method) -> Objective:
        return method.objective(self.network, self.images, self.adversarial, self.labels, N)

    def reference(self) -> Gated:
        w1, b1, w2, b2 = (p.detach().numpy() for i in (1, 4) for p in self.network[i].parameters())
        gate = self.network[3]
        assert isinstance(gate, Gate)
        return Gated(w1, b1, gate.a_uc.detach().numpy(), gate.b_uc.detach().numpy(), w2, b2)

    def batch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.images.numpy(), self.adversarial.numpy(), self.labels.numpy()


Loss = Callable[[Gated, np.ndarray, np.ndarray, np.ndarray], float]


def clean_ce(net: Gated, x: np.ndarray, adv: np.ndarray, y: np.ndarray) -> float:
    return cross_entropy(net.logits(x), y)


def adversarial_ce(net: Gated, x: np.ndarray, adv: np.ndarray, y: np.ndarray) -> float:
    return cross_entropy(net.logits(adv), y)


def mix(w: float, lambda_: float = 0.0) -> Loss:
    def loss(net: Gated, x: np.ndarray, adv: np.ndarray, y: np.ndarray) -> float:
        weighted = (clean_ce(net, x, adv, y) + w * adversarial_ce(net, x, adv, y)) / (1 + w)
        return weighted + lambda_ * net.vulnerability(x, adv)

    return loss


def gates_loss(beta: float, lambda_: float = 0.0) -> Loss:
    return lambda net, x, adv, y: (
        adversarial_ce(net, x, adv, y) + beta * net.kl() / N + lambda_ * net.vulnerability(x, adv)
    )


def bp_loss(net: Gated, x: np.ndarray, adv: np.ndarray, y: np.ndarray) -> float:
    return clean_ce(net, x, adv, y) + 1.5 * net.kl() / N


CASES: list[tuple[Method, Loss, Loss | None]] = [
    (Standard(), clean_ce, None),
    (BP(beta=1.5), bp_loss, bp_loss),
    (AT(adversarial_weight=3.0), mix(3.0), None),
    (PretrainedAT(adversarial_weight=3.0), mix(3.0), None),
    (ATVS(adversarial_weight=2.0, lambda_=0.7), mix(2.0, 0.7), None),
    (ANP(beta=4.0), mix(2.0), gates_loss(4.0)),
    (ANP(beta=0.0), mix(2.0), gates_loss(0.0)),
    (ANPVS(beta=4.0, lambda_=0.7), mix(2.0, 0.7), gates_loss(4.0)),
    (ANPVS(lambda_=0.7, gate_loss="adversarial+vulnerability"), mix(2.0, 0.7), gates_loss(4.0, 0.7)),
    (
        ANPVS(adversarial_loss="trades", robust_weight=5.0, lambda_=0.7),
        lambda n, x, adv, y: trades(n.logits(x), n.logits(adv), y, 5.0) + 0.7 * n.vulnerability(x, adv),
        gates_loss(4.0),
    ),
    (
        ANPVS(adversarial_loss="mart", robust_weight=5.0, lambda_=0.7),
        lambda n, x, adv, y: mart(n.logits(x), n.logits(adv), y, 5.0) + 0.7 * n.vulnerability(x, adv),
        gates_loss(4.0),
    ),
]
IDS = [f"{method.name}-{i}" for i, (method, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(("method", "weights", "gates"), CASES, ids=IDS)
def test_the_losses_are_those_of_the_formula(method: Method, weights: Loss, gates: Loss | None) -> None:
    case = Case()
    objective, reference = case.objective(method), case.reference()
    assert objective.weights.item() == pytest.approx(weights(reference, *case.batch()), rel=1e-7)
    assert (objective.gates is None) == (gates is None) == (not method.gated)
    if gates is not None and objective.gates is not None:
        assert objective.gates.item() == pytest.approx(gates(reference, *case.batch()), rel=1e-7)


@pytest.mark.parametrize(("method", "weights", "gates"), CASES, ids=IDS)
def test_each_group_descends_its_own_loss(method: Method, weights: Loss, gates: Loss | None) -> None:
    """Autograd against central differences of the formula, which says what reaches a parameter."""
    case = Case()
    objective, reference = case.objective(method), case.reference()

    def difference(loss: Loss, field: str, index: tuple[int, ...]) -> float:
        h = 1e-5
        above, below = (loss(reference.moved(field, index, s * h), *case.batch()) for s in (1, -1))
        return (above - below) / (2 * h)

    for path, fields in ((1, ("w1", "b1")), (4, ("w2", "b2"))):
        parameters = list(case.network[path].parameters())
        found = torch.autograd.grad(objective.weights, parameters, retain_graph=True)
        for gradient, field in zip(found, fields, strict=True):
            index = (1,) * gradient.dim()
            assert gradient[index].item() == pytest.approx(difference(weights, field, index), rel=1e-4, abs=1e-8)
    if gates is not None and objective.gates is not None:
        found = torch.autograd.grad(objective.gates, gate_parameters(case.network))
        for gradient, field in zip(found, ("a_uc", "b_uc"), strict=True):
            for unit in range(3):
                expected = difference(gates, field, (unit,))
                assert gradient[unit].item() == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("method", [AT(), ATVS(), ANP(), ANPVS()], ids=lambda m: m.name)
def test_in_training_an_image_and_its_copy_meet_the_same_mask(method: Method) -> None:
    case = Case(gated=method.gated)
    case.network.train()
    case.adversarial = case.images
    metrics = case.objective(method).metrics
    assert ("vulnerability" in metrics) == (method.name in ("at-vs", "anp-vs"))
    assert not metrics.get("vulnerability", 0)
    assert metrics["loss_clean"].item() == pytest.approx(metrics["loss_adversarial"].item(), rel=1e-12)


def test_the_attack_follows_the_adversarial_loss() -> None:
    case = Case()
    logits = torch.randn(6, 3, dtype=torch.float64)
    for method, radius in ((ANPVS(), None), (ANPVS(adversarial_loss="mart"), 0.001)):
        assert method.start_radius == radius
        values = method.attack_loss(case.network, case.images)(logits, case.labels)
        torch.testing.assert_close(values, losses.ce(logits, case.labels))
    method = ANPVS(adversarial_loss="trades")
    assert method.start_radius == 0.001
    with torch.no_grad():
        at_the_image = method.attack_loss(case.network, case.images)(case.network(case.images), case.labels)
    torch.testing.assert_close(at_the_image, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)


def test_weights_and_gates_are_all_parameters_and_share_none() -> None:
    network = Case().network
    groups = [{id(p) for p in weight_parameters(network)}, {id(p) for p in gate_parameters(network)}]
    assert groups[0] | groups[1] == {id(p) for p in network.parameters()}
    assert not groups[0] & groups[1]


def gated(build: Callable[..., nn.Sequential]) -> nn.Sequential:
    network = build()
    return nn.Sequential(*network[:3], Gate(64), network[3])


def test_a_larger_beta_prunes_more(digits: tuple, train: Callable, build: Callable) -> None:
    open_share = []
    for beta in (0.0, 4.0, 40.0):
        torch.manual_seed(0)
        network = train(ANPVS(beta=beta), gated(build), digits[0], 60)
        open_share.append(network[3].expected().mean().item())
    assert all(more > less + 0.01 for more, less in pairwise(open_share)), open_share


def test_suppression_makes_features_move_less(digits: tuple, train: Callable, build: Callable) -> None:
    movement = []
    for lambda_ in (0.0, 2.0):
        torch.manual_seed(0)
        network = train(ATVS(lambda_=lambda_), build(), digits[0], 100)
        test = digits[1]
        adversarial = worst_images(network, test.images, test.labels)
        with torch.no_grad():
            movement.append((network[:3](test.images) - network[:3](adversarial)).abs().mean().item())
    assert movement[1] < 0.7 * movement[0]


def worst_images(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return pgd(network, images, labels, eps=0.15, step=0.04, steps=5)


def test_adversarial_training_is_what_makes_robust(
    digits: tuple, train: Callable, build: Callable, accuracy: Callable
) -> None:
    robust = []
    for method in (Standard(), AT()):
        torch.manual_seed(0)
        robust.append(accuracy(train(method, build(), digits[0], 120), digits[1], 0.15))
    assert robust[1] > robust[0] + 15, robust
