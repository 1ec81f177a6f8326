"""Give a fresh network the shapes, gates and selections of a saved one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from anp_vs.errors import InputError
from anp_vs.pruning.gate import Gate, gates
from anp_vs.pruning.reader import GatedLayer, GateReader, axis_read
from anp_vs.pruning.slicing import Select, fit_attributes, replace, set_tensor


def resize(network: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a freshly built network the shapes of a saved one, in place, so that `load_state_dict` fits.

    A gate's slot becomes a gate where the state holds one, a `Select` where one took its place, and a layer
    gets a gate or a `Select` in front of it where the saved one had that.

    Raises:
        InputError: the state has a tensor for which the network has no place of the same rank.
    """
    device = next((value.device for value in (*network.parameters(), *network.buffers())), None)
    _wrap_layers(network, state)
    for name, tensor in state.items():
        path, _, leaf = name.rpartition(".")
        try:
            module = network.get_submodule(path)
        except AttributeError:
            raise _no_place(network, name) from None
        if leaf == "a_uc" and not isinstance(module, Gate):
            module = Gate(tensor.numel()).to(device)
            replace(network, path, module)
        # Only a gate's slot becomes a selection: a layer of the user's own may have a scale or an index, too.
        if leaf in ("index", "scale") and isinstance(module, nn.Identity):
            module = Select(None)
            replace(network, path, module)
        if isinstance(module, Select) or (leaf == "index" and isinstance(module, Gate)):
            module._buffers[leaf] = tensor.to(device, copy=True)
            continue
        known = {**module._parameters, **module._buffers}
        old = known.get(leaf)
        if old is None or old.dim() != tensor.dim():
            raise InputError(
                f"The saved network has {name!r} of shape {tuple(tensor.shape)}, which does not fit "
                f"{type(network).__name__}; was it saved from another architecture?"
            )
        if old.shape != tensor.shape:
            set_tensor(module, leaf, torch.empty_like(tensor, dtype=old.dtype, device=old.device))
    for module in network.modules():
        fit_attributes(module)
    _fit_blocks(network)
    return network


def _wrap_layers(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put gates, readers of gates and selections in front of the layers that have one in the state."""
    for name in state:
        path, _, rest = name.partition(".gate.a_uc")
        if name.endswith(".gate.a_uc") and not rest and (layer := _layer_to_wrap(network, state, path)):
            first = next(layer.parameters())
            gate = Gate(state[name].numel(), dim=axis_read(layer)).to(first.device, first.dtype)
            replace(network, path, GatedLayer(gate, layer))
        path, _, rest = name.partition(".select.index")
        if name.endswith(".select.index") and not rest and (layer := _layer_to_wrap(network, state, path)):
            select = Select(None, dim=axis_read(layer))
            replace(network, path, nn.Sequential(OrderedDict(select=select, layer=layer)))
    owned = list(gates(network).values())
    for name, tensor in state.items():
        path = name.removesuffix(".gate.number")
        if path == name or not (layer := _layer_to_wrap(network, state, path)):
            continue
        number = int(tensor)
        if not 0 <= number < len(owned):
            raise _no_place(network, name)
        reader = GateReader(owned[number], number, dim=axis_read(layer)).to(owned[number].a_uc.device)
        replace(network, path, GatedLayer(reader, layer))


def _layer_to_wrap(network: nn.Module, state: Mapping[str, Tensor], path: str) -> nn.Module | None:
    """The plain layer at a path, if the saved network had something in front of it."""
    if f"{path}.layer.weight" not in state:
        return None
    try:
        layer = network.get_submodule(path)
    except AttributeError:
        return None
    return layer if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear) else None


def _fit_blocks(network: nn.Module) -> None:
    """How many entries a unit covers, from the widths of the layers behind the gates."""
    for module in network.modules():
        if isinstance(module, GatedLayer) and isinstance(module.gate, Gate | GateReader):
            gate = module.gate.gate if isinstance(module.gate, GateReader) else module.gate
            module.gate.block = module.layer.get_parameter("weight").shape[1] // gate.units


def _no_place(network: nn.Module, name: str) -> InputError:
    return InputError(f"The saved network has {name!r}, but {type(network).__name__} has no such layer.")
