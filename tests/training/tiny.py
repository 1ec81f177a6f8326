"""What the tests of training share: some digits, short recipes, and whole runs in processes of their own."""

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anp_vs.data import Dataset
from anp_vs.data import load as load_data
from anp_vs.data.generated import load_generated
from anp_vs.errors import RunError
from anp_vs.methods import METHODS
from anp_vs.networks import NETWORKS
from anp_vs.networks.layers import Dropout
from anp_vs.networks.preact import PreActNet
from anp_vs.pruning.gate import gates
from anp_vs.recipes import RECIPES, Recipe, override
from anp_vs.training import run
from anp_vs.training.loop import Trainer
from anp_vs.training.run_directory import MetricsLog

STEPS = 12
# Gates that fall at once and stay, so that units leave during the run and the gates are fixed before its end.
PRUNING = {"network": "lenet5-caffe", "gate_lr": 2.0, "method": {"name": "anp-vs", "beta": 20.0}, "remove_after": 2}


@cache
def digits(count: int = 64) -> Dataset:
    """The first digits of each split: `count` to train on, half as many to validate."""
    whole = load_data("digits")
    return Dataset(
        "digits",
        whole.train.head(count),
        whole.validation.head(count // 2),
        whole.test.head(40),
        whole.classes,
    )


def recipe(name: str = "standard", /, **changes: Any) -> Recipe:
    """A `Recipe` of twelve steps of 16 digits with everything switched on: averaging, removal, deciding, warm-up of eps."""
    short = {
        "name": f"tiny/{name}", "network": "tiny-convolution", "epochs": 3, "batch_size": 16, "attack": {"eps": 0.1, "step": 0.05, "steps": 2},
        "average": 0.9, "remove_after": 2, "decide_at": 0.7, "target_sparsity": None, "start": None, "black_box": None,
        "eps_warmup": 0.3, "gate_lr": 0.01, "on_trouble": "continue", "method": {"name": name},
    }  # fmt: skip
    return override(override(RECIPES["digits/anp"], short), changes)


def trainer(name: str = "standard", /, **changes: Any) -> Trainer:
    asked = recipe(name, **changes)
    more = load_generated(asked.generated, (1, 28, 28), 10) if asked.generated else None
    return Trainer(asked, digits(), Fabric(accelerator="cpu", devices=1), generated=more)


def prune_some(training: Trainer) -> None:
    """At two steps, push half of the units that are left below the threshold, so that they leave the network."""
    if training.step not in (1, 4):
        return
    draws = torch.Generator().manual_seed(training.step)
    with torch.no_grad():
        for gate in gates(training.network).values():
            gate.a_uc[torch.rand(gate.units, generator=draws) < 0.5] = -12.0


def equal(left: Any, right: Any, where: str = "state") -> None:
    """Assert that two nested states are the same to the last bit."""
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            equal(value, right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for place, value in enumerate(left):
            equal(value, right[place], f"{where}[{place}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    else:
        assert left == right, where


class TinyConvolution(nn.Module):
    """Convolutions with batch normalisation, a gate after each, dropout, and a dense layer."""

    input_shape = (1, 28, 28)
    latents = ("gate1", "gate2")
    gate_sites: ClassVar[dict[str, tuple[int, float]]] = {"gate1": (6, 2.0), "gate2": (8, 2.0)}

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.relu1, self.gate1, self.dropout = nn.ReLU(), nn.Identity(), Dropout(0.3)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.relu2, self.gate2, self.flatten = nn.ReLU(), nn.Identity(), nn.Flatten()
        self.fc = nn.Linear(8 * 36, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.dropout(self.gate1(self.relu1(self.bn1(self.conv1(images)))))
        logits: Tensor = self.fc(self.flatten(self.gate2(self.relu2(self.bn2(self.conv2(x))))))
        return logits


def residual(classes: int = 10) -> nn.Module:
    """Three pre-activation blocks for grey images, with their gates' places."""
    network = PreActNet(classes, 3, (4, 4, 6), 1, mean=(0.1,), std=(0.3,))
    network.conv1 = nn.Conv2d(1, 3, 3, stride=2, bias=False)
    network.input_shape = (1, 28, 28)  # type: ignore[assignment]
    return network


def traced(classes: int = 10) -> nn.Module:
    """The same without a word on gates: they are found by tracing."""
    network = residual(classes)
    network.gate_sites = {}  # type: ignore[assignment]
    return network


FEW: dict[str, Any] = {"load_data": lambda *_, **__: digits(), "LOG_EVERY": 3, "CHECKPOINT_SECONDS": 0.0}
"""What `anp_vs.training.run` trains on, logs and saves by, so that a whole run takes a moment."""


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Like `patched`, until the test ends, and undone in turn with what the test patches over it."""
    for name, value in FEW.items():
        monkeypatch.setattr(run, name, value)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@contextmanager
def patched(**values: Any) -> Iterator[None]:
    """While open, `anp_vs.training.run` trains on the few digits, logs often, and saves after every step.

    Nothing waits for the disk: that guards against a power cut, which no test can make.
    """
    values = FEW | values
    before = {name: getattr(run, name) for name in values}
    for name, value in values.items():
        setattr(run, name, value)
    waiting, os.fsync = os.fsync, lambda _: None
    try:
        yield
    finally:
        os.fsync = waiting
        for name, value in before.items():
            setattr(run, name, value)


def _child(asked: Recipe, path: Path, count: int, seconds: float, place: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ.update(place)
    NETWORKS["tiny-convolution"] = TinyConvolution
    os.dup2(os.open(path.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    with patched(load_data=lambda *_, **__: digits(count), CHECKPOINT_SECONDS=seconds):
        try:
            run.train(asked, out=path, device="cpu", devices=2 if place else 1)
        except run.Stopped:
            os._exit(130)
        except RunError as error:
            sys.stderr.write(f"{error}\n")
            os._exit(2)
    os._exit(0)


def start(
    asked: Recipe, path: Path, *, count: int = 64, seconds: float = 0.0, place: dict[str, str] | None = None
) -> BaseProcess:
    """Train in a process of its own. Forked from a server that has imported everything, so it starts at once.

    `place` holds the environment variables that make it one of two data-parallel processes.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["anp_vs.training.run", "torch.utils.tensorboard", "sklearn.datasets"])
    process = context.Process(target=_child, args=(asked, path, count, seconds, place or {}))
    process.start()
    return process


def start_two(asked: Recipe, path: Path, *, count: int = 64, seconds: float = 0.0) -> list[BaseProcess]:
    """Train in two processes that share every batch; the first writes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    return [
        start(asked, path, count=count, seconds=seconds, place={**where, "LOCAL_RANK": str(rank)}) for rank in (0, 1)
    ]


def send(process: BaseProcess, number: signal.Signals) -> None:
    assert process.pid is not None
    os.kill(process.pid, number)


ALL_METHODS = sorted(METHODS)


def tensors(path: Path) -> dict[str, bytes]:
    """The saved networks: all of their bytes, and of the cards what does not tell the time."""
    files = {file.name: file.read_bytes() for file in path.glob("*.safetensors")}
    for card in path.glob("*.json"):
        facts = json.loads(card.read_text())
        facts.pop("train_seconds")
        files[card.name] = json.dumps(facts).encode()
    return files


def same_run(left: Path, right: Path) -> None:
    assert tensors(left) == tensors(right)
    assert tensors(left)
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    assert (left / "recipe.yaml").read_bytes() == (right / "recipe.yaml").read_bytes()
    assert not list(right.glob(".*"))


def log_of(path: Path) -> list[dict[str, Any]]:
    return MetricsLog.read(path / "metrics.jsonl")


def waited(file: Path, process: BaseProcess | None = None, seconds: float = 120) -> None:
    """Until a file is there."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} did not come"
        assert process is None or process.is_alive()
        time.sleep(0.01)


class Asked:
    """In the place of the handlers of signals: asked to stop when a condition holds."""

    def __init__(self, condition: Callable[[], bool]) -> None:
        self.is_set = condition

    def __enter__(self) -> "Asked":
        return self

    def __exit__(self, *_: object) -> None:
        pass
