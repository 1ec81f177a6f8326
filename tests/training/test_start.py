"""What training begins with: another recipe's weights, a saved network's, or those of one that was pruned."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from anp_vs import recipes, serialization
from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.published_cost import published_cost
from anp_vs.networks import build
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.training import checkpoint, run
from anp_vs.training.loop import Trainer
from training.tiny import STEPS, digits, equal, log_of, recipe

pytestmark = pytest.mark.usefixtures("tiny")


def pruned(path: Path) -> Path:
    """What a run leaves behind: a gated network of which some units are pruned, and the compact one."""
    torch.manual_seed(4)
    gated = insert_gates(build("lenet5-caffe")).eval()
    for gate in gates(gated).values():
        gate.a_uc.data[torch.rand(gate.units) < 0.6] = -torch.inf
    serialization.save(gated, path / "network")
    serialization.save(compact(gated), path / "compact")
    return path


def test_a_recipe_that_starts_from_another_trains_that_first_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = recipe("standard", name="t/first"), recipe("bp", name="t/second", start="t/first")
    monkeypatch.setitem(recipes.RECIPES, "t/first", first)
    begun: list[float] = []
    real = Trainer.__init__

    def noting(self: Trainer, asked: recipes.Recipe, *rest: Any, **options: Any) -> None:
        real(self, asked, *rest, **options)
        if asked.name == "t/second":
            begun.append(float(self.network.fc.weight.detach().sum()))

    monkeypatch.setattr(Trainer, "__init__", noting)
    run.train(second, out=tmp_path / "t/second/seed0", quiet=True)
    trained = serialization.load(tmp_path / "t/first/seed0/network.safetensors")
    assert begun == [float(trained.fc.weight.detach().sum())]


def test_weights_for_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    saved = serialization.save(build("lenet5-caffe", 7), tmp_path / "seven")
    with pytest.raises(InputError, match="do not fit LeNet"):
        run.train(recipe(start=str(saved), network="lenet5-caffe"), out=tmp_path / "run", quiet=True)
    with pytest.raises(RunError, match="no saved network"):
        run.train(recipe(start=str(tmp_path / "missing")), out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize("method", ["trades", "at-vs", "admm", "at-bnn"])
def test_a_pruned_network_trains_on_and_stays_small(method: str, tmp_path: Path) -> None:
    small = serialization.load(pruned(tmp_path / "pruned"))
    asked = recipe(method, network="lenet5-caffe", start=str(tmp_path / "pruned"))
    tensors = dict(small.state_dict())
    trainer = Trainer(asked, digits(), Fabric(accelerator="cpu", devices=1), tensors)
    images = torch.rand(8, 1, 28, 28)
    if method != "at-bnn":  # whose weights are drawn around the given ones
        torch.testing.assert_close(trainer.evaluation_network()(images), small(images))
    again = Trainer(asked, digits(), Fabric(accelerator="cpu", devices=1), tensors)
    while again.step < STEPS // 2:
        again.advance()
    checkpoint.save(tmp_path / "state", again.state())
    resumed = Trainer(asked, digits(), Fabric(accelerator="cpu", devices=1))
    resumed.load_state(checkpoint.read(tmp_path / "state"))
    for each in (trainer, resumed):
        while each.step < STEPS:
            each.advance()
    equal(*({k: v for k, v in each.state().items() if k != "seconds"} for each in (trainer, resumed)))
    trained = run.train(asked, out=tmp_path / "on", quiet=True).network
    if method != "at-bnn":
        assert published_cost(trained).units == published_cost(small).units
        assert published_cost(trained).sparsity_percent == published_cost(small).sparsity_percent > 10


def test_units_that_training_silenced_leave_the_pruned_network_and_no_other(tmp_path: Path) -> None:
    start = serialization.load(pruned(tmp_path / "pruned") / "compact.safetensors")
    start.conv1.bias.data[:2] = -100.0
    saved = serialization.save(start, tmp_path / "silenced")
    small = run.train(recipe("at", network="lenet5-caffe", start=str(saved)), out=tmp_path / "small", quiet=True)
    made = serialization.load(tmp_path / "small/compact.safetensors")
    assert serialization.card_of(made)["silent_units"]["conv2"] == 2
    assert len(made.conv1.bias) == len(small.network.conv1.bias) - 2
    images = torch.rand(9, 1, 28, 28)
    torch.testing.assert_close(made(images), small.network(images), rtol=1e-4, atol=1e-4)
    whole = build("lenet5-caffe")
    whole.conv1.bias.data[:2] = -100.0  # type: ignore[union-attr, operator, index]
    saved = serialization.save(whole, tmp_path / "whole")
    run.train(recipe("at", network="lenet5-caffe", start=str(saved)), out=tmp_path / "dense", quiet=True)
    assert not (tmp_path / "dense/compact.safetensors").exists()


def test_gates_are_not_put_into_what_was_pruned_nor_lost_from_what_has_them(tmp_path: Path) -> None:
    pruned(tmp_path / "pruned")
    with pytest.raises(InputError, match=r"has been pruned, and bp puts its gates .* such as at-vs or trades"):
        run.train(
            recipe("bp", network="lenet5-caffe", start=str(tmp_path / "pruned")), out=tmp_path / "run", quiet=True
        )
    gated = str(tmp_path / "pruned/network.safetensors")
    for method, message in (("bp", "has gates, which bp does not take over"), ("trades", "start from the compact one")):
        with pytest.raises(InputError, match=message):
            run.train(recipe(method, network="lenet5-caffe", start=gated), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_run_says_what_keeps_fresh_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.train(recipe("at", network="lenet5-caffe"), out=tmp_path / "source", quiet=True)
    asked = recipe("pretrained-at", network="lenet5-caffe", start=str(tmp_path / "source"))
    run.train(asked, out=tmp_path / "run")
    assert capsys.readouterr().err.count("fc2.weight, fc2.bias: fresh values") == 1
    assert sum("fresh values" in line.get("message", "") for line in log_of(tmp_path / "run")) == 1


@pytest.mark.parametrize(("start", "found"), [(None, "there is no start"), ("source", "was trained by standard")])
def test_what_was_never_attacked_is_no_pre_training(start: str | None, found: str, tmp_path: Path) -> None:
    run.train(recipe("standard", network="lenet5-caffe"), out=tmp_path / "source", quiet=True)
    asked = recipe("pretrained-at", network="lenet5-caffe", start=start and str(tmp_path / start))
    with pytest.raises(InputError, match=f"robustness is what moves .*{found}.* --start"):
        run.train(asked, out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_a_card_tells_the_epochs_of_all_that_came_before(tmp_path: Path) -> None:
    first = run.train(recipe("standard", name="t/first", network="lenet5-caffe"), out=tmp_path / "a", quiet=True)
    second = run.train(
        recipe("at", name="t/second", network="lenet5-caffe", start=str(first.path)), out=tmp_path / "b", quiet=True
    )
    third = recipe("trades", network="lenet5-caffe", start=str(second.path))
    run.train(third, out=tmp_path / "c", quiet=True)
    stages = serialization.read_card(tmp_path / "c/network.safetensors")["stages"]
    assert [(stage["recipe"], stage["epochs"]) for stage in stages] == [
        ("t/first", third.epochs),
        ("t/second", third.epochs),
    ]
