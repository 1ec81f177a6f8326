"""Work through a plan in this process, one job after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from anp_vs.errors import Stopped
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job


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
        if not begin(job, overview):
            continue
        for attempt in range(retries + 1):
            try:
                do(job)
            except Stopped:
                raise
            except Exception as error:  # whatever one row died of must not sink the others
                overview.mark(job, "failed" if attempt == retries else "running", said(attempt + 1, error))
            else:
                overview.mark(job, "done")
                break


def begin(job: Job, overview: Overview) -> bool:
    """Mark a job as done, left out or running; whether it has to be done now."""
    missing = [name for name in job.needs if overview.states.get(name) in ("failed", "left out")]
    if job.done():
        overview.mark(job, "done", "was done before")
    elif missing:
        overview.mark(job, "left out", f"needs {missing[0]}, which failed")
    else:
        overview.mark(job, "running")
        return True
    return False


def said(attempt: int, error: BaseException) -> str:
    """A failed try, on one line."""
    return f"try {attempt}: {type(error).__name__}: {' '.join(str(error).split())[:500]}"
