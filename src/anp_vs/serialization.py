"""Saved networks: tensors in safetensors, everything else in a JSON card beside them. Reading runs no code."""

from __future__ import annotations

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from anp_vs import recipes
from anp_vs.errors import InputError, RunError
from anp_vs.networks import NETWORKS, build
from anp_vs.provenance import versions
from anp_vs.pruning.compact import resize
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.training.checkpoint import write_atomically

CARD_FORMAT = 1


def architecture(network: nn.Module) -> str:
    """The built-in name of a network's class, else its import path."""
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
    kept: dict[str, Any] = getattr(network, "card", {})
    content = save_tensors(_unshared(state))
    card = {
        **{k: v for k, v in kept.items() if k not in ("format", "versions")},
        **facts,
        "format": CARD_FORMAT,
        "architecture": architecture(network),
        "logits": _logits(network, state),
        "original_units": {name: gate.original_units for name, gate in gates(network).items()},
        "parameters": sum(p.numel() for p in network.parameters()),
        "sha256": hashlib.sha256(content).hexdigest(),
        "versions": versions(),
    }
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


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Safetensors refuses tensors that share memory; a network with tied weights has some."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        result[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return result


def _logits(network: nn.Module, state: dict[str, Tensor]) -> int | None:
    """Number of logits: rows of the last dense or convolution weight."""
    weights = [v for n, v in state.items() if n.endswith("weight") and v.dim() > 1]
    return int(weights[-1].shape[0]) if weights else None


def shipped() -> list[str]:
    """Names of the networks that are part of the package."""
    root = resources.files("anp_vs") / "shipped"
    if not root.is_dir():
        return []
    return sorted(
        f"{table.name}/{file.name.removesuffix('.safetensors')}"
        for table in root.iterdir() if table.is_dir()
        for file in table.iterdir() if file.name.endswith(".safetensors")
    )  # fmt: skip


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
        raise RunError(f"The run directory {path} holds no network yet; finish its training: anp-vs train {path}.")
    for candidate in (path, path.with_name(path.name + ".safetensors")):
        if candidate.is_file() and candidate.suffix == ".safetensors":
            return candidate
    bundled = Path(str(resources.files("anp_vs") / "shipped" / f"{path_or_name}.safetensors"))
    if str(path_or_name) in shipped():
        return bundled
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
        card = json.loads(card_path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"The card {card_path} cannot be read: {error}. Copy it together with its .safetensors file.") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise RunError(f"The card {card_path} has format {found!r}; this version reads {CARD_FORMAT}. Update anp-vs.")
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
    name, logits = card.get("architecture"), card.get("logits")
    if network is None:
        if name not in NETWORKS or not isinstance(logits, int):
            raise InputError(
                f"{path} holds a network of class {name!r}, which is not built in; give a fresh one: "
                f"load(path, network=YourClass())."
            )
        network = _prepared(build(name, logits), card, path)
    original = card.get("original_units") or {}
    if original and not gates(network):
        insert_gates(network)
    resize(network, state)
    for place, gate in gates(network).items():
        gate.original_units = int(original.get(place, gate.units))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path} does not fit {type(network).__name__}: {error}.") from None
    network.card = card  # type: ignore[assignment]
    return network.eval()


def _prepared(network: nn.Module, card: dict[str, Any], path: Path) -> nn.Module:
    """The layers that the card's training method gives a network (a Bayesian one's, say)."""
    if card.get("recipe") is None:
        return network
    return recipes.from_dict(card["recipe"], f"The recipe in the card of {path}").method.prepare(network)


def read_tensors(path: Path, card: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a saved network, checked against the card's checksum.

    Raises:
        RunError: the file is damaged or belongs to another card.
    """
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise RunError(f"{path} is damaged or belongs to another card: its checksum differs. Copy both files again.")
    try:
        state: dict[str, Tensor] = load_tensors(content)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise RunError(f"{path} is not a safetensors file: {error}.") from error
    return {name: torch.as_tensor(value) for name, value in state.items()}
