"""How precision and layout are chosen, and that a run keeps what was chosen."""

from dataclasses import replace
from pathlib import Path

import pooch
import pytest
from lightning_fabric import Fabric

from anp_vs import recipes
from anp_vs.recipes import Recipe
from anp_vs.training import run, tuning
from anp_vs.training.run_directory import RunDirectory
from training.tiny import digits, equal, patched, recipe

FABRIC = Fabric(accelerator="cpu", devices=1)
PLAIN, OTHER, LOW = ("float32", "channels-last"), ("float32", "contiguous"), ("bfloat16", "channels-last")


@pytest.fixture(autouse=True)
def everything_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tuning, "SMALL_MACS", 0)
    monkeypatch.setattr(tuning, "_bfloat16_is_faster", lambda device: True)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")


def settled(asked: Recipe, monkeypatch: pytest.MonkeyPatch, **seconds: float) -> tuple[str, str]:
    """What is chosen when the plain way, the other layout and bfloat16 take these seconds."""
    found = {PLAIN: seconds["plain"], OTHER: seconds["other"], LOW: seconds["low"], ("bfloat16", "contiguous"): 9.0}
    monkeypatch.setattr(tuning, "_measure", lambda *_: dict(found))
    chosen, told = tuning.settle(asked, digits(), FABRIC, None)
    assert told is not None
    assert f"{chosen.precision}, {chosen.layout}" in told
    return chosen.precision, chosen.layout


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({"plain": 1.0, "other": 2.0, "low": 0.5}, LOW),
        ({"plain": 1.0, "other": 0.5, "low": 2.0}, OTHER),
        ({"plain": 1.0, "other": 0.95, "low": 0.9}, PLAIN),  # within the noise
    ],
)
def test_the_fastest_is_taken_if_it_is_clearly_so(
    seconds: dict[str, float], chosen: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert settled(recipe("at"), monkeypatch, **seconds) == chosen


def test_what_was_asked_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured"))
    asked = recipe("at", precision="bfloat16", layout="contiguous")
    assert tuning.settle(asked, digits(), FABRIC, None) == (asked, None)


def test_a_small_network_and_a_slow_bfloat16_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(tuning, "_bfloat16_is_faster", lambda device: False)
    chosen, told = tuning.settle(recipe("at", layout="contiguous"), digits(), FABRIC, None)
    assert (chosen.precision, told) == ("float32", None)
    monkeypatch.setattr(tuning, "SMALL_MACS", 10**12)
    monkeypatch.setattr(tuning, "_bfloat16_is_faster", lambda device: True)
    chosen, told = tuning.settle(recipe("at"), digits(), FABRIC, None)
    assert (chosen.precision, chosen.layout, told) == (*PLAIN, None)


def test_measured_for_real_and_remembered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, told = tuning.settle(recipe("anp-vs"), digits(), FABRIC, None)
    assert told is not None
    assert told.count(" s") >= 4
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("measured again"))
    again, told_again = tuning.settle(recipe("anp-vs"), digits(), FABRIC, None)
    assert (again, told_again) == (first, told)
    (kept,) = (tmp_path / "cache" / "fastest").iterdir()
    kept.write_text("[[1]]")  # damaged: measured again instead of an error
    monkeypatch.setattr(
        tuning, "_measure", lambda *_: dict.fromkeys((PLAIN, OTHER, LOW, ("bfloat16", "contiguous")), 1.0)
    )
    assert tuning.settle(recipe("anp-vs"), digits(), FABRIC, None)[0].precision == "float32"


def test_the_first_process_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another process than the first: it measured nothing, and is told what the first one remembers.
    remembered = {PLAIN: 1.0, OTHER: 1.0, LOW: 0.5, ("bfloat16", "contiguous"): 0.6}
    monkeypatch.setattr(tuning, "_measure", lambda *_: pytest.fail("took steps that the first process does not take"))
    monkeypatch.setattr(tuning, "_bfloat16_is_faster", lambda device: False)
    told = iter([list(remembered), remembered, LOW])
    monkeypatch.setattr(FABRIC, "broadcast", lambda mine: next(told))
    chosen, _ = tuning.settle(recipe("at"), digits(), FABRIC, None)
    assert (chosen.precision, chosen.layout) == LOW


def test_a_run_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run, "settle", lambda asked, *_: (replace(asked, precision="bfloat16", layout="contiguous"), "as measured")
    )
    with patched():
        first = run.train(recipe("anp-vs"), out=tmp_path / "a", quiet=True)
        held = recipes.load(tmp_path / "a" / "recipe.yaml")
        assert (held.precision, held.layout) == ("bfloat16", "contiguous")
        RunDirectory(tmp_path / "a").check(recipe("anp-vs"))  # asked again with `auto`: still the same run
        monkeypatch.setattr(run, "settle", lambda asked, *_: (asked, None))
        again = run.train(held, out=tmp_path / "b", quiet=True)
    equal(dict(first.network.state_dict()), dict(again.network.state_dict()))
    assert '"as measured"' in (tmp_path / "a" / "metrics.jsonl").read_text()
