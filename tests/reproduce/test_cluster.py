"""A plan on a local Ray cluster, with a worker process killed in the middle."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from anp_vs import recipes, serialization
from anp_vs.errors import InputError
from anp_vs.reproduce.cluster import work_on_cluster
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job
from anp_vs.reproduce.table import reproduce
from anp_vs.training import checkpoint
from anp_vs.training.run import train

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'anp-vs[cluster]'")


@pytest.fixture(autouse=True)
def eager_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray lets its workers give way to every other process; on a busy machine a test would wait for minutes."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


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


def often() -> dict[str, object]:
    """A Ray runtime environment in which runs are saved after every step: a minute is longer than these last."""

    def hook() -> None:  # goes to the workers by value, which cannot import this file
        from anp_vs.training import run

        run.CHECKPOINT_SECONDS = 0.0

    return {"worker_process_setup_hook": hook}


def saved(job: Job) -> int:
    """The step of a job's newest checkpoint."""
    state, _ = checkpoint.read_latest(job.run / "checkpoint.state")
    return int(state["step"]) if state else 0


def resumed(job: Job) -> list[int]:
    """The steps at which a training was gone on with, as its TensorBoard files say."""
    files = sorted((job.run / "tensorboard").iterdir())
    events = [event for file in files for event in EventFileLoader(str(file)).Load()]
    return [event.step - 1 for event in events if event.HasField("session_log") and event.step > 1]  # 1: it began


def when(ready: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Wait for something in a thread, and then do something."""

    def wait() -> None:
        while not ready():
            time.sleep(0.05)
        then()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds the worker through /proc")
def test_a_killed_worker_is_replaced_and_goes_on_from_its_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, lost = job("killed", tmp_path), job("lost", tmp_path, start=str(tmp_path / "nowhere"))
    after = Job("after", job("after", tmp_path).recipe, tmp_path / "after", needs=("lost",))
    overview = Overview([killed, lost, after])
    steps: list[int] = []

    def kill() -> None:
        steps.append(saved(killed))
        os.kill(workers()[0], signal.SIGKILL)

    ray.init(num_cpus=1, log_to_driver=False, include_dashboard=False, runtime_env=often())  # one worker at a time
    try:
        killer = when(lambda: saved(killed) >= 20, kill)
        work_on_cluster([killed, lost, after], overview, retries=1, cpus=1, gpus=0, device="cpu")
    finally:
        ray.shutdown()
    killer.join(10)
    assert overview.states == {"killed": "done", "lost": "failed", "after": "left out"}
    said = capsys.readouterr().err
    assert " 1 running" in said
    assert " 2 running" not in said  # what was submitted and waits for the one core does not run
    (step,) = resumed(killed)
    assert 20 <= steps[0] <= step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers: sums in another order differ in the last bit
    whole = train(killed.recipe, out=tmp_path / "whole", device="cpu", quiet=True).network.state_dict()
    torch.set_num_threads(threads)
    for name, value in serialization.load(killed.run / "network.safetensors").state_dict().items():
        assert torch.equal(value, whole[name]), name


def test_a_node_that_is_lost_costs_no_run_what_it_has_saved(tmp_path: Path) -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False, runtime_env=often())
        jobs = [job(name, tmp_path, epochs=16) for name in ("first", "second")]
        overview = Overview(jobs)
        steps: list[int] = []

        def lose_a_node() -> None:
            steps.extend(map(saved, jobs))
            cluster.remove_node(nodes[0], allow_graceful=False)

        losing = when(lambda: all(map(saved, jobs)), lose_a_node)
        work_on_cluster(jobs, overview, retries=2, cpus=1, gpus=0, device="cpu")
        losing.join(10)
        assert len(cluster.list_all_nodes()) == 2  # the head, and the node that is left
        assert overview.states == {"first": "done", "second": "done"}
        assert all(one.done() for one in jobs)
        (lost,) = [place for place, one in enumerate(jobs) if resumed(one)]
        assert 0 < steps[lost] <= min(resumed(jobs[lost]))
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_more_than_the_cluster_has_is_refused(tmp_path: Path) -> None:
    jobs = [job("large", tmp_path)]
    with pytest.raises(InputError, match="asks for 100000 CPU cores"):
        work_on_cluster(jobs, Overview(jobs), retries=0, cpus=100_000, gpus=0, device="cpu")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:123456", "head:6379", ""])
def test_a_cluster_that_cannot_be_joined_is_a_mistake_with_a_remedy(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens at the first addresses; behind the last ones is Ray, which refuses."""

    def refuse(**_: object) -> None:
        raise RuntimeError("Failed to connect to GCS.\nAuthentication token is missing or incorrect")

    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_NUM_REDIS_GET_RETRIES", "3")
    monkeypatch.setattr(ray, "init", refuse)
    if address == "head:6379":
        monkeypatch.setattr("socket.create_connection", lambda *_, **__: io.BytesIO())
    refused = "token is missing" if address in ("", "head:6379") else "refused|65535"
    with pytest.raises(InputError, match=rf"RAY_ADDRESS={address}.*({refused}).*unset RAY_ADDRESS.*auth_token"):
        reproduce([job("first", tmp_path)], cluster=True)
