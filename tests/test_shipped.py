"""The networks that are part of the package, against their cards."""

from pathlib import Path

import pytest

import anp_vs
from anp_vs.deploy.run import export_run
from anp_vs.evaluation.cost import macs
from anp_vs.pruning.gate import gates
from anp_vs.pruning.graph import example_for
from anp_vs.serialization import card_of, shipped


def test_there_are_some() -> None:
    assert "mnist/anp-vs" in shipped()


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_network_is_small_and_plain_and_costs_what_its_card_says(name: str) -> None:
    network = anp_vs.load(name)
    measured = card_of(network)["measured"]
    assert not gates(network)
    assert sum(p.numel() for p in network.parameters()) == measured["parameters"]
    assert macs(network, example_for(network)[:1]) == measured["macs"]
    recipe = card_of(network)["recipe"]
    for name in ("data_root", "start", "teacher", "black_box", "generated"):
        assert not str(recipe.get(name)).startswith(("/", "~")), name


def test_a_shipped_network_is_exported_into_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist/anp-vs").mkdir(parents=True)  # a folder of its name that holds no network
    before = shipped()
    written = export_run(Path("mnist/anp-vs"), "safetensors")
    assert written[0].resolve().parent == tmp_path
    assert shipped() == before


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_network_is_as_accurate_as_its_card_says(name: str, data_root: Path) -> None:
    network = anp_vs.load(name)
    card = card_of(network)
    test = anp_vs.data.load(card["data"], str(data_root)).test
    first, attack = card["first"], card["recipe"]["test_attack"]
    row = anp_vs.evaluate(network, test.head(first["images"]), **attack, restarts=1, masking=None, progress=False)
    for name in ("clean", "white_box"):  # the same images and starts; another processor rounds otherwise
        assert abs(row[f"{name}_accuracy"] / 100 * first["images"] - first[name]) < 2.5, name
