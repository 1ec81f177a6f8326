"""Networks small enough to know: linear ones with closed-form optima, and a CNN on the 8 x 8 digits."""

import functools

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from anp_vs.attacks import pgd


class Linear(nn.Module):
    """z = W x + b on flattened images; in double precision when the images are."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(images.flatten(1), self.weight, self.bias)


class Noisy(nn.Module):
    """A linear network whose weights are drawn anew in each pass, also in evaluation mode."""

    def __init__(self, mean: Linear, spread: float) -> None:
        super().__init__()
        self.mean, self.spread = mean, spread

    def forward(self, images: Tensor) -> Tensor:
        weight = self.mean.weight + self.spread * torch.randn_like(self.mean.weight)
        return F.linear(images.flatten(1) - 0.5, weight)


class Rounded(nn.Module):
    """A network whose logits leave it in a lower precision, as from autocast."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits.to(self.dtype)


def linear(classes: int = 2, shape: tuple[int, int, int] = (1, 6, 6), seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    pixels = shape[0] * shape[1] * shape[2]
    weight = torch.randn(classes, pixels, generator=generator)
    return Linear(weight, -weight.sum(dim=1) / 2)  # every class is met among uniform images


def margin(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """z_y - max_{i != y} z_i."""
    with torch.no_grad():
        logits = network(images)
    own = logits.gather(1, labels[:, None]).squeeze(1)
    return own - logits.scatter(1, labels[:, None], -torch.inf).amax(dim=1)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).double().mean())


def distances(images: Tensor, others: Tensor, norm: str) -> Tensor:
    """Norm of each difference, in double precision."""
    delta = (others.double() - images.double()).flatten(1)
    return torch.linalg.vector_norm(delta, ord=float(norm), dim=1)


@functools.cache
def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 digits in [0, 1], 1 x 8 x 8, shuffled; the first 797 train the CNNs."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    return images[order], torch.tensor(data.target, dtype=torch.int64)[order]


@functools.cache
def digits_network(robust: bool) -> nn.Module:
    """A small CNN with BatchNorm and dropout, trained on clean or on PGD images (inf, eps 0.15)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(256, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
        images, labels = (part[:797] for part in digits())
        epochs = 12
        for epoch in range(epochs):
            for rows in torch.randperm(len(images)).split(64):
                batch, eps = images[rows], 0.15 * min(1.0, (epoch + 1) / 6)
                if robust:
                    batch = pgd(network, batch, labels[rows], eps=eps, step=eps / 3, steps=5)
                optimiser.zero_grad()
                F.cross_entropy(network(batch), labels[rows]).backward()
                optimiser.step()
    return network.eval()


def held_out(count: int) -> tuple[Tensor, Tensor]:
    """Digits that no CNN was trained on."""
    images, labels = digits()
    return images[797 : 797 + count], labels[797 : 797 + count]


def lowest_margin(network: Linear, images: Tensor, labels: Tensor, eps: float, norm: str) -> Tensor:
    """The smallest z_y - z_other of a two-class linear network inside ball and box, in closed form.

    The margin falls by |w_i| for each unit that pixel i moves, up to its room r_i. inf: every pixel moves
    by min(eps, r_i). 1: the budget goes to the steepest pixels, each up to r_i. 2: along w, without the box.
    """
    weight, other = network.weight.detach().double(), 1 - labels
    slope = weight[labels] - weight[other]
    size, flat = slope.abs(), images.double().flatten(1)
    room = torch.where(slope > 0, flat, 1 - flat)
    if norm == "inf":
        fall = (size * room.clamp(max=eps)).sum(dim=1)
    elif norm == "2":
        fall = eps * size.square().sum(dim=1).sqrt()
    else:
        size, order = size.sort(dim=1, descending=True)
        room = room.gather(1, order)
        before = room.cumsum(dim=1) - room
        fall = (size * torch.minimum(room, (eps - before).clamp(min=0))).sum(dim=1)
    return margin(network, images, labels).double() - fall


NORMS = ("inf", "2", "1")
