"""What a log file is told of something long."""

import pytest

from anp_vs.evaluation import progress
from anp_vs.evaluation.progress import stage


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [
        (0.0, ["attacks: 50/200, clean 90", "attacks: 100/200, clean 80", "attacks: clean 70"]),
        (1000.0, ["attacks: clean 70"]),
    ],
)
def test_without_a_terminal_a_line_comes_now_and_then_and_at_the_end(
    seconds: float, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", seconds)
    with stage("attacks", 200) as tell:
        for done, figures in ((50, "clean 90"), (100, "clean 80"), (200, "clean 70")):
            tell(done, figures)
    assert capsys.readouterr().err.splitlines() == lines
    with stage("attacks", 200, show=False) as tell:
        tell(50, "clean 90")
    assert capsys.readouterr().err == ""
