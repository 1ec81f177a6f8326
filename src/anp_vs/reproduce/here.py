"""Work through a plan in this process, one job after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from anp_vs.errors import AnpVsError, DataError, InputError, Stopped
from anp_vs.reproduce.overview import WAS_DONE, Overview
from anp_vs.reproduce.plan import Job

logger = logging.getLogger(__name__)


def work_here(jobs: Sequence[Job], overview: Overview, do: Callable[[Job], None], retries: int) -> None:
    """Do every job that is not done; a failed one is tried again from its checkpoint and then left behind.

    Args:
        jobs: each behind what it needs.
        overview: told of every change.
        do: does one job.
        retries: further tries after a failure.

    Raises:
        Stopped: a signal asked to stop; everything is saved.
    """
    for job in jobs:
        tries = 0
        if due(job, overview):
            overview.mark(job, "running")
        while overview.states[job.name] == "running":
            try:
                do(job)
            except Stopped:
                raise
            except Exception as error:  # whatever one row died of must not sink the others
                tries += 1
                again = worth_another_try(job, error, tries, retries)
                overview.mark(job, "running" if again else "failed", f"try {tries}: {brief(error)}")
            else:
                overview.mark(job, "done")


def due(job: Job, overview: Overview) -> bool:
    """Whether a job has to be done now; else it is marked as done or left out, if it was not before."""
    missing = [name for name in job.needs if overview.states.get(name) in ("failed", "left out")]
    if overview.states[job.name] != "waiting":
        return False
    if job.done():
        overview.mark(job, "done", WAS_DONE)
    elif missing:
        overview.mark(job, "left out", f"needs {missing[0]}, which failed")
    return overview.states[job.name] == "waiting"


def worth_another_try(job: Job, error: BaseException, tries: int, retries: int) -> bool:
    """Whether a failed job is tried again: a wrong value or a missing file would only be met once more.

    The traceback of what no part of this package foresaw goes to the log: the overview has one line for it.
    """
    died = type(error).__module__.startswith("ray.")  # a worker that died leaves no traceback of ours
    if not isinstance(error, AnpVsError) and not died:
        logger.error("%s failed:", job.name, exc_info=error)
    return tries <= retries and not isinstance(error, InputError | DataError)


def brief(error: BaseException) -> str:
    """What an error says, on one line; of a long one the middle is left out, because the remedy stands at the end."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return text if len(text) <= 500 else f"{text[:150]} ... {text[-345:]}"
