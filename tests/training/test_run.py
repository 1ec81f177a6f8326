"""A run directory: whatever happens to the process or the disk, training ends where it would have ended anyway."""

import dataclasses
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anp_vs import recipes, serialization
from anp_vs.errors import InputError, RunError
from anp_vs.networks import NETWORKS
from anp_vs.report.training_figures import steps_per_epoch
from anp_vs.training import checkpoint, run, run_directory
from anp_vs.training.loop import Trainer
from anp_vs.training.run_directory import MetricsLog, RunDirectory
from training.tiny import (
    PRUNING,
    Asked,
    digits,
    equal,
    log_of,
    recipe,
    same_run,
    start,
    tensors,
    waited,
)

pytestmark = pytest.mark.usefixtures("tiny")


# -- start, stop, resume, finish ------------------------------------------------------------------------------


def test_a_run_leaves_its_networks_its_recipe_and_metrics_without_gap(path: Path) -> None:
    done = run.train(recipe("anp-vs", **PRUNING), out=path, quiet=True)
    settled = recipe("anp-vs", **PRUNING, precision="float32", layout="channels-last", compilation="off")
    assert recipes.load(path / "recipe.yaml") == settled
    lines = [line for line in log_of(path) if "message" not in line]
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert [line["epoch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert [line["step"] for line in lines if "robust_accuracy" in line] == [4, 8, 12]
    assert done.metrics["clean_accuracy"] == lines[-1]["clean_accuracy"]
    card = serialization.card_of(done.network)
    assert (card["seed"], card["recipe"]["seed"], card["recipe"]["on_trouble"]) == (0, 0, "continue")
    assert any("gates fixed" in line.get("message", "") for line in log_of(path))
    images = digits().test.images.float() / 255
    with torch.no_grad():
        gated, small = done.network(images), serialization.load(path / "compact.safetensors")(images)
    torch.testing.assert_close(gated, small, rtol=0, atol=1e-5)
    assert any(file.stat().st_size for file in (path / "tensorboard").iterdir())


def test_a_run_without_validation_ends_with_the_same_network(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_some = run.train(recipe("anp-vs", **PRUNING), out=path / "with", quiet=True)
    few = dataclasses.replace(digits(), validation=digits().validation.head(0))
    monkeypatch.setattr(run, "load_data", lambda *_, **__: few)
    done = run.train(recipe("anp-vs", **PRUNING), out=path / "without")
    equal(dict(done.network.state_dict()), dict(with_some.network.state_dict()))
    told = capsys.readouterr().err
    assert all(f"epoch   {epoch}/3" in told for epoch in (1, 2, 3))
    lines = [line for line in log_of(path / "without") if "message" not in line]
    assert [line["step"] for line in lines] == [3, 4, 6, 8, 9, 12]
    assert not any("clean_accuracy" in line for line in lines)
    assert done.metrics == {k: v for k, v in lines[-1].items() if k != "units"}
    assert steps_per_epoch(lines) == 4
    said = [line["message"] for line in log_of(path / "without") if "message" in line]
    assert sum("no images are held out for validation" in message for message in said) == 1


def test_a_target_that_was_not_reached_is_said(path: Path) -> None:
    run.train(recipe("anp-vs", **PRUNING | {"target_sparsity": 99.9}), out=path, quiet=True)
    said = [line["message"] for line in log_of(path) if "gates fixed" in line.get("message", "")]
    assert len(said) == 1
    assert "the target of 99.9 % was not reached" in said[0]


def test_other_training_pictures_than_the_run_began_with_are_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "stop_asked", lambda: Asked(lambda: True))
    with pytest.raises(run.Stopped):
        run.train(recipe("at"), out=path, quiet=True)
    whole = digits()
    fewer = dataclasses.replace(whole, train=whole.train.head(len(whole.train) - 1))
    with monkeypatch.context() as patch:
        patch.setattr(run, "load_data", lambda *_, **__: fewer)
        with pytest.raises(RunError, match=r"training images of digits are not those that .* began with"):
            run.train(recipe("at"), out=path, quiet=True)
    with pytest.raises(run.Stopped):  # the same ones are welcome
        run.train(recipe("at"), out=path, quiet=True)


class Outputs(nn.Module):
    """Answers with what a classifier should not."""

    def __init__(self, kind: str, classes: int) -> None:
        super().__init__()
        self.kind, self.fc = kind, nn.Linear(784, classes - (kind == "one too few"))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits.squeeze() if self.kind == "squeezed" else logits.softmax(1) if self.kind == "softmax" else logits


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("one too few", "has 9 outputs and the data 10 classes"),
        ("softmax", "these are probabilities"),
        ("squeezed", "for 1 images"),
    ],
)
def test_a_network_whose_evaluation_would_be_refused_is_not_trained(
    kind: str, said: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "outputs", partial(Outputs, kind))
    with pytest.raises(InputError, match=said):
        run.train(recipe("at", network="outputs"), out=path, quiet=True)
    assert not path.exists()


def test_a_finished_run_is_loaded_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.train(recipe(), out=path, quiet=True)
    monkeypatch.setattr(run, "Trainer", None)
    monkeypatch.setattr(run, "load_data", None)  # not even the data are needed
    again = run.train(path, quiet=True)
    equal(first.network.state_dict(), again.network.state_dict())
    assert again.metrics == first.metrics
    assert again.path == path


class CrashError(Exception):
    """The process dies here."""


@pytest.mark.parametrize("method", ["anp-vs", "admm", "at-bnn"])
def test_a_run_that_crashes_at_every_step_ends_as_the_one_that_does_not(
    method: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(method, **(PRUNING if method == "anp-vs" else {}))
    run.train(asked, out=tmp_path / "whole", quiet=True)
    advance = Trainer.advance

    def dying(training: Trainer) -> Any:
        if training.step in left:
            left.remove(training.step)
            raise CrashError
        return advance(training)

    left = {2, 3, 5, 8, 11}
    monkeypatch.setattr(Trainer, "advance", dying)
    while left:
        with pytest.raises(CrashError):
            run.train(asked, out=path, quiet=True)
        with (path / "metrics.jsonl").open("a") as metrics:
            metrics.write('{"step": 99, "written": "after the checkp')
    run.train(asked, out=path, quiet=True)
    same_run(tmp_path / "whole", path)


def test_a_crash_while_the_networks_are_saved_is_made_up_for(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe("anp-vs", **PRUNING)
    run.train(asked, out=tmp_path / "whole", quiet=True)
    real, left = serialization.write_atomically, list(range(4))

    def dying(file: Path, content: bytes) -> None:
        if file.suffix in (".safetensors", ".json") and left and len(seen) == left[0]:
            left.pop(0)
            raise CrashError
        seen.append(file)
        real(file, content)

    monkeypatch.setattr(serialization, "write_atomically", dying)
    while left:
        seen: list[Path] = []
        with pytest.raises(CrashError):
            run.train(asked, out=path, quiet=True)
        assert not RunDirectory(path).finished
    seen = []
    run.train(asked, out=path, quiet=True)
    same_run(tmp_path / "whole", path)


def test_a_damaged_network_is_made_again_from_the_checkpoint(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run.train(recipe(), out=path, quiet=True)
    good = tensors(path)
    (path / "network.safetensors").write_bytes(b"cut short")
    run.train(path, quiet=True)
    assert tensors(path) == good
    assert "made again" in caplog.text


def test_the_previous_checkpoint_is_used_when_the_last_is_damaged_and_it_is_said(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.train(recipe(), out=tmp_path / "whole", quiet=True)
    stopped_at(7, path, monkeypatch)
    file = path / "checkpoint.state"
    file.write_bytes(file.read_bytes()[:-100])
    run.train(recipe(), out=path, quiet=True)
    same_run(tmp_path / "whole", path)
    assert "checkpoint.state is damaged" in caplog.text
    assert "previous checkpoint is used" in caplog.text


def stopped_at(step: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def dying(training: Trainer) -> Any:
        if training.step == step:
            raise CrashError
        return advance(training)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", dying)
        with pytest.raises(CrashError):
            run.train(recipe(), out=path, quiet=True)


# -- refused --------------------------------------------------------------------------------------------------


def test_a_directory_of_another_recipe_is_refused_by_the_fields_that_differ(path: Path) -> None:
    run.train(recipe(), out=path, quiet=True)
    before = tensors(path)
    with pytest.raises(RunError, match="belongs to another recipe") as caught:
        run.train(recipe("at", lr=0.5, attack={"eps": 0.2}), out=path, quiet=True)
    message = str(caught.value)
    assert "lr (0.003 there, 0.5 asked)" in message
    assert "method.name ('standard' there, 'at' asked)" in message
    assert "attack.eps (0.1 there, 0.2 asked)" in message
    assert "batch_size" not in message
    assert tensors(path) == before


def test_the_data_may_have_moved_and_a_recipe_been_described_in_other_words(path: Path) -> None:
    run.train(recipe(), out=path, quiet=True)
    run.train(recipe(data_root="elsewhere", source="better words"), out=path, quiet=True)


def test_a_value_that_only_the_data_refuse_does_not_claim_the_directory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match="fewer than one batch"):
        run.train(recipe(batch_size=500), out=path, quiet=True)
    run.train(recipe(), out=path, quiet=True)


def test_a_directory_in_use_is_refused_and_a_dead_process_leaves_no_lock(path: Path) -> None:
    with RunDirectory(path), pytest.raises(RunError, match="in use by this very process"):
        run.train(recipe(), out=path, quiet=True)
    process = start(recipe(epochs=1000), path)
    try:
        waited(path / "checkpoint.state")
        with pytest.raises(RunError, match="in use by another process"):
            run.train(recipe(), out=path, quiet=True)
    finally:
        process.kill()
        process.join()
    with RunDirectory(path):
        pass


def test_a_refused_run_leaves_nothing_behind(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for place in (tmp_path / "made" / "by" / "us", mine):
        with pytest.raises(RunError, match="fewer than one batch"):
            run.train(recipe(batch_size=500), out=place, quiet=True)
    assert list(tmp_path.rglob("*")) == [mine]
    (mine / "note").write_text("kept")
    with RunDirectory(mine):
        pass
    assert sorted(entry.name for entry in mine.iterdir()) == ["lock", "note"]


@pytest.mark.parametrize("place", ["file/run", "file"])
def test_a_place_that_cannot_be_a_directory_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written to"):
        run.train(recipe(), out=tmp_path / place, quiet=True)


def test_a_gpu_where_none_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="GPU was asked for"):
        run.train(recipe(), out=path, device="cuda", quiet=True)
    with pytest.raises(InputError, match="choose auto, cpu or cuda"):
        run.train(recipe(), out=path, device="tpu", quiet=True)
    assert not path.exists()


@pytest.mark.parametrize("what", ["other network", "no step", "nonsense"])
def test_a_checkpoint_that_is_whole_but_does_not_belong_is_refused(what: str, path: Path) -> None:
    run.train(recipe(), out=path, quiet=True)
    (path / "network.json").unlink()  # not finished
    state = checkpoint.read(path / "checkpoint.state")
    if what == "other network":
        state["network"] = {"layer.weight": torch.ones(2)}
    elif what == "no step":
        del state["step"]
    else:
        state["weights_optimiser"]["param_groups"] = 3
    checkpoint.save(path / "checkpoint.state", state)
    with pytest.raises(RunError, match="does not belong to this recipe or to this version"):
        run.train(recipe(), out=path, quiet=True)


def test_metrics_that_were_cut_or_changed_by_hand(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_at(7, path, monkeypatch)
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="shorter than its checkpoint says"):
        run.train(recipe(), out=path, quiet=True)
    for text in ("[1]\n", "{\n", "\xff\xfe\n", "[" * 100_000 + "\n"):
        (path / "metrics.jsonl").write_text(text, encoding="latin-1")
        with pytest.raises(RunError, match="metrics"):
            MetricsLog.read(path / "metrics.jsonl")


# -- the disk -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["metrics.jsonl", "checkpoint.state", "network.safetensors", "recipe.yaml"])
def test_a_disk_that_is_full_at_any_file_stops_the_run_and_it_goes_on_later(
    file: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.train(recipe(), out=tmp_path / "whole", quiet=True)

    def refused(*_: object, **__: object) -> None:
        raise RunError("No space left on device")

    with monkeypatch.context() as patch:
        if file == "metrics.jsonl":
            patch.setattr(run, "MetricsLog", FullLog)
        else:
            real = checkpoint.write_atomically

            def sometimes(target: Path, content: bytes) -> None:
                (refused if target.name == file and (file != "checkpoint.state" or target.exists()) else real)(
                    target, content
                )

            for module in (checkpoint, run_directory, serialization):
                patch.setattr(module, "write_atomically", sometimes)
        with pytest.raises(RunError, match="No space left on device"):
            run.train(recipe(), out=path, quiet=True)
    run.train(recipe(), out=path, quiet=True)
    same_run(tmp_path / "whole", path)


class FullLog(MetricsLog):
    """The third line does not fit on the disk."""

    lines = 0

    def write(self, **values: Any) -> None:
        self.lines += 1
        if self.lines == 3:
            import os

            os.close(self._handle)
            self._handle = os.open("/dev/full", os.O_WRONLY)
        super().write(**values)


# -- numbers that go wrong ------------------------------------------------------------------------------------


def test_a_diverging_run_stops_with_its_last_good_checkpoint(path: Path) -> None:
    with pytest.raises(RunError, match=r"The loss became|not finite"):
        run.train(recipe(optimiser="sgd", lr=1e25, schedule="multistep"), out=path, quiet=True)
    state, problem = checkpoint.read_latest(path / "checkpoint.state")
    if state is not None:
        assert all(bool(value.isfinite().all()) for value in state["network"].values())
    assert problem == ""
    assert not RunDirectory(path).finished


def test_weights_that_are_not_finite_never_reach_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Trainer.advance

    def spoiling(training: Trainer) -> Any:
        report = advance(training)
        if training.step == 5:
            with torch.no_grad():
                training.network.fc.bias[3] = math.nan
        return report

    monkeypatch.setattr(Trainer, "advance", spoiling)
    with pytest.raises(RunError, match=r"fc\.bias holds values that are not finite after step 5"):
        run.train(recipe(), out=path, quiet=True)
    assert checkpoint.read(path / "checkpoint.state")["step"] == 4


def test_a_gate_that_collapses_is_said_once_even_when_the_run_is_resumed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = Trainer.advance
    crash = [6]

    def closing(training: Trainer) -> Any:
        if training.step == 2:
            with torch.no_grad():
                training.network.gate2.a_uc.fill_(-12.0)
        if [training.step] == crash:
            crash.clear()
            raise CrashError
        return advance(training)

    monkeypatch.setattr(Trainer, "advance", closing)
    asked = recipe("anp-vs", remove_after=0, decide_at=1.0)
    with pytest.raises(CrashError):
        run.train(asked, out=path, quiet=True)
    run.train(asked, out=path, quiet=True)
    said = [line for line in log_of(path) if "every unit of gate2" in line.get("message", "")]
    assert [line["step"] for line in said] == [3]
