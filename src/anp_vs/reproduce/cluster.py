"""Work through a plan on a Ray cluster: every job that needs nothing more runs at once, as resources allow."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Sequence
from importlib import import_module, util
from typing import Any

from anp_vs.errors import InputError
from anp_vs.reproduce.here import brief, due, worth_another_try
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job


def work_on_cluster(
    jobs: Sequence[Job],
    overview: Overview,
    *,
    retries: int,
    cpus: int,
    gpus: float,
    device: str,
) -> None:
    """As `work_here`, on Ray. A worker that dies costs the work since its job's last checkpoint.

    The run directories have to lie where every machine sees them. The cluster is the one that the environment
    variable RAY_ADDRESS names; without it a local one is started.

    Args:
        jobs: each behind what it needs.
        overview: told of every change.
        retries: further tries after a failure.
        cpus: CPU cores, and threads, a job gets.
        gpus: GPUs a job gets; a fraction lets several share one. 0: with device cuda 1, with auto 1 where the cluster has any.
        device: auto, cpu or cuda.

    Raises:
        InputError: Ray is not installed or not there, or the cluster cannot give a job what it asks for.
    """
    if util.find_spec("ray") is None:
        raise InputError("--cluster needs Ray, which is not installed: pip install 'anp-vs[cluster]'.")
    if "RAY_ADDRESS" in os.environ:  # what does not answer like a Ray is tried 20 times, for minutes, by default
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
    ray: Any = import_module("ray")
    submitted: dict[Any, Job] = {}
    ours = not ray.is_initialized()
    if ours:
        _connect(ray)
    try:
        total: dict[str, float] = ray.cluster_resources()
        if device != "cpu":  # Ray hides the GPUs that a job did not ask for
            gpus = gpus or (1.0 if device == "cuda" else min(1.0, total.get("GPU", 0.0)))
        if cpus > total.get("CPU", 0) or gpus > total.get("GPU", 0):
            raise InputError(
                f"A job asks for {cpus} CPU cores and {gpus:g} GPUs; the cluster has {total.get('CPU', 0):g} and "
                f"{total.get('GPU', 0):g}. Lower --cpus or --gpus."
            )
        # Tries are counted here, so that a worker that died and a job that failed are treated alike.
        work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1, num_returns="streaming")(_do)
        waiting = list(jobs)
        tries: dict[str, int] = {}
        while waiting or submitted:
            ahead = {name for name, state in overview.states.items() if state in ("waiting", "running")}
            for job in [j for j in waiting if ahead.isdisjoint(j.needs)]:
                waiting.remove(job)
                if due(job, overview):
                    submitted[work.remote(job, device, cpus)] = job
            if not submitted:
                continue
            for told in ray.wait(list(submitted), timeout=1.0)[0]:
                job = submitted[told]
                _hear(ray, told, job, overview, tries, retries)
                if overview.states[job.name] != "running":
                    del submitted[told]
                if overview.states[job.name] == "waiting":
                    submitted[work.remote(job, device, cpus)] = job
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any) -> None:
    """Join the cluster at RAY_ADDRESS, or start a local one.

    Raises:
        InputError: there is none, or it does not let us in.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if place := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):  # Ray would fill the screen for minutes
            socket.create_connection((place[1], int(place[2])), timeout=10).close()
        ray.init(log_to_driver=False, include_dashboard=False)
    except Exception as error:  # ConnectionError, RuntimeError, ValueError, Ray's own: each means the same
        raise InputError(
            f"There is no way into the Ray cluster at RAY_ADDRESS={address or '(not set: a local one)'} ({brief(error)}). "
            f"Start it there (ray start --head), correct or unset RAY_ADDRESS, and have the cluster's token in "
            f"~/.ray/auth_token."
        ) from error


def _hear(ray: Any, told: Any, job: Job, overview: Overview, tries: dict[str, int], retries: int) -> None:
    """Mark that a job has begun, is done, has failed, or waits to be tried again."""
    try:
        ray.get(next(told))
    except StopIteration:
        overview.mark(job, "done")
    except Exception as error:  # whatever a job on another machine died of must not sink the others
        tries[job.name] = tries.get(job.name, 0) + 1
        reason = getattr(error, "cause", None) or error
        again = worth_another_try(job, reason, tries[job.name], retries)
        overview.mark(job, "waiting" if again else "failed", f"try {tries[job.name]}: {brief(reason)}")
    else:
        overview.mark(job, "running", overview.notes.get(job.name, ""))


def _do(job: Job, device: str, threads: int) -> Iterator[None]:
    """Do a job; what it yields tells that it has begun, which on a full cluster is long after it was submitted."""
    import torch

    yield
    torch.set_num_threads(max(1, threads))
    job.do(device)
