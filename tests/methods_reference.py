"""Losses written from their formulas in NumPy and SciPy, with a gated two-layer network as they see it."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.integrate import quad
from scipy.special import gammaln, log_softmax

Array = np.ndarray
ALPHA = 1e-4


def softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def cross_entropy(logits: Array, labels: Array) -> float:
    return float(-log_softmax(logits, axis=1)[np.arange(len(labels)), labels].mean())


def divergences(clean: Array, attacked: Array) -> Array:
    p, q = (np.exp(log_softmax(z, axis=1)) for z in (clean, attacked))
    return (p * np.log(p / q)).sum(axis=1)


def trades(clean: Array, attacked: Array, labels: Array, beta: float) -> float:
    return cross_entropy(clean, labels) + beta * float(divergences(clean, attacked).sum()) / len(labels)


def mart(clean: Array, attacked: Array, labels: Array, lambda_: float) -> float:
    total = 0.0
    for z, z_adv, y, d in zip(clean, attacked, labels, divergences(clean, attacked), strict=True):
        p, p_adv = np.exp(log_softmax(z)), np.exp(log_softmax(z_adv))
        strongest = max(p_adv[k] for k in range(len(p_adv)) if k != y)
        total += -np.log(p_adv[y]) - np.log(1 - strongest) + lambda_ * d * (1 - p[y])
    return total / len(labels)


def gate_kl(a_uc: float, b_uc: float) -> float:
    """KL(Kumaraswamy(a, b) || Beta(alpha, 1)) by integration: E over u of log q(pi(u)) - log p(pi(u))."""
    a, b = softplus(np.float64(a_uc)), softplus(np.float64(b_uc))

    def integrand(u: float) -> float:
        log_pi = np.log1p(-(u ** (1 / b))) / a
        log_q = np.log(a * b) + (a - 1) * log_pi + (b - 1) / b * np.log(u)
        return log_q - np.log(ALPHA) - (ALPHA - 1) * log_pi

    return quad(integrand, 0, 0.5, limit=200)[0] + quad(integrand, 0.5, 1, limit=200)[0]


@dataclass(frozen=True)
class Gated:
    """Flatten, dense, ReLU, gate, dense, in evaluation: the gate multiplies by E[pi]."""

    w1: Array
    b1: Array
    a_uc: Array
    b_uc: Array
    w2: Array
    b2: Array

    def latent(self, images: Array) -> Array:
        a, b = softplus(self.a_uc), softplus(self.b_uc)
        expected = np.exp(np.log(b) + gammaln(1 + 1 / a) + gammaln(b) - gammaln(1 + 1 / a + b))
        return np.maximum(images.reshape(len(images), -1) @ self.w1.T + self.b1, 0) * expected

    def logits(self, images: Array) -> Array:
        return self.latent(images) @ self.w2.T + self.b2

    def vulnerability(self, images: Array, adversarial: Array) -> float:
        return float(np.abs(self.latent(images) - self.latent(adversarial)).mean())

    def kl(self) -> float:
        return sum(gate_kl(a, b) for a, b in zip(self.a_uc, self.b_uc, strict=True))

    def moved(self, field: str, index: tuple[int, ...], by: float) -> "Gated":
        values = getattr(self, field).copy()
        values[index] += by
        return replace(self, **{field: values})
