"""Figure data of runs: measured once, of the present network only, within the time, and what it claims to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from anp_vs import serialization
from anp_vs.data import load as load_data
from anp_vs.errors import InputError, RunError
from anp_vs.evaluation.figure_files import keep, kept, network_of, place, read_object, rounded
from anp_vs.evaluation.figures import Exhibit, units
from anp_vs.evaluation.missing import measure_missing
from anp_vs.pruning.gate import gates
from report.made_runs import make_run

IMAGES = 6


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str], list[str]]:
    """Two runs with everything but the signs of masked gradients, and what was told while measuring."""
    root = tmp_path_factory.mktemp("runs")
    short = {"eps": 0.1, "step": 0.02, "steps": 5}
    runs = [make_run(root, name, test_attack=short) for name in ("digits/at", "digits/anp-vs")]
    for run in runs:
        keep(run, "diagnosis", {"asked": IMAGES})
    told: list[str] = []
    left_out = measure_missing(runs, images=IMAGES, tell=told.append)
    return runs, told, left_out


Measured = tuple[list[Path], list[str], list[str]]


def data(run: Path, name: str) -> dict[str, Any]:
    found = kept(run, name)
    assert found is not None
    return found


def test_everything_is_measured_once(measured: Measured) -> None:
    runs, told, left_out = measured
    assert left_out == []
    assert len(told) == 5 * len(runs) + len(runs)  # and the images made on each run
    again: list[str] = []
    assert measure_missing(runs, images=IMAGES, tell=again.append) == []
    assert again == []


def test_each_file_says_what_it_was_measured_on(measured: Measured) -> None:
    for run in measured[0]:
        for name in ("units", "vulnerability", "maps", "surface", "corruptions", "transfer"):
            found = data(run, name)
            assert (found["images"], found["eps"], found["steps"], found["protocol"]) == (IMAGES, 0.1, 5, "pixel-space")
            assert {"command", "commit", "hardware", "versions"} <= found.keys()
            assert found["network_sha256"] == network_of(run)


def test_units_are_counted_from_the_gates(measured: Measured) -> None:
    found = data(measured[0][1], "units")
    network = serialization.load(measured[0][1] / "network.safetensors")
    assert found["kind"] == "units"
    assert [layer["original"] for layer in found["layers"]] == [20, 50, 800, 500]
    assert [layer["left"] for layer in found["layers"]] == [
        int((g.expected() > 1e-3).sum()) for g in gates(network).values()
    ]


def test_zero_weights_are_counted_in_a_network_without_gates(tmp_path: Path) -> None:
    run = make_run(tmp_path, "digits/at")
    exhibit = Exhibit(run, 1)
    with torch.no_grad():
        exhibit.full.fc2.weight[:, ::2] = 0
    found = units(exhibit)
    assert found["kind"] == "weights"
    assert found["layers"][-1] == {"path": "fc2", "left": 2500, "original": 5000}
    assert found["layers"][0]["left"] == found["layers"][0]["original"] == 500


def test_histograms_hold_every_unit(measured: Measured) -> None:
    for run in measured[0]:
        found = data(run, "vulnerability")
        for layer in found["layers"]:
            assert sum(layer["counts"]) + layer["zeros"] == layer["original_units"]
            assert layer["zeros"] == layer["original_units"] - sum(unit > 0 for unit in layer["units"])
        assert found["value"] == pytest.approx(sum(layer["value"] for layer in found["layers"]) / len(found["layers"]))
    gated = data(measured[0][1], "vulnerability")["layers"][0]
    assert [unit for unit, pi in zip(gated["units"], gated["expected_pi"], strict=True) if pi <= 1e-3] == [0.0] * 10


def test_maps_are_those_of_the_images_shown(measured: Measured) -> None:
    run = measured[0][0]
    found = data(run, "maps")
    network = serialization.load(run / "network.safetensors")
    test = load_data("digits").test
    clean = test.images[found["shown"]].float() / 255
    assert found["labels"] == test.labels[found["shown"]].tolist()
    assert torch.allclose(torch.tensor(found["clean_images"]), clean, atol=1e-4)
    attacked = torch.tensor(found["adversarial_images"])
    assert float((attacked - clean).abs().max()) <= 0.1 + 1e-4
    with torch.no_grad():
        features = torch.relu(network.conv1(attacked))[:, found["channels"]]  # type: ignore[operator]
        assert network(clean).argmax(1).tolist() == found["clean_predictions"]
    assert torch.allclose(torch.tensor(found["adversarial"]), features, atol=1e-3)


def test_transferred_images_are_made_on_the_source_and_judged_by_the_target(measured: Measured) -> None:
    runs = measured[0]
    exhibits = [Exhibit(run, IMAGES) for run in runs]
    for target, run in zip(exhibits, runs, strict=True):
        found = {cell["network_sha256"]: cell["accuracy"] for cell in data(run, "transfer")["sources"]}
        for source in exhibits:
            with torch.no_grad():
                right = serialization.load(run)(source.adversarial).argmax(1) == target.labels
            assert found[network_of(source.path)] == pytest.approx(100 * float(right.double().mean()))


def test_a_new_network_makes_what_was_measured_before_worthless(tmp_path: Path) -> None:
    run = make_run(tmp_path, "digits/at")
    keep(run, "units", {"asked": 10})
    assert kept(run, "units") is not None
    network = serialization.load(run / "network.safetensors")
    with torch.no_grad():
        network.fc2.bias.add_(1)
    serialization.save(network, run / "network.safetensors")
    assert kept(run, "units") is None


def test_what_would_not_end_in_time_is_not_begun(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in ("digits/at", "digits/standard")]
    told: list[str] = []
    left_out = measure_missing(runs, images=2, seconds=0.0, tell=told.append)
    assert told == []
    assert len(left_out) == 2 * 6 + 2
    assert all("left out: it needs about" in sentence and "--seconds" in sentence for sentence in left_out)
    assert not any((run / "figures").exists() for run in runs)


def test_more_images_are_measured_anew_and_fewer_are_not(tmp_path: Path) -> None:
    run = make_run(tmp_path, "digits/at", test_attack={"eps": 0.1, "step": 0.05, "steps": 2})
    for name in ("vulnerability", "maps", "surface", "corruptions", "diagnosis"):
        keep(run, name, {"asked": 100})
    keep(run, "units", {"asked": 3})
    told: list[str] = []
    measure_missing([run], images=3, tell=told.append)
    assert told == []
    measure_missing([run], images=4, tell=told.append)
    assert [line.split(": ")[1] for line in told] == ["units, on 4 images"]


@pytest.mark.parametrize("wrong", [{"images": 0}, {"seconds": -1.0}, {"seconds": float("nan")}])
def test_bad_values_are_refused(tmp_path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        measure_missing([make_run(tmp_path, "digits/at")], **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("content", ["{", "[]", "\x00", "[" * 100_000])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "maps.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=r"maps\.json"):
        read_object(path)


def test_rounding_keeps_significant_digits() -> None:
    assert rounded([0.000123456, 12345.6, 3, [float("inf")], None]) == [0.0001235, 12350.0, 3, [float("inf")], None]
    assert place(Path("r"), "maps") == Path("r/figures/maps.json")
    assert place(Path("r"), "diagnosis") == Path("r/diagnosis.json")
