"""Runs of earlier versions are read by this one: a stopped run goes on, and a finished network loads."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from anp_vs import serialization
from anp_vs.pruning.gate import gates
from anp_vs.training import run
from anp_vs.training.run_directory import MetricsLog
from training.freeze import FROZEN, STATE, probe
from training.tiny import patched

VERSIONS = sorted(FROZEN.iterdir())


@pytest.mark.parametrize("frozen", VERSIONS, ids=lambda path: path.name)
def test_a_stopped_run_of_an_earlier_version_goes_on_to_the_same_end(frozen: Path, tmp_path: Path) -> None:
    for name in STATE:
        shutil.copy(frozen / name, tmp_path)
    with patched():
        done = run.train(tmp_path, device="cpu", quiet=True).network
    expected = serialization.load(frozen / "network.safetensors")
    # Not to the last bit: the frozen run may have been made on another processor.
    torch.testing.assert_close(done.state_dict(), expected.state_dict(), rtol=1e-2, atol=1e-3)
    before, after = (MetricsLog.read(path / "metrics.jsonl") for path in (frozen, tmp_path))
    assert after[: len(before)] == before
    assert [line["step"] for line in after if "clean_accuracy" in line] == [4, 8, 12]


@pytest.mark.parametrize("frozen", VERSIONS, ids=lambda path: path.name)
def test_a_network_of_an_earlier_version_loads_pruned_as_it_was(frozen: Path) -> None:
    network = serialization.load(frozen / "network.safetensors")
    found = gates(network)
    assert all(gate.units < gate.original_units for gate in found.values())
    card = serialization.read_card(frozen / "network.safetensors")
    assert {name: gate.original_units for name, gate in found.items()} == card["original_units"]
    with torch.no_grad():
        logits = network(probe())
    torch.testing.assert_close(logits, torch.tensor(json.loads((frozen / "logits.json").read_text())))
