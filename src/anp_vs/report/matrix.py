"""The transfer matrix of a group of runs, as it stands in their figures/transfer.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anp_vs.report.runs import RunRecord


@dataclass(frozen=True)
class Matrix:
    """Accuracy of each target on images made on each source.

    Attributes:
        sources: labels of the rows.
        targets: labels of the columns.
        cells: percent, a row for each source; None where it was not measured.
        clean: accuracy of each target without an attack, percent.
        conditions: measured under what, None when nothing was.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]
    clean: tuple[float | None, ...]
    conditions: dict[str, object] | None


def matrix(runs: Sequence[RunRecord]) -> Matrix:
    """The matrix of runs that share data and test attack; cells are on the same images or left out."""
    kept = [run.figures.get("transfer") for run in runs]
    counts = [data["images"] for data in kept if data is not None]
    images = max(set(counts), key=counts.count) if counts else 0
    same = [data if data is not None and data["images"] == images else None for data in kept]
    found = [
        {cell["network_sha256"]: float(cell["accuracy"]) for cell in data["sources"]} if data else {} for data in same
    ]
    cells = tuple(tuple(of_target.get(run.card["sha256"]) for of_target in found) for run in runs)
    labels = tuple(run.label for run in runs)
    return Matrix(
        labels, labels, cells, tuple(data["clean"] if data else None for data in same),
        next((data for data in same if data is not None), None),
    )  # fmt: skip
