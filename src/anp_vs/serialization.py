"""Saved networks: tensors in safetensors, everything else in a JSON card beside them. Reading runs no code."""

from __future__ import annotations

import hashlib
import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from anp_vs.errors import InputError, RunError
from anp_vs.modes import evaluating
from anp_vs.networks import NETWORKS, build
from anp_vs.networks.bayesian import bayesian_layers, make_bayesian
from anp_vs.networks.images import declared_shape
from anp_vs.provenance import proposed, versions
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.resizing import resize
from anp_vs.recipes import shown
from anp_vs.storage import read_text, write_atomically

CARD_FORMAT = 1
LARGEST_CARD = 10_000_000
"""Bytes of the largest card that is read; a real one has a few thousand."""


def architecture(network: nn.Module) -> str:
    """The name that a network was built by or its class has in `NETWORKS`, else the class's import path."""
    if (built_as := getattr(network, "built_as", None)) in NETWORKS:
        return str(built_as)
    for name, kind in NETWORKS.items():
        if type(network) is kind:
            return name
    return f"{type(network).__module__}:{type(network).__qualname__}"


def save(network: nn.Module, path: str | Path, **facts: Any) -> Path:
    """Save a network as `<path>.safetensors` with its card `<path>.json`.

    Args:
        network: any module; a built-in network, gated or compact, loads again without further help.
        path: with or without the ending .safetensors; folders are made.
        facts: what the card should hold besides (classes, threat model, recipe, metrics, ...): plain values.

    Returns:
        The path of the tensors.

    Raises:
        RunError: the files cannot be written.
        InputError: a fact is not plain data.
    """
    path = Path(path)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = save_tensors(_unshared(state))
    card = {**card_for(network, **facts), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        text = json.dumps(card, indent=2)
    except TypeError as error:
        raise InputError(f"The card can only hold plain values (numbers, strings, lists, mappings): {error}.") from None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent} cannot be made: {error.strerror}. Choose another place.") from error
    write_atomically(path, content)
    write_atomically(path.with_suffix(".json"), text.encode())
    return path


def card_for(network: nn.Module, **facts: Any) -> dict[str, Any]:
    """The card to save a network with: what it was loaded with, the given facts, and what it is now."""
    bayesian = list(bayesian_layers(network).values())
    return {
        **card_of(network),
        **facts,
        "format": CARD_FORMAT,
        "architecture": architecture(network),
        "logits": _logits(network),
        "input_shape": list(shape) if (shape := getattr(network, "input_shape", None)) else None,
        "original_units": {name: gate.original_units for name, gate in gates(network).items()},
        **({"latent_widths": widths} if (widths := getattr(network, "latent_widths", {})) else {}),
        **({"prior_sigma": bayesian[0].prior_sigma} if bayesian else {}),
        "parameters": sum(p.numel() for p in network.parameters()),
        "versions": versions(),
    }


def card_of(network: nn.Module) -> dict[str, Any]:
    """The card a network was loaded with; empty for one that was not."""
    card: dict[str, Any] = getattr(network, "card", {})
    return card


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory; a network with tied weights has some."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        result[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def _logits(network: nn.Module) -> int | None:
    """Number of logits: what a built-in network returns; of another, the rows of its last dense or convolution weight."""
    if architecture(network) in NETWORKS:
        with evaluating(network), torch.no_grad():
            return int(network(example_for(network)).shape[1])
    weights = [v for n, v in network.state_dict().items() if n.endswith("weight") and v.dim() > 1]
    return int(weights[-1].shape[0]) if weights else None


SHIPPED = Path(str(resources.files("anp_vs"))) / "shipped"
"""Folder of the networks that are part of the package."""


def shipped() -> list[str]:
    """Names of the networks that are part of the package."""
    return sorted(file.relative_to(SHIPPED).with_suffix("").as_posix() for file in SHIPPED.glob("*/*.safetensors"))


def locate(path_or_name: str | Path) -> Path:
    """The tensors' file of a saved network: a path, a run directory (its compact network), or a shipped name.

    Raises:
        RunError: nothing of that name is there.
    """
    path = Path(path_or_name)
    if path.is_dir():
        for name in ("compact.safetensors", "network.safetensors"):
            if (path / name).exists():
                return path / name
    if str(path_or_name) in shipped():  # before a folder of that name that holds nothing
        return SHIPPED / f"{path_or_name}.safetensors"
    if path.is_dir():
        raise RunError(
            f"The run directory {path} holds no network yet; finish its training: {proposed(f'train {path}')}."
        )
    for candidate in (path, path.with_name(path.name + ".safetensors")):
        if candidate.is_file() and candidate.suffix == ".safetensors":
            return candidate
    raise RunError(
        f"There is no saved network {str(path_or_name)!r}: neither a .safetensors file, nor a run directory, nor one of "
        f"the shipped networks ({', '.join(shipped()) or 'none'})."
    )


def read_card(path: Path) -> dict[str, Any]:
    """The card of a saved network.

    Raises:
        RunError: missing, not JSON, or of a newer format.
    """
    card_path = path.with_suffix(".json")
    try:
        card = json.loads(read_text(card_path, LARGEST_CARD))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"The card {card_path} cannot be read: {error}. Copy it together with its .safetensors file."
        ) from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise RunError(
            f"The card {card_path} has format {shown(found)}; this version reads {CARD_FORMAT}. Update anp-vs, "
            f"or give the card that was saved with the network."
        )
    return card


def load(path_or_name: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Load a saved network, in evaluation mode; its card is the attribute `card`.

    Args:
        path_or_name: a .safetensors file, a run directory, or the name of a shipped network.
        network: for an architecture that is not built in: a fresh instance, which takes the saved shapes.

    Raises:
        RunError: the file is missing, damaged, or does not belong to its card.
        InputError: the architecture is not built in and no `network` was given, or it does not fit.
    """
    path = locate(path_or_name)
    card = read_card(path)
    state = read_tensors(path, card)
    built_in = network is None
    if network is None:
        network = _built(card, state, path)
    shape = declared_shape(card.get("input_shape"))
    if getattr(network, "input_shape", None) is None and shape is not None:
        network.input_shape = shape  # type: ignore[assignment]
    widths = _counts(card, "latent_widths", path)
    try:
        _fit(network, state, _counts(card, "original_units", path))
        if built_in:  # what a stranger's file holds may fit by name and still compute nothing
            with torch.no_grad():
                logits = network.eval()(example_for(network))
            if logits.shape != (2, card["logits"]):
                raise ValueError(f"its logits have shape {tuple(logits.shape)}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise InputError(f"{path} does not fit {type(network).__name__}: {reason}.") from error
    if shape is not None:
        network.input_shape = shape  # type: ignore[assignment]
    if widths:
        network.latent_widths = widths  # type: ignore[assignment]
    network.card = card  # type: ignore[assignment]
    return network.eval()


def _built(card: dict[str, Any], state: dict[str, Tensor], path: Path) -> nn.Module:
    """The built-in network that a card names, full-size; with Bayesian layers where the state holds theirs."""
    name, logits = card.get("architecture"), card.get("logits")
    if not isinstance(name, str) or name not in NETWORKS:
        raise InputError(
            f"{path} holds a network of class {shown(name)}, which is not built in; give a fresh one: "
            f"load(path, network=YourClass()), or register its class (anp_vs.networks.register); on the "
            f"command line, name the module that does: anp-vs --import MODULE COMMAND ..."
        )
    # The number is a stranger's: memory is only taken for as many logits as the file has weights for.
    rows = {len(value) for value in state.values() if value.dim() > 1 and value.numel()}
    if isinstance(logits, bool) or not isinstance(logits, int) or logits not in rows:
        raise RunError(
            f"The card of {path} says {shown(logits)} logits, which its tensors do not have. Copy both again."
        )
    network = build(name, logits)
    if any(entry.endswith("weight_rho") for entry in state):
        sigma = card.get("prior_sigma", 1.0)
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma < math.inf:
            raise RunError(f"The card of {path} says prior_sigma {shown(sigma)}; it must be positive.")
        make_bayesian(network, float(sigma), 0.0)
    return network


def _counts(card: dict[str, Any], field: str, path: Path) -> dict[str, int]:
    """How many units each gate, or each latent feature, had before any left the network, checked."""
    units = card.get(field) or {}
    if isinstance(units, dict) and all(
        isinstance(count, int) and not isinstance(count, bool) and 0 < count < 2**31 for count in units.values()
    ):
        return units
    raise RunError(f"The card of {path} says {field} {shown(units)}; it holds whole numbers by path.")


def _fit(network: nn.Module, state: dict[str, Tensor], original: dict[str, int]) -> None:
    """Give a network the shapes and values of a saved one."""
    sites = getattr(network, "gate_sites", None)
    if sites and not gates(network) and sites.keys() <= original.keys():
        insert_gates(network)  # gates elsewhere come with the shapes
    resize(network, state)
    for place, gate in gates(network).items():
        gate.original_units = max(original.get(place, 0), gate.units)
    network.load_state_dict(state)


def read_tensors(path: Path, card: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a saved network, checked against the card's checksum.

    Raises:
        RunError: the file is damaged or belongs to another card.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or error}.") from error
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise RunError(f"{path} is damaged or belongs to another card: its checksum differs. Copy both files again.")
    try:
        state: dict[str, Tensor] = load_tensors(content)
    # The reader's own error, and what torch says about types and shapes that it does not take.
    except (safetensors.SafetensorError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError,
            ValueError) as error:  # fmt: skip
        raise RunError(f"{path} is not a safetensors file: {error}. Copy both files again.") from error
    if strange := [name for name, value in state.items() if value.is_complex()]:
        raise RunError(f"{path} holds complex numbers in {strange[0]!r}, which no network here has; it is not one.")
    return {name: torch.as_tensor(value) for name, value in state.items()}
