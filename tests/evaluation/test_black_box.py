"""Images made on a black-box source are made once, and only ever taken for what they are."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from anp_vs import serialization
from anp_vs.evaluation import black_box
from anp_vs.evaluation.black_box import FOLDER
from anp_vs.evaluation.row import evaluate_run
from anp_vs.evaluation.white_box import Attacker
from anp_vs.storage import pack, unpack
from report.made_runs import make_run

SETTINGS: dict[str, Any] = {"limit": 120, "masking": None, "progress": False}  # three batches
ATTACK = {"eps": 0.05, "step": 0.02, "steps": 2}


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """A source and two targets."""
    names = ("digits/black-box-source", "digits/at", "digits/standard")
    made = [make_run(tmp_path / str(place), name, test_attack=ATTACK, restarts=1) for place, name in enumerate(names)]
    for place, run in enumerate(made):  # networks as they begin are alike
        torch.manual_seed(place)
        network = serialization.load(run / "network.safetensors")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        serialization.save(
            network, run / "network", recipe=serialization.read_card(run / "network.safetensors")["recipe"]
        )
    return made


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the first number of every batch that a source is attacked with."""
    numbers: list[int] = []
    attack = Attacker.__call__

    def counted(self: Attacker, subject: Any, images: Any, labels: Any, start: int, **options: Any) -> Any:
        if options["name"] == "black-box":
            numbers.append(start)
        return attack(self, subject, images, labels, start, **options)

    monkeypatch.setattr(Attacker, "__call__", counted)
    return numbers


def row(target: Path, source: Path, **changes: Any) -> dict[str, Any]:
    (target / "evaluation.json").unlink(missing_ok=True)
    found = evaluate_run(target, sources=[source], **SETTINGS | changes)
    return {name: value for name, value in found.items() if name.startswith("black_box")}


def test_two_rows_are_shown_the_same_images_made_once(runs: list[Path], made: list[int]) -> None:
    source, first, second = runs
    alone = {}
    for target in (first, second):
        alone[target] = row(target, source)
        for file in (source / FOLDER).iterdir():
            file.unlink()
    made.clear()
    assert row(first, source) == alone[first]
    assert made == [0, 50, 100]
    assert row(second, source) == alone[second]
    assert row(second, source, limit=100)["black_box_accuracy"] is not None
    assert made == [0, 50, 100]
    assert alone[first]["black_box_vulnerability"] > 0


def changed_weights(source: Path) -> dict[str, Any]:
    network = serialization.load(source / "network.safetensors")
    with torch.no_grad():
        next(network.parameters()).mul_(1.001)
    serialization.save(network, source / "network")
    return {}


def of_a_stranger(source: Path) -> dict[str, Any]:
    for file in (source / FOLDER).iterdir():
        held = unpack(file.read_bytes(), file)
        file.write_bytes(pack({"logits": held["logits"], "images": held["images"][1:]}))
    return {}


def damaged(source: Path) -> dict[str, Any]:
    for file in (source / FOLDER).iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    return {}


@pytest.mark.parametrize(
    ("change", "again"),
    [
        (changed_weights, [0, 50, 100]), (damaged, [0, 50, 100]), (of_a_stranger, [0, 50, 100]), (lambda _: {"protocol": "released-code"}, [0, 50, 100]),
        (lambda _: {"limit": 110}, [100]),  # a batch of other images
    ],
    ids=["weights", "damaged", "another shape", "protocol", "batch"],
)  # fmt: skip
def test_images_of_anything_else_are_made_again(
    change: Callable[[Path], dict[str, Any]], again: list[int], runs: list[Path], made: list[int]
) -> None:
    source, target, _ = runs
    row(target, source)
    made.clear()
    row(target, source, **change(source))
    assert made == again


@pytest.mark.parametrize("whose", ["network", "attack"])
def test_code_that_changed_under_the_same_weights_is_noticed(
    whose: str, runs: list[Path], made: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, target, _ = runs
    row(target, source)
    made.clear()
    if whose == "network":
        pool = nn.functional.max_pool2d
        monkeypatch.setattr(nn.functional, "max_pool2d", lambda x, *words, **options: 1.1 * pool(x, *words, **options))
    else:
        (tmp_path / "pgd.py").write_text("another attack")
        assert any(file.name == "pgd.py" for file in black_box.CODE)
        monkeypatch.setattr(black_box, "CODE", (tmp_path / "pgd.py",))
    row(target, source)
    assert made == [0, 50, 100]


def test_a_folder_that_cannot_be_written_to_costs_no_row(runs: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    source, target, _ = runs
    (source / FOLDER).write_text("in the way")
    assert row(target, source)["black_box_accuracy"] is not None
    assert caplog.text.count("The next row has to make these images again") == 1
