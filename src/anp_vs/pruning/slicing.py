"""Take entries out of a layer's parameters, and what replaces a gate that no layer can absorb."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from anp_vs.pruning.operations import BatchNorm, Convolution, InstanceNorm
from anp_vs.pruning.points import Channels

Slices = dict[str, list[tuple[int, Tensor]]]
"""Name of a parameter or buffer -> [(dimension, indices that stay), ...]."""

PER_CHANNEL = ("batchnorm", "groupnorm", "prelu", "grouped")
"""Rules of layers whose parameters' first axis is the channels, and nothing else is."""


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


def take(tensor: Tensor, places: list[tuple[int, Tensor]]) -> Tensor:
    """The entries of a tensor that stayed, given one value of `Slices`."""
    for dim, index in places:
        if dim < tensor.dim() and index.numel() != tensor.shape[dim]:
            tensor = tensor.index_select(dim, index.to(tensor.device))
    return tensor


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Give a module a new parameter or buffer value of another shape."""
    if name in module._parameters:
        old = module._parameters[name]
        module._parameters[name] = nn.Parameter(value, old is not None and old.requires_grad)
    else:
        module._buffers[name] = value


def slice_layer(module: nn.Module, out: Channels, inputs: Channels | None, scale: Tensor | None) -> None:
    """Keep some outputs and inputs of a layer, in place.

    Args:
        module: a convolution, dense or normalisation layer.
        out: which outputs stay.
        inputs: which inputs stay; None where each output has its own.
        scale: factor of each input that stays (`inputs` given) or of each output's own input, or None.
    """
    weight = cast("Tensor | None", module._parameters.get("weight"))
    place = [(0, out.nonzero()[:, 0])]
    if weight is not None:
        full = [*place, (1, inputs.nonzero()[:, 0])] if inputs is not None else place
        value = take(weight.detach(), full)
        if scale is not None:
            axis = 1 if inputs is not None else 0
            shape = [-1 if d == axis else 1 for d in range(value.dim())]
            value = value * scale.to(value.dtype).view(shape)
        set_tensor(module, "weight", value)
    for name in ("bias", "running_mean", "running_var"):
        tensor = module._parameters.get(name, module._buffers.get(name))
        if tensor is not None:
            set_tensor(module, name, take(tensor.detach(), place))
    fit_attributes(module)


def fit_attributes(module: nn.Module) -> None:
    """Make a layer's declared sizes those of its tensors; a group keeps its size."""
    if isinstance(module, Convolution):
        outputs = module.weight.shape[0]
        if module.groups > 1:
            module.groups = outputs // (module.out_channels // module.groups)
        module.out_channels = outputs
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.GroupNorm) and module.affine:
        channels = module.weight.numel()
        module.num_groups = channels // (module.num_channels // module.num_groups)
        module.num_channels = channels
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, BatchNorm | InstanceNorm):
        shaped: Tensor | None = module._buffers.get("running_mean")
        shaped = module._parameters.get("weight") if shaped is None else shaped
        module.num_features = module.num_features if shaped is None else shaped.numel()


def replace(network: nn.Module, path: str, module: nn.Module) -> None:
    """Put another module at a path of the network."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
