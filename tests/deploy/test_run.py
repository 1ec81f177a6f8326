"""`anp-vs export` on a run directory, and networks of a user's own on the command line."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from anp_vs import cli, insert_gates, load, provenance, recipes, save
from anp_vs.networks import NETWORKS, build
from pruning.patterns import kill, parameters, perturb

NAMES = [str(digit) for digit in range(10)]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What a finished run on digits leaves."""
    network = perturb(insert_gates(build("lenet5-caffe")))
    kill(network, (7, {0: 0.6, 1: 0.8, 2: 0.9, 3: 0.9}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(recipes.dump(recipes.RECIPES["digits/anp-vs"]))
    save(network, tmp_path / "run" / "network", classes=NAMES)
    return tmp_path / "run"


def test_safetensors_and_their_card(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--format", "safetensors"]) == 0
    assert "compact.safetensors" in capsys.readouterr().out
    small = load(run / "compact.safetensors")
    assert parameters(small) < 0.3 * 431_080
    assert json.loads((run / "compact.json").read_text())["classes"] == NAMES


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_onnx_with_an_eight_bit_copy(run: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert cli.main(["export", str(run), "--int8"]) == 0
    session = onnxruntime.InferenceSession(run / "compact-int8.onnx", providers=["CPUExecutionProvider"])
    assert session.run(None, {"images": torch.rand(3, 1, 28, 28).numpy()})[0].shape == (3, 10)
    assert json.loads((run / "compact-int8.json").read_text())["classes"] == NAMES


def test_eight_bits_need_onnx_and_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", str(run), "--int8", "--format", "safetensors"]) == 2
    assert cli.main(["export", str(run / "network.safetensors"), "--int8"]) == 2
    assert capsys.readouterr().err.count("int8 needs format onnx and a run directory") == 2


def test_a_module_of_the_users_registers_its_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(provenance, "IMPORTED", [])
    monkeypatch.setattr(cli, "IMPORTED", provenance.IMPORTED)
    monkeypatch.setattr("anp_vs.networks.NETWORKS", NETWORKS)
    monkeypatch.setitem(NETWORKS, "mine", nn.Identity)  # so that it is taken out again
    del NETWORKS["mine"]
    (tmp_path / "my_networks.py").write_text(
        "from anp_vs.networks import register\nfrom anp_vs.networks.lenet import LeNet\n"
        "class Mine(LeNet):\n    pass\nregister('mine', Mine)\n"
    )
    assert cli.main(["--import", "my_networks", "recipes"]) == 0
    assert "mine" in NETWORKS
    network = build("mine", 3).eval()
    again = load(save(network, tmp_path / "net"))
    assert type(again) is NETWORKS["mine"]
    capsys.readouterr()
    assert provenance.proposed("train here") == "anp-vs --import my_networks train here"
    assert cli.main(["--import", "no_such_module", "recipes"]) == 2
    assert "no_such_module" in capsys.readouterr().err
    assert cli.main(["--import"]) == 2
