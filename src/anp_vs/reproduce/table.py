"""`anp-vs reproduce`: a whole table, from nothing to a page with measured beside published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anp_vs.device import choose
from anp_vs.errors import InputError, RunError
from anp_vs.reproduce.cluster import work_on_cluster
from anp_vs.reproduce.here import work_here
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job


def reproduce(
    jobs: Sequence[Job],
    *,
    cluster: bool = False,
    retries: int = 2,
    cpus: int = 1,
    gpus: float = 0.0,
    device: str = "auto",
    dry: bool = False,
) -> Overview:
    """Do what of a plan is not done yet.

    Args:
        jobs: from `plan`.
        cluster: on Ray instead of in this process.
        retries: further tries of a job that failed, from its last checkpoint.
        cpus: CPU cores a job gets on the cluster.
        gpus: GPUs a job gets on the cluster; 0 for what `device` needs, see `work_on_cluster`.
        device: auto, cpu or cuda.
        dry: check all that is given, and only look at what is done.

    Returns:
        The overview, with the state of every job.

    Raises:
        InputError: retries, cpus or gpus are outside their range, or the device is not there.
        RunError: run directories of the plan hold other recipes' runs.
    """
    if retries < 0:
        raise InputError(f"retries is {retries}; give 0 or more further tries of a job that failed.")
    if cpus < 1 or not 0 <= gpus < float("inf"):
        raise InputError(f"cpus is {cpus} and gpus {gpus:g}; a job needs at least 1 CPU core, and 0 or more GPUs.")
    if not cluster:  # whose machines have devices of their own
        choose(device)
    refuse_others(jobs)
    overview = Overview(jobs)
    overview.look()
    if dry:
        return overview
    with overview:
        if cluster:
            work_on_cluster(jobs, overview, retries=retries, cpus=cpus, gpus=gpus, device=device)
        else:
            work_here(jobs, overview, lambda job: job.do(device), retries)
    return overview


def refuse_others(jobs: Sequence[Job]) -> None:
    """See that no run directory of a plan holds another recipe's run, before hours are spent on the rest.

    Raises:
        RunError: naming each that does, and the fields that differ.
    """
    others = []
    for job in jobs:
        try:
            job.check()
        except RunError as error:
            others.append(f"{error} To have {job.recipe.name} trained in {job.run} itself, move that directory away.")
    if others:
        raise RunError("Nothing was started. " + "\n".join(others))


def evaluated(overview: Overview) -> list[Path]:
    """Run directories of a plan whose evaluation is done."""
    done = (job.run for job in overview.jobs if not job.trains and overview.states[job.name] == "done")
    return list(dict.fromkeys(done))  # a run may have a row under each protocol
