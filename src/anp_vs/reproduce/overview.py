"""One live table of all jobs, read from their run directories: it is the same wherever they run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table

from anp_vs.errors import RunError
from anp_vs.reproduce.plan import Job
from anp_vs.training.run_directory import MetricsLog, RunDirectory

State = Literal["waiting", "running", "done", "failed", "left out"]
STYLES: dict[State, str] = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red", "left out": "red"}


class Overview:
    """What is done, running, failed, and the time left; a live table on a terminal, a line a change elsewhere.

    Args:
        jobs: the plan.
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = list(jobs)
        self.states: dict[str, State] = {job.name: "waiting" for job in jobs}
        self.notes: dict[str, str] = {}
        self._since: dict[str, tuple[float, float]] = {}
        self._finished: dict[str, dict[str, Any]] = {}  # metrics that will not change any more
        self._lock = threading.RLock()
        self.console = Console(file=sys.stderr, highlight=False, emoji=False, soft_wrap=True, markup=False)
        self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=0.5, transient=False)

    def __enter__(self) -> Overview:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def mark(self, job: Job, state: State, note: str = "") -> None:
        """A job has changed its state."""
        with self._lock:
            self.states[job.name] = state
            self.notes[job.name] = note
            if state == "running":
                self._since[job.name] = (time.monotonic(), _share(job, _last(job)))
        if not self.console.is_terminal:
            self.console.print(f"{job.name}: {state}{': ' + note if note else ''}")

    def count(self, state: State) -> int:
        """How many jobs are in a state."""
        return sum(s == state for s in self.states.values())

    def table(self) -> RenderableType:
        """The present picture."""
        with self._lock:
            counts = ", ".join(f"{n} {state}" for state in STYLES if (n := self.count(state)))
            table = Table("job", "state", "epoch", "clean", "robust", "left", "", title=counts, title_justify="left",
                          box=None, pad_edge=False)  # fmt: skip
            for job in self.jobs:
                state = self.states[job.name]
                last = self._metrics(job, state)
                epoch = f"{int(last.get('epoch', -1)) + 1}/{job.recipe.epochs}" if job.trains else ""
                accuracies = [f"{last[k]:.1f}" if k in last else "" for k in ("clean_accuracy", "robust_accuracy")]
                left = self._left(job, last) if state == "running" else ""
                table.add_row(
                    job.name, state, epoch, *accuracies, left, self.notes.get(job.name, ""), style=STYLES[state]
                )
            return table

    def _metrics(self, job: Job, state: State) -> dict[str, Any]:
        if not job.trains or state not in ("running", "done"):
            return {}
        if state == "running":
            return _last(job)
        if job.name not in self._finished:
            self._finished[job.name] = _last(job)
        return self._finished[job.name]

    def _left(self, job: Job, last: dict[str, Any]) -> str:
        began, share_then = self._since[job.name]
        share = _share(job, last)
        if share <= share_then:
            return ""
        seconds = (time.monotonic() - began) * (1 - share) / (share - share_then)
        return f"{seconds / 60:.0f} min"


def _last(job: Job) -> dict[str, Any]:
    """The newest line of a run's metrics, with the newest validation in it."""
    try:
        lines = MetricsLog.read(RunDirectory(job.run).metrics)
    except RunError:
        return {}
    merged: dict[str, Any] = {}
    for line in lines[-200:]:
        merged |= line
    return merged


def _share(job: Job, last: dict[str, Any]) -> float:
    """Share of a training's epochs that are behind it."""
    return (int(last.get("epoch", -1)) + 1) / job.recipe.epochs if job.trains else 0.0
