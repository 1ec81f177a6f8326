"""Which rule of `anp_vs.pruning.graph` an operation follows: decided from its arguments, exactly or not at all."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from anp_vs.pruning.operations import (
    ADDITIONS,
    CHANNELWISE,
    CHANNELWISE_FUNCTIONS,
    CONCATENATIONS,
    FLATTENINGS,
    PERMUTATIONS,
    PRODUCTS,
    QUOTIENTS,
    REDUCTIONS,
    RESHAPES,
    SPATIAL,
    SPATIAL_FUNCTIONS,
    BatchNorm,
    Convolution,
    InstanceNorm,
)
from anp_vs.pruning.points import Lengths, Point
from anp_vs.pruning.reader import GateReader, gate_at

Known = Mapping[fx.Node, Lengths]


class Rule(NamedTuple):
    """A rule's name, the channel axis of the tensor made, and for `whole` the reason."""

    name: str
    axis: int = 1
    why: str = ""


def classify(point: Point, sources: list[Point], counted: list[Point], known: Known, calls: int) -> Rule:
    """The rule of the operation that makes a tensor.

    Args:
        point: the tensor.
        sources: the tensors it is made of.
        counted: tensors whose number of channels is an argument of the operation.
        known: of every value that is no tensor, what it was computed from.
        calls: how often the operation's module is used in one forward pass.
    """
    node, module = point.node, point.module
    if node.op == "placeholder":
        return Rule("whole", why="the channels are the images'")
    if node.op == "output":
        return Rule("whole", why="the channels are the logits")
    if node.op == "get_attr":
        return Rule("whole", why=f"{node.target} holds values for the channels")
    rule: Rule | None = None
    if module is not None and not point.shape:
        return _whole(point, sources, f"{point.path} returns something else than one tensor")
    held = () if module is None or gate_at(module) is not None else (*module.parameters(), *module.buffers())
    if calls > 1 and held:
        return _whole(point, sources, f"{point.path} is shared: it is used or registered {calls} times")
    if module is not None and len(sources) == 1 and not counted:
        rule = _module_rule(point, module, sources[0])
    elif module is None and sources:
        rule = _function_rule(point, sources, counted, known)
    return rule or _whole(point, sources, _why(point, sources))


def _why(point: Point, sources: list[Point]) -> str:
    """What the user should know of an operation that leaves its channels whole."""
    module, name = point.module, _name(point)
    held = next((source for source in sources if source.node.op == "get_attr"), None)
    if held is not None:
        return f"{name} uses {held.node.target}, which holds values for the channels"
    if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.LocalResponseNorm):
        return f"{name} normalises channels by one another"
    if module is not None and hasattr(module, "weight") and not _own_weight(module):
        return f"{name} computes its weight anew in every pass; make it a plain one first (remove_parametrizations)"
    return f"{name} is not known to keep channels apart"


def _own_weight(module: nn.Module) -> bool:
    return "weight" in module._parameters


def _whole(point: Point, sources: list[Point], why: str) -> Rule:
    """All channels stay; along which axis is a guess that only decides what layers behind it may do."""
    axis = 1
    if sources and point.shape == sources[0].shape:
        axis = sources[0].axis
    elif len(point.shape) == 3 and _read_as_tokens(point):
        axis = 2
    return Rule("whole", axis, why)


def _read_as_tokens(point: Point) -> bool:
    """Whether a layer reads a tensor N x L x C along its last axis."""
    network, last = point.node.graph.owning_module, point.shape[-1]
    for user in point.node.users:
        reader = network.get_submodule(str(user.target)) if network and user.op == "call_module" else None
        if isinstance(reader, nn.LayerNorm) or (isinstance(reader, nn.Linear) and reader.in_features == last):
            return True
    return False


def _name(point: Point) -> str:
    if point.module is not None:
        return f"{point.path} ({type(point.module).__name__})"
    target = point.node.target
    return f"the operation {target if isinstance(target, str) else getattr(target, '__name__', target)}()"


def _module_rule(point: Point, module: nn.Module, source: Point) -> Rule | None:
    axis, last = source.axis, len(source.shape) - 1
    gate = gate_at(module)
    if gate is not None:
        dim = (module.dim if isinstance(module, GateReader) else gate.dim) % len(point.shape)
        return Rule("gate", axis) if dim == axis else Rule("whole", dim, f"{point.path} gates another axis")
    if isinstance(module, nn.Flatten):
        return _flatten(point, source, module.start_dim, module.end_dim)
    if isinstance(module, CHANNELWISE):
        per_channel = isinstance(module, nn.PReLU) and module.num_parameters > 1
        if per_channel:
            return Rule("prelu", axis) if axis == 1 else None
        behind = not isinstance(module, SPATIAL) or (axis == 1 and last == _rank(module, last))
        return Rule("channelwise", axis) if behind else None
    if not _own_weight(module):  # computed from others before every pass
        return None
    if isinstance(module, nn.Linear):
        return Rule("mix", last) if axis == last else None
    if axis != 1:
        return None
    if isinstance(module, Convolution):
        return Rule("mix" if module.groups == 1 else "grouped")
    if isinstance(module, BatchNorm):
        return Rule("batchnorm")
    if isinstance(module, InstanceNorm) and module.weight is not None:
        return Rule("batchnorm")
    if isinstance(module, nn.GroupNorm) and module.affine and module.num_groups > 1:
        return Rule("groupnorm")
    return None


def _rank(module: nn.Module, last: int) -> int:
    """Spatial axes of what a pooling or padding module reads; `last` for one that takes any number, if not 0."""
    digit = type(module).__name__[-2]
    return int(digit) + 1 if digit in "123" else max(last, 2)


def _function_rule(point: Point, sources: list[Point], counted: list[Point], known: Known) -> Rule | None:
    target, source = point.node.target, sources[0]
    if any(len(s.shape) <= s.axis for s in sources):
        return None
    if target in RESHAPES or target == "expand_as":
        return _reshape(point, sources, counted, known)
    if counted:
        return None
    if target in CONCATENATIONS:
        return _cat(point, sources)
    if target in ADDITIONS or target in PRODUCTS:
        same = all(len(s.shape) == len(point.shape) and s.axis == source.axis for s in sources)
        same = same and all(s.channels == point.shape[source.axis] for s in sources)
        return Rule("add" if target in ADDITIONS else "mul", source.axis) if same else None
    if len(sources) != 1:
        return None
    if target in QUOTIENTS:
        return Rule("channelwise", source.axis)
    if target in FLATTENINGS:
        start, end = _argument(point, 1, "start_dim", 0), _argument(point, 2, "end_dim", -1)
        return _flatten(point, source, start, end)
    if target in PERMUTATIONS:
        return _permute(point, source)
    if target in REDUCTIONS:
        return _reduction(point, source)
    if target in ("unsqueeze", torch.unsqueeze, "squeeze", torch.squeeze):
        return _squeeze(point, source)
    if target is operator.getitem:
        return _item(point, source)
    if target in CHANNELWISE_FUNCTIONS:
        behind = target not in SPATIAL_FUNCTIONS or (source.axis == 1 and len(source.shape) == 4)
        return Rule("channelwise", source.axis) if behind else None
    return None


def _argument(point: Point, place: int, name: str, default: Any) -> Any:
    args = point.node.args
    return args[place] if len(args) > place else point.node.kwargs.get(name, default)


def _cat(point: Point, sources: list[Point]) -> Rule | None:
    tensors, dim = _argument(point, 0, "tensors", ()), _argument(point, 1, "dim", 0)
    axis = sources[0].axis
    right = isinstance(dim, int) and dim % len(point.shape) == axis and all(s.axis == axis for s in sources)
    return Rule("cat", axis) if right and len(tensors) == len(sources) else None


def _flatten(point: Point, source: Point, start: Any, end: Any) -> Rule | None:
    if source.axis != 1 or not isinstance(start, int) or not isinstance(end, int):
        return None
    last = len(source.shape) - 1
    start, end = start % (last + 1), end % (last + 1)
    if start >= 2 or start == end:
        return Rule("reshape")
    return Rule("flatten") if (start, end) == (1, last) else None


def _reshape(point: Point, sources: list[Point], counted: list[Point], known: Known) -> Rule | None:
    """`view` and its like: right if the number of channels is not written down in the forward pass."""
    node, source = point.node, sources[0]
    flat = point.shape == (source.shape[0], math.prod(source.shape[1:]))
    same = point.shape[:2] == source.shape[:2]
    if source.axis != 1 or not (same or flat) or len(point.shape) < 2:
        return None
    if node.target == "expand_as":
        right = same and len(sources) == 2 and sources[1].axis == 1 and not counted
        return Rule("reshape") if right else None
    if len(sources) != 1:
        return None
    sizes = _expanded(node, known)
    channels = sizes[1] if len(sizes) > 1 else None
    if channels == -1 and not counted:
        return Rule("reshape" if same else "flatten")
    if isinstance(channels, tuple) and same and counted == [channels[0]] and channels[1] == channels[0].axis:
        return Rule("reshape")
    if isinstance(channels, int) and channels != -1:
        written = f"{node.target if isinstance(node.target, str) else 'reshape'}(.., {channels}, ..)"
        return _whole(point, sources, f"{written} fixes the number of channels; write flatten(1), or -1 there")
    return None


def _expanded(node: fx.Node, known: Known) -> list[Any]:
    """The sizes that a reshape is given: integers, (tensor, axis) for a length, None for what is computed."""
    given: Sequence[Any] = node.args[1:] or tuple(v for v in node.kwargs.values() if not isinstance(v, fx.Node))
    if len(given) == 1 and isinstance(given[0], tuple | list):
        given = given[0]
    sizes: list[Any] = []
    for item in given:
        if isinstance(item, fx.Node):
            lengths = known.get(item, Lengths())
            sizes.extend(lengths.axes if lengths.direct else [None])
        else:
            sizes.append(item)
    return sizes


def _permute(point: Point, source: Point) -> Rule | None:
    """The axis is found by moving a tensor whose strides mark it."""
    node = point.node
    if any(isinstance(n, fx.Node) for n in node.all_input_nodes[1:]):
        return None
    moved = torch.empty(source.shape, device="meta")
    marker = moved.as_strided(source.shape, [int(i == source.axis) for i in range(len(source.shape))])
    target = getattr(torch.Tensor, node.target) if isinstance(node.target, str) else node.target
    move = cast(Callable[..., Tensor], target)
    return Rule("permute", move(marker, *node.args[1:], **node.kwargs).stride().index(1))


def _reduction(point: Point, source: Point) -> Rule | None:
    dims, rank = _argument(point, 1, "dim", None), len(source.shape)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not all(isinstance(d, int) for d in dims):
        return None
    gone = {d % rank for d in dims}
    if source.axis in gone or 0 in gone:
        return None
    kept = len(point.shape) == rank
    return Rule("channelwise", source.axis if kept else source.axis - sum(d < source.axis for d in gone))


def _squeeze(point: Point, source: Point) -> Rule | None:
    dim, rank = _argument(point, 1, "dim", None), len(source.shape)
    if not isinstance(dim, int):
        return None
    if "unsqueeze" in str(point.node.target):
        dim %= rank + 1
        return Rule("reshape", source.axis + (dim <= source.axis))
    dim %= rank
    if dim == source.axis:
        return None
    return Rule("reshape", source.axis - (dim < source.axis and len(point.shape) < rank))


def _item(point: Point, source: Point) -> Rule | None:
    """x[:, :, None, None] or x[:, :, ::2, ::2]: right if all channels pass."""
    index = point.node.args[1]
    parts = index if isinstance(index, tuple) else (index,)
    ahead = parts[: source.axis + 1]
    known = all(p is None or isinstance(p, slice) for p in parts)
    if not known or any(isinstance(p, type(None)) for p in ahead):
        return None
    whole = len(ahead) <= source.axis or ahead[source.axis] == slice(None)
    return Rule("reshape", source.axis) if whole else None


def lengths_of(node: fx.Node, points: Mapping[fx.Node, Point], known: Known) -> Lengths:
    """What a value that is no tensor was computed from."""
    first = node.args[0] if node.args else None
    if isinstance(first, fx.Node) and first in points:
        point = points[first]
        every = tuple((point, axis) for axis in range(len(point.shape)))
        if node.target == "size" or (node.target is getattr and node.args[1] == "shape"):
            dim = node.args[1] if node.target == "size" and len(node.args) > 1 else node.kwargs.get("dim")
            if dim is None:
                return Lengths(every, direct=True)
            if isinstance(dim, int):
                return Lengths((every[dim],), direct=True)
        if node.target in ("dim", "ndimension", "get_device") or (
            node.target is getattr and node.args[1] in ("ndim", "dtype", "device", "is_cuda")
        ):
            return Lengths()
    if node.target is operator.getitem and isinstance(first, fx.Node) and first in known:
        index = node.args[1]
        if known[first].direct and isinstance(index, int):
            return Lengths((known[first].axes[index],), direct=True)
        if known[first].direct and isinstance(index, slice) and not node.all_input_nodes[1:]:
            return Lengths(known[first].axes[index], direct=True)
    axes: list[tuple[Point, int]] = []
    for source in node.all_input_nodes:
        axes.extend(known[source].axes if source in known else [(points[source], points[source].axis)])
    return Lengths(tuple(axes))
