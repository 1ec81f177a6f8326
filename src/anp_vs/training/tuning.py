"""Which precision and memory layout train fastest here, and whether compiling pays: measured at the start.

bfloat16 is ten times faster than float32 on one CPU and twenty times slower on the next, so nothing is assumed.
Precision and layout are measured on training steps. Compiling is measured on the attacked network alone, in the
shape it will have once its gates are fixed, and only where the attack will take so long that a minute is worth it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import pooch
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs.attacks.losses import ce
from anp_vs.attacks.prediction import input_gradient
from anp_vs.data import Dataset
from anp_vs.errors import RunError
from anp_vs.evaluation.cost import macs
from anp_vs.networks import build
from anp_vs.networks.images import take_images
from anp_vs.provenance import hardware
from anp_vs.pruning.compiled import Compiled
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.precision import TYPES, Precision
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.twin import Twin
from anp_vs.recipes import Recipe
from anp_vs.storage import write_atomically
from anp_vs.training.loop import Trainer

logger = logging.getLogger(__name__)

SMALL_MACS = 20_000_000
"""Networks below this (LeNet has 2.3 million) gain nothing from either choice; they are not measured."""
WORTH = 1.15
"""How many times faster another way has to be to replace the plain one, so that noise does not choose."""
STEPS = 3
LONG = 1800
"""Seconds that the attacks of a run must take for the minute to be worth it that compiling takes."""
USUAL_SPARSITY = 75.0
"""Percent of the units taken to be gone once the gates are fixed, where the recipe names no target."""
Way = tuple[str, str]


def settle(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None
) -> tuple[Recipe, str | None]:
    """The recipe with `auto` replaced by the fastest precision, layout and compilation, and what was measured, in words.

    Args:
        recipe: as asked.
        dataset: its data; a few steps are taken on them and thrown away.
        fabric: device and processes; the first process decides for all.
        start: weights that training begins with.
    """
    recipe, told = _way(recipe, dataset, fabric, start)
    recipe, compilation = _compilation(recipe, dataset, fabric)
    return recipe, "; ".join(filter(None, (told, compilation))) or None


def _way(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None
) -> tuple[Recipe, str | None]:
    if "auto" not in (recipe.precision, recipe.layout):
        return recipe, None
    precisions: list[Precision] = ["float32", "bfloat16"] if recipe.precision == "auto" else [recipe.precision]
    layouts = ["channels-last", "contiguous"] if recipe.layout == "auto" else [recipe.layout]
    if _is_small(_network(recipe, dataset)):
        return _set(recipe, (precisions[0], layouts[0])), None
    if len(precisions) > 1 and not _bfloat16_is_faster(fabric.device):
        precisions.remove("bfloat16")
    # What the first process found is what all do: else one would take trial steps that another does not join.
    ways: list[Way] = fabric.broadcast(list(product(precisions, layouts)))
    if len(ways) == 1:
        return _set(recipe, ways[0]), None
    kept = _cache_file(recipe, fabric)
    seconds: dict[Way, float] | None = fabric.broadcast(_read(kept, ways))
    if seconds is None:
        seconds = _measure(recipe, dataset, fabric, start, ways)
        _write(kept, seconds)
    best = fabric.broadcast(_clearly_fastest(seconds, ways))
    listed = ", ".join(f"{way[0]} {way[1]} {value:.2f} s" for way, value in seconds.items())
    return _set(recipe, best), f"training in {best[0]}, {best[1]} (a step takes: {listed})"


def _network(recipe: Recipe, dataset: Dataset) -> nn.Module:
    network = build(recipe.network, len(dataset.classes))
    take_images(network, dataset.train.shape)
    return network


def _is_small(network: nn.Module) -> bool:
    return macs(network, example_for(network)[:1]) < SMALL_MACS


def _clearly_fastest(seconds: Mapping[Way, float], ways: list[Way]) -> Way:
    """The fastest, if not the first is about as fast."""
    return min(ways, key=lambda way: seconds[way] * (1 if way == ways[0] else WORTH))


def _compilation(recipe: Recipe, dataset: Dataset, fabric: Fabric) -> tuple[Recipe, str | None]:
    """`auto` replaced by what the first process measures; the trial networks are thrown away."""
    if recipe.compilation != "auto":
        return recipe, None
    ways: list[Way] = [("attack", "plain"), ("attack", "compiled")]
    settles = not recipe.method.gated or recipe.decide_at < 1 or recipe.target_sparsity is not None
    told, seconds, kept = None, None, _cache_file(recipe, fabric)
    if fabric.is_global_zero and settles and recipe.method.adversarial and not recipe.method.random:
        seconds = _read(kept := kept.with_suffix(f".{recipe.precision}.json"), ways)
        if seconds is None and not _is_small(network := _network(recipe, dataset)):
            try:
                seconds = _time_compiled(recipe, network.to(fabric.device), len(dataset.train), fabric.world_size)
            except RunError as error:
                told = f"the attack is not compiled ({error})"
            if seconds is not None:
                _write(kept, seconds)
        if seconds is not None:
            told = f"an attack step takes {seconds[ways[0]]:.3f} s, compiled {seconds[ways[1]]:.3f} s"
    on = seconds is not None and _clearly_fastest(seconds, ways) == ways[1]
    on, told = fabric.broadcast((on, told))
    return replace(recipe, compilation="on" if on else "off"), told


def _time_compiled(recipe: Recipe, network: nn.Module, images: int, processes: int) -> dict[Way, float] | None:
    """Median seconds of the attack's gradient on the plain and on the compiled twin; None where it cannot pay."""
    if recipe.method.gated:
        stays = 1 - (recipe.target_sparsity or USUAL_SPARSITY) / 100
        found = gates(insert_gates(network))
        shrink(network, {path: torch.arange(g.units) >= max(1, stays * g.units) for path, g in found.items()})
    example = example_for(network)
    batch = example[:1].expand(max(1, recipe.batch_size // processes), -1, -1, -1).clone()
    labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
    twin = Twin(network, example, channels_last=recipe.layout != "contiguous", precision=_precision(recipe))
    contestants = {("attack", "plain"): twin.build()}
    gradients = recipe.attack.steps * recipe.epochs * images // recipe.batch_size
    seconds = _in_turns(
        {way: partial(input_gradient, n, batch, labels, ce) for way, n in contestants.items()}, batch.device
    )
    if seconds[("attack", "plain")] * gradients < LONG:
        return None
    contestants[("attack", "compiled")] = Compiled().take(twin.build(own_kernels=False), batch, labels)
    return _in_turns(
        {way: partial(input_gradient, n, batch, labels, ce) for way, n in contestants.items()}, batch.device
    )


def _in_turns(steps: Mapping[Way, Callable[[], object]], device: torch.device) -> dict[Way, float]:
    """Median seconds of each, after one turn to warm up."""
    seconds: dict[Way, list[float]] = {way: [] for way in steps}
    for turn in range(STEPS + 1):
        for way, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[way].append(time.perf_counter() - began)
    return {way: statistics.median(values) for way, values in seconds.items()}


def _precision(recipe: Recipe) -> Precision:
    return "bfloat16" if recipe.precision == "bfloat16" else "float32"


def _set(recipe: Recipe, way: Way) -> Recipe:
    return replace(recipe, precision=way[0], layout=way[1])  # type: ignore[arg-type]


def _measure(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None, ways: list[Way]
) -> dict[Way, float]:
    """Median seconds of a training step each way, taken in turns."""
    short = replace(recipe, attack=replace(recipe.attack, steps=min(recipe.attack.steps, 2)), eps_warmup=0.0)
    trainers = {way: Trainer(_set(short, way), dataset, fabric, dict(start) if start else None) for way in ways}
    return _in_turns({way: trainer.advance for way, trainer in trainers.items()}, fabric.device)


def _bfloat16_is_faster(device: torch.device, size: int = 512) -> bool:
    """Whether a matrix product is; where it is not, whole steps need not be tried, which could take minutes."""
    medians = []
    for dtype in TYPES.values():
        matrix, times = torch.ones(size, size, device=device, dtype=dtype), []
        for _ in range(5):
            began = time.perf_counter()
            torch.matmul(matrix, matrix)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - began)
        medians.append(statistics.median(times))
    return medians[1] < medians[0]


def _cache_file(recipe: Recipe, fabric: Fabric) -> Path:
    facts = [
        hardware(), str(fabric.device), torch.__version__, str(torch.get_num_threads()), str(fabric.world_size),
        recipe.network, recipe.method.name, str(recipe.batch_size),
    ]  # fmt: skip
    name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:32]
    return Path(pooch.os_cache("anp-vs")) / "fastest" / f"{name}.json"


def _write(path: Path, seconds: Mapping[Way, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps([[*way, value] for way, value in seconds.items()]).encode())
    except (OSError, RunError):
        logger.debug("%s could not be written; it is measured again next time.", path)


def _read(path: Path, ways: list[Way]) -> dict[Way, float] | None:
    """What was measured here before, or None."""
    try:
        known = {(str(p), str(m)): float(value) for p, m, value in json.loads(path.read_bytes()[:10_000])}
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return {way: known[way] for way in ways} if set(ways) <= set(known) else None
