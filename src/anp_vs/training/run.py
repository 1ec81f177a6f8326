"""Train a recipe into a run directory: start, stop, resume, finish."""

from __future__ import annotations

import copy
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs import recipes, serialization
from anp_vs.data import Dataset
from anp_vs.data import load as load_data
from anp_vs.errors import InputError, RunError
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates, sparsity_percent
from anp_vs.recipes import Recipe
from anp_vs.training import checkpoint
from anp_vs.training.loop import Trainer
from anp_vs.training.progress import Display
from anp_vs.training.run_directory import MetricsLog, RunDirectory, root_of
from anp_vs.training.watch import Watch, check_finite

logger = logging.getLogger(__name__)

LOG_EVERY = 50
CHECKPOINT_SECONDS = 60.0


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        network: the trained network in evaluation mode, with its gates if the method has them.
        path: its directory.
        metrics: the last validation figures (accuracies and sparsity in percent) and the training's seconds.
    """

    network: nn.Module
    path: Path
    metrics: dict[str, float]


def train(recipe: str | Path | Recipe, *, out: Path | None = None, device: str = "auto", quiet: bool = False,
          **overrides: Any) -> Run:  # fmt: skip
    """Train a recipe, or go on where a stopped training of it left off; a finished run is loaded.

    A recipe that starts from another one trains that first, in its own directory beside it.

    Args:
        recipe: name of a recipe, YAML file, run directory, or a `Recipe`.
        out: run directory; by default runs/RECIPE/seedN.
        device: auto, cpu, or cuda.
        quiet: show no progress.
        overrides: fields of the recipe to change; `method` and the attacks take a mapping of their fields.

    Raises:
        InputError: a value is outside what is accepted.
        RunError: the directory belongs to another recipe, is in use, or cannot be written; or the loss diverged.
        Stopped: a signal asked to stop; everything is saved.
    """
    chosen = recipes.find(recipe)
    named = not isinstance(recipe, Recipe) and str(recipe) not in recipes.RECIPES
    if out is None and named and Path(str(recipe)).is_dir():
        out = Path(str(recipe))
    if overrides:
        chosen = recipes.override(chosen, overrides)
    fabric = _fabric(device)
    run = RunDirectory(out or RunDirectory.default(chosen))
    with run:
        run.check(chosen)
        if not run.finished:
            _train(chosen, run, fabric, device, quiet)
        try:
            network = serialization.load(run.network)
        except RunError as error:
            if not run.checkpoint.exists():
                raise
            logger.warning("%s It is made again from the last checkpoint.", error)
            _train(chosen, run, fabric, device, quiet)
            network = serialization.load(run.network)
    lines = MetricsLog.read(run.metrics)
    none: dict[str, Any] = {}
    validated = next((line for line in reversed(lines) if "clean_accuracy" in line), none)
    return Run(network, run.path, {k: v for k, v in validated.items() if isinstance(v, int | float)})


class Stopped(RunError):
    """A signal asked the run to stop; it has saved its state and can be resumed."""


def _fabric(device: str) -> Fabric:
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device is {device!r}; choose auto, cpu or cuda.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("A GPU was asked for (device cuda), but PyTorch finds none here. Use device cpu or auto.")
    use = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    return Fabric(accelerator=use, devices=1)


def _start(recipe: Recipe, root: Path, device: str, quiet: bool) -> dict[str, Tensor] | None:
    """The weights a recipe begins with; trains them first when they are another recipe's."""
    if recipe.start is None:
        return None
    place = Path(recipe.start)
    if recipe.start in recipes.RECIPES:
        before = recipes.RECIPES[recipe.start]
        handed_on: dict[str, Any] = {
            "seed": recipe.seed, "data_root": recipe.data_root, "validation": recipe.validation
        }  # fmt: skip
        usual = recipes.RECIPES.get(recipe.name, recipe)
        own = [name for name in ("data", "network", "pictures") if getattr(recipe, name) != getattr(usual, name)]
        if own:  # then what it starts from is trained on the same, in a place of its own
            handed_on |= {name: getattr(recipe, name) for name in (*own, "batch_size")}
            handed_on["name"] = f"{recipe.name}-start"
        before = recipes.override(before, handed_on)
        place = RunDirectory.default(before, root)
        train(before, out=place, device=device, quiet=quiet)
    network = serialization.locate(place / "network.safetensors" if place.is_dir() else place)
    return serialization.read_tensors(network, serialization.read_card(network))


def _train(recipe: Recipe, run: RunDirectory, fabric: Fabric, device: str, quiet: bool) -> None:
    state, problem = checkpoint.read_latest(run.checkpoint)
    if problem:
        logger.warning("%s The previous checkpoint is used instead.", problem)
    dataset = load_data(recipe.data, recipe.data_root, validation=recipe.validation, pictures=recipe.pictures)
    start = _start(recipe, root_of(run.path, recipe), device, quiet) if state is None else None
    trainer, watch = Trainer(recipe, dataset, fabric, start), Watch()
    position, owed = 0, False
    if state is not None:
        try:
            trainer.load_state(state)
            watch.load_state_dict(state["watch"])
            position, owed = int(state["metrics_position"]), bool(state["owed"])
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise RunError(
                f"{run.checkpoint} does not belong to this recipe or to this version of anp-vs ({type(error).__name__}: "
                f"{error}). Move the run directory away and train again."
            ) from error
    run.claim(recipe)
    with closing(MetricsLog(run.metrics, position)) as metrics, _board(run.path, trainer.step) as board, \
            _signals() as asked, Display(recipe, trainer, quiet=quiet) as display:  # fmt: skip
        saved_at = time.monotonic()

        def keep(owed: bool = False) -> None:
            nonlocal saved_at
            check_finite(trainer.network, trainer.step)
            own = {"watch": watch.state_dict(), "owed": owed, "metrics_position": metrics.position()}
            checkpoint.save(run.checkpoint, trainer.state() | own)
            board.flush()
            saved_at = time.monotonic()

        def say(message: str) -> None:
            display.say(message)
            metrics.write(step=trainer.step, epoch=epoch, message=message)

        # `owed`: a signal came during the validation of the step that was saved; it is made up for first.
        while trainer.step < trainer.total_steps or owed:
            report = None if owed else trainer.advance()
            epoch = (trainer.step - 1) // trainer.steps_per_epoch
            end_of_epoch = trainer.step % trainer.steps_per_epoch == 0
            if report is not None and report.message:
                say(report.message)
            validated = trainer.validate(asked.is_set) if end_of_epoch else {}
            owed = validated is None
            line: dict[str, Any] = {}
            if not owed and (trainer.step % LOG_EVERY == 0 or end_of_epoch):
                line = trainer.take_means() | (validated or {})
                metrics.write(step=trainer.step, epoch=epoch, **line)
                for name, value in line.items():
                    board.add_scalar(name, value, trainer.step)
                for message in watch.look(trainer.network, line):
                    say(message)
            display.update(line)
            if asked.is_set() or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                keep(owed)
            if asked.is_set():
                raise Stopped(
                    f"Stopped at step {trainer.step} of {trainer.total_steps}; everything is saved. "
                    f"Go on with: anp-vs train {run.path}"
                )
        keep()
    _finish(recipe, run, dataset, trainer)


@contextmanager
def _board(path: Path, step: int) -> Iterator[Any]:
    """TensorBoard's log, from which a resumed run takes back what was written after its checkpoint."""
    from torch.utils.tensorboard import SummaryWriter  # slow to import, needed only while training

    try:
        board = SummaryWriter(str(path / "tensorboard"), purge_step=step + 1 if step else None)
        try:
            yield board
        finally:
            board.close()
    except OSError as error:
        raise RunError(
            f"{path} could not be written ({error.strerror or error}). The last checkpoint is intact; free space or make "
            f"the folder writable, then run the same command again."
        ) from error


def _finish(recipe: Recipe, run: RunDirectory, dataset: Dataset, trainer: Trainer) -> None:
    """Save the trained network, and the compact one beside it."""
    network = trainer.evaluation_network().cpu()
    facts: dict[str, Any] = {
        "classes": list(dataset.classes),
        "data": recipe.data,
        "threat_model": {"norm": "inf", "eps": recipe.test_attack.eps, "space": "pixels in [0, 1]"},
        "recipe": recipes.to_dict(recipe),
        "seed": recipe.seed,
        "train_seconds": round(trainer.seconds, 1),
    }
    if gates(network):
        facts["sparsity_percent"] = sparsity_percent(network)
        small = compact(copy.deepcopy(network))
        serialization.save(small, run.compact, **facts)
    serialization.save(network, run.network, **facts)


@contextmanager
def _signals() -> Iterator[threading.Event]:
    """While open, SIGINT, SIGTERM and SIGUSR1 set an event instead of ending the process in the middle."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {}
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        number = getattr(signal, name, None)
        if number is not None:
            before[number] = signal.signal(number, lambda *_: asked.set())
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
