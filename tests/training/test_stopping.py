"""Stopped by a signal or killed at any instant, a run goes on to the end it would have had."""

import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from anp_vs import serialization
from anp_vs.networks import NETWORKS
from anp_vs.pruning.gate import gates
from anp_vs.training import checkpoint, run
from anp_vs.training.loop import Trainer
from training.tiny import PRUNING, Asked, log_of, recipe, residual, same_run, send, start, trainer, waited

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_a_signal_saves_and_ends_the_process_and_the_run_goes_on_from_there(
    number: signal.Signals, path: Path, tmp_path: Path
) -> None:
    asked = recipe("anp-vs", **PRUNING | {"epochs": 6})
    process = start(asked, path, seconds=3600.0)  # nothing is saved unless the signal does it
    waited(path / "metrics.jsonl", process)
    while not log_of(path):
        time.sleep(0.005)
    send(process, number)
    process.join(60)
    assert process.exitcode == 130, (path.parent / "output").read_text()
    stopped = checkpoint.read(path / "checkpoint.state")["step"]
    assert 0 < stopped < 24
    run.train(asked, out=path, quiet=True)
    run.train(asked, out=tmp_path / "whole", quiet=True)
    same_run(tmp_path / "whole", path)


@pytest.mark.parametrize("method", ["anp-vs", "at-bnn"])
def test_a_signal_during_validation_does_not_wait_for_its_end(
    method: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(method, **(PRUNING if method == "anp-vs" else {}))
    run.train(asked, out=tmp_path / "whole", quiet=True)
    monkeypatch.setattr("anp_vs.training.validation.BATCH", 8)  # another, so that there are several
    asks = 0

    def counting(training: Trainer, stop: Any = lambda: False) -> Any:
        nonlocal asks
        asks += 1
        return None if asks in (1, 3) else validate(training, stop)

    validate = Trainer.validate
    monkeypatch.setattr(Trainer, "validate", counting)
    monkeypatch.setattr(run, "stop_asked", lambda: Asked(lambda: asks in (1, 3)))
    monkeypatch.setattr("anp_vs.training.validation.BATCH", 125)
    for step in (4, 8):
        with pytest.raises(run.Stopped, match=f"Stopped at step {step} of 12"):
            run.train(asked, out=path, quiet=True)
    run.train(asked, out=path, quiet=True)
    same_run(tmp_path / "whole", path)


def test_validation_stops_between_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anp_vs.training.validation.BATCH", 8)
    training, asks = trainer(), 0

    def third() -> bool:
        nonlocal asks
        asks += 1
        return asks == 3

    assert training.validate(third) is None
    assert asks == 3


def test_killed_at_random_instants_a_run_ends_bit_for_bit_the_same(path: Path, tmp_path: Path) -> None:
    """The short form of benchmarks/crash.py."""
    asked = recipe("anp-vs", **PRUNING | {"epochs": 6})
    began = time.monotonic()
    whole = start(asked, tmp_path / "whole")
    whole.join()
    assert whole.exitcode == 0
    length = time.monotonic() - began
    draws, kills = random.Random(1), 0
    while True:
        process = start(asked, path)
        # It lives longer from kill to kill: the machine may have become slower since the length was taken.
        process.join(0.1 + draws.random() * length / 3 * (1 + kills / 10))
        if process.exitcode is None:
            kills += 1
        elif process.exitcode == 0:
            break
        process.kill()
        process.join()
        assert kills < 50
    assert kills
    same_run(tmp_path / "whole", path)


def test_the_channels_of_a_residual_stream_leave_where_that_is_asked_and_a_stopped_run_goes_on(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "tiny-residual", residual)
    asked = {**PRUNING, "network": "tiny-residual", "cost_exponent": 0.3, "decide_at": 0.5}
    kept = run.train(recipe("anp-vs", **asked), out=tmp_path / "kept", quiet=True)
    whole = run.train(recipe("anp-vs", **asked, residual="share"), out=tmp_path / "whole", quiet=True)
    assert len(gates(whole.network)) > len(gates(kept.network))
    stopped = iter([True])
    monkeypatch.setattr(run, "stop_asked", lambda: Asked(lambda: next(stopped, False)))
    with pytest.raises(run.Stopped):
        run.train(recipe("anp-vs", **asked, residual="share"), out=path, quiet=True)
    run.train(path, quiet=True)
    same_run(tmp_path / "whole", path)
    small = serialization.load(path / "compact.safetensors")
    images = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(small(images), whole.network(images), rtol=1e-4, atol=1e-4)
