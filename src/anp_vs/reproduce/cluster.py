"""Work through a plan on a Ray cluster: every job that needs nothing more runs at once, as resources allow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module, util
from typing import Any

from anp_vs.errors import InputError
from anp_vs.reproduce.here import begin, said
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job


def work_on_cluster(
    jobs: Sequence[Job],
    overview: Overview,
    *,
    retries: int,
    cpus: int,
    gpus: float,
    data_root: str | None,
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
        gpus: GPUs a job gets; a fraction lets several share one.
        data_root: folder that holds the data sets, on every machine.
        device: auto, cpu or cuda.

    Raises:
        InputError: Ray is not installed, or the cluster cannot give a job what it asks for.
    """
    if util.find_spec("ray") is None:
        raise InputError("--cluster needs Ray, which is not installed: pip install 'anp-vs[cluster]'.")
    ray: Any = import_module("ray")
    running: dict[Any, Job] = {}
    ours = not ray.is_initialized()
    if ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        total: dict[str, float] = ray.cluster_resources()
        if cpus > total.get("CPU", 0) or gpus > total.get("GPU", 0):
            raise InputError(
                f"A job asks for {cpus} CPU cores and {gpus:g} GPUs; the cluster has {total.get('CPU', 0):g} and "
                f"{total.get('GPU', 0):g}. Lower --cpus or --gpus."
            )
        # Tries are counted here, so that a worker that died and a job that failed are treated alike.
        work = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_do)
        waiting = list(jobs)
        tries: dict[str, int] = {}
        while waiting or running:
            settled = {name for name, state in overview.states.items() if state in ("done", "failed", "left out")}
            for job in [j for j in waiting if settled.issuperset(j.needs)]:
                waiting.remove(job)
                if begin(job, overview):
                    running[work.remote(job, data_root, device, cpus)] = job
            if not running:
                continue
            for finished in ray.wait(list(running), timeout=1.0)[0]:
                job = running.pop(finished)
                again = _outcome(ray, finished, job, overview, tries, retries)
                if again:
                    running[work.remote(job, data_root, device, cpus)] = job
    finally:
        if ours:
            ray.shutdown()


def _outcome(ray: Any, finished: Any, job: Job, overview: Overview, tries: dict[str, int], retries: int) -> bool:
    """Mark how a job ended; whether it is to be tried again."""
    try:
        ray.get(finished)
    except Exception as error:  # whatever a job on another machine died of must not sink the others
        tries[job.name] = tries.get(job.name, 0) + 1
        again = tries[job.name] <= retries
        reason = getattr(error, "cause", None) or error
        overview.mark(job, "running" if again else "failed", said(tries[job.name], reason))
        return again
    overview.mark(job, "done")
    return False


def _do(job: Job, data_root: str | None, device: str, threads: int) -> None:
    import torch

    torch.set_num_threads(max(1, threads))
    job.do(data_root, device)
