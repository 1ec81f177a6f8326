"""What was measured for the figures of a run, as JSON beside it: written whole, and of its present network only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from anp_vs import serialization
from anp_vs.errors import RunError
from anp_vs.provenance import provenance
from anp_vs.storage import read_text, write_atomically
from anp_vs.training.run_directory import RunDirectory

DIAGNOSIS = "diagnosis"
"""Not a figure but a verdict, so its file lies beside the row: RUN/diagnosis.json. All others: RUN/figures/."""


def place(run: Path, name: str) -> Path:
    """The file that holds what was measured under this name."""
    return run / f"{name}.json" if name == DIAGNOSIS else run / "figures" / f"{name}.json"


def network_of(run: Path) -> str:
    """What tells a run's trained network from any other: the checksum of its tensors.

    Raises:
        RunError: the run has no network yet, or its card is damaged.
    """
    return str(serialization.read_card(serialization.locate(RunDirectory(run).network))["sha256"])


def keep(run: Path, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write what was measured on the run's network, with all that is needed to check it.

    Args:
        run: the run directory.
        name: of the figure.
        values: plain data.

    Returns:
        What was written: the values, `network_sha256`, and the provenance.
    """
    written = {"network_sha256": network_of(run), **values, **provenance()}
    path = place(run, name)
    try:
        path.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise RunError(f"{path.parent} cannot be made: {error.strerror}. Make {run} writable.") from error
    write_atomically(path, json.dumps(written).encode())
    return written


def kept(run: Path, name: str) -> dict[str, Any] | None:
    """What was measured under this name, or None where it was not, or on another network than the present one.

    Raises:
        RunError: the file is damaged.
    """
    values = read_object(place(run, name))
    return values if values is not None and values.get("network_sha256") == network_of(run) else None


def diagnosis_of(run: Path) -> dict[str, Any] | None:
    """What was found about masked gradients of the run's present network: by itself, with what only its row checked."""
    alone, row = kept(run, DIAGNOSIS), read_object(run / "evaluation.json")
    if row is None or row.get("network_sha256") != network_of(run) or not row.get("diagnosis"):
        return alone
    found: dict[str, Any] = row["diagnosis"]
    if alone is None:
        origin = {name: row[name] for name in ("command", "commit", "hardware", "versions") if name in row}
        return found | origin | {"asked": found["images"]}
    names = {sign["name"] for sign in alone["signs"]}
    more = [sign for sign in found["signs"] if sign["name"] not in names]
    suspicious = alone["suspicious"] or any(sign["suspicious"] for sign in more)
    return alone | {"signs": [*alone["signs"], *more], "suspicious": suspicious}


LARGEST = 100_000_000
"""Bytes of the largest file of figures that is read; real ones have some hundred thousand."""


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds an object; None when there is no such file.

    Raises:
        RunError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        values = json.loads(read_text(path, LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}); delete it and measure again.") from error
    if not isinstance(values, dict):
        raise RunError(f"{path} holds no JSON object but {type(values).__name__}; delete it and measure again.")
    return values


def rounded(values: Any, digits: int = 4) -> Any:
    """Nested lists of numbers to so many significant digits, which is plenty for a picture."""
    if isinstance(values, list | tuple):
        return [rounded(value, digits) for value in values]
    if not isinstance(values, float) or not math.isfinite(values):
        return values
    return float(f"{values:.{digits}g}")
