"""What a network costs: size, arithmetic, memory and time, all of them measured on the network as it is."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from anp_vs.attacks.frozen import frozen
from anp_vs.errors import InputError
from anp_vs.networks.copying import copied
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.tracer import layers_of

BATCHES = (1, 128)
"""Batch sizes at which latency is measured."""
_WARM_UPS = 3
_FEWEST_RUNS, _MOST_RUNS = 15, 201
_SECONDS = 2.0  # spent on one batch size of one network, unless the fewest runs take longer


@dataclass(frozen=True)
class Cost:
    """The cost of one network in evaluation mode.

    Attributes:
        parameters: number of them.
        weight_bytes: of all parameters and of the buffers that are saved with them.
        macs: multiply-accumulates of convolutions and matrix products for one image; half the FLOPs that
            `torch.utils.flop_counter` counts. Elementwise operations and normalisation are not in it.
        peak_activation_bytes: the largest sum of live activations while one image passes, see
            `peak_activation_bytes`; None for a network that cannot be traced.
        latency_1, latency_128: seconds for a batch of 1 and of 128, the median of `runs_1` and of `runs_128`
            runs; None when not measured.
        threads: CPU threads the timing used.
        device: where it was measured.
        ratios: how many times larger each of these is for the network compared against; None without one.
    """

    parameters: int
    weight_bytes: int
    macs: int
    peak_activation_bytes: int | None
    latency_1: float | None
    latency_128: float | None
    runs_1: int
    runs_128: int
    threads: int
    device: str
    ratios: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON."""
        return asdict(self)


COMPARED = ("parameters", "weight_bytes", "macs", "peak_activation_bytes", "latency_1", "latency_128")
"""Fields of which `Cost.ratios` holds the ratio."""


def cost(
    network: nn.Module,
    *,
    example: Tensor | None = None,
    latency: bool = True,
    against: nn.Module | None = None,
) -> Cost:
    """Measure what a network costs.

    Args:
        network: any classifier of images; measured in evaluation mode, left as it was.
        example: images N x C x H x W in [0, 1] it accepts, of which the first is used; by default made from
            the network's `input_shape`.
        latency: whether to time it, which takes some seconds.
        against: a network to compare with, such as the full-size one; timed in turn with `network`, run by
            run, so that a machine that changes its speed changes it for both.

    Returns:
        The cost of `network`, with ratios `against` / `network` when there is one to compare with.

    Raises:
        InputError: no `example` is given and the network does not say which images it takes, or the network
            refuses the example.
    """
    networks = [network] if against is None else [network, against]
    image = (example_for(network) if example is None else example)[:1]
    _check(networks, image)
    times: dict[int, list[list[float]]] = {}
    if latency:
        times = {batch: _timed(networks, image.expand(batch, -1, -1, -1).clone()) for batch in BATCHES}
    costs = [
        Cost(
            parameters=sum(p.numel() for p in each.parameters()),
            weight_bytes=sum(t.numel() * t.element_size() for t in each.state_dict().values()),
            macs=macs(each, image),
            peak_activation_bytes=peak_activation_bytes(each, image),
            latency_1=statistics.median(times[1][i]) if latency else None,
            latency_128=statistics.median(times[128][i]) if latency else None,
            runs_1=len(times[1][i]) if latency else 0,
            runs_128=len(times[128][i]) if latency else 0,
            threads=torch.get_num_threads(),
            device=str(image.device),
        )
        for i, each in enumerate(networks)
    ]
    if against is None:
        return costs[0]
    return Cost(**{**asdict(costs[0]), "ratios": _ratios(*costs)})


def macs(network: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates for one image (1 x C x H x W), from `torch.utils.flop_counter`."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into fused attention
    try:
        with frozen(network), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            network(image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def unit_macs(network: nn.Module, example: Tensor | None = None) -> dict[str, int]:
    """For each gate, the MACs an image is spared when one of its units leaves the network.

    Args:
        network: a gated network; not changed.
        example: as for `cost`.
    """
    image = (example_for(network) if example is None else example)[:1]
    whole = macs(compact(network, example), image)
    spared = {}
    for name in gates(network):
        trial = copied(network)
        with torch.no_grad():
            trial.get_submodule(name).get_parameter("a_uc")[-1] = -torch.inf
        spared[name] = whole - macs(compact(trial, example), image)
    return spared


def peak_activation_bytes(network: nn.Module, image: Tensor) -> int | None:
    """The largest sum of the sizes of live activations while one image passes through a network.

    The forward pass is traced into operations, one for each layer or function called. An activation (the
    image itself included) is live from the operation that makes it to the last one that reads it; while an
    operation runs, its inputs and its output are both live. What shares memory, such as the result of a
    reshape, of an in-place activation or of an identity, is counted once. Weights are not counted, nor is
    the workspace inside an operation.

    Args:
        network: measured in evaluation mode.
        image: 1 x C x H x W.

    Returns:
        Bytes, or None where the network cannot be traced (its forward pass branches on values).
    """
    with frozen(network), torch.no_grad():
        try:
            traced = layers_of(network)
        except InputError:
            return None
        storages = _Storages(traced)
        storages.run(image)
    return storages.peak()


class _Storages(fx.Interpreter):
    """Runs a traced network and notes which memory each operation makes and reads."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)  # kept: an address then means one storage
        self.sizes: dict[int, int] = {}
        self.span: dict[int, list[int]] = {}
        self.of: dict[fx.Node, list[int]] = {}
        self.position = 0

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        keys = []
        for tensor in tree_leaves(result) if n.op not in ("get_attr", "output") else []:
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                storage = tensor.untyped_storage()
                keys.append(storage.data_ptr())
                self.sizes[storage.data_ptr()] = storage.nbytes()
        self.of[n] = keys
        for key in {*keys, *(key for source in n.all_input_nodes for key in self.of[source])}:
            self.span.setdefault(key, [self.position, self.position])[1] = self.position
        self.position += 1
        return result

    def peak(self) -> int:
        """Bytes alive at the worst operation."""
        return max(
            sum(self.sizes[key] for key, (first, last) in self.span.items() if first <= at <= last)
            for at in range(self.position)
        )


def _check(networks: Sequence[nn.Module], image: Tensor) -> None:
    for network in networks:
        try:
            with frozen(network), torch.no_grad():
                network(image)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"{type(network).__name__} does not accept an image of shape {tuple(image.shape)}, "
                f"{image.dtype}, on {image.device}: {error}. Give `example`, images that it takes."
            ) from error


def _timed(networks: Sequence[nn.Module], images: Tensor) -> list[list[float]]:
    """Seconds of each run of each network, the networks taking turns."""
    seconds: list[list[float]] = [[] for _ in networks]
    for network in networks:
        for _ in range(_WARM_UPS):
            _run(network, images)
    spent = 0.0
    limit = _SECONDS * len(networks)
    while len(seconds[0]) < _FEWEST_RUNS or (spent < limit and len(seconds[0]) < _MOST_RUNS):
        for taken, network in zip(seconds, networks, strict=True):
            taken.append(_run(network, images))
            spent += taken[-1]
    return seconds


def _run(network: nn.Module, images: Tensor) -> float:
    with frozen(network), torch.inference_mode():
        _wait(images)
        start = time.perf_counter()
        network(images)
        _wait(images)
        return time.perf_counter() - start


def _wait(images: Tensor) -> None:
    if images.device.type == "cuda":
        torch.cuda.synchronize(images.device)


def _ratios(network: Cost, against: Cost) -> dict[str, float]:
    pairs = {name: (getattr(against, name), getattr(network, name)) for name in COMPARED}
    return {name: a / b for name, (a, b) in pairs.items() if a is not None and b}
