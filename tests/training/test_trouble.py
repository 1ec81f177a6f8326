"""Numbers that go wrong, provoked: the run stops, steps back or goes on as its recipe says, and what was good stays."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anp_vs.errors import RunError
from anp_vs.networks import build
from anp_vs.networks.latents import latent_paths
from anp_vs.training import checkpoint, run
from anp_vs.training.loop import Trainer
from anp_vs.training.run_directory import MetricsLog, RunDirectory
from anp_vs.training.watch import Trouble, silent_layers
from training.tiny import equal, patched, recipe

AT_STEP = 6  # of 12; epochs end after 4, 8 and 12


@pytest.fixture(autouse=True)
def tiny() -> Iterator[None]:
    with patched(LOG_EVERY=1000):
        yield


def weights(network: nn.Module, value: float) -> None:
    network.fc.bias[3] = value  # type: ignore[union-attr, index, operator]


def gate(network: nn.Module, value: float) -> None:
    network.gate2.a_uc.fill_(value)  # type: ignore[union-attr, operator]


def layer(network: nn.Module, value: float) -> None:
    network.bn1.weight.fill_(0.0)  # type: ignore[union-attr, operator]
    network.bn1.bias.fill_(value)  # type: ignore[union-attr, operator]


SPOILT: dict[str, tuple[Callable[[nn.Module, float], None], float, str]] = {
    "weights": (weights, math.nan, r"not finite|The loss became nan"),
    "gate": (gate, -12.0, "every unit of gate2 would be pruned"),
    "layer": (layer, -100.0, "gate1 has died out"),
    "overfitting": (lambda *_: None, 0.0, "catastrophic overfitting: PGD on the validation split fell to 3.0 %"),
}


@pytest.fixture(params=SPOILT)
def message(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Something goes wrong at a step, unless the run has stepped back before; what has to be said about it."""
    spoil, value, said = SPOILT[request.param]
    advance, validate, take_means = Trainer.advance, Trainer.validate, Trainer.take_means

    def spoiling(training: Trainer) -> Any:
        report = advance(training)
        if training.step >= AT_STEP and training.eased == 1:
            with torch.no_grad():
                spoil(training.network, value)
        return report

    def validated(training: Trainer, stop: Callable[[], bool]) -> Any:
        fallen = training.eased == 1 and training.step > 4
        return validate(training, stop) and {"clean_accuracy": 90.0, "robust_accuracy": 3.0 if fallen else 60.0}

    monkeypatch.setattr(Trainer, "advance", spoiling)
    if request.param == "overfitting":
        monkeypatch.setattr(Trainer, "validate", validated)
        monkeypatch.setattr(Trainer, "take_means", lambda t: take_means(t) | {"train_robust_accuracy": 95.0})
    return said


def asked(on_trouble: str) -> Any:
    return recipe("anp-vs", on_trouble=on_trouble, remove_after=0, decide_at=1.0, average=0.0)


def said(path: Path) -> list[str]:
    return [line["message"] for line in MetricsLog.read(path / "metrics.jsonl") if "message" in line]


def finite(path: Path) -> bool:
    state = checkpoint.read(path)
    return all(bool(value.isfinite().all()) for value in state["network"].values())


def test_the_run_stops_with_its_last_good_checkpoint(message: str, tmp_path: Path) -> None:
    with pytest.raises(Trouble, match=message):
        run.train(asked("stop"), out=tmp_path, quiet=True)
    assert not RunDirectory(tmp_path).finished
    assert checkpoint.read(tmp_path / "checkpoint.state")["step"] in (5, 7)
    assert finite(tmp_path / "checkpoint.state")
    assert finite(tmp_path / "checkpoint.state.previous")


def test_the_run_steps_back_and_ends(message: str, tmp_path: Path) -> None:
    run.train(asked("step-back"), out=tmp_path, quiet=True)
    (once,) = said(tmp_path)
    assert message.split("|")[0] in once or "nan" in once
    assert "Stepped back to step 4; learning rates are now 1/2" in once
    lines = [line for line in MetricsLog.read(tmp_path / "metrics.jsonl") if "message" not in line]
    assert [line["step"] for line in lines] == [4, 8, 12]
    assert checkpoint.read(tmp_path / "checkpoint.state")["eased"] == 0.5
    assert RunDirectory(tmp_path).finished


def test_the_run_goes_on_when_told_to_unless_there_is_nothing_to_go_on_with(message: str, tmp_path: Path) -> None:
    if "finite" in message:
        with pytest.raises(Trouble, match=message):
            run.train(asked("continue"), out=tmp_path, quiet=True)
        return
    run.train(asked("continue"), out=tmp_path, quiet=True)
    assert any(message in one for one in said(tmp_path))
    assert RunDirectory(tmp_path).finished


class CrashError(Exception):
    """The process dies here."""


def test_killed_before_and_after_it_steps_back_a_run_ends_the_same(
    message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(asked("step-back"), out=tmp_path / "whole", quiet=True)
    advance, seen = Trainer.advance, set()

    def dying(training: Trainer) -> Any:
        place = (training.step, training.eased)
        if place not in seen and training.step in (0, 5, 6, 9):
            seen.add(place)
            raise CrashError
        return advance(training)

    monkeypatch.setattr(Trainer, "advance", dying)
    while True:
        try:
            run.train(asked("step-back"), out=tmp_path / "run", quiet=True)
            break
        except CrashError:
            pass
    assert {eased for _, eased in seen} == {1.0, 0.5}
    whole, broken = (checkpoint.read(tmp_path / name / "checkpoint.state") for name in ("whole", "run"))
    equal(whole | {"seconds": 0}, broken | {"seconds": 0})
    assert (tmp_path / "whole/metrics.jsonl").read_bytes() == (tmp_path / "run/metrics.jsonl").read_bytes()


def test_trouble_that_always_comes_back_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance, begun = Trainer.advance, []

    def spoiling(training: Trainer) -> Any:
        report = advance(training)
        if training.step == AT_STEP:
            begun.append(training.eased)
            with torch.no_grad():
                weights(training.network, math.inf)
        return report

    monkeypatch.setattr(Trainer, "advance", spoiling)
    with pytest.raises(Trouble, match=r"Stepping back 3 times did not help"):
        run.train(asked("step-back"), out=tmp_path, quiet=True)
    assert begun == [1.0, 0.5, 0.25, 0.125]
    assert finite(tmp_path / "checkpoint.state")


def test_a_stopped_run_goes_on_when_the_recipe_is_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def spoiling(training: Trainer) -> Any:
        report = advance(training)
        if training.step == AT_STEP:
            with torch.no_grad():
                gate(training.network, -12.0)
        return report

    monkeypatch.setattr(Trainer, "advance", spoiling)
    with pytest.raises(RunError, match="--on-trouble step-back"):
        run.train(asked("stop"), out=tmp_path, quiet=True)
    run.train(tmp_path, on_trouble="continue", quiet=True)
    assert RunDirectory(tmp_path).finished
    assert RunDirectory(tmp_path).read_recipe().on_trouble == "continue"


def test_a_stopped_run_steps_back_when_it_is_told_to_only_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def spoiling(training: Trainer) -> Any:
        report = advance(training)
        if training.step == AT_STEP and training.eased > 0.3:
            with torch.no_grad():
                weights(training.network, math.inf)
        return report

    monkeypatch.setattr(Trainer, "advance", spoiling)
    with pytest.raises(RunError, match="--on-trouble step-back"):
        run.train(asked("stop"), out=tmp_path, quiet=True)
    run.train(tmp_path, on_trouble="step-back", quiet=True)
    assert RunDirectory(tmp_path).finished
    assert checkpoint.read(tmp_path / "checkpoint.state")["eased"] == 0.25


@pytest.mark.parametrize("name", ["lenet5-caffe", "vgg16"])
def test_a_fresh_network_has_no_silent_layer_and_one_that_is_silenced_is_found_alone(name: str) -> None:
    network = build(name).eval()
    images = torch.rand(4, *network.input_shape)
    assert silent_layers(network, images) == []
    last = latent_paths(network)[-1]
    with torch.no_grad():
        network.get_submodule(last).register_forward_hook(lambda *words: words[-1] * 0)
    assert silent_layers(network, images) == [last]
    assert not network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
