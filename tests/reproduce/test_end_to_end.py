"""`anp-vs reproduce` from nothing to the page, on recipes made small enough for a test."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from anp_vs.cli import main
from anp_vs.errors import RunError
from anp_vs.evaluation.row import evaluate_run
from anp_vs.recipes import RECIPES, Attack
from anp_vs.reproduce import plan
from anp_vs.training import validation


def test_a_table_from_nothing_to_its_page_and_on_after_a_failure_and_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {
        "data": "digits", "epochs": 1, "batch_size": 400, "attack": Attack(0.1, 0.05, 1), "restarts": 1,
        "test_attack": Attack(0.5, 0.25, 2), "precision": "float32", "layout": "contiguous", "compilation": "off",
    }  # fmt: skip
    for name in ("mnist-cpu/standard", "mnist-cpu/bp", "mnist-cpu/black-box-source"):
        monkeypatch.setitem(RECIPES, name, dataclasses.replace(RECIPES[name], **small))
    monkeypatch.setitem(plan.TEST_IMAGES, "digits", 20)
    monkeypatch.setattr(validation, "STEPS", 1)
    monkeypatch.chdir(tmp_path)
    rows = Path("runs/mnist-cpu")
    standard, bp, source = rows / "standard/seed0", rows / "bp/seed0", rows / "black-box-source/seed1000003"
    evaluated: list[Path] = []

    def quick(run: Path, **options: Any) -> dict[str, Any]:
        asked = {name: options[name] for name in ("sources", "data_root", "autoattack", "device")}
        assert asked == {"sources": (source,), "data_root": str(tmp_path / "data"), "autoattack": 4, "device": "cpu"}
        evaluated.append(run)
        if evaluated == [standard, bp]:
            raise RunError("the disk is full")
        return evaluate_run(run, limit=20, masking=None, **options)

    monkeypatch.setattr(plan, "evaluate_run", quick)
    command = "reproduce mnist --rows standard bp --data-root data --autoattack 4 --retries 0 --device cpu".split()
    assert main(command) == 1
    said = capsys.readouterr()
    assert "evaluate mnist-cpu/bp seed 0: failed after 0:00:0" in said.err
    assert "try 1: RunError: the disk is full" in said.err
    assert "1 of 5 jobs failed" in said.out
    assert [line.split()[:2] for line in said.out.splitlines() if line.startswith(("standard ", "bp "))] == [
        ["standard", "1"]
    ]

    network = standard / "network.safetensors"
    whole = network.read_bytes()
    network.write_bytes(whole[:5000])
    assert main(command) == 0
    said = capsys.readouterr()
    assert network.read_bytes() == whole  # mended from its checkpoint
    assert evaluated == [standard, bp, bp]  # what was done was not done again
    assert "5 jobs: 3 waiting, 2 done" in said.err
    row = json.loads((bp / "evaluation.json").read_text())
    assert (row["images"], row["autoattack_images"], row["black_box_source"]) == (20, 4, str(source))
    (line,) = (line for line in said.out.splitlines() if line.startswith("bp "))
    assert f" {row['clean_accuracy']:.2f} " in line
    page = Path("runs/mnist-cpu.html")
    assert f"The page: {page}" in said.out
    assert "bp" in page.read_text()
