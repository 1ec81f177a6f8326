"""What the methods' tests share: 8 x 8 digits, two layers, and a loop that calls what the real one calls."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anp_vs.attacks import geometry, pgd
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.pgd import ascend
from anp_vs.methods.method import Companion, Method
from anp_vs.pruning.gate import gate_parameters, weight_parameters

EPS = 0.15


@dataclass(frozen=True)
class Labelled:
    images: Tensor
    labels: Tensor

    def part(self, first: int, last: int) -> "Labelled":
        return Labelled(self.images[first:last], self.labels[first:last])


@pytest.fixture(scope="session")
def digits() -> tuple[Labelled, Labelled]:
    """Training and test digits, 1 x 8 x 8 in [0, 1]."""
    pixels, classes = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(classes, dtype=torch.int64)
    return Labelled(images[:1400], labels[:1400]), Labelled(images[1400:], labels[1400:])


def two_layers(classes: int = 10, hidden: int = 64) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))


@dataclass
class Training:
    """One network in training; the calls come in the order of the real loop."""

    method: Method
    network: nn.Module
    data: Labelled
    total_steps: int
    lr: float = 5e-3
    eps: float = EPS
    step: int = 0
    companion: Companion | None = None

    def __post_init__(self) -> None:
        self.companion = self.method.companion(self.network, self.total_steps)
        self.optimiser = self.fresh()

    def fresh(self) -> torch.optim.Optimizer:
        decay = 1e-4 if self.method.weight_decay else 0.0
        return torch.optim.Adam(weight_parameters(self.network), self.lr, weight_decay=decay)

    def attack(self, images: Tensor, labels: Tensor) -> Tensor:
        lower, upper = geometry.box(images, self.eps)
        radius = self.method.start_radius
        uniform = torch.empty_like(images).uniform_(-self.eps, self.eps)
        noise = uniform if radius is None else radius * torch.randn_like(images)
        start = torch.clamp(images + noise, lower, upper)
        with frozen(self.network):
            loss = self.method.attack_loss(self.network, images)
            return ascend(self.network, start, lower, upper, labels, self.eps / 2, 4, loss)

    def advance(self, steps: int) -> nn.Module:
        for _ in range(steps):
            torch.manual_seed(self.step)
            chosen = torch.randint(len(self.data.labels), (64,))
            images, labels = self.data.images[chosen], self.data.labels[chosen]
            adversarial = self.attack(images, labels) if self.method.adversarial else images
            self.network.train()
            objective = self.method.objective(self.network, images, adversarial, labels, len(self.data.labels))
            loss = objective.weights if self.companion is None else objective.weights + self.companion.penalty()
            weights = weight_parameters(self.network)
            gates = gate_parameters(self.network) if objective.gates is not None else []
            found = torch.autograd.grad(loss, weights, retain_graph=True)
            found += torch.autograd.grad(objective.gates, gates) if objective.gates is not None else ()
            for parameter, gradient in zip([*weights, *gates], found, strict=True):
                parameter.grad = gradient
            if self.companion is not None:
                self.companion.before_step(self.step)
            self.optimiser.step()
            for gate in gates:
                gate.data -= 0.5 * gate.grad
            if self.companion is not None and self.companion.after_step(self.step):
                self.optimiser = self.fresh()
            self.step += 1
        return self.network.eval()


@pytest.fixture
def train() -> Callable[..., nn.Module]:
    """Train a network by a method for a number of steps; it comes back in evaluation mode."""

    def run(method: Method, network: nn.Module, data: Labelled, steps: int, **options: float) -> nn.Module:
        return Training(method, network, data, steps, **options).advance(steps)

    return run


@pytest.fixture
def training() -> type[Training]:
    return Training


@pytest.fixture
def build() -> Callable[..., nn.Sequential]:
    return two_layers


@pytest.fixture
def accuracy() -> Callable[..., float]:
    """Percent of images classified correctly, under PGD-10 if eps is not 0."""

    def measure(network: nn.Module, data: Labelled, eps: float = 0.0) -> float:
        images = data.images
        if eps:
            draws = torch.Generator().manual_seed(0)
            images = pgd(network, images, data.labels, eps=eps, step=eps / 4, steps=10, generator=draws)
        with torch.no_grad():
            return 100 * float((network(images).argmax(1) == data.labels).float().mean())

    return measure
