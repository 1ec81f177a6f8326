"""The plan of a table, and working through it in this process."""

from pathlib import Path

import pytest

from anp_vs import recipes
from anp_vs.errors import InputError, RunError
from anp_vs.reproduce.here import work_here
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import ROWS, Job, plan
from anp_vs.training.run import Stopped


def names(jobs: list[Job]) -> list[str]:
    return [job.name for job in jobs]


@pytest.mark.parametrize(("table", "effort"), [("mnist", "paper"), ("mnist", "cpu"), ("cifar10", "gpu")])
def test_every_job_stands_behind_what_it_needs_and_once(table: str, effort: str) -> None:
    jobs = plan(table, seeds=3, effort=effort)
    seen: set[str] = set()
    for job in jobs:
        assert seen.issuperset(job.needs), job.name
        assert job.name not in seen
        seen.add(job.name)
    assert sum(not job.trains for job in jobs) == 3 * len(ROWS)
    # The black-box source is one network for all; what a row starts from is its own seed's.
    assert sum("black-box-source" in job.name for job in jobs) == 1
    vs = next(job for job in jobs if job.trains and job.name.endswith("anp-vs seed 2"))
    assert [name.rpartition("/")[2] for name in vs.needs] == ["standard seed 2"]


def test_the_best_row_waits_for_its_start_and_its_teacher() -> None:
    jobs = {job.name: job for job in plan("mnist", effort="best")}
    (best,) = (job for job in jobs.values() if job.trains and job.recipe.name == "mnist-best/anp-vs")
    assert set(best.needs) == {"train mnist-cpu/standard seed 0", "train mnist-cpu/admm seed 0"}
    assert jobs["train mnist-cpu/admm seed 0"].needs == ("train mnist-cpu/at seed 0",)


def test_the_prerequisite_of_the_plan_is_the_one_that_training_looks_for() -> None:
    for name, recipe in recipes.RECIPES.items():
        seeded = recipes.override(recipe, {"seed": 5, "data_root": "elsewhere"})
        found = recipes.prerequisite(seeded), recipes.prerequisite(seeded, "teacher")
        for before, wanted in zip(found, (recipe.start, recipe.teacher), strict=True):
            assert (before is None) == (wanted is None), name
            if before is not None:
                assert (before.name, before.seed, before.data_root) == (wanted, 5, "elsewhere")


def test_what_is_needed_sees_the_same_images_through_two_stages() -> None:
    for name in ("mnist-best/anp-vs", "mine"):
        best = recipes.override(recipes.RECIPES["mnist-best/anp-vs"], {"name": name, "data": "digits", "seed": 3})
        teacher = recipes.prerequisite(best, "teacher")
        assert teacher is not None
        assert (teacher.name, teacher.data, teacher.method.name) == (f"{name}-teacher", "digits", "admm")
        first = recipes.prerequisite(teacher)
        assert first is not None
        assert (first.name, first.data, first.method.name) == (f"{name}-teacher-start", "digits", "at")
        assert (first.seed, recipes.prerequisite(first)) == (3, None)
    taught = recipes.override(recipes.RECIPES["digits/anp-vs"], {"teacher": "mnist-cpu/admm"})
    teacher = recipes.prerequisite(taught, "teacher")
    assert teacher is not None
    assert (teacher.data, teacher.name) == ("digits", "digits/anp-vs-teacher")


@pytest.mark.parametrize(
    ("table", "wrong", "said"),
    [
        ("imagenet", {}, "no cpu recipes for the table 'imagenet'"),
        ("mnist", {"rows": ["ant"]}, "no row 'ant'"),
        ("mnist", {"seeds": 0}, "seeds is 0"),
        ("mnist", {"autoattack": -1}, "autoattack is -1"),
        ("mnist", {"effort": "quick"}, "'quick'"),
    ],
)
def test_what_does_not_exist_is_refused_by_name(table: str, wrong: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        plan(table, **wrong)  # type: ignore[arg-type]


def work(jobs: list[Job], failing: dict[str, int], retries: int = 1) -> tuple[Overview, list[str]]:
    """Work through a plan; a job fails as often as `failing` says."""
    tried: list[str] = []

    def do(job: Job) -> None:
        tried.append(job.name)
        if failing.get(job.name, 0) >= tried.count(job.name):
            raise RunError("the loss became nan")

    overview = Overview(jobs)
    work_here(jobs, overview, do, retries)
    return overview, tried


def test_a_failure_is_tried_again_and_then_leaves_the_rest_alone(tmp_path: Path) -> None:
    jobs = plan("mnist", rows=["standard", "bp", "at"], root=tmp_path)
    lost = "train mnist-cpu/standard seed 0"
    overview, tried = work(jobs, {lost: 9, "train mnist-cpu/at seed 0": 1})
    assert overview.states[lost] == "failed"
    assert "nan" in overview.notes[lost]
    assert tried.count(lost) == 2
    assert overview.states["train mnist-cpu/bp seed 0"] == "left out"
    assert overview.states["evaluate mnist-cpu/bp seed 0"] == "left out"
    assert tried.count("train mnist-cpu/at seed 0") == 2
    assert overview.states["evaluate mnist-cpu/at seed 0"] == "done"


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = plan("mnist", rows=["at"], root=tmp_path)
    monkeypatch.setattr(Job, "done", lambda job: job.trains)
    overview, tried = work(jobs, {})
    assert tried == ["evaluate mnist-cpu/at seed 0"]
    assert overview.count("done") == len(jobs)


def test_a_signal_ends_the_whole_plan(tmp_path: Path) -> None:
    jobs = plan("mnist", rows=["at"], root=tmp_path)

    def do(job: Job) -> None:
        raise Stopped("asked to")

    with pytest.raises(Stopped):
        work_here(jobs, Overview(jobs), do, retries=3)
