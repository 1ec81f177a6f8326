"""Which precision and memory layout train fastest here: measured at the start, on the steps that follow.

bfloat16 is ten times faster than float32 on one CPU and twenty times slower on the next, so nothing is assumed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import pooch
import torch
from lightning_fabric import Fabric
from torch import Tensor

from anp_vs.data import Dataset
from anp_vs.errors import RunError
from anp_vs.evaluation.cost import macs
from anp_vs.networks import build
from anp_vs.networks.images import take_images
from anp_vs.provenance import hardware
from anp_vs.pruning.graph import example_for
from anp_vs.pruning.precision import TYPES, Precision
from anp_vs.recipes import Recipe
from anp_vs.storage import write_atomically
from anp_vs.training.loop import Trainer

logger = logging.getLogger(__name__)

SMALL_MACS = 20_000_000
"""Networks below this (LeNet has 2.3 million) gain nothing from either choice; they are not measured."""
WORTH = 1.15
"""How many times faster another way has to be to replace the plain one, so that noise does not choose."""
STEPS = 3
Way = tuple[Precision, str]
PLAIN: Way = ("float32", "channels-last")


def settle(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None
) -> tuple[Recipe, str | None]:
    """The recipe with its `auto` precision and layout replaced by the fastest, and what was measured, in words.

    Args:
        recipe: as asked.
        dataset: its data; a few steps are taken on them and thrown away.
        fabric: device and processes; the first process decides for all.
        start: weights that training begins with.
    """
    if "auto" not in (recipe.precision, recipe.layout):
        return recipe, None
    precisions: list[Precision] = ["float32", "bfloat16"] if recipe.precision == "auto" else [recipe.precision]
    layouts = ["channels-last", "contiguous"] if recipe.layout == "auto" else [recipe.layout]
    network = build(recipe.network, len(dataset.classes))
    take_images(network, dataset.train.shape)
    if macs(network, example_for(network)[:1]) < SMALL_MACS:
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
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps([[*way, value] for way, value in seconds.items()]).encode())
        except (OSError, RunError):
            logger.debug("%s could not be written; it is measured again next time.", kept)
    best = min(ways, key=lambda way: seconds[way] * (1 if way == ways[0] else WORTH))
    best = fabric.broadcast(best)
    listed = ", ".join(f"{way[0]} {way[1]} {value:.2f} s" for way, value in seconds.items())
    return _set(recipe, best), f"training in {best[0]}, {best[1]} (a step takes: {listed})"


def _set(recipe: Recipe, way: Way) -> Recipe:
    return replace(recipe, precision=way[0], layout=way[1])  # type: ignore[arg-type]


def _measure(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None, ways: list[Way]
) -> dict[Way, float]:
    """Median seconds of a training step each way, taken in turns."""
    short = replace(recipe, attack=replace(recipe.attack, steps=min(recipe.attack.steps, 2)), eps_warmup=0.0)
    trainers = {way: Trainer(_set(short, way), dataset, fabric, dict(start) if start else None) for way in ways}
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    for turn in range(STEPS + 1):
        for way, trainer in trainers.items():
            began = time.perf_counter()
            trainer.advance()
            if fabric.device.type == "cuda":
                torch.cuda.synchronize(fabric.device)
            if turn:
                seconds[way].append(time.perf_counter() - began)
    return {way: statistics.median(values) for way, values in seconds.items()}


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


def _read(path: Path, ways: list[Way]) -> dict[Way, float] | None:
    """What was measured here before, or None."""
    try:
        known = {(str(p), str(m)): float(value) for p, m, value in json.loads(path.read_bytes()[:10_000])}
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return {way: known[way] for way in ways} if set(ways) <= set(known) else None
