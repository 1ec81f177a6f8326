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
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, TypeVar, cast

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
from anp_vs.recipes import MEASURED, Recipe
from anp_vs.storage import write_atomically
from anp_vs.training.loop import Trainer

logger = logging.getLogger(__name__)

SMALL_MACS = 20_000_000
"""On a CPU networks below this (LeNet has 2.3 million) gain nothing from either choice; they are not measured."""
WORTH = 1.15
"""How many times faster another way has to be to replace the plain one, so that noise does not choose."""
STEPS = 3
LONG = 1800
"""Seconds that the attacks of a run must take for the minute to be worth it that compiling takes."""
USUAL_SPARSITY = 75.0
"""Percent of the units taken to be gone once the gates are fixed, where the recipe names no target."""
Way = tuple[str, str]
Key = TypeVar("Key", bound=Hashable)
PLAIN: Way = ("float32", "channels-last")
TWIN: Way = ("twin", "as it is")
COMPILED: Way = ("twin", "compiled")


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
    if all(getattr(recipe, name) != "auto" for name in MEASURED):
        return recipe, None
    network = build(recipe.network, len(dataset.classes))
    take_images(network, dataset.train.shape)
    if start is not None:
        recipe.method.begin(network, start)  # which may have been pruned
    if fabric.device.type == "cpu" and macs(network, example_for(network)[:1]) < SMALL_MACS:
        plain: dict[str, Any] = {"precision": PLAIN[0], "layout": PLAIN[1], "compilation": "off"}
        return replace(recipe, **{name: plain[name] for name in MEASURED if getattr(recipe, name) == "auto"}), None
    recipe, told = _way(recipe, dataset, fabric, start)
    recipe, compilation = _compilation(recipe, network, len(dataset.train), fabric)
    return recipe, "; ".join(filter(None, (told, compilation))) or None


def _way(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None
) -> tuple[Recipe, str | None]:
    """With the fastest precision and layout."""
    if "auto" not in (recipe.precision, recipe.layout):
        return recipe, None
    precisions = ["float32", "bfloat16"] if recipe.precision == "auto" else [recipe.precision]
    layouts = ["channels-last", "contiguous"] if recipe.layout == "auto" else [recipe.layout]
    if len(precisions) > 1 and not _bfloat16_is_faster(fabric.device):
        precisions.remove("bfloat16")
    # What the first process found is what all do: else one would take trial steps that another does not join.
    ways: list[Way] = fabric.broadcast(list(product(precisions, layouts)))
    if len(ways) == 1:
        return _set(recipe, ways[0]), None
    size = str(sum(value.numel() for value in start.values())) if start else ""
    kept = _cache_file(recipe, fabric, size, str(dataset.train.shape), recipe.protocol)
    seconds: dict[Way, float] | None = fabric.broadcast(_read(kept, ways))
    if seconds is None:
        seconds = _measure(recipe, dataset, fabric, start, ways)
        _write(kept, seconds)
    best = fabric.broadcast(_clearly_fastest(seconds, ways))
    listed = ", ".join(f"{way[0]} {way[1]} {value:.2f} s" for way, value in seconds.items())
    return _set(recipe, best), f"training in {best[0]}, {best[1]} (a step takes: {listed})"


def _clearly_fastest(seconds: Mapping[Way, float], ways: list[Way]) -> Way:
    """The fastest; but the first, unless another is faster by the factor `WORTH`."""
    return min(ways, key=lambda way: seconds[way] * (1 if way == ways[0] else WORTH))


def _compilation(recipe: Recipe, network: nn.Module, images: int, fabric: Fabric) -> tuple[Recipe, str | None]:
    """With the attack compiled or not, as the first process measures; the network is used up."""
    if recipe.compilation != "auto":
        return recipe, None
    method, settles = recipe.method, 1.0 if not recipe.method.gated else 1 - recipe.decide_at
    steps = settles * recipe.epochs * (images // recipe.batch_size) * recipe.attack.steps
    told, seconds = None, None
    if fabric.is_global_zero and steps and method.adversarial and not method.random:
        stays = 1 - (recipe.target_sparsity or USUAL_SPARSITY) / 100 if method.gated else 1.0
        shape = f"{getattr(network, 'input_shape', None)} {sum(p.numel() for p in network.parameters())}"
        kept = _cache_file(recipe, fabric, recipe.precision, recipe.layout, shape, f"{stays}")
        seconds = _read(kept, [TWIN, COMPILED])
        if seconds is None:
            try:
                seconds = _time_compiled(recipe, network.to(fabric.device), stays, steps, fabric.world_size)
            except RunError as error:
                told = f"the attack is not compiled: {error}"
            if seconds is not None:
                _write(kept, seconds)
        if seconds is not None and seconds[TWIN] * steps < LONG:
            seconds = None  # known from a longer run
    on = seconds is not None and _clearly_fastest(seconds, [TWIN, COMPILED]) == COMPILED
    if seconds is not None:
        told = f"a step of the attack takes {seconds[TWIN]:.3f} s, compiled {seconds[COMPILED]:.3f} s"
    on, told = fabric.broadcast((on, told))
    return replace(recipe, compilation="on" if on else "off"), told


def _time_compiled(
    recipe: Recipe, network: nn.Module, stays: float, steps: float, processes: int
) -> dict[Way, float] | None:
    """Median seconds of the attack's gradient on the plain and on the compiled twin; None where it cannot pay.

    Args:
        recipe: with its precision and layout settled.
        network: as built; if the method has gates, all but the share `stays` of its units leave it.
        stays: in (0, 1].
        steps: of the attack that the run will take on a settled network.
        processes: that share a batch.
    """
    if recipe.method.gated:
        found = gates(insert_gates(network, residual=recipe.residual))
        shrink(network, {path: torch.arange(g.units) >= max(1, stays * g.units) for path, g in found.items()})
    example, precision = example_for(network), cast(Precision, recipe.precision)
    batch = example[:1].expand(max(1, recipe.batch_size // processes), -1, -1, -1).clone()
    labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
    twin = Twin(network, example, channels_last=recipe.layout != "contiguous", precision=precision)
    attacks = {TWIN: partial(input_gradient, twin.build(), batch, labels, ce)}
    if _in_turns(attacks, batch.device)[TWIN] * steps < LONG:
        return None
    compiled = Compiled().take(twin.build(own_kernels=False), batch, labels)
    return _in_turns(attacks | {COMPILED: partial(input_gradient, compiled, batch, labels, ce)}, batch.device)


def _in_turns(steps: Mapping[Key, Callable[[], object]], device: torch.device, turns: int = STEPS) -> dict[Key, float]:
    """Median seconds of each, after one turn to warm up."""
    seconds: dict[Key, list[float]] = {way: [] for way in steps}
    for turn in range(turns + 1):
        for way, step in steps.items():
            began = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[way].append(time.perf_counter() - began)
    return {way: statistics.median(values) for way, values in seconds.items()}


def _set(recipe: Recipe, way: Way) -> Recipe:
    return replace(recipe, precision=way[0], layout=way[1])  # type: ignore[arg-type]


def _measure(
    recipe: Recipe, dataset: Dataset, fabric: Fabric, start: Mapping[str, Tensor] | None, ways: list[Way]
) -> dict[Way, float]:
    """Median seconds of a training step each way, taken in turns."""
    short = replace(
        recipe, attack=replace(recipe.attack, steps=min(recipe.attack.steps, 2)), eps_warmup=0.0, compilation="off",
        teacher=None, generated=None,
    )  # fmt: skip
    trainers = {way: Trainer(_set(short, way), dataset, fabric, dict(start) if start else None) for way in ways}
    return _in_turns({way: trainer.advance for way, trainer in trainers.items()}, fabric.device)


def _bfloat16_is_faster(device: torch.device) -> bool:
    """Whether a matrix product is; where it is not, whole steps need not be tried, which could take minutes."""
    size = 512 if device.type == "cpu" else 4096  # a GPU would be asked how fast it is given work
    matrices = {precision: torch.ones(size, size, device=device, dtype=dtype) for precision, dtype in TYPES.items()}
    seconds = _in_turns({name: partial(torch.matmul, m, m) for name, m in matrices.items()}, device, 5)
    return seconds["bfloat16"] < seconds["float32"]


def _cache_file(recipe: Recipe, fabric: Fabric, *more: str) -> Path:
    facts = [
        hardware(), str(fabric.device), torch.__version__, str(torch.get_num_threads()), str(fabric.world_size),
        recipe.network, recipe.method.name, str(recipe.batch_size), *more,
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
