"""Train a recipe into a run directory: start, stop, resume, finish."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs import recipes, serialization
from anp_vs.data import Dataset, to_float
from anp_vs.data import load as load_data
from anp_vs.data.generated import load_generated
from anp_vs.device import choose
from anp_vs.errors import InputError, RunError, Stopped
from anp_vs.methods import METHODS
from anp_vs.provenance import proposed
from anp_vs.recipes import MEASURED, Recipe
from anp_vs.signals import stop_asked
from anp_vs.training import checkpoint
from anp_vs.training.finish import save_network
from anp_vs.training.loop import Trainer
from anp_vs.training.network import fresh_network
from anp_vs.training.parallel import Share, together
from anp_vs.training.progress import Display
from anp_vs.training.run_directory import MetricsLog, RunDirectory, root_of, tensorboard
from anp_vs.training.tuning import settle
from anp_vs.training.watch import Trouble, Watch, check_finite

logger = logging.getLogger(__name__)

LOG_EVERY = 50
CHECKPOINT_SECONDS = 60.0
STEPS_BACK = 3
"""How often a run steps back from trouble before it stops."""
WATCHED_IMAGES = 125


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        network: the trained network in evaluation mode, with its gates if the method has them.
        path: its directory.
        metrics: the last figures of its training, accuracies and sparsity in percent; those of validation are
            `clean_accuracy` and `robust_accuracy`, absent where no images were held out.
    """

    network: nn.Module
    path: Path
    metrics: dict[str, float]


def train(recipe: str | Path | Recipe, *, out: Path | None = None, device: str = "auto", devices: int = 1,
          nodes: int = 1, quiet: bool = False, **overrides: Any) -> Run:  # fmt: skip
    """Train a recipe, or go on where a stopped training of it left off; a finished run is loaded.

    A recipe that starts or learns from another one trains that first, in its own directory beside it.

    Args:
        recipe: name of a recipe, YAML file, run directory, or a `Recipe`.
        out: run directory; by default runs/RECIPE/seedN.
        device: auto, cpu, or cuda.
        devices: processes on this machine (on a GPU machine one for each GPU), which share every batch. More
            than one starts the calling script again for each of the others.
        nodes: machines; with more than one, start the same script on each with torchrun.
        quiet: show no progress.
        overrides: fields of the recipe to change; `method` and the attacks take a mapping of their fields.

    Raises:
        InputError: a value is outside what is accepted.
        DataError: a data file is missing or damaged.
        RunError: the directory belongs to another recipe, is in use, or cannot be written.
        Trouble: the numbers went wrong, and the recipe says to stop or there is nothing else to do.
        Stopped: a signal asked to stop; everything is saved.
    """
    chosen = recipes.find(recipe)
    named = not isinstance(recipe, Recipe) and str(recipe) not in recipes.RECIPES
    if out is None and named and Path(str(recipe)).is_dir():
        out = Path(str(recipe))
    chosen = recipes.override(chosen, overrides)  # without any, too: it looks at every value of a `Recipe`
    # These are looked for again whenever the run goes on, perhaps from another folder.
    given = {name: getattr(chosen, name) for name in ("teacher", "generated", "black_box")}
    whole: dict[str, Any] = {
        name: str(Path(place).resolve())
        for name, place in given.items()
        if place not in (None, *recipes.RECIPES) and os.path.exists(place)  # noqa: PTH110  # False for a name too long
    }
    chosen = dataclasses.replace(chosen, **whole)
    return _trained(chosen, out or RunDirectory.default(chosen), _fabric(device, devices, nodes), quiet)


def _trained(chosen: Recipe, out: Path, fabric: Fabric, quiet: bool) -> Run:
    run, network = RunDirectory(out), None
    if run.finished:  # it is only read, which others may do at the same time
        run.check(chosen)
        try:
            network = serialization.load(run.network)
        except RunError as error:
            if not run.checkpoint.exists() or fabric.world_size > 1:
                raise
            logger.warning("%s It is made again from the last checkpoint.", error)
    if network is None:
        # Of several processes the first one reads, writes and shows; the others only compute.
        with run if fabric.is_global_zero else nullcontext(), together(Share(fabric)):
            run.check(chosen)
            _train(chosen, run, fabric, quiet)
            network = serialization.load(run.network)
    lines = MetricsLog.read(run.metrics)
    none: dict[str, Any] = {}
    last = next((line for line in reversed(lines) if "message" not in line), none)
    return Run(network, run.path, {k: v for k, v in last.items() if isinstance(v, int | float)})


def _fabric(device: str, devices: int, nodes: int) -> Fabric:
    use = choose(device).type
    if devices < 1 or nodes < 1:
        raise InputError(f"devices is {devices} and nodes {nodes}; both must be at least 1.")
    if use == "cuda" and devices > torch.cuda.device_count():
        raise InputError(f"{devices} devices were asked for; there are {torch.cuda.device_count()} GPUs here.")
    several = devices * nodes > 1
    fabric = Fabric(accelerator=use, devices=devices, num_nodes=nodes, strategy="ddp" if several else "auto")
    if several:
        fabric.launch()
    return fabric


def _start(recipe: Recipe, root: Path, fabric: Fabric, quiet: bool) -> tuple[dict[str, Tensor] | None, dict[str, Any]]:
    """The weights a recipe begins with, and their card; trains them first when they are another recipe's."""
    network = _needed(recipe, "start", root, fabric, quiet)
    card = serialization.read_card(network) if network else {}
    if recipe.method.transfers:
        trained: Mapping[str, Any] = card.get("recipe") or {}
        by = METHODS.get(trained.get("method", {}).get("name"))  # None: a network of one's own, which does not tell
        if network is None or (by is not None and not by.adversarial):
            found = (
                "there is no start" if network is None else f"{recipe.start} was trained by {trained['method']['name']}"
            )
            raise InputError(
                f"{recipe.name} fine-tunes a network that was trained on attacks, since their robustness is what moves to "
                f"the new task, and {found}. Give --start with the recipe or run of one, such as mnist-cpu/pretraining."
            )
    return serialization.read_tensors(network, card) if network else None, card


def _needed(recipe: Recipe, field: Literal["start", "teacher"], root: Path, fabric: Fabric, quiet: bool) -> Path | None:
    """The file of a network that a recipe asks for by path or, trained here if it is not yet, by recipe."""
    if getattr(recipe, field) is None:
        return None
    place = Path(getattr(recipe, field))
    if before := recipes.prerequisite(recipe, field):
        place = RunDirectory.default(before, root)
        _trained(before, place, fabric, quiet)
    whole = place / "network.safetensors"
    # A teacher was always the whole network; what moves to another task moves whole. Else what was pruned stays small.
    if whole.exists() and (field == "teacher" or recipe.method.transfers):
        return whole
    return serialization.locate(place)


def _train(recipe: Recipe, run: RunDirectory, fabric: Fabric, quiet: bool) -> None:
    """Train to the end; from trouble, step back if the recipe says so."""
    while True:
        try:
            _train_on(recipe, run, fabric, quiet)
            return
        except Trouble as trouble:
            if recipe.on_trouble != "step-back":
                raise Trouble(
                    f"{trouble} The last checkpoint is intact. To go on from it in another way: "
                    f"{proposed(f'train {run.path} --on-trouble step-back')} (or continue)."
                ) from trouble
            if fabric.is_global_zero:
                _step_back(run, trouble)
            fabric.barrier()


def _step_back(run: RunDirectory, trouble: Trouble) -> None:
    """Let the last good epoch be the newest checkpoint, with half the learning rates.

    Raises:
        Trouble: this has been done often enough.
    """
    (state, _), (newest, _) = checkpoint.read_latest(run.good), checkpoint.read_latest(run.checkpoint)
    if state is None:
        raise trouble
    # The good epoch may be from before an earlier step back.
    state["eased"] = min(state["eased"], newest["eased"] if newest else 1.0) / 2
    if state["eased"] < 0.5**STEPS_BACK:
        raise Trouble(f"{trouble} Stepping back {STEPS_BACK} times did not help.") from trouble
    share = round(1 / state["eased"])
    state["said"] = f"{trouble} Stepped back to step {state['step']}; learning rates are now 1/{share} of the recipe's."
    checkpoint.save(run.checkpoint, state)


@dataclass(frozen=True)
class _Work:
    """A trainer at the point where its run stands.

    Attributes:
        recipe: with how to compute settled.
        dataset: of it.
        trainer: ready for the next step.
        watch: that has seen what came before.
        begins: whether no checkpoint was there.
        carried: what every checkpoint repeats: the teacher's checksum, other data seen, the stages before.
        position: bytes of the metrics that the checkpoint answers for.
        owed: a signal came during the validation of the step that was saved; it is made up for first.
        said: what there is to tell first.
    """

    recipe: Recipe
    dataset: Dataset
    trainer: Trainer
    watch: Watch
    begins: bool
    carried: dict[str, Any]
    position: int
    owed: bool
    said: list[str]


def _taken_up(recipe: Recipe, run: RunDirectory, fabric: Fabric, quiet: bool) -> _Work:
    """The work of a run from its last checkpoint on, or from the start."""
    state, problem = checkpoint.read_latest(run.checkpoint)
    if problem:
        logger.warning("%s The previous checkpoint is used instead.", problem)
    with fabric.rank_zero_first():  # a data set that has to be downloaded is downloaded once
        dataset = load_data(recipe.data, recipe.data_root, validation=recipe.validation, pictures=recipe.pictures)
    data = _identity(dataset)
    if state is not None and state.get("data", data) != data:
        raise RunError(
            f"The training images of {recipe.data} are not those that {run.path} began with ({data} now, {state['data']} then). "
            f"Put those back, or train into another directory with --out."
        )
    fresh_network(recipe, dataset)  # looked at, like what follows, before anything else is trained
    generated = None
    if recipe.generated is not None:
        generated = load_generated(recipe.generated, dataset.train.shape, len(dataset.classes))
    root = root_of(run.path, recipe)
    taught = _needed(recipe, "teacher", root, fabric, quiet)
    teacher = serialization.load(taught) if taught else None
    learned = serialization.card_of(teacher) if teacher is not None else {}
    lesson = learned.get("sha256")
    if state is not None and state.get("teacher") != lesson:
        raise RunError(
            f"The teacher {taught} is not the network that {run.path} began to learn from. Put that one back, or train "
            f"into another directory with --out."
        )
    start, before = _start(recipe, root, fabric, quiet) if state is None else (None, {})
    # What the network it starts from, or its teacher, has seen of other data is behind this one too.
    seen = recipe.extra_data, before.get("extra_data"), learned.get("extra_data")
    carried = {
        "data": data,
        "teacher": lesson,
        "extra_data": str(state.get("extra_data", "") if state else next(filter(None, seen), "")),
        "stages": state.get("stages") if state else _stages(before),
    }
    said = []
    if run.recipe_file.exists():  # how to compute was settled when the run began
        held = run.read_recipe()
        kept = {name: getattr(held, name) for name in MEASURED if name != "compilation" or recipe.compilation == "auto"}
        recipe = dataclasses.replace(recipe, **kept)
    else:
        recipe, told = settle(recipe, dataset, fabric, start)
        said = [told] if told else []
    trainer, watch = Trainer(recipe, dataset, fabric, start, teacher, generated), Watch()
    if trainer.reinitialised:
        said += [f"{', '.join(trainer.reinitialised)}: fresh values; all else is of the network it starts from"]
    if state is None and not len(dataset.validation):
        said += [
            "no images are held out for validation, so that nothing warns of overfitting; see the field validation"
        ]
    if state is None:
        return _Work(recipe, dataset, trainer, watch, True, carried, 0, False, said)
    try:
        trainer.load_state(state)
        watch.load_state_dict(state["watch"])
        said += [state["said"]] if state["said"] else []
        position, owed = int(state["metrics_position"]), bool(state["owed"])
    except torch.OutOfMemoryError:
        raise  # the checkpoint is sound, the GPU is full
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"{run.checkpoint} does not belong to this recipe or to this version of anp-vs ({type(error).__name__}: "
            f"{error}). Move the run directory away and train again."
        ) from error
    return _Work(recipe, dataset, trainer, watch, False, carried, position, owed, said)


def _train_on(recipe: Recipe, run: RunDirectory, fabric: Fabric, quiet: bool) -> None:
    """Train from the last checkpoint."""
    work, first = _taken_up(recipe, run, fabric, quiet), fabric.is_global_zero
    recipe, trainer, owed = work.recipe, work.trainer, work.owed
    if first:
        run.claim(recipe)
    place = nullcontext(run.path) if first else TemporaryDirectory()
    with place as folder, closing(MetricsLog(Path(folder) / run.metrics.name, work.position if first else 0)) as metrics, \
            tensorboard(Path(folder), trainer.step) as board, stop_asked() as asked, closing(trainer), \
            Display(recipe, trainer, quiet=quiet or not first) as display:  # fmt: skip
        saved_at = time.monotonic()

        def keep(owed: bool = False, place: Path = run.checkpoint) -> None:
            nonlocal saved_at
            check_finite(trainer.network, trainer.step)
            own = {"watch": work.watch.state_dict(), "owed": owed, "metrics_position": metrics.position(), "said": None}
            if first:
                checkpoint.save(place, trainer.state() | work.carried | own)
            board.flush()
            saved_at = time.monotonic()

        def stop() -> bool:
            return trainer.share.any(asked.is_set())

        def say(message: str) -> None:
            display.say(message)
            metrics.write(step=trainer.step, epoch=max(trainer.step - 1, 0) // trainer.steps_per_epoch, message=message)

        for message in work.said:
            say(message)
        # A run that trouble has stopped may be told only then to step back: it goes back to where it stands.
        if recipe.on_trouble == "step-back" and (work.begins or not run.good.exists()):
            keep(place=run.good)
        while trainer.step < trainer.total_steps or owed:
            told = None if owed else trainer.advance()
            epoch = (trainer.step - 1) // trainer.steps_per_epoch
            end_of_epoch = trainer.step % trainer.steps_per_epoch == 0
            if told:
                say(told)
            validated = trainer.validate(stop) if end_of_epoch else {}
            owed = validated is None
            line: dict[str, Any] = {}
            if not owed and (trainer.step % LOG_EVERY == 0 or end_of_epoch):
                line = trainer.take_means() | (validated or {})
                units = {"units": trainer.units_alive()} if end_of_epoch and trainer.method.gated else {}
                metrics.write(step=trainer.step, epoch=epoch, **line, **units)
                for name, value in line.items():
                    board.add_scalar(name, value, trainer.step)
                images = (
                    trainer.protocol.prepare(to_float(trainer.validation.head(WATCHED_IMAGES).images))
                    if end_of_epoch and len(trainer.validation)
                    else None
                )
                wrong = work.watch.look(trainer.network, line, images)
                for message in wrong:
                    say(message)
                if wrong and recipe.on_trouble != "continue":
                    raise Trouble(f"At step {trainer.step} of {trainer.total_steps}: {'; '.join(wrong)}.")
                if end_of_epoch and recipe.on_trouble == "step-back":
                    keep(place=run.good)
            display.update(line)
            stopping = stop()
            if stopping or time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                keep(owed)
            if stopping:
                raise Stopped(
                    f"Stopped at step {trainer.step} of {trainer.total_steps}; everything is saved. Give the same command "
                    f"again to go on; this network alone goes on with: {proposed(f'train {run.path}')}"
                )
        keep()
    if first:
        kept = {name: work.carried[name] for name in ("extra_data", "stages") if work.carried[name]}
        save_network(recipe, run, work.dataset.classes, trainer, kept)
    fabric.barrier()


def _stages(before: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trainings behind the network of a card, oldest first: what each was called and its epochs (None: unknown)."""
    if not before:
        return []
    recipe: Mapping[str, Any] = before.get("recipe") or {}
    return [*before.get("stages", ()), {"recipe": recipe.get("name"), "epochs": recipe.get("epochs")}]


def _identity(dataset: Dataset) -> str:
    """What tells a data set from one with other pictures: its classes, and how many training images have which label."""
    marked = zlib.crc32("/".join(dataset.classes).encode(), zlib.crc32(dataset.train.labels.numpy().tobytes()))
    return f"{len(dataset.train)} images of {len(dataset.classes)} classes, mark {marked:08x}"
