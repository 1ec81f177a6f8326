"""Random states of gated networks: any weights, any running statistics, any pattern of dead units."""

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from anp_vs.pruning.gate import Gate, gates

DEAD = -9.0
"""a_uc at which E[pi] is below the threshold, if b is at least 1."""


@st.composite
def dead_patterns(draw: st.DrawFn) -> tuple[int, dict[int, float]]:
    """A seed, and the share of dead units of each gate by its number modulo four: none, few, most or all."""
    shares = st.sampled_from([0.0, 0.2, 0.7, 0.95, 1.0])
    return draw(st.integers(0, 2**31)), {i: draw(shares) for i in range(4)}


MOST_DEAD = (11, {0: 0.7, 1: 0.8, 2: 0.6, 3: 0.9})
HALF_DEAD = (5, {0: 0.5, 1: 0.4, 2: 0.6, 3: 0.5})


def perturb(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights, biases and running statistics away from their initial zeros and ones, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict(keep_vars=True).items():
            leaf = name.rpartition(".")[2]
            if not value.is_floating_point() or leaf in ("a_uc", "b_uc", "mean", "std"):
                continue
            noise = torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value.dtype)
            if leaf == "running_var":
                value.mul_(noise.mul(0.3).exp())
            else:
                value.add_(noise, alpha=0.2 if value.dim() == 1 else 0.02)
    return network


def kill(network: nn.Module, pattern: tuple[int, dict[int, float]]) -> None:
    """Give every gate random parameters and the pattern's dead units, in place."""
    seed, shares = pattern
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for number, gate in enumerate(gates(network).values()):
            dead = torch.rand(gate.units, generator=generator) < shares[number % len(shares)]
            alive_at = torch.rand(gate.units, generator=generator) * 5 - 2
            gate.a_uc.copy_(torch.where(dead, DEAD - alive_at.abs(), alive_at))
            gate.b_uc.copy_(torch.rand(gate.units, generator=generator) * 2 + 0.5)


def images_for(network: nn.Module, count: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    shape = network.input_shape
    assert isinstance(shape, tuple)
    return torch.rand(count, *shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def no_gate_left(network: nn.Module) -> bool:
    names = network.state_dict()
    return not any(isinstance(m, Gate) for m in network.modules()) and not any("_uc" in n for n in names)


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def assert_same_function(network: nn.Module, other: nn.Module, images: Tensor) -> None:
    """Equal logits in evaluation: within 1e-10 in float64 and 1e-5 in float32 of the largest logit."""
    network.eval()
    other.eval()
    with torch.no_grad():
        wanted, found = network(images), other(images)
    scale = max(1.0, float(wanted.abs().max()))
    tolerance = 1e-10 if images.dtype == torch.float64 else 1e-5
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found / scale, wanted / scale, rtol=0, atol=tolerance)
