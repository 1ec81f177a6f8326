"""How precision and layout are chosen, and that a run keeps what was chosen."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pooch
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from anp_vs import recipes
from anp_vs.errors import RunError
from anp_vs.pruning.compiled import Compiled
from anp_vs.recipes import Recipe
from anp_vs.training import run, tuning
from anp_vs.training.run_directory import RunDirectory
from training.tiny import digits, equal, patched, recipe, trainer

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
    assert tuning.settle(asked, digits(), FABRIC, None) == (replace(asked, compilation="off"), None)


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
    told = iter([list(remembered), remembered, LOW, (True, "compiled there")])
    monkeypatch.setattr(FABRIC, "broadcast", lambda mine: next(told))
    chosen, words = tuning.settle(recipe("at"), digits(), FABRIC, None)
    assert (chosen.precision, chosen.layout, chosen.compilation) == (*LOW, "on")
    assert words is not None
    assert words.endswith("; compiled there")


def compiled(asked: Recipe) -> tuple[str, str | None]:
    chosen, told = tuning.settle(asked, digits(), FABRIC, None)
    return chosen.compilation, told


AS_IT_IS = {"precision": "float32", "layout": "channels-last"}


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "on"), (0.95, "off"), (2.0, "off")])
def test_compiling_has_to_be_clearly_faster(seconds: float, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "LONG", 2.0)
    monkeypatch.setattr(tuning, "_time_compiled", lambda *_: {tuning.TWIN: 1.0, tuning.COMPILED: seconds})
    found, told = compiled(recipe("anp-vs", **AS_IT_IS))
    assert found == chosen
    assert told == f"a step of the attack takes 1.000 s, compiled {seconds:.3f} s"
    monkeypatch.setattr(tuning, "_time_compiled", lambda *_: pytest.fail("measured again"))
    assert compiled(recipe("anp-vs", **AS_IT_IS)) == (found, told)
    monkeypatch.setattr(tuning, "LONG", 1800.0)  # what a longer run found out is no reason to compile in a short one
    assert compiled(recipe("anp-vs", **AS_IT_IS)) == ("off", None)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        ("standard", {}),  # is not attacked
        ("anp-vs", {"decide_at": 1.0}),  # changes its shape to the end
        ("anp-vs", {"compilation": "off"}),
    ],
)
def test_where_compiling_cannot_pay_it_is_not_measured(
    row: str, changes: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "_time_compiled", lambda *_: pytest.fail("measured"))
    assert compiled(recipe(row, **AS_IT_IS, **changes)) == ("off", None)


def test_a_short_run_is_not_worth_a_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning.Compiled, "take", lambda *_: pytest.fail("compiled"))
    assert compiled(recipe("anp-vs", **AS_IT_IS)) == ("off", None)


def test_compiling_is_measured_in_the_shape_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []

    class Recording(Compiled):
        def take(self, twin: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
            taken.append([len(m.weight) for m in twin.modules() if isinstance(m, nn.Conv2d)])
            return super().take(twin, images, labels)

    monkeypatch.setattr(tuning, "LONG", 0)
    monkeypatch.setattr(tuning, "Compiled", lambda: Recording("aot_eager"))
    _, told = compiled(recipe("anp-vs", **AS_IT_IS, target_sparsity=50.0))
    assert taken == [[3, 4]]  # of 6 and 8
    assert told is not None
    assert told.startswith("a step of the attack takes ")


def test_a_missing_compiler_is_said_and_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RunError("there is no compiler")

    monkeypatch.setattr(tuning, "_time_compiled", fail)
    assert compiled(recipe("at", **AS_IT_IS)) == ("off", "the attack is not compiled: there is no compiler")


def test_training_compiles_once_the_gates_are_fixed() -> None:
    traced: list[bool] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        traced.append(compiling.decided)
        return graph.forward

    plain, compiling = trainer("anp-vs", compilation="off"), trainer("anp-vs", compilation="on")
    compiling.adversary.compiled = Compiled(backend)
    for _ in range(plain.total_steps):
        plain.advance()
        compiling.advance()
    assert compiling.decided
    assert traced == [True]
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(compiling.network.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_a_run_whose_compiler_fails_goes_on_without(tmp_path: Path) -> None:
    def broken(graph: object, inputs: object) -> Any:
        raise ValueError("no compiler after all")

    asked = recipe("anp-vs", **AS_IT_IS, compilation="on")
    with patched():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("anp_vs.training.adversary.Compiled", lambda: Compiled(broken))
            with pytest.raises(RunError, match=r"no compiler after all.* go on with --compilation off"):
                run.train(asked, out=tmp_path / "a", quiet=True)
        whole = run.train(replace(asked, compilation="off"), out=tmp_path / "b", quiet=True)
        again = run.train(tmp_path / "a", quiet=True, compilation="off")
    equal(dict(whole.network.state_dict()), dict(again.network.state_dict()))


def test_a_run_keeps_what_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run,
        "settle",
        lambda asked, *_: (
            replace(asked, precision="bfloat16", layout="contiguous", compilation="off"),
            "as measured",
        ),
    )
    with patched():
        first = run.train(recipe("anp-vs"), out=tmp_path / "a", quiet=True)
        held = recipes.load(tmp_path / "a" / "recipe.yaml")
        assert (held.precision, held.layout, held.compilation) == ("bfloat16", "contiguous", "off")
        RunDirectory(tmp_path / "a").check(recipe("anp-vs"))  # asked again with `auto`: still the same run
        monkeypatch.setattr(run, "settle", lambda asked, *_: (asked, None))
        again = run.train(held, out=tmp_path / "b", quiet=True)
    equal(dict(first.network.state_dict()), dict(again.network.state_dict()))
    assert '"as measured"' in (tmp_path / "a" / "metrics.jsonl").read_text()
