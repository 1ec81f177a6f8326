"""Two data-parallel processes against one, and what happens when one of them dies."""

import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from anp_vs import serialization
from anp_vs.errors import InputError
from anp_vs.training import parallel, run
from training.tiny import equal, patched, recipe, send, start, start_two


def weights(path: Path) -> dict[str, torch.Tensor]:
    network = path / "network.safetensors"
    return serialization.read_tensors(network, serialization.read_card(network))


@pytest.mark.parametrize(("method", "attacked"), [("standard", False), ("anp", False), ("anp-vs", True)])
def test_two_processes_train_what_one_does(method: str, attacked: bool, tmp_path: Path) -> None:
    # Pruning on the way, dropout, batch normalisation. The sign of a gradient that is nearly 0 turns with the
    # order of a sum, so that attacked runs drift apart: they are compared after fewer steps.
    changes = {"epochs": 1} if attacked else {"attack": {"eps": 0.0, "step": 0.05, "steps": 1}}
    # Not Adam: it blows up the rounding errors of biases before a batch normalisation, whose gradient is 0.
    asked = recipe(method, optimiser="sgd", lr=0.05, **changes)
    one = start(asked, tmp_path / "one")
    two = start_two(asked, tmp_path / "two")
    for process in (one, *two):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output").read_text()
    left, right = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=2e-3, atol=2e-4 if attacked else 2e-5, msg=name)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().count("\n") for name in ("one", "two")]
    assert metrics[0] == metrics[1] > 0


def test_batch_statistics_are_those_of_the_whole_batch() -> None:
    # One process, so that the sums over processes are its own: the formula against PyTorch's layer.
    torch.manual_seed(0)
    features = torch.randn(6, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    layer, other = (nn.BatchNorm2d(3, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        layer.weight.uniform_(0.5, 2)
        layer.bias.uniform_()
    other.load_state_dict(layer.state_dict())
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        output = parallel._batch_norm(layer, features)
        ours = torch.autograd.grad(output.pow(3).sum(), [features, layer.weight, layer.bias])
    finally:
        torch.distributed.destroy_process_group()
    expected = other(features)
    theirs = torch.autograd.grad(expected.pow(3).sum(), [features, other.weight, other.bias])
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(ours, theirs)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(layer.state_dict()[name], value)


def test_one_that_dies_stops_all_and_the_run_goes_on(tmp_path: Path) -> None:
    asked = recipe("anp-vs", epochs=30)
    for process in start_two(asked, tmp_path / "whole"):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output").read_text()
    first, second = start_two(asked, tmp_path / "killed")
    metrics = tmp_path / "killed" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 6) and time.monotonic() < deadline:
        time.sleep(0.02)
    send(second, signal.SIGKILL)
    first.join(30)
    assert first.exitcode == 2
    assert "Another of the run's 2 processes has ended" in (tmp_path / "output").read_text()
    for process in start_two(asked, tmp_path / "killed"):
        process.join(120)
        assert process.exitcode == 0, (tmp_path / "output").read_text()
    equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))


def test_a_signal_to_one_saves_and_stops_both(tmp_path: Path) -> None:
    asked = recipe("at", epochs=500)
    both = start_two(asked, tmp_path / "run", seconds=1000.0)
    deadline = time.monotonic() + 60
    metrics = tmp_path / "run" / "metrics.jsonl"  # its first line comes after steps that both have taken
    while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    send(both[1], signal.SIGTERM)
    for process in both:
        process.join(30)
        assert process.exitcode == 130
    assert any((tmp_path / "run").glob("checkpoint*"))


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Three:
        global_rank, world_size, device = 0, 3, torch.device("cpu")

    with pytest.raises(InputError, match="batch_size is 16, which 3 processes cannot share"):
        parallel.Share(Three()).check(16)  # type: ignore[arg-type]


def test_no_processes_are_refused(tmp_path: Path) -> None:
    with patched(), pytest.raises(InputError, match="devices is 0"):
        run.train(recipe("standard"), out=tmp_path / "run", devices=0, quiet=True)
