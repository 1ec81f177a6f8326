"""The networks that are part of the package, against their cards."""

from pathlib import Path

import pytest

import anp_vs
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
    assert not str(Path(str(card_of(network)["recipe"]["data_root"]))).startswith("/")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_network_is_as_accurate_as_its_card_says(name: str, data_root: Path) -> None:
    network = anp_vs.load(name)
    card = card_of(network)
    test = anp_vs.data.load(card["data"], str(data_root)).test
    measured, attack = card["measured"], card["recipe"]["test_attack"]
    row = anp_vs.evaluate(network, test.head(500), **attack, restarts=1, masking=None, progress=False)
    # 500 of 10,000 images: four standard deviations of their mean.
    for column in ("clean_accuracy", "white_box_accuracy"):
        spread = 100 * (measured[column] / 100 * (1 - measured[column] / 100) / 500) ** 0.5
        assert abs(row[column] - measured[column]) < 4 * spread, column
