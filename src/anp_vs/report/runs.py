"""What a report reads of a run directory, and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anp_vs import recipes, serialization
from anp_vs.errors import RunError
from anp_vs.evaluation.figure_files import diagnosis_of, kept, read_object
from anp_vs.provenance import proposed
from anp_vs.recipes import Recipe
from anp_vs.training.run_directory import ROOT, MetricsLog, RunDirectory

EVALUATIONS = ("evaluation.json", "evaluation-released-code.json")
FIGURES = ("units", "vulnerability", "maps", "surface", "corruptions", "transfer")
NEEDED = ("dataset", "network", "method", "row", "recipe", "recipe_values", "seed", "protocol")
"""Without these a row cannot be placed in a table."""


@dataclass(frozen=True)
class RunRecord:
    """One finished run, read.

    Attributes:
        path: its directory.
        label: names it, unlike any other of the report.
        recipe: what was trained.
        card: of the trained network.
        evaluations: its rows, one for each protocol.
        metrics: lines of its training.
        diagnosis: signs of masked gradients, None where not looked for.
        figures: name -> data, of what was measured on the present network.
    """

    path: Path
    label: str
    recipe: Recipe
    card: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...]
    metrics: list[dict[str, Any]]
    diagnosis: dict[str, Any] | None
    figures: dict[str, dict[str, Any]]

    @property
    def row(self) -> str:
        """The recipe's row: its name without the table's, with what it saw beside its data set."""
        return self.recipe.name.rpartition("/")[2] + str(self.card.get("extra_data", ""))


def find_runs(places: Sequence[Path]) -> list[Path]:
    """The finished runs among run directories and folders that hold some; below runs/ when none is given.

    Raises:
        RunError: a place is not there or holds no finished run.
    """
    found: dict[Path, None] = {}
    for place in places or [ROOT]:
        if not place.is_dir():
            raise RunError(f"There is no run directory {place}; train one (anp-vs train RECIPE) or name another.")
        below = sorted(file.parent for file in place.rglob("recipe.yaml"))
        finished = [path for path in below if RunDirectory(path).finished]
        if not finished:
            unfinished = f" ({len(below)} unfinished: {proposed(f'train {below[0]}')})" if below else ""
            raise RunError(f"{place} holds no finished run{unfinished}. Train one: anp-vs train RECIPE.")
        found |= dict.fromkeys(finished)
    return list(found)


def read_run(path: Path) -> RunRecord:
    """Read a finished run.

    Raises:
        RunError: a file in it is missing or damaged.
    """
    run = RunDirectory(path)
    recipe = run.read_recipe()
    evaluations = [values for name in EVALUATIONS if (values := read_object(path / name)) is not None]
    for values in evaluations:
        if lacking := [name for name in NEEDED if name not in values]:
            raise RunError(
                f"The evaluation in {path} lacks {', '.join(lacking)}; it is damaged or of another version. Run again: "
                f"anp-vs evaluate {path}."
            )
    try:
        metrics = MetricsLog.read(run.metrics)
    except (OSError, ValueError) as error:
        raise RunError(f"{run.metrics} is damaged ({error}); delete it to report without training curves.") from error
    return RunRecord(
        path=path,
        label=f"{recipe.name} seed {recipe.seed}",
        recipe=recipe,
        card=serialization.read_card(serialization.locate(run.network)),
        evaluations=tuple(evaluations),
        metrics=metrics,
        diagnosis=diagnosis_of(path),
        figures={name: data for name in FIGURES if (data := kept(path, name)) is not None},
    )


def read_runs(paths: Sequence[Path]) -> list[RunRecord]:
    """Read finished runs, ordered as the tables are; runs of one recipe and seed carry their path in the label."""
    order = list(recipes.RECIPES)
    records = sorted(
        map(read_run, paths),
        key=lambda r: (
            order.index(r.recipe.name) if r.recipe.name in order else len(order),
            r.recipe.name,
            r.recipe.seed,
        ),
    )
    shared = Counter(record.label for record in records)
    return [replace(r, label=f"{r.label} ({r.path})") if shared[r.label] > 1 else r for r in records]
