"""Rows of runs and of any other classifier: what is measured, under what, and where it is kept."""

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from anp_vs import recipes, serialization
from anp_vs.data import load as load_data
from anp_vs.data import to_float
from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.figure_files import diagnosis_of, keep
from anp_vs.evaluation.models import find_model
from anp_vs.evaluation.row import Conditions, black_box_source, evaluate_model, evaluate_run
from anp_vs.networks import build
from anp_vs.report.rows import blocks
from anp_vs.report.runs import read_runs
from anp_vs.report.tables import beside_published, cell
from anp_vs.training.run_directory import RunDirectory
from report.made_runs import make_run

FACTORIES = """
import torch
from torch import nn

class Nearest(nn.Module):
    '''Logits fall with the squared distance to each class's template: accurate, smooth, little to attack.'''
    def __init__(self, quantised=False):
        super().__init__()
        from anp_vs.data import load
        train = load("digits").train
        images = train.images.float() / 255
        means = torch.stack([images[train.labels == label].mean(0) for label in range(10)])
        self.register_buffer("means", means.flatten(1))
        self.quantised = quantised
    def forward(self, images):
        if self.quantised:
            images = (4 * images).round() / 4
        return -(images.flatten(1)[:, None] - self.means).square().sum(2)

def sound(): return Nearest()
def quantised(): return Nearest(True)
def noisy(): return nn.Sequential(nn.Flatten(), Noise(), nn.Linear(784, 10))
class Noise(nn.Module):
    def forward(self, x): return x + torch.randn_like(x)
def probabilities(): return nn.Sequential(Nearest(), nn.Softmax(1))
def three(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
def nan(): return nn.Sequential(Nearest(), Nan())
class Nan(nn.Module):
    def forward(self, x): return x * float("nan")
def colour(): return nn.Conv2d(3, 4, 1)
def number(): return 3
def broken(): raise OSError("no such weights")
instance = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
"""

FAST: dict[str, Any] = {"limit": 20, "progress": False, "masking": None}
SMALL = Conditions(data="digits", eps=0.1, steps=2, restarts=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a user's module in it, forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users_networks.py").write_text(FACTORIES)
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("users_networks", None)


def measured(name: str, conditions: Conditions = SMALL, **options: Any) -> dict[str, Any]:
    return evaluate_model(f"users_networks:{name}", conditions, out=Path("row.json"), **FAST | options)


def test_a_factory_s_network_gets_the_row_that_its_logits_say(folder: Path) -> None:
    path = list(sys.path)
    row = measured("sound", limit=100)
    assert sys.path == path
    test = load_data("digits").test
    images, labels = to_float(test.images[:100]), test.labels[:100]
    right = find_model("users_networks:sound").network(images).argmax(1) == labels
    assert row["clean_accuracy"] == pytest.approx(100 * float(right.double().mean()))
    assert row["clean_accuracy"] > row["white_box_accuracy"] > 0
    assert (row["dataset"], row["eps"], row["steps"], row["step"]) == ("digits", 0.1, 2, 0.125)
    assert row["network"] == "users_networks:Nearest"
    assert json.loads((folder / "row.json").read_text()) == json.loads(json.dumps(row))
    kept = json.loads((folder / "row-images.json").read_text())
    assert kept["correct"]["clean"] == right.int().tolist()
    assert (kept["broken_by"], kept["margin"]) == ([], None)


def test_the_outcome_of_each_image_is_kept(folder: Path) -> None:
    row = measured("sound", limit=6, autoattack=6, queries=40)
    assert row["clean_accuracy"] >= row["query_accuracy"] >= row["autoattack_accuracy"]
    assert row["queries"] == 40
    kept = json.loads((folder / "row-images.json").read_text())
    stands = [cause is None for cause in kept["broken_by"]]
    assert row["autoattack_accuracy"] == pytest.approx(100 * sum(stands) / 6)
    assert [margin > 0 for margin in kept["margin"]] == stands
    assert kept["correct"]["autoattack"] == [int(each) for each in stands]


@pytest.mark.parametrize("asked", ["queries", "corruptions", "certify"])
def test_what_is_measured_on_images_alone_is_refused_under_the_other_protocol(asked: str, folder: Path) -> None:
    with pytest.raises(InputError, match=f"{asked} is 5, and is measured on images alone"):
        measured("sound", protocol="released-code", **{asked: 5})
    assert not list(folder.glob("*.json"))


def test_certificates_of_another_norm_leave_the_interval_bounds_out() -> None:
    found = measured("sound", Conditions("digits", 0.5, steps=2, norm="2", restarts=1), certify=2)["certificates"]
    assert found["interval"] is None
    assert "this attack's is 2" in found["interval_missing"]
    assert found["smoothed"]["accuracy"][0]["accuracy"] >= found["smoothed"]["accuracy"][-1]["accuracy"]


def test_several_sources_are_attacked_together(folder: Path) -> None:
    first, second = (serialization.save(build("lenet5-caffe"), name) for name in ("first", "second"))
    row = measured("sound", sources=[first, second, "users_networks:sound"])
    assert row["black_box_source"] == f"{first}, {second}, users_networks:sound"
    assert row["black_box_sha256"] == [None] * 3  # kept for runs alone
    assert row["black_box_accuracy"] >= measured("sound", sources=["users_networks:sound"])["black_box_accuracy"]


def test_a_source_that_was_trained_on_other_pictures_is_none(folder: Path) -> None:
    for data, found in (("digits", True), ("folder:mine", False)):
        run = RunDirectory(make_run(folder / data.partition(":")[0], "digits/at", data=data))
        source = make_run(folder / data.partition(":")[0], "digits/black-box-source", 1_000_003)
        assert black_box_source(run, run.read_recipe()) == (source if found else None)


def test_masked_gradients_are_looked_for_unless_told_otherwise() -> None:
    found = measured("quantised", masking=40, limit=40)["diagnosis"]
    assert found["suspicious"]
    assert "do not trust the robust accuracy" in found["verdict"]
    assert found["images"] == 40
    sound = measured("sound", masking=40, limit=40)["diagnosis"]
    assert not sound["suspicious"], sound["verdict"]
    assert [point["steps"] for point in sound["against_steps"]] == [1, 2, 4, 5, 10]
    assert measured("sound", limit=40)["diagnosis"] is None


def test_a_random_network_never_gets_a_figure_of_one_draw() -> None:
    with pytest.raises(InputError, match="Give draws"):
        measured("noisy", Conditions("digits", 0.1, steps=2, draws=1))
    row = measured("noisy", Conditions("digits", 0.1, steps=1, restarts=1), limit=5)
    assert (row["random"], row["draws"]) == (True, 20)
    shown = [name for name in row if name.endswith("_accuracy") and row[name] is not None]
    assert shown
    assert all(f"{name}_spread" in row for name in shown)
    assert all("±" in cell(row, name) for name in shown)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("probabilities", "these are probabilities"),
        ("three", "3 outputs|labels reach"),
        ("nan", "not finite"),
        ("colour", "does not accept images of shape"),
        ("number", r"number\(\) returned int"),
        ("broken", r"broken\(\) failed: OSError: no such weights"),
        ("missing", "has no function 'missing'"),
        ("", "has no function ''"),
    ],
)
def test_what_cannot_be_judged_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measured(name)


def test_a_module_that_is_not_there_and_an_instance() -> None:
    with pytest.raises(InputError, match="'no_such_module' cannot be imported"):
        evaluate_model("no_such_module:f", SMALL, out=Path("row.json"))
    assert measured("instance")["images"] == 20


def test_without_a_recipe_the_data_set_and_the_radius_must_be_given(folder: Path) -> None:
    for conditions in (Conditions(), Conditions(data="digits"), Conditions(eps=0.1)):
        with pytest.raises(InputError, match=r"Give the .*--(data|eps)"):
            measured("sound", conditions)
    with pytest.raises(RunError, match="no folder nowhere"):
        evaluate_model("users_networks:sound", SMALL, out=Path("nowhere/row.json"))
    assert not list(folder.glob("*.json"))


def test_a_saved_network_is_evaluated_as_its_card_says(folder: Path) -> None:
    run = make_run(folder, "digits/at", test_attack={"eps": 0.1, "step": 0.05, "steps": 2}, restarts=1)
    own = evaluate_run(run, **FAST)
    row = evaluate_model(str(run / "network.safetensors"), Conditions(restarts=1), out=Path("row.json"), **FAST)
    columns = (
        "clean_accuracy",
        "white_box_accuracy",
        "white_box_accuracy_strongest",
        "eps",
        "step",
        "steps",
        "dataset",
    )
    assert [row[name] for name in columns] == [own[name] for name in columns]
    assert own["black_box_sha256"] == []
    other = evaluate_model(str(run / "network"), Conditions(eps=0.0), out=Path("row.json"), **FAST, sources=[run])
    assert other["black_box_sha256"] == [own["network_sha256"]]
    assert other["white_box_accuracy"] == other["clean_accuracy"] == row["clean_accuracy"]
    plain = serialization.save(build("lenet5-caffe"), "plain")
    with pytest.raises(InputError, match="--data"):
        evaluate_model(str(plain), Conditions(eps=0.1), out=Path("row.json"))


def test_a_recipe_that_was_edited_after_training_is_refused_by_its_fields(folder: Path) -> None:
    path = make_run(folder, "digits/at")
    text = (path / "recipe.yaml").read_text()
    assert "restarts: " in text
    (path / "recipe.yaml").write_text(re.sub("restarts: .*", "restarts: 3", text))
    with pytest.raises(RunError, match=r"not what the network beside it was trained with: restarts \(3 there"):
        evaluate_run(path, **FAST)


def test_data_of_other_classes_than_the_network_was_trained_on_are_refused(folder: Path) -> None:
    named = build("lenet5-caffe")
    saved = serialization.save(named, folder / "named", classes=[f"letter {n}" for n in range(10)])
    with pytest.raises(InputError, match=r"tells letter 0, .* apart and the data hold 0, 1, 2"):
        evaluate_model(str(saved), Conditions(data="digits", eps=0.1), out=folder / "row.json", **FAST)


def test_the_row_of_a_run_carries_its_diagnosis(folder: Path) -> None:
    run = make_run(folder, "digits/at", test_attack={"eps": 0.1, "step": 0.05, "steps": 2}, restarts=1)
    row = evaluate_run(run, **FAST | {"masking": 10})
    found = diagnosis_of(run)
    assert found is not None
    assert found["images"] == 10
    assert found["signs"] == json.loads(json.dumps(row["diagnosis"]["signs"]))
    # What is measured by itself later, on more images, keeps the check that only the row could make.
    only = {**found["signs"][0], "name": "of the row alone", "suspicious": True}
    row["diagnosis"]["signs"] = [*found["signs"], only]
    (run / "evaluation.json").write_text(json.dumps(row))
    keep(run, "diagnosis", {name: found[name] for name in ("signs", "suspicious")} | {"images": 12})
    both = diagnosis_of(run)
    assert both is not None
    assert (both["images"], both["suspicious"], both["signs"][-1]) == (12, True, only)
    assert len(both["signs"]) == len(found["signs"]) + 1
    torch.manual_seed(5)
    serialization.save(build("lenet5-caffe"), run / "network")  # trained again: what was found is of another network
    assert diagnosis_of(run) is None


@pytest.mark.parametrize("asked", ["corruptions", "certify"])
def test_a_count_that_is_refused_costs_no_attack(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anp_vs.evaluation.row.find_model", lambda name: _Untouchable())
    with pytest.raises(InputError, match="limit is 0"):
        evaluate_model("it", SMALL, out=tmp_path / "row.json", **FAST, **{asked: 0})


class _Untouchable:
    """A model whose network must not be reached."""

    recipe = None

    @property
    def network(self) -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), _Unreached())


class _Unreached(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("evaluated before the options were checked")


def test_generated_images_are_named_wherever_a_row_is_shown(folder: Path) -> None:
    attack = {"eps": 0.1, "step": 0.05, "steps": 2}
    own = make_run(folder, "digits/at", test_attack=attack, restarts=1)
    more = make_run(folder, "digits/at", 1, test_attack=attack, restarts=1, generated="g.npz", generated_share=0.3)
    rows = [evaluate_run(path, sources=(), **FAST) for path in (own, more)]
    assert [row["row"] for row in rows] == ["at", "at, 30 % generated images"]
    assert list(beside_published(rows).columns[0].cells) == ["at (20 images)", "at, 30 % generated images (20 images)"]
    # A pruned network that another method has trained on stays in its own row.
    trained_on = rows[0] | {"row": "anp-vs", "method": "trades"}
    assert list(beside_published([trained_on]).columns[0].cells) == ["anp-vs (20 images)"]
    (block,) = blocks(read_runs([own, more]))
    assert [line.name for line in block.lines if line.measured] == ["at", "at, 30 % generated images"]


def test_a_costly_figure_is_not_replaced_by_a_row_without_it() -> None:
    first = measured("sound", queries=3)
    with pytest.raises(InputError, match=r"row.json is a row .* measured with --queries; one without would replace it"):
        measured("sound")
    assert json.loads(Path("row.json").read_text())["query_accuracy"] == first["query_accuracy"]
    assert measured("sound", queries=4)["queries"] == 4


def test_a_radius_of_another_norm_is_not_guessed(folder: Path) -> None:
    saved = serialization.save(build("lenet5-caffe"), folder / "own", recipe=recipes.to_dict(recipes.find("digits/at")))
    with pytest.raises(InputError, match=r"norm is 2 and there is no eps.* Give --eps"):
        evaluate_model(str(saved), Conditions(norm="2"), out=Path("row.json"), **FAST)
