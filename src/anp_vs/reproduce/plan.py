"""Which trainings and evaluations a table takes, and what each has to wait for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from anp_vs import recipes, serialization
from anp_vs.attacks.protocols import ProtocolName
from anp_vs.data import digits
from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.figure_files import read_object
from anp_vs.evaluation.row import evaluate_run, row_file
from anp_vs.recipes import Recipe
from anp_vs.training.run import train
from anp_vs.training.run_directory import RunDirectory

ROWS = ("standard", "bp", "at", "at-bnn", "pretrained-at", "admm", "trades", "anp-vs")
"""The rows of the published tables, in their order."""
Effort = Literal["paper", "released", "cpu", "gpu", "best"]
"""Which recipes: as published, as published under the released code's protocol, reduced to what two CPU cores or one GPU can
train, or improved beyond the paper."""
SUFFIX: dict[Effort, str] = {"paper": "", "released": "-released", "cpu": "-cpu", "gpu": "-gpu", "best": "-best"}
TEST_IMAGES = {"digits": digits.TEST, "mnist": 10_000, "cifar10": 10_000, "cifar100": 10_000}
"""All that a row of a table is measured on."""
TRAIN_IMAGES = {"digits": digits.TRAIN + digits.VALIDATION, "mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}
"""Of the official releases, of which some are held out; what a training takes is foretold from them."""


@dataclass(frozen=True)
class Job:
    """One training or one evaluation.

    Attributes:
        name: unlike that of any other job.
        recipe: what is trained, or was.
        run: its run directory.
        needs: names of the jobs that have to be done before.
        source: run whose network black-box images are made on, for an evaluation; None trains.
        autoattack: test images AutoAttack is run on in an evaluation, 0 for none.
        protocol: of an evaluation.
    """

    name: str
    recipe: Recipe
    run: Path
    needs: tuple[str, ...] = ()
    source: Path | None = None
    autoattack: int = 0
    protocol: ProtocolName = "pixel-space"

    @property
    def row(self) -> Path:
        """File of an evaluation's row."""
        return row_file(self.run, self.protocol)

    @property
    def trains(self) -> bool:
        """Whether the job is a training."""
        return self.source is None

    def check(self) -> None:
        """See that the directory of a training is its own, or nobody's yet.

        Raises:
            RunError: it holds another recipe's run, or a network of no known recipe.
        """
        run = RunDirectory(self.run)
        if self.trains:
            run.check(self.recipe)
            if run.finished:
                run.read_recipe()

    def done(self) -> bool:
        """Whether its result is on the disk already: this recipe's network, or the whole row of the present network.

        Networks are read to their ends: a damaged one is not done, so that its training mends it before it is used.
        """
        run = RunDirectory(self.run)
        try:
            if self.source is None:
                self.check()
                return run.finished and bool(_intact(self.run))
            row = read_object(self.row) or {}
            images = row.get("images", 0)
            return bool(
                row.get("network_sha256") == _intact(self.run)
                and images >= TEST_IMAGES.get(self.recipe.data, 0)
                and (row.get("autoattack_images") or 0) >= min(self.autoattack, images)
                and row.get("black_box_accuracy") is not None
                and row.get("black_box_sha256") == [_intact(self.source)]
            )
        except (RunError, TypeError):  # damaged, or changed by hand
            return False

    def do(self, device: str = "auto") -> None:
        """Train or evaluate; goes on where it was stopped.

        Raises:
            AnpVsError: as `train` and `evaluate_run` do.
        """
        if self.trains:
            train(self.recipe, out=self.run, device=device, quiet=True)
        else:
            sources = (self.source,) if self.source else ()
            evaluate_run(
                self.run, data_root=self.recipe.data_root, sources=sources, autoattack=self.autoattack or None, device=device,
                protocol=self.protocol, progress=False,
            )  # fmt: skip


def _intact(run: Path) -> str:
    """The checksum of a run's network.

    Raises:
        RunError: there is none, or it is damaged.
    """
    path = serialization.locate(RunDirectory(run).network)
    card = serialization.read_card(path)
    serialization.read_tensors(path, card)
    return str(card["sha256"])


def plan(
    table: str,
    *,
    rows: Sequence[str] | None = None,
    seeds: int = 1,
    effort: Effort = "cpu",
    root: Path = Path("runs"),
    data_root: str | None = None,
    autoattack: int = 0,
) -> list[Job]:
    """All jobs of a table, each behind what it needs.

    Args:
        table: mnist, cifar10 or cifar100.
        rows: recipes of the table; by default those of the published rows that it has.
        seeds: runs of each row, with the seeds 0, 1, ...
        effort: `paper`, `released`, `cpu`, `gpu` or `best`.
        root: folder of the run directories.
        data_root: folder that holds the data sets; None downloads them.
        autoattack: test images to run AutoAttack on, 0 for none; it attacks pixels only.

    Raises:
        InputError: there is no such table or row, or a count is out of range.
    """
    if effort not in get_args(Effort):
        raise InputError(f"The recipe is {effort!r}; choose one of {', '.join(get_args(Effort))}.")
    prefix = f"{table}{SUFFIX[effort]}"
    known = [name.rpartition("/")[2] for name in recipes.RECIPES if name.rpartition("/")[0] == prefix]
    if not known:
        raise InputError(f"There are no {effort} recipes for the table {table!r}; see anp-vs recipes.")
    rows = [row for row in ROWS if row in known] if rows is None else rows
    if unknown := [row for row in rows if row not in known]:
        raise InputError(f"The table {prefix} has no row {unknown[0]!r}; its rows are {', '.join(known)}.")
    if not 1 <= seeds <= 1000:
        raise InputError(f"seeds is {seeds}; give 1 to 1000 runs a row.")
    if autoattack < 0:
        raise InputError(f"autoattack is {autoattack}; give a number of test images, 0 for none.")
    jobs: dict[str, Job] = {}

    def training(recipe: Recipe) -> Job:
        name = f"train {recipe.name} seed {recipe.seed}"
        if name not in jobs:
            before = recipes.prerequisite(recipe), recipes.prerequisite(recipe, "teacher")
            needs = tuple(training(other).name for other in before if other)
            jobs[name] = Job(name, recipe, RunDirectory.default(recipe, root), needs)
        return jobs[name]

    for seed in range(seeds):
        for row in rows:
            recipe = recipes.RECIPES[f"{prefix}/{row}"]
            # The black-box source is one network, with a seed of its own, for all runs.
            wanted = training(recipes.override(recipe, _own(recipe.seed or seed, data_root)))
            if wanted.recipe.black_box is None:
                continue
            other = recipes.RECIPES[wanted.recipe.black_box]
            if other.data != wanted.recipe.data:  # pre-training on other data: no row of the table
                continue
            source = training(recipes.override(other, _own(other.seed, data_root)))
            name = f"evaluate {wanted.recipe.name} seed {seed}"
            needs = (wanted.name, source.name)
            pixels = wanted.recipe.protocol == "pixel-space"
            jobs[name] = Job(
                name, wanted.recipe, wanted.run, needs, source.run, autoattack if pixels else 0, wanted.recipe.protocol
            )
    return list(jobs.values())


def _own(seed: int, data_root: str | None) -> dict[str, object]:
    return {"seed": seed, "data_root": data_root}
