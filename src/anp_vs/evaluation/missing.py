"""Measures what a report's figures lack, cheapest first, within a stated time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from anp_vs.errors import InputError
from anp_vs.evaluation import transfers
from anp_vs.evaluation.figure_files import DIAGNOSIS, diagnosis_of, keep, kept
from anp_vs.evaluation.figures import IMAGES, Exhibit, Measurement, measurements

SECONDS = 600.0
"""Time for all figures of all runs unless asked otherwise."""


def measure_missing(
    paths: Sequence[Path],
    *,
    images: int = IMAGES,
    seconds: float = SECONDS,
    data_root: str | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[str]:
    """Measure what is not there yet, or only for fewer images or another network, and keep it in the runs.

    What costs little is measured for every run before what costs much is for any: features first, then the
    transfer matrix, then the signs of masked gradients. Nothing is begun that is not expected to end in time.

    Args:
        paths: run directories, all finished.
        images: test images, the first ones, >= 1.
        seconds: time for all of it, >= 0.
        data_root: folder that holds the data sets; each recipe's own by default.
        tell: called with a line about what begins.

    Returns:
        A sentence for each thing that was left out, with the reason.

    Raises:
        InputError: a value is outside what is accepted.
        RunError: a run is not finished, or a file in it is damaged.
        DataError: a data set is not there.
    """
    if images < 1 or not seconds >= 0:
        raise InputError(f"images is {images} and seconds {seconds}; give at least one image and no negative time.")
    clock = _Clock(seconds)
    left_out: list[str] = []
    cheap = [m for m in measurements() if m.name != DIAGNOSIS]
    dear = [m for m in measurements() if m.name == DIAGNOSIS]
    for path in paths:
        left_out += _measure(path, cheap, images, data_root, clock, tell)
    for group in transfers.groups(paths):
        left_out += _transfers(group, images, data_root, clock, tell)
    for path in paths:
        left_out += _measure(path, dear, images, data_root, clock, tell)
    return left_out


class _Clock:
    """What is left of the time."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def refusal(self, what: str, needed: float) -> str | None:
        """Why something that needs so many seconds is not begun; None when it is."""
        left = max(0.0, self._end - time.monotonic())
        if needed <= left and left > 0:
            return None
        return f"{what} left out: it needs about {needed:.0f} s and {left:.0f} s are left; raise --seconds."


def _measure(
    path: Path, wanted: Sequence[Measurement], images: int, data_root: str | None, clock: _Clock,
    tell: Callable[[str], None],
) -> list[str]:  # fmt: skip
    lacking = [m for m in wanted if not _there(path, m.name, images)]
    if not lacking:
        return []
    exhibit = Exhibit(path, images, data_root)
    count = len(exhibit.labels)
    left_out = []
    for measurement in lacking:
        what = f"{path}: {measurement.name}"
        needed = measurement.gradients * count * exhibit.seconds_per_gradient
        if refusal := clock.refusal(what, needed):
            left_out.append(refusal)
            continue
        tell(f"{what}, on {count} images")
        try:
            values = measurement.measure(exhibit)
        except InputError as error:  # such as a random network's feature maps: said, and no reason to stop
            left_out.append(f"{what} left out: {error}")
            continue
        keep(path, measurement.name, exhibit.conditions(count) | {"asked": images} | values)
    return left_out


def _there(path: Path, name: str, images: int) -> bool:
    values = diagnosis_of(path) if name == DIAGNOSIS else kept(path, name)
    return values is not None and int(values.get("asked", 0)) >= images


def _transfers(
    group: Sequence[Path], images: int, data_root: str | None, clock: _Clock, tell: Callable[[str], None]
) -> list[str]:
    left_out, crafted = [], []
    for source in transfers.missing(group, images) if len(group) > 1 else []:
        exhibit = Exhibit(source, images, data_root)
        gradients = exhibit.budget.steps + len(group)
        what = f"{source}: transfer"
        if refusal := clock.refusal(what, gradients * len(exhibit.labels) * exhibit.seconds_per_gradient):
            left_out.append(refusal)
            continue
        tell(f"{what} to {len(group)} runs, on {len(exhibit.labels)} images")
        crafted.append(transfers.craft(exhibit))
    for target in group if crafted else []:
        transfers.judge(target, crafted, images, data_root)
    return left_out
