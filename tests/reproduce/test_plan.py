"""The plan of a table, and working through it in this process."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from anp_vs import recipes, serialization
from anp_vs.cli import main
from anp_vs.errors import DataError, InputError, RunError
from anp_vs.networks import build
from anp_vs.reproduce import cluster
from anp_vs.reproduce import table as reproduce_table
from anp_vs.reproduce.cluster import work_on_cluster
from anp_vs.reproduce.here import brief, work_here
from anp_vs.reproduce.overview import Overview
from anp_vs.reproduce.plan import ROWS, Job, plan
from anp_vs.reproduce.table import reproduce
from anp_vs.training.run import Stopped
from anp_vs.training.run_directory import RunDirectory


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


def test_the_black_box_source_is_the_one_of_all_rows_when_it_is_asked_for_itself() -> None:
    assert names(plan("mnist", rows=["black-box-source"], seeds=2)) == ["train mnist-cpu/black-box-source seed 1000003"]


def test_the_released_codes_rows_are_trained_and_measured_under_its_protocol() -> None:
    jobs = plan("cifar10", rows=["bp"], effort="released", autoattack=10)
    assert [job.recipe.name for job in jobs if job.trains] == [
        f"cifar10-released/{row}" for row in ("standard", "bp", "black-box-source")
    ]
    assert {(job.recipe.protocol, job.recipe.network) for job in jobs} == {("released-code", "vgg16-standardised")}
    (row,) = (job for job in jobs if not job.trains)
    assert (row.protocol, row.row.name, row.autoattack) == ("released-code", "evaluation-released-code.json", 0)
    for others in (plan("mnist", effort="paper"), plan("cifar10", effort="paper"), plan("cifar10", effort="gpu")):
        assert {job.recipe.protocol for job in others} == {job.protocol for job in others} == {"pixel-space"}


def test_the_best_row_waits_for_its_start_and_its_teacher() -> None:
    jobs = {job.name: job for job in plan("mnist", effort="best")}
    (best,) = (job for job in jobs.values() if job.trains and job.recipe.name == "mnist-best/anp-vs")
    assert set(best.needs) == {"train mnist-cpu/anp-vs seed 0", "train mnist-cpu/admm seed 0"}
    assert jobs["train mnist-cpu/admm seed 0"].needs == ("train mnist-cpu/at seed 0",)
    chain = [job.name.removeprefix("train ") for job in plan("cifar10", effort="best") if job.trains]
    assert chain[:3] == ["cifar10-cpu/short-start seed 0", "cifar10-cpu/anp-vs seed 0", "cifar10-best/anp-vs seed 0"]


def test_the_prerequisite_of_the_plan_is_the_one_that_training_looks_for() -> None:
    for name, recipe in recipes.RECIPES.items():
        seeded = recipes.override(recipe, {"seed": 5, "data_root": "elsewhere"})
        found = recipes.prerequisite(seeded), recipes.prerequisite(seeded, "teacher")
        for before, wanted in zip(found, (recipe.start, recipe.teacher), strict=True):
            assert (before is None) == (wanted is None), name
            if before is not None:
                assert (before.name, before.seed, before.data_root) == (wanted, 5, "elsewhere")


def test_pretraining_keeps_its_own_data_and_validation_under_any_name() -> None:
    for name in ("mnist-cpu/pretrained-at", "cifar10-cpu/pretrained-at", "cifar100/pretrained-at"):
        recipe = recipes.RECIPES[name]
        usual, mine = (
            recipes.prerequisite(recipes.override(recipe, {"validation": 100, **more}))
            for more in ({}, {"name": "mine/pre"})
        )
        assert usual == mine
        assert usual is not None
        own = recipes.RECIPES[str(recipe.start)]
        assert (usual.data, usual.validation) == (own.data, own.validation)
        assert usual.data != recipe.data
    elsewhere = recipes.prerequisite(recipes.override(recipe, {"data": "mnist", "validation": 100}))
    assert elsewhere is not None
    assert (elsewhere.data, elsewhere.validation) == ("mnist", 100)


def test_pretraining_on_other_data_is_trained_and_not_evaluated() -> None:
    (alone,) = plan("mnist", rows=["pretraining"])
    assert (alone.trains, alone.recipe.data) == (True, "digits")


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


def work(
    jobs: list[Job], failing: dict[str, int], retries: int = 1, error: type[Exception] = RunError
) -> tuple[Overview, list[str]]:
    """Work through a plan; a job fails as often as `failing` says."""
    tried: list[str] = []

    def do(job: Job) -> None:
        tried.append(job.name)
        if failing.get(job.name, 0) >= tried.count(job.name):
            raise error("the loss became nan")

    overview = Overview(jobs)
    work_here(jobs, overview, do, retries)
    return overview, tried


@pytest.mark.parametrize("error", [RunError, ValueError, KeyError, MemoryError])
def test_a_failure_is_tried_again_and_then_leaves_the_rest_alone(tmp_path: Path, error: type[Exception]) -> None:
    jobs = plan("mnist", rows=["standard", "bp", "at"], root=tmp_path)
    lost = "train mnist-cpu/standard seed 0"
    overview, tried = work(jobs, {lost: 9, "train mnist-cpu/at seed 0": 1}, error=error)
    assert overview.states[lost] == "failed"
    assert overview.notes[lost].startswith(f"try 2: {error.__name__}: ")
    assert "nan" in overview.notes[lost]
    assert tried.count(lost) == 2
    assert overview.states["train mnist-cpu/bp seed 0"] == "left out"
    assert overview.states["evaluate mnist-cpu/bp seed 0"] == "left out"
    assert tried.count("train mnist-cpu/at seed 0") == 2
    assert overview.states["evaluate mnist-cpu/at seed 0"] == "done"


@pytest.mark.parametrize("error", [InputError, DataError])
def test_a_mistake_is_not_made_again(tmp_path: Path, error: type[Exception]) -> None:
    jobs = plan("mnist", rows=["at"], root=tmp_path)
    overview, tried = work(jobs, {jobs[0].name: 9}, retries=3, error=error)
    assert tried.count(jobs[0].name) == 1
    assert overview.states[jobs[0].name] == "failed"


def test_a_long_message_keeps_its_beginning_and_its_remedy() -> None:
    said = brief(
        DataError("labels.gz is not there;\n" + "tried another server, " * 50 + "name a folder with --data-root.")
    )
    assert said.startswith("DataError: labels.gz is not there; tried")
    assert said.endswith(" name a folder with --data-root.")
    assert len(said) == 500


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


def put(job: Job, **changes: object) -> Job:
    """Lay a finished training into a job's directory, of its recipe with some changes."""
    run = RunDirectory(job.run)
    job.run.mkdir(parents=True)
    run.claim(recipes.override(job.recipe, changes))
    serialization.save(build(job.recipe.network, 10), run.network)
    return job


def test_a_run_of_another_recipe_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = plan("mnist", rows=["standard", "at"], root=tmp_path)
    *_, at = (put(job, epochs=1) for job in jobs if job.name == "train mnist-cpu/at seed 0")
    started: list[str] = []
    monkeypatch.setattr(Job, "do", lambda job, *_: started.append(job.name))
    with pytest.raises(RunError, match=r"epochs \(1 there, 5 asked\).*--out.*move that directory away") as refused:
        reproduce(jobs)
    assert str(at.run) in str(refused.value)
    assert (at.done(), started) == (False, [])
    at.run.rename(tmp_path / "elsewhere")
    reproduce(jobs)
    assert "train mnist-cpu/at seed 0" in started


def test_showing_the_plan_refuses_what_working_on_it_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(plan("mnist", rows=["at"], root=tmp_path)[0], epochs=1)
    assert main(["reproduce", "mnist", "--rows", "at", "--out", str(tmp_path), "--dry"]) != 0
    assert "epochs (1 there, 5 asked)" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--cpus", "0"], ["--retries", "-1"], ["--device", "cuda"]], ids=" ".join)
def test_showing_the_plan_refuses_the_options_that_working_on_it_would(
    wrong: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["reproduce", "mnist", "--out", str(tmp_path), "--dry", *wrong]) == 2


def test_the_plan_tells_what_is_done_and_what_each_job_needs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(plan("mnist", rows=["bp"], root=tmp_path)[0])
    assert main(["reproduce", "mnist", "--rows", "bp", "--out", str(tmp_path), "--dry"]) == 0
    title, _, *jobs = capsys.readouterr().out.splitlines()
    assert title.strip() == "4 jobs: 3 waiting, 1 done"
    assert [line.split() for line in jobs] == [
        "1 train mnist-cpu/standard seed 0 done 3".split(),
        "2 train mnist-cpu/bp seed 0 waiting 4 1".split(),
        "3 train mnist-cpu/black-box-source seed 1000003 waiting 4".split(),
        "4 evaluate mnist-cpu/bp seed 0 waiting 2, 3".split(),
    ]


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        ([], 1), (["--device", "cuda"], 1), (["--device", "cuda", "--gpus", "0.5"], 0.5), (["--gpus", "2"], 2),
        (["--device", "cpu"], 0),
    ],
)  # fmt: skip
def test_a_job_gets_the_gpu_that_its_device_asks_for(
    options: list[str], gpus: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray hides the GPUs that a job did not ask for. A cluster of four, and no job left when it is asked."""
    ray = Mock()
    ray.cluster_resources.return_value = {"CPU": 8.0, "GPU": 4.0}
    monkeypatch.setattr(cluster.util, "find_spec", lambda _: ray)
    monkeypatch.setattr(cluster, "import_module", lambda _: ray)
    monkeypatch.setattr(
        reproduce_table, "work_on_cluster", lambda _, *given, **named: work_on_cluster([], *given, **named)
    )
    assert main(["reproduce", "mnist", "--cluster", "--out", str(tmp_path), *options]) == 0
    assert ray.remote.call_args.kwargs["num_gpus"] == gpus


def test_the_cluster_is_told_whole_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(reproduce_table, "work_on_cluster", lambda jobs, _, **given: asked.update(given, jobs=jobs))
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", "mnist", "--cluster", "--data-root", "data", "--out", "runs"]) == 0
    assert {job.recipe.data_root for job in asked["jobs"]} == {str(tmp_path / "data")}
    assert all(job.run.is_relative_to(tmp_path / "runs") for job in asked["jobs"])


def test_a_network_of_no_known_recipe_is_refused(tmp_path: Path) -> None:
    jobs = plan("mnist", rows=["at"], root=tmp_path)
    (put(jobs[0]).run / "recipe.yaml").unlink()
    with pytest.raises(RunError, match=r"no recipe\.yaml"):
        reproduce(jobs)


def test_what_was_settled_by_measurement_and_where_the_data_lie_make_no_other_recipe(tmp_path: Path) -> None:
    settled = {"precision": "bfloat16", "layout": "contiguous", "compilation": "on", "data_root": "elsewhere"}
    job = plan("mnist", rows=["at"], root=tmp_path, data_root="here")[0]
    assert put(job, **settled).done()


def test_a_damaged_network_is_not_done(tmp_path: Path) -> None:
    training, source, evaluation = plan("mnist", rows=["at"], root=tmp_path, autoattack=1000)
    put_row(training, source)
    network = source.run / "network.safetensors"
    network.write_bytes(network.read_bytes()[:5000])
    assert [job.done() for job in (training, source, evaluation)] == [True, False, False]


def test_what_only_finished_runs_needed_is_not_trained_again(tmp_path: Path) -> None:
    jobs = {job.name: job for job in plan("mnist", rows=["bp"], root=tmp_path, autoattack=1000)}
    start, bp, source, evaluation = jobs
    put_row(jobs[bp], jobs[source])
    overview = Overview(list(jobs.values()))
    overview.look()
    assert overview.states == {start: "not needed", bp: "done", source: "done", evaluation: "done"}
    shutil.rmtree(jobs[bp].run)
    overview = Overview(list(jobs.values()))
    overview.look()
    assert overview.states == {start: "waiting", bp: "waiting", source: "done", evaluation: "waiting"}


def put_row(training: Job, source: Job, **changes: object) -> None:
    """Lay two finished trainings and the row of the first one's network, on all images, into their directories."""
    row = {
        "network_sha256": serialization.read_card(put(training).run / "network.safetensors")["sha256"],
        "images": 10_000,
        "black_box_accuracy": 90.0,
        "black_box_sha256": [serialization.read_card(put(source).run / "network.safetensors")["sha256"]],
        "autoattack_images": 1000,
    }
    (training.run / "evaluation.json").write_text(json.dumps(row | changes))


@pytest.mark.parametrize(
    ("changes", "done"),
    [
        ({}, True),
        ({"images": 1000}, False),
        ({"autoattack_images": 999}, False),
        ({"autoattack_images": None}, False),
        ({"autoattack_images": 10_000}, True),
        ({"black_box_accuracy": None}, False),
        ({"black_box_sha256": ["0" * 64]}, False),
        ({"black_box_sha256": [None]}, False),
        ({"network_sha256": "0" * 64}, False),
        ({"images": "all"}, False),
    ],
)
def test_an_evaluation_is_done_when_its_row_covers_what_is_asked(
    tmp_path: Path, changes: dict[str, object], done: bool
) -> None:
    training, source, evaluation = plan("mnist", rows=["at"], root=tmp_path, autoattack=1000)
    put_row(training, source, **changes)
    assert evaluation.done() == done


def test_autoattack_on_more_images_than_there_are_is_done_on_all(tmp_path: Path) -> None:
    training, source, evaluation = plan("mnist", rows=["at"], root=tmp_path, autoattack=20_000)
    put_row(training, source, autoattack_images=10_000)
    assert evaluation.done()
