"""Numbers that go wrong are said, each once; what is only noise is not."""

import pytest
import torch
from torch import nn

from anp_vs.errors import RunError
from anp_vs.pruning.gate import Gate
from anp_vs.training.watch import Watch, check_finite


def looks(watch: Watch, *epochs: tuple[float, float]) -> list[list[str]]:
    """What is said after epochs with these (training, validation) robust accuracies."""
    network = nn.Linear(1, 1)
    return [watch.look(network, {"train_robust_accuracy": t, "robust_accuracy": v}) for t, v in epochs]


def test_catastrophic_overfitting_is_said_when_it_happens_and_again_only_after_a_recovery() -> None:
    said = looks(Watch(), (30, 30), (45, 44), (98, 3), (99, 0), (50, 46), (99, 1))
    assert [bool(messages) for messages in said] == [False, False, True, False, False, True]
    assert "fell to 3.0 % from 44.0 %, while the attack of training leaves 98.0 %" in said[2][0]


@pytest.mark.parametrize(
    "epochs",
    [
        [(40, 40), (50, 45), (60, 42), (70, 38)],  # robust overfitting: slow
        [(60, 60), (10, 10), (30, 30)],  # a bad step, seen in training too
        [(95, 5), (95, 20), (90, 50)],  # the radius warms up
        [(50, 50), (49, 45), (51, 38), (50, 52)],  # noise
    ],
)
def test_what_is_no_catastrophe_is_not_called_one(epochs: list[tuple[float, float]]) -> None:
    assert not any(looks(Watch(), *epochs))


def test_lines_without_validation_are_not_judged() -> None:
    watch = Watch()
    assert watch.look(nn.Linear(1, 1), {"train_robust_accuracy": 99.0}) == []
    assert watch.look(nn.Linear(1, 1), {"clean_accuracy": 99.0, "robust_accuracy": 0.0}) == []


def test_a_collapsed_gate_is_said_once_and_remembered_through_a_state() -> None:
    network = nn.Sequential(Gate(3), Gate(3))
    with torch.no_grad():
        network[1].a_uc.fill_(-12.0)
    watch, resumed = Watch(), Watch()
    assert ["every unit of 1 would be pruned" in message for message in watch.look(network, {})] == [True]
    assert watch.look(network, {}) == []
    resumed.load_state_dict(watch.state_dict())
    assert resumed.look(network, {}) == []
    with torch.no_grad():
        network[0].a_uc.fill_(-12.0)
    assert len(resumed.look(network, {})) == 1
    assert watch.state_dict()["collapsed"] == ["1"]


def test_one_unit_left_is_no_collapse() -> None:
    network = nn.Sequential(Gate(3))
    with torch.no_grad():
        network[0].a_uc[:2] = -12.0
    assert Watch().look(network, {}) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_found_by_name(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    check_finite(network, 7)
    network[1].running_var[1] = value
    with pytest.raises(RunError, match=r"1\.running_var holds values that are not finite after step 7"):
        check_finite(network, 7)
