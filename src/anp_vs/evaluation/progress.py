"""What a person sees while something long is measured."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from anp_vs.terminal import LINE_SECONDS

Step = Callable[[int, str], None]
"""Called with how much is done, and the running figures."""


@contextmanager
def stage(name: str, total: int, *, show: bool = True) -> Iterator[Step]:
    """A bar with the time left on a terminal; elsewhere a line every two minutes, and one when the stage is over.

    Args:
        name: of the stage.
        total: what there is to do.
        show: whether anything is written, to the standard error stream.
    """
    console = Console(file=sys.stderr, highlight=False, emoji=False)
    live = show and console.is_terminal
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.completed}/{task.total}"), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"), console=console, disable=not live,
    )  # fmt: skip
    task = bar.add_task(name, total=total, figures="")
    last, said = "", time.monotonic()

    def step(done: int, figures: str) -> None:
        nonlocal last, said
        last = figures
        bar.update(task, completed=done, figures=figures)
        if show and not live and done < total and time.monotonic() - said > LINE_SECONDS:
            said = time.monotonic()
            console.print(f"{name}: {done}/{total}, {figures}", soft_wrap=True)

    with bar:
        yield step
    if show and not live:
        console.print(f"{name}: {last}", soft_wrap=True)
