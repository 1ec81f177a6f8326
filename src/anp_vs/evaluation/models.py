"""Any PyTorch classifier as something to evaluate: a saved network, a shipped one, or what a function returns."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from anp_vs import recipes, serialization
from anp_vs.errors import AnpVsError, InputError
from anp_vs.recipes import Recipe


@dataclass(frozen=True)
class Model:
    """A classifier without a run directory.

    Attributes:
        name: as it was asked for.
        network: float images N x C x H x W in [0, 1] to logits.
        architecture: built-in name or import path of its class.
        recipe: that it was trained by, where its card says so.
    """

    name: str
    network: nn.Module
    architecture: str
    recipe: Recipe | None


def find_model(name: str) -> Model:
    """The classifier of a name.

    Args:
        name: a .safetensors file, the name of a shipped network, or `module:factory`: the import path, from the
            working directory too, of a function without arguments that returns an nn.Module.

    Raises:
        InputError: the factory cannot be imported, fails, or returns something else.
        RunError: there is no such saved network, or it is damaged.
    """
    if ":" in name and not Path(name).exists():
        network = _made(name)
        return Model(name, network, serialization.architecture(network), None)
    network = serialization.load(serialization.locate(name))
    card = serialization.card_of(network)
    recipe = recipes.from_dict(card["recipe"], f"The card of {name}") if "recipe" in card else None
    return Model(name, network, str(card["architecture"]), recipe)


def _made(name: str) -> nn.Module:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)  # as `python -m` does
    try:
        found = _imported(name)
        network = found if isinstance(found, nn.Module) else found()
    except AnpVsError:
        raise
    except Exception as error:  # a user's function may fail in any way
        raise InputError(
            f"{name}() failed: {type(error).__name__}: {error}. It is called without arguments."
        ) from error
    finally:
        sys.path.remove(folder)
    if not isinstance(network, nn.Module):
        raise InputError(f"{name}() returned {type(network).__name__}; it must return an nn.Module that takes images.")
    return network


def _imported(name: str) -> Callable[[], Any]:
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[], Any] | None = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # its top level may fail in any way
        raise InputError(
            f"{name}: {module!r} cannot be imported ({type(error).__name__}: {error}). Write module:factory, and run "
            f"where Python finds the module, such as the folder that holds it."
        ) from error
    if not callable(found):
        raise InputError(f"{name}: {module} has no function {attribute!r}. Write module:factory.")
    return found
