"""Take pruned channels out of a network for real.

`compact` turns a gated network into a plain, smaller one that computes the same function in evaluation.
`shrink` removes units from a network that keeps its gates and goes on training. Both follow the flow of
`anp_vs.pruning.graph`; neither changes the class or the forward method of the network.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.graph import (
    HOMOGENEOUS,
    HOMOGENEOUS_FUNCTIONS,
    BatchNorm,
    Channels,
    Convolution,
    Flow,
    Graph,
    Point,
)

logger = logging.getLogger(__name__)

Slices = dict[str, list[tuple[int, Tensor]]]
"""Name of a parameter or buffer -> [(dimension, indices that stay), ...]."""


class Select(nn.Module):
    """Pass on some entries of one axis, optionally scaled: what is left of a gate that no layer can absorb.

    Args:
        index: entries that pass, int64; None passes all.
        scale: multiplier of each entry that passes, or None.
        dim: the axis.
    """

    index: Tensor | None
    scale: Tensor | None

    def __init__(self, index: Tensor | None, scale: Tensor | None = None, *, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("index", index)
        self.register_buffer("scale", scale)

    def forward(self, features: Tensor) -> Tensor:
        """Features with the axis `dim` reduced to the entries that pass."""
        if self.index is not None:
            features = features.index_select(self.dim, self.index)
        if self.scale is None:
            return features
        shape = [1] * features.dim()
        shape[self.dim] = -1
        return features * self.scale.to(features.dtype).view(shape)


def example_for(network: nn.Module) -> Tensor:
    """Two grey images of the size a network declares in `input_shape`, in its own precision and device.

    Raises:
        InputError: the network does not declare the size.
    """
    shape = getattr(network, "input_shape", None)
    if shape is None:
        raise InputError(
            f"{type(network).__name__} does not say which images it takes; give `example`, a batch of two images "
            f"N x C x H x W in [0, 1], or set its attribute `input_shape = (C, H, W)`."
        )
    first = next(network.parameters())
    return torch.full((2, *shape), 0.5, dtype=first.dtype, device=first.device)


def compact(network: nn.Module, example: Tensor | None = None) -> nn.Module:
    """A plain, smaller network that computes the same function as the gated one in evaluation.

    Pruned channels leave the weights on both sides, E[pi] of the survivors is folded into the next layer's
    weights, and no gate remains. A network without gates comes back as a copy.

    Args:
        network: a network with gates; not changed.
        example: images N x C x H x W in [0, 1] to trace with; by default made from `network.input_shape`.

    Returns:
        A network of the same class in evaluation mode, sharing no memory with the gated one.

    Raises:
        InputError: the network cannot be traced.
    """
    for name, gate in gates(network).items():
        if gate.collapsed():
            logger.warning("Every unit of %s would be pruned; its strongest unit was kept.", name)
    example = example_for(network) if example is None else example
    with torch.no_grad():
        small = Compactor(network, example).build()
        for module in small.modules():  # what was not sliced is still shared
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.clone()
    return small.requires_grad_(True)


class Compactor:
    """Builds small networks from the present weights of one gated network, tracing it only once.

    Args:
        network: the gated network; its gates' positions must not change between calls of `build`.
        example: images to trace with.
    """

    def __init__(self, network: nn.Module, example: Tensor) -> None:
        self.network = network
        self.graph = Graph(network, example)
        self.readers = {point: _folds(point) for point in self.graph.points if isinstance(point.module, Gate)}

    @torch.no_grad()
    def build(self) -> nn.Module:
        """The small network for the present weights and gates. Tensors that did not change are shared."""
        found = gates(self.network)
        masks = {gate: gate.mask() for gate in found.values()}
        flow = self.graph.flow({gate: (mask > 0).cpu() for gate, mask in masks.items()})
        tensors = {id(t): t for t in (*self.network.parameters(), *self.network.buffers())}
        small = copy.deepcopy(self.network, memo=cast(dict[int, object], tensors)).eval()
        scales = self._scales(flow, masks)
        for point in self.graph.points:
            if point.module is None:
                continue
            original = point.module
            module = small.get_submodule(point.path)
            if isinstance(original, Gate):
                replace(small, point.path, self._without_gate(point, original, flow, masks[original]))
            elif point.rule == "mix":
                source = point.inputs[0]
                scale = scales[source]
                _slice(
                    module,
                    flow.kept[point],
                    flow.kept[source],
                    scale[flow.kept[source]] if scale is not None else None,
                )
            elif point.rule in ("batchnorm", "depthwise"):
                scale = scales[point.inputs[0]]
                _slice(module, flow.kept[point], None, scale[flow.kept[point]] if scale is not None else None)
            elif hasattr(module, "mean") and point.rule == "channelwise":
                pass  # images keep all their channels
        return small

    def _without_gate(self, point: Point, gate: Gate, flow: Flow, mask: Tensor) -> nn.Module:
        """What stands in a gate's place: nothing where the layers around it absorb it."""
        source = flow.kept[point.inputs[0]]
        positions = torch.arange(source.numel()) if gate.index is None else gate.index.cpu()
        wanted = positions[flow.kept[point]]
        place = source.cumsum(0) - 1  # position in the full axis -> position among the kept
        index = place[wanted]
        aligned = wanted.numel() == int(source.sum())
        scale = None if self.readers[point] else mask[flow.kept[point].to(mask.device)]
        if aligned and scale is None:
            return nn.Identity()
        return Select(None if aligned else index.to(mask.device), scale, dim=gate.dim)

    def _scales(self, flow: Flow, masks: Mapping[Gate, Tensor]) -> dict[Point, Tensor | None]:
        """For each tensor of the small network the factor by which it is larger than in the gated one."""
        scales: dict[Point, Tensor | None] = {}
        for point in self.graph.points:
            inputs = [scales[source] for source in point.inputs]
            scale: Tensor | None = None
            if isinstance(point.module, Gate) and self.readers[point]:
                mask = masks[point.module]
                incoming = inputs[0]
                if incoming is not None and point.module.index is not None:
                    incoming = incoming[point.module.index]
                scale = mask if incoming is None else mask * incoming
            elif inputs and any(i is not None for i in inputs) and _passes(point):
                first = next(i for i in inputs if i is not None)
                if point.rule == "flatten":
                    scale = first.repeat_interleave(point.channels // first.numel())
                elif point.rule == "cat":
                    parts = [
                        first.new_ones(s.channels) if i is None else i
                        for i, s in zip(inputs, point.inputs, strict=True)
                    ]
                    scale = torch.cat(parts)
                else:
                    scale = first
            scales[point] = scale
        return scales


def _passes(point: Point) -> bool:
    """Whether a positive factor of each input channel passes through unchanged."""
    if point.rule in ("flatten", "cat", "permute"):
        return True
    if point.rule != "channelwise":
        return isinstance(point.module, Gate) and point.rule == "gate"
    return isinstance(point.module, HOMOGENEOUS) if point.module else point.node.target in HOMOGENEOUS_FUNCTIONS


def _folds(point: Point) -> bool:
    """Whether every reader of a gate's output can absorb E[pi] into its own weights."""
    if point.rule != "gate":
        return False
    for user in point.users:
        absorbs = user.rule in ("mix", "depthwise")
        if not absorbs and not (_passes(user) and _folds_on(user)):
            return False
    return bool(point.users)


def _folds_on(point: Point) -> bool:
    return bool(point.users) and all(
        user.rule in ("mix", "depthwise") or (_passes(user) and _folds_on(user)) for user in point.users
    )


@torch.no_grad()
def open_gates(network: nn.Module, example: Tensor | None = None) -> None:
    """Fold E[pi] of the surviving units into the layers that read them, in place, and set it to (almost) one.

    The function in evaluation stays the same. Survivors often have E[pi] of a few hundredths; several such
    factors in a row starve the layers behind them of signal and gradient, so weights that go on training alone
    learn many times faster once the factors are theirs.

    Args:
        network: the gated network.
        example: images to trace with; by default made from `network.input_shape`.
    """
    compactor = Compactor(network, example_for(network) if example is None else example)
    masks = {point.module: point.module.mask() for point in compactor.readers if isinstance(point.module, Gate)}
    flow = compactor.graph.flow({gate: (mask > 0).cpu() for gate, mask in masks.items()})
    ratios = {}
    for point, folds in compactor.readers.items():
        gate = point.module
        if isinstance(gate, Gate) and folds:
            alive = masks[gate] > 0
            gate.a_uc[alive], gate.b_uc[alive] = OPEN_A, OPEN_B
            ratios[gate] = torch.where(alive, masks[gate] / gate.mask(), 1.0)
        elif isinstance(gate, Gate):
            ratios[gate] = torch.ones_like(masks[gate])
    scales = compactor._scales(flow, ratios)
    for point in compactor.graph.points:
        if point.rule not in ("mix", "depthwise") or point.module is None:
            continue
        scale = scales[point.inputs[0]]
        if scale is not None:
            weight = cast(Tensor, point.module.weight)
            axis = 1 if point.rule == "mix" else 0
            weight.mul_(scale.to(weight.dtype).view([-1 if d == axis else 1 for d in range(weight.dim())]))


OPEN_A, OPEN_B = 1e4, 0.5413
"""Unconstrained parameters of a unit that is there for good: a = 10,000, b = 1, E[pi] = 0.9999."""


def slices(graph: Graph, flow: Flow) -> Slices:
    """Which entries of each parameter and buffer stay when the gates remain (names as in `state_dict`)."""
    result: Slices = {}
    for point in graph.points:
        module, out = point.module, flow.kept[point].nonzero()[:, 0]
        if isinstance(module, Gate):
            result |= {f"{point.path}.{name}": [(0, out)] for name in ("a_uc", "b_uc")}
        elif point.rule == "mix" and module is not None:
            inputs = flow.kept[point.inputs[0]].nonzero()[:, 0]
            result[f"{point.path}.weight"] = [(0, out), (1, inputs)]
            result[f"{point.path}.bias"] = [(0, out)]
        elif point.rule in ("batchnorm", "depthwise"):
            for name in ("weight", "bias", "running_mean", "running_var"):
                result[f"{point.path}.{name}"] = [(0, out)]
    return result


@torch.no_grad()
def shrink(network: nn.Module, dead: Mapping[str, Channels], example: Tensor | None = None) -> Slices:
    """Remove units from a network that keeps its gates, in place.

    In evaluation the function stays the same if the removed units were pruned.

    Args:
        network: the gated network.
        dead: gate path -> bool (K,), the units to take out.
        example: images to trace with; by default made from `network.input_shape`.

    Returns:
        For each parameter and buffer that changed the indices that stayed, so that an optimiser's state and
        averaged weights can follow (`take`).
    """
    found = gates(network)
    graph = Graph(network, example_for(network) if example is None else example)
    flow = graph.flow({gate: ~dead[name].cpu() for name, gate in found.items() if name in dead})
    result = slices(graph, flow)
    for point in graph.points:
        module = point.module
        if isinstance(module, Gate):
            _shrink_gate(module, flow.kept[point], flow.kept[point.inputs[0]])
        elif point.rule == "mix" and module is not None:
            _slice(module, flow.kept[point], flow.kept[point.inputs[0]], None)
        elif point.rule in ("batchnorm", "depthwise") and module is not None:
            _slice(module, flow.kept[point], None, None)
    return result


def _shrink_gate(gate: Gate, kept: Channels, source: Channels) -> None:
    positions = torch.arange(source.numel()) if gate.index is None else gate.index.cpu()
    wanted = positions[kept]
    device = gate.a_uc.device
    gate.index = None if wanted.numel() == int(source.sum()) else (source.cumsum(0) - 1)[wanted].to(device)
    for name in ("a_uc", "b_uc"):
        _set(gate, name, getattr(gate, name)[kept.to(device)])


def take(tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """The entries of a tensor that stayed, given one value of `Slices`."""
    for dim, index in places:
        if dim < tensor.dim() and index.numel() != tensor.shape[dim]:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a new parameter or buffer value of another shape."""
    if name in module._parameters:
        old = module._parameters[name]
        module._parameters[name] = nn.Parameter(value, old is not None and old.requires_grad)
    else:
        module._buffers[name] = value


def _slice(module: nn.Module, out: Channels, inputs: Channels | None, scale: Tensor | None) -> None:
    """Keep some outputs and inputs of a convolution, dense or normalisation layer; scale its inputs."""
    weight = cast("Tensor | None", module._parameters.get("weight"))
    place = [(0, out.nonzero()[:, 0])]
    if weight is not None:
        full = [*place, (1, inputs.nonzero()[:, 0])] if inputs is not None else place
        value = take(weight.detach(), full)
        if scale is not None:
            axis = 1 if inputs is not None else 0
            shape = [-1 if d == axis else 1 for d in range(value.dim())]
            value = value * scale.to(value.dtype).view(shape)
        _set(module, "weight", value)
    for name in ("bias", "running_mean", "running_var"):
        tensor = module._parameters.get(name, module._buffers.get(name))
        if tensor is not None:
            _set(module, name, take(tensor.detach(), place))
    fit_attributes(module)


def fit_attributes(module: nn.Module) -> None:
    """Make a layer's declared sizes those of its tensors."""
    if isinstance(module, Convolution):
        depthwise = module.groups > 1 and module.weight.shape[1] == 1 and module.groups == module.in_channels
        module.out_channels = module.weight.shape[0]
        module.groups = module.out_channels if depthwise else module.groups
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, BatchNorm):
        shaped = module._buffers.get("running_mean")
        shaped = module._parameters.get("weight") if shaped is None else shaped
        module.num_features = module.num_features if shaped is None else shaped.numel()


def resize(network: nn.Module, state: Mapping[str, Tensor], make: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Give a freshly built network the shapes of a saved one, in place, so that `load_state_dict` fits.

    A gate's slot becomes a gate where the state holds one, a `Select` where one took its place.

    Raises:
        InputError: the state has a tensor for which the network has no place of the same rank.
    """
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = network.get_submodule(path)
        except AttributeError:
            raise InputError(
                f"The saved network has {name!r}, but {type(network).__name__} has no such layer."
            ) from None
        if leaf == "a_uc" and not isinstance(module, Gate):
            module = Gate(tensor.numel())
            replace(network, path, module)
        if leaf in ("index", "scale") and not isinstance(module, Gate):
            if not isinstance(module, Select):
                module = Select(None)
                replace(network, path, module)
            module._buffers[leaf] = tensor.clone()
            continue
        if leaf == "index":
            module._buffers[leaf] = tensor.clone()
            continue
        known = {**module._parameters, **module._buffers}
        old = known.get(leaf)
        if old is None or old.dim() != tensor.dim():
            raise InputError(
                f"The saved network has {name!r} of shape {tuple(tensor.shape)}, which does not fit "
                f"{type(network).__name__}; was it saved from another architecture?"
            )
        if old.shape != tensor.shape:
            _set(module, leaf, torch.empty_like(tensor, dtype=old.dtype, device=old.device))
    for module in network.modules():
        fit_attributes(module)
    return network


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module at a path of the network."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
