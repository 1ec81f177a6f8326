"""An evaluation that was stopped goes on to the row it would have had, and a quick look replaces no row of more images."""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anp_vs import recipes, serialization
from anp_vs.attacks.protocols import PixelSpace
from anp_vs.attacks.state import State
from anp_vs.data import load as load_data
from anp_vs.data import to_float
from anp_vs.data.lazy import LazySplit
from anp_vs.errors import InputError, Stopped
from anp_vs.evaluation import evaluate, how_far
from anp_vs.evaluation.finished import ATTACKS, Finished, checksum
from anp_vs.evaluation.row import Conditions, evaluate_model, evaluate_run
from anp_vs.networks import build
from anp_vs.networks.bayesian import make_bayesian
from anp_vs.pruning.compact import compact
from anp_vs.pruning.gate import gates
from report.made_runs import make_run

ATTACK = {"eps": 0.05, "step": 0.02, "steps": 3}
LIMIT = 120  # three batches
FAST: dict[str, Any] = {"limit": LIMIT, "masking": None, "progress": False}
MORE: dict[str, Any] = {"autoattack": 3, "masking": 6, "queries": 5, "corruptions": 20, "certify": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose gated network is right about most digits, so that there is something to attack."""
    run = make_run(tmp_path_factory.mktemp("trained"), "digits/anp-vs", test_attack=ATTACK, restarts=2)
    network = serialization.load(run / "network.safetensors")
    with torch.no_grad():
        for gate in gates(network).values():
            gate.a_uc[1::2] = 3.0
    optimiser = torch.optim.Adam(network.parameters(), 2e-3)
    train = load_data("digits").train
    for rows in torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).split(64)[:20]:
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(to_float(train.images[rows])), train.labels[rows]).backward()
        optimiser.step()
    facts = serialization.read_card(run / "network.safetensors")
    facts = {name: facts[name] for name in ("recipe", "seed", "train_seconds")}
    serialization.save(compact(copy.deepcopy(network)), run / "compact", **facts)
    serialization.save(network, run / "network", **facts)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    return serialization.save(build("lenet5-caffe"), tmp_path / "source")


class Work:
    """Counts the batches that PGD and AutoAttack attack, and ends a life after so many finished parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attacked: list[tuple[int, ...]] = []
        self.parts_left: float = float("inf")
        attack, keep, take = PixelSpace.attack, Finished.keep, State.take

        def counted(way: PixelSpace, network: Any, images: Any, *words: Any, **options: Any) -> Any:
            self.attacked.append(tuple(images.shape))
            return attack(way, network, images, *words, **options)

        def mortal(finished: Finished, name: str, value: Any) -> Any:
            keep(finished, name, value)
            self.live()
            return value

        def mortal_take(state: State, rows: Any, *found: Any) -> None:
            self.attacked.append(tuple(rows.tolist()))
            take(state, rows, *found)
            self.live()

        monkeypatch.setattr(PixelSpace, "attack", counted)
        monkeypatch.setattr(Finished, "keep", mortal)
        monkeypatch.setattr(State, "take", mortal_take)

    def live(self) -> None:
        self.parts_left -= 1
        if self.parts_left <= 0:
            raise KeyboardInterrupt

    def forget(self) -> list[tuple[int, ...]]:
        done, self.attacked = self.attacked, []
        return done


@pytest.fixture
def work(monkeypatch: pytest.MonkeyPatch) -> Work:
    return Work(monkeypatch)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_stopped_after_every_part_it_ends_as_if_it_never_was(run: Path, source: Path, work: Work) -> None:
    whole = evaluate_run(run, sources=[source], **FAST | MORE)
    assert 0 < whole["autoattack_accuracy"] < 100
    assert 0 < whole["white_box_accuracy_strongest"] < whole["clean_accuracy"]
    there, attacked = files(run), work.forget()
    assert not list(run.glob("*.state"))
    (run / "evaluation.json").unlink()
    far: list[Any] = []
    row = None
    while row is None and len(far) < 60:  # a part that is lost would be made for ever
        work.parts_left = 1
        try:
            row = evaluate_run(run, sources=[source], **FAST | MORE)
        except Stopped as stopped:
            far.append(how_far(run / "evaluation.json"))
            assert f"{far[-1][0]} of 120 images" in str(stopped)
            assert "Go on with: " in str(stopped)
    assert far[:4] == [(50, LIMIT), (100, LIMIT), (LIMIT, LIMIT), (LIMIT, LIMIT)]
    assert len(far) > 15  # attacks, signs of masked gradients, queries, corruptions, certificates
    assert how_far(run / "evaluation.json") is None
    assert work.forget() == attacked
    assert row == whole
    assert files(run) == there


def test_a_random_network_meets_the_same_noise_after_an_interruption(tmp_path: Path, work: Work) -> None:
    network = make_bayesian(build("lenet5-caffe"), 1.0, -3.0)
    images = torch.rand(10, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    asked: dict[str, Any] = {**ATTACK, "restarts": 2, "draws": 2, "batch_size": 4, "progress": False}
    asked |= {"masking": None, "autoattack": 1}
    whole = evaluate(network, (images, torch.arange(10)), **asked)
    assert whole["random"]
    for parts in (1, 1):
        work.parts_left = parts
        with pytest.raises(KeyboardInterrupt):
            evaluate(network, (images, torch.arange(10)), finished=Finished(tmp_path / "row.json"), **asked)
    work.parts_left = float("inf")
    assert evaluate(network, (images, torch.arange(10)), finished=Finished(tmp_path / "row.json"), **asked) == whole


def stopped(work: Work, run: Path, **options: Any) -> None:
    """Leave an evaluation that has attacked 100 images."""
    work.parts_left = 2
    with pytest.raises(Stopped):
        evaluate_run(run, **FAST | options)
    work.parts_left = float("inf")
    assert how_far(run / "evaluation.json") == (100, LIMIT)
    work.forget()


@pytest.mark.parametrize(
    ("options", "word"),
    [({"limit": 110}, "limit"), ({"autoattack": 1}, "autoattack"), ({"network": 5}, "network")],
    ids=lambda value: str(value),
)
def test_with_other_options_it_starts_afresh_and_says_so(
    options: dict[str, Any], word: str, run: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(work, run)
    (run / "evaluation-autoattack.state").write_bytes(b"of the other evaluation")
    if seed := options.pop("network", None):
        torch.manual_seed(seed)
        serialization.save(build("lenet5-caffe"), run / "network")
        (run / "compact.safetensors").unlink(missing_ok=True)
    row = evaluate_run(run, **FAST | options)
    assert f"another {word}" in caplog.text
    assert work.forget()[0] == (50, 1, 28, 28)
    assert row == evaluate_run(run, **FAST | options)
    assert not list(run.glob("*.state"))


def test_what_comes_after_the_attacks_may_change(run: Path, work: Work, caplog: pytest.LogCaptureFixture) -> None:
    stopped(work, run)
    work.parts_left = 12
    with pytest.raises(Stopped):  # while signs are looked for on other images
        evaluate_run(run, **FAST | {"masking": 12})
    work.parts_left = float("inf")
    row = evaluate_run(run, **FAST | {"queries": 5, "masking": 10})
    assert not caplog.text
    assert {shape[0] for shape in work.forget()} <= set(range(21))  # the third batch and the images of the signs
    assert row == evaluate_run(run, **FAST | {"queries": 5, "masking": 10})


@pytest.mark.parametrize("kind", ["cut", "changed", "another file"])
def test_a_damaged_state_is_said_and_ignored(
    kind: str, run: Path, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    whole = evaluate_run(run, **FAST)
    stopped(work, run)
    state = run / "evaluation-progress.state"
    content = state.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    state.write_bytes({"cut": content[:200], "changed": flipped, "another file": b"{}"}[kind])
    assert how_far(run / "evaluation.json") is None
    assert evaluate_run(run, **FAST) == whole
    assert "starts afresh" in caplog.text
    assert "evaluation-progress.state is damaged" in caplog.text


def test_code_that_changed_under_the_same_weights_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row, settings = tmp_path / "row.json", {"limit": 3}
    logits = torch.randn(4, 10)
    first = Finished(row, settings, 3)
    first.recognise("network", logits)
    first.keep(ATTACKS, {"done": 2})
    same = Finished(row, settings, 3)
    same.recognise("network", logits * (1 + 1e-6))  # another number of threads rounds otherwise
    assert same.done == 2
    changed = Finished(row, settings, 3)
    changed.recognise("network", logits + 0.1)
    assert changed.done == 0
    assert "a network that gives other logits" in caplog.text


def test_pictures_are_told_apart_without_having_them_all_in_memory() -> None:
    test = load_data("digits").test
    lazy = LazySplit(lambda number: test.images[number], torch.arange(400), test.labels, test.shape, workers=2)
    assert checksum(lazy) == checksum(test)
    assert lazy._images is None
    assert checksum(lazy.head(399)) != checksum(lazy) != checksum(test.subset(torch.arange(400).flip(0)))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda n: n.name)
def test_a_process_that_is_killed_loses_no_finished_batch(number: signal.Signals, run: Path, work: Work) -> None:
    row = run / "evaluation.json"
    whole = evaluate_run(run, **FAST)
    row.unlink()
    attacked = work.forget()
    process = subprocess.Popen(
        [sys.executable, "-m", "anp_vs", "evaluate", str(run), "--masking", "0", "--limit", str(LIMIT)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    while (far := how_far(row)) is None and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert far is not None, said
    assert process.returncode == (-number if number == signal.SIGKILL else 130), said
    if number != signal.SIGKILL:
        assert f"Go on with: python -m anp_vs evaluate {run} --masking 0 --limit 120" in said
    assert not row.exists()
    done, total = how_far(row) or (0, 0)
    again = evaluate_run(run, **FAST)
    figures = [name for name in whole if name.endswith(("accuracy", "strongest", "vulnerability"))]
    assert {name: again[name] for name in figures} == {name: whole[name] for name in figures}
    assert total == whole["images"]
    assert len(work.forget()) < len(attacked)
    assert done >= 50
    assert not [path for path in run.iterdir() if ".state" in path.name]


def test_a_row_of_fewer_images_replaces_none_of_more(run: Path, tmp_path: Path) -> None:
    evaluate_run(run, **FAST)
    there = files(run)
    with pytest.raises(InputError, match=r"evaluation.json is a row of 120 images.* one of 5 would .*--out FILE"):
        evaluate_run(run, **FAST | {"limit": 5})
    assert files(run) == there
    assert evaluate_run(run, tmp_path / "quick.json", **FAST | {"limit": 5})["images"] == 5
    assert files(run) == there
    assert json.loads((tmp_path / "quick.json").read_text())["recipe"] == "digits/anp-vs"
    evaluate_run(run, **FAST)  # as many
    torch.manual_seed(5)
    serialization.save(
        build("lenet5-caffe"), run / "network", recipe=recipes.to_dict(recipes.load(run / "recipe.yaml"))
    )
    assert evaluate_run(run, **FAST | {"limit": 5})["images"] == 5  # the row was of another network


def test_nor_does_the_row_of_any_other_classifier(source: Path, tmp_path: Path) -> None:
    conditions, out = Conditions("digits", 0.1, steps=1, restarts=1), tmp_path / "row.json"
    evaluate_model(str(source), conditions, out=out, **FAST | {"limit": 9})
    with pytest.raises(InputError, match=r"9 images.* one of 5 "):
        evaluate_model(str(source), conditions, out=out, **FAST | {"limit": 5})
    out.write_text("damaged")
    assert evaluate_model(str(source), conditions, out=out, **FAST | {"limit": 5})["images"] == 5
