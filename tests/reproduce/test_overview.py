"""What is said of a plan's progress, on made-up metrics and a clock of its own."""

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from anp_vs import recipes
from anp_vs.evaluation.finished import ATTACKS, Finished
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import Job
from anp_vs.training.run_directory import RunDirectory


class Plan:
    """Two trainings of 4 epochs of 10 steps, the first with an attack of one step, and their evaluations."""

    def __init__(self, root: Path) -> None:
        attack = {"eps": 0.1, "step": 0.05, "steps": 1}
        self.at, self.standard = (
            Job(row, recipes.override(recipes.RECIPES[f"digits/{row}"], {"epochs": 4, "attack": attack}), root / row)
            for row in ("at", "standard")
        )
        self.first, self.second = (
            Job(f"evaluate {job.name}", job.recipe, job.run, (job.name,), source=root / "source")
            for job in (self.at, self.standard)
        )
        self.now = 0.0
        self.overview = Overview([self.at, self.standard, self.first, self.second], clock=lambda: self.now)

    def log(self, job: Job, *steps: int) -> None:
        job.run.mkdir(exist_ok=True)
        lines = []
        for step in steps:
            ends = {} if step % 10 else {"clean_accuracy": 90.0 + step / 10, "robust_accuracy": 50.0}
            lines.append(json.dumps({"step": step, "epoch": (step - 1) // 10, **ends}) + "\n")
        with (job.run / "metrics.jsonl").open("a") as file:
            file.writelines(lines)

    def shown(self) -> list[str]:
        console = Console(file=io.StringIO(), width=200)
        console.print(self.overview.table())
        return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path)


def test_nothing_is_foretold_before_an_epoch_has_ended(plan: Plan) -> None:
    plan.overview.mark(plan.at, "running")
    plan.now = 50
    plan.log(plan.at, 5)
    assert plan.overview.left() == {}
    assert plan.overview.summary() == "4 jobs: 1 running, 3 waiting; 0:00:50 so far"


def test_a_training_goes_on_at_its_pace_and_others_cost_their_passes(plan: Plan) -> None:
    plan.overview.mark(plan.at, "running")
    plan.now = 120
    plan.log(plan.at, 5, 10, 12)
    # 10 s a step: 28 steps are left of 40. Those 400 s are 8 passes; a training without an attack has 4 of them.
    assert plan.overview.left() == pytest.approx({"at": 280, "standard": 200})
    assert plan.overview.summary() == "4 jobs: 1 running, 3 waiting; 0:02:00 so far, at least 0:08:00 left"
    title, _, at, standard, first, _ = plan.shown()
    assert title.strip() == plan.overview.summary()
    assert at.split() == ["at", "running", "2/4", "91.0", "50.0", "0:02:00", "0:04:40"]
    assert standard.split() == ["standard", "waiting", "0/4", "0:03:20"]
    assert first.split() == ["evaluate", "at", "waiting"]


def test_a_resumed_training_is_judged_by_what_it_did_since(plan: Plan) -> None:
    plan.log(plan.at, 10, 20)
    plan.overview.mark(plan.at, "running")
    plan.now = 50
    plan.log(plan.at, 30)
    assert plan.overview.left()["at"] == pytest.approx(50)


def test_evaluations_take_as_long_as_those_before_and_longer_ones_are_not_foretold(plan: Plan) -> None:
    plan.log(plan.at, 10, 20, 30, 40)
    plan.log(plan.standard, 10, 20, 30, 40)
    for job in (plan.at, plan.standard):
        plan.overview.mark(job, "done", "was done before")
    plan.overview.mark(plan.first, "running")
    plan.now = 90
    plan.overview.mark(plan.first, "done")
    assert plan.overview.summary() == "4 jobs: 1 waiting, 3 done; 0:01:30 so far, about 0:01:30 left"
    plan.overview.mark(plan.second, "running")
    plan.now = 120
    assert plan.overview.left() == pytest.approx({"evaluate standard": 60})
    *_, first, second = plan.shown()
    assert first.split() == ["evaluate", "at", "done", "0:01:30"]
    assert second.split() == ["evaluate", "standard", "running", "0:00:30", "0:01:00"]
    plan.now = 300
    assert plan.overview.left() == {}


def test_jobs_at_the_same_time_share_what_is_left(plan: Plan) -> None:
    for job in (plan.at, plan.standard):
        plan.log(job, 10)
        plan.overview.mark(job, "running")
    plan.now = 100
    for job in (plan.at, plan.standard):
        plan.log(job, 20)
    assert plan.overview.left() == pytest.approx({"at": 200, "standard": 200})
    assert plan.overview.summary().endswith("0:01:40 so far, at least 0:03:20 left")


def test_times_are_also_told_without_a_terminal(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    overview = Overview([plan.at, plan.standard], clock=lambda: plan.now)
    overview.mark(plan.at, "running")
    plan.now = 80
    plan.log(plan.at, 10, 20, 30, 40)
    overview.mark(plan.at, "done")
    assert capsys.readouterr().err.splitlines() == [
        "at: running [2 jobs: 1 running, 1 waiting; 0:00:00 so far]",
        "at: done after 0:01:20 [2 jobs: 1 waiting, 1 done; 0:01:20 so far, about 0:00:40 left]",
    ]


def test_the_pace_is_one_of_images(tmp_path: Path) -> None:
    """On MNIST an epoch has 43 times the images of the digits, that its pre-training is made on."""
    now = [0.0]
    at, before = (Job(row, recipes.RECIPES[f"mnist-cpu/{row}"], tmp_path / row) for row in ("at", "pretraining"))
    overview = Overview([at, before], clock=lambda: now[0])
    overview.mark(at, "running")
    now[0] = 600
    at.run.mkdir()
    (at.run / "metrics.jsonl").write_text(json.dumps({"step": 2000, "epoch": 4, "clean_accuracy": 98.0}) + "\n")
    overview.mark(at, "done")
    assert overview.left() == pytest.approx({"pretraining": 600 / 5 * 40 * 1397 / 60_000})


def test_a_small_terminal_shows_what_runs_and_has_failed_and_counts_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm", "COLUMNS": "90", "LINES": "14"}.items():
        monkeypatch.setenv(name, value)
    jobs = [Job(f"job-{number}", recipes.RECIPES["digits/at"], tmp_path / str(number)) for number in range(60)]
    overview = Overview(jobs)
    for job in jobs[:40]:
        overview.mark(job, "done", "was done before")
    overview.mark(jobs[40], "running")
    overview.mark(jobs[41], "failed", "try 3: " + "a long reason " * 10)
    with overview:
        small = capsys.readouterr().err
    whole = capsys.readouterr().err
    assert len(small.splitlines()) <= 14
    assert small.index("job-40") < small.index("job-41")
    assert "not shown:" in small
    assert "40 done" in small.split("not shown:")[1]
    assert set(re.findall(r"job-\d+", small)).isdisjoint(job.name for job in jobs[:40])
    assert set(re.findall(r"job-\d+", whole)) == {job.name for job in jobs}


def test_a_running_evaluation_shows_how_many_images_it_has_attacked(plan: Plan) -> None:
    plan.log(plan.at, 40)
    plan.overview.mark(plan.first, "running")
    assert not any("/400" in line for line in plan.shown())
    Finished(RunDirectory(plan.at.run).evaluation, {}, 400).keep(ATTACKS, {"done": 50})
    (line,) = (line for line in plan.shown() if "50/400" in line)
    assert plan.first.name in line
