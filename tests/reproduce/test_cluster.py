"""A plan on a local Ray cluster, with a worker process killed in the middle."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from anp_vs import recipes, serialization
from anp_vs.errors import InputError
from anp_vs.reproduce.cluster import work_on_cluster
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job
from anp_vs.training.run import train

pytest.importorskip("ray", reason="Ray is not installed: pip install 'anp-vs[cluster]'")


def job(name: str, root: Path, **changes: object) -> Job:
    short = {"epochs": 8, "attack": {"eps": 0.1, "step": 0.05, "steps": 1}, "start": None, "black_box": None}
    recipe = recipes.override(recipes.RECIPES["digits/at"], short | changes)
    return Job(name, recipe, root / name)


def workers() -> list[int]:
    """Process numbers of Ray workers that are at a job."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if command.startswith(b"ray::_do"):
            found.append(int(folder.name))
    return found


def kill_one_at_work(metrics: Path) -> None:
    for _ in range(3000):
        if metrics.exists() and metrics.read_text().count("\n") >= 2 and (found := workers()):
            os.kill(found[0], signal.SIGKILL)
            return
        time.sleep(0.1)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker through /proc")
def test_a_killed_worker_is_replaced_and_the_rest_goes_on(tmp_path: Path) -> None:
    killed, lost = job("killed", tmp_path), job("lost", tmp_path, start=str(tmp_path / "nowhere"))
    after = Job("after", job("after", tmp_path).recipe, tmp_path / "after", needs=("lost",))
    overview = Overview([killed, lost, after])
    killer = threading.Thread(target=kill_one_at_work, args=(tmp_path / "killed" / "metrics.jsonl",))
    killer.start()
    work_on_cluster([killed, lost, after], overview, retries=1, cpus=1, gpus=0, data_root=None, device="cpu")
    killer.join()
    assert overview.states == {"killed": "done", "lost": "failed", "after": "left out"}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: sums in another order differ in the last bit
    whole = train(killed.recipe, out=tmp_path / "whole", device="cpu", quiet=True).network.state_dict()
    torch.set_num_threads(threads)
    for name, value in serialization.load(killed.run / "network.safetensors").state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_node_that_is_lost_costs_no_run(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        jobs = [job(name, tmp_path) for name in ("first", "second")]
        overview = Overview(jobs)

        def lose_a_node() -> None:
            for _ in range(3000):
                if all((one.run / "metrics.jsonl").exists() for one in jobs):
                    cluster.remove_node(nodes[0], allow_graceful=False)
                    return
                time.sleep(0.1)

        losing = threading.Thread(target=lose_a_node)
        losing.start()
        work_on_cluster(jobs, overview, retries=2, cpus=1, gpus=0, data_root=None, device="cpu")
        losing.join()
        assert len(cluster.list_all_nodes()) == 2  # the head, and the node that is left
        assert overview.states == {"first": "done", "second": "done"}
        assert all(one.done() for one in jobs)
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_more_than_the_cluster_has_is_refused(tmp_path: Path) -> None:
    jobs = [job("large", tmp_path)]
    with pytest.raises(InputError, match="asks for 100000 CPU cores"):
        work_on_cluster(jobs, Overview(jobs), retries=0, cpus=100_000, gpus=0, data_root=None, device="cpu")
