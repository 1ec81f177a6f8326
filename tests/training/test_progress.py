"""What a log file is told of a training."""

import pytest

from anp_vs.training import progress
from anp_vs.training.progress import Display
from training.tiny import trainer


@pytest.mark.parametrize(("seconds", "within"), [(0.0, 1), (1000.0, 0)])
def test_without_a_terminal_a_line_comes_now_and_then_within_an_epoch(
    seconds: float, within: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    training = trainer()
    with Display(training.recipe, training) as display:
        training.step = 3
        display.update({"train_accuracy": 50.0})
        display.update({})  # nothing was logged, so there is nothing new to say
        training.step = training.steps_per_epoch
        display.update({"clean_accuracy": 60.0, "robust_accuracy": 10.0})
    first, *lines = capsys.readouterr().err.splitlines()
    assert first.startswith("tiny/standard: 3 epochs of 4 steps")
    told = ["tiny/standard: step 3/12  train clean 50.0 %"] * within
    assert lines == [*told, "tiny/standard: epoch   1/3  clean 60.0 %  robust 10.0 %  train clean 50.0 %"]
