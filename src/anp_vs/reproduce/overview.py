"""One live table of all jobs, read from their run directories: it is the same wherever they run."""

from __future__ import annotations

import sys
import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from anp_vs.errors import RunError
from anp_vs.evaluation import how_far
from anp_vs.reproduce.plan import TEST_IMAGES, TRAIN_IMAGES, Job
from anp_vs.training.run_directory import MetricsLog, RunDirectory

State = Literal["running", "failed", "left out", "waiting", "done", "not needed"]
STYLES: dict[State, str] = {
    "running": "bold", "failed": "red", "left out": "red", "waiting": "dim", "done": "green", "not needed": "dim",
}  # fmt: skip
"""In the order in which they deserve a place on a small terminal."""
WAS_DONE = "was done before"


class Overview:
    """What is done, running, failed, and the time left; a live table on a terminal, a line a change elsewhere.

    Args:
        jobs: the plan.
        clock: seconds, from any origin.
    """

    def __init__(self, jobs: Sequence[Job], clock: Callable[[], float] = time.monotonic) -> None:
        self.jobs = list(jobs)
        self.states: dict[str, State] = {job.name: "waiting" for job in jobs}
        self.notes: dict[str, str] = {}
        self._clock, self._began = clock, clock()
        self._since: dict[str, tuple[float, int]] = {}  # when a job's present try began, and at which step
        self._took: dict[str, float] = {}
        self._read: dict[str, tuple[int, dict[str, Any]]] = {}  # metrics, and when their file was written
        self._ended = False
        self._lock = threading.RLock()
        self.console = Console(file=sys.stderr, highlight=False, emoji=False, markup=False)
        self._live = Live(get_renderable=self._fitting, console=self.console, refresh_per_second=0.5, transient=False)

    def __enter__(self) -> Overview:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        else:
            self.console.print(self.summary(), soft_wrap=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._ended = True
            self._live.stop()

    def look(self) -> None:
        """See what is done already, and which trainings nothing that is still to be done needs."""
        for_others = {name for job in self.jobs for name in job.needs}
        wanted = {job.name for job in self.jobs} - for_others
        for job in reversed(self.jobs):  # each behind what it needs
            if job.done():
                self.states[job.name], self.notes[job.name] = "done", WAS_DONE
            elif job.name in wanted:
                wanted.update(job.needs)
            else:
                self.states[job.name] = "not needed"

    def mark(self, job: Job, state: State, note: str = "") -> None:
        """A job has changed its state."""
        with self._lock:
            if job.name in self._since and state in ("done", "failed"):
                self._took[job.name] = self._elapsed(job)
            self.states[job.name] = state
            self.notes[job.name] = note
            if state == "running":
                self._since[job.name] = (self._clock(), int(self._metrics(job).get("step", 0)))
            if not self.console.is_terminal:
                took = f" after {_spoken(self._took[job.name])}" if job.name in self._took else ""
                self.console.print(
                    f"{job.name}: {state}{took}{': ' + note if note else ''} [{self.summary()}]", soft_wrap=True
                )

    def count(self, state: State) -> int:
        """How many jobs are in a state."""
        return sum(s == state for s in self.states.values())

    def plan(self) -> RenderableType:
        """What is done and what is not, and by their numbers the jobs that each one needs."""
        table = _table("", "job", "state", "epochs", "needs", title=self._counts())
        numbers = {job.name: str(number) for number, job in enumerate(self.jobs, 1)}
        for job in self.jobs:
            epochs, needs = str(job.recipe.epochs) if job.trains else "", ", ".join(numbers[n] for n in job.needs)
            state = self.states[job.name]
            table.add_row(numbers[job.name], job.name, state, epochs, needs, style=STYLES[state])
        return table

    def table(self, rows: int | None = None) -> RenderableType:
        """The present picture; with fewer rows than jobs what runs or has failed comes first, the rest is counted."""
        with self._lock:
            shown, rest = self.jobs, Counter[State]()
            if rows is not None and rows < len(self.jobs):
                ranks = list(STYLES)
                ranked = sorted(self.jobs, key=lambda job: ranks.index(self.states[job.name]))
                shown, rest = ranked[:rows], Counter(self.states[job.name] for job in ranked[rows:])
            table = _table("job", "state", "epoch, images", "clean", "robust", "time", "left", "", title=self.summary())
            left = self.left()
            for job in shown:
                state = self.states[job.name]
                last = self._metrics(job)
                far = f"{int(last.get('epoch', -1)) + 1}/{job.recipe.epochs}" if job.trains else self._attacked(job)
                accuracies = [f"{last[k]:.1f}" if k in last else "" for k in ("clean_accuracy", "robust_accuracy")]
                took = self._elapsed(job) if state == "running" else self._took.get(job.name)
                times = ["" if seconds is None else _spoken(seconds) for seconds in (took, left.get(job.name))]
                note = Text(self.notes.get(job.name, ""), no_wrap=bool(rest), overflow="ellipsis")
                table.add_row(job.name, state, far, *accuracies, *times, note, style=STYLES[state])
            if rest:
                table.add_row("not shown: " + ", ".join(f"{n} {state}" for state, n in rest.items()), style="dim")
            return table

    def _fitting(self) -> RenderableType:
        """As many rows as the terminal has lines for; what stays there at the end is whole."""
        height = self.console.height

        def lines(rows: int) -> int:
            return len(self.console.render_lines(self.table(rows)))  # a row may take several

        if self._ended or (len(self.jobs) < height and lines(len(self.jobs)) <= height):
            return self.table()
        return self.table(max(0, bisect_right(range(height), height, key=lines) - 1))

    def _counts(self) -> str:
        counts = ", ".join(f"{n} {state}" for state in STYLES if (n := self.count(state)))
        return f"{len(self.jobs)} jobs: {counts}"

    def summary(self) -> str:
        """How many jobs are in which state, the time since the start, and the time left as far as it can be told."""
        with self._lock:
            text = f"{self._counts()}; {_spoken(self._clock() - self._began)} so far"
            ahead, left = self.count("waiting") + self.count("running"), self.left().values()
            if not left:
                return text
            # As many at a time as now, but no job in parts.
            seconds = max(sum(left) / max(1, self.count("running")), *left)
            return f"{text}, {'about' if len(left) == ahead else 'at least'} {_spoken(seconds)} left"

    def left(self) -> dict[str, float]:
        """Seconds that jobs may still take, for those of which something can be told.

        A training that is past its first epoch goes on at its pace. Whatever else is ahead takes as long as others of
        its kind in this plan, in proportion to their images, trainings also to their epochs and attack steps.
        """
        with self._lock:
            left: dict[str, float] = {}
            spent, work = {True: 0.0, False: 0.0}, {True: 0, False: 0}  # seconds, and what they did, by `trains`
            for job in self.jobs:
                state, last = self.states[job.name], self._metrics(job)
                if job.name not in self._since or state not in ("running", "done"):
                    continue
                seconds, total = self._elapsed(job), last.get("total_steps", 0)
                if job.trains:
                    steps = int(last.get("step", 0)) - self._since[job.name][1]
                    if not total or steps <= 0:
                        continue
                    if state == "running":
                        left[job.name] = seconds / steps * (total - last["step"])
                    seconds = seconds / steps * total
                elif state != "done":
                    continue
                spent[job.trains] += seconds
                work[job.trains] += _work(job)
            for job in self.jobs:
                state, known = self.states[job.name], work[job.trains]
                if state in ("waiting", "running") and job.name not in left and known:
                    rest = spent[job.trains] / known * _work(job) - (self._elapsed(job) if state == "running" else 0)
                    if rest > 0:  # else it takes longer than the others did
                        left[job.name] = rest
            return left

    def _elapsed(self, job: Job) -> float:
        """Seconds of the present, or last, try."""
        return self._took.get(job.name, self._clock() - self._since[job.name][0])

    def _attacked(self, job: Job) -> str:
        """How many test images the attacks of a running evaluation are through with, and of how many."""
        far = how_far(job.row) if self.states[job.name] == "running" else None
        return f"{far[0]}/{far[1]}" if far else ""

    def _metrics(self, job: Job) -> dict[str, Any]:
        path = RunDirectory(job.run).metrics
        if not job.trains or self.states[job.name] not in ("running", "done") or not path.exists():
            return {}
        written = path.stat().st_mtime_ns
        if self._read.get(job.name, (None,))[0] != written:
            self._read[job.name] = written, _last(job)
        return self._read[job.name][1]


def _table(*columns: str, title: str) -> Table:
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False)


def _last(job: Job) -> dict[str, Any]:
    """The newest line of a run's metrics, with the newest validation in it, and the steps to the end if they are known."""
    try:
        lines = MetricsLog.read(RunDirectory(job.run).metrics)
    except RunError:
        return {}
    merged: dict[str, Any] = {}
    for line in lines[-200:]:
        merged |= line
        if "clean_accuracy" in line:  # an epoch ends here
            merged["total_steps"] = line["step"] // (line["epoch"] + 1) * job.recipe.epochs
    return merged


def _work(job: Job) -> int:
    """What a job costs in comparison with others of its kind: images that pass the network; evaluations are alike."""
    recipe = job.recipe
    passes = recipe.epochs * (1 + recipe.attack.steps * recipe.method.adversarial) if job.trains else 1
    return passes * (TRAIN_IMAGES if job.trains else TEST_IMAGES).get(recipe.data, 50_000)


def _spoken(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
