"""What leaves computes the same logits elsewhere: any batch, without this package, with its card."""

import copy
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from anp_vs import export, insert_gates, load, save
from anp_vs.data import Split
from anp_vs.deploy.export import onnx_logits
from anp_vs.deploy.quantise import calibration_images, quantise
from anp_vs.errors import InputError, RunError
from anp_vs.networks import build
from anp_vs.networks.bayesian import make_bayesian
from anp_vs.networks.preact import PreActNet
from pruning.patterns import images_for, kill, parameters, perturb

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
# What the libraries say of each other's next versions.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
FACTS = {"classes": ["cat", "dog", "owl"], "threat_model": {"norm": "inf", "eps": 0.1}}


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """Gated, with a selection in its compact form, and a card with class names."""
    torch.manual_seed(0)
    gated = perturb(insert_gates(build("lenet5-caffe", 3)))
    kill(gated, (7, {0: 0.6, 1: 0.8, 2: 0.9, 3: 0.9}))
    return load(save(gated, tmp_path_factory.mktemp("net") / "net", **FACTS))


@pytest.fixture(scope="module")
def in_onnx(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(network, tmp_path_factory.mktemp("onnx") / "net.onnx", "onnx")


def agree(wanted: Tensor, found: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * max(1.0, float(wanted.abs().max())))


def test_torch_export_runs_without_this_package(network: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(network.state_dict())
    path = export(network, tmp_path / "net", "torch-export")
    assert path == tmp_path / "net.pt2"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    program = textwrap.dedent("""
        import json, sys, torch
        files = {"card.json": ""}
        network = torch.export.load("net.pt2", extra_files=files).module()
        torch.manual_seed(1)
        for count in (1, 2, 7):
            images = torch.rand(count, 1, 28, 28)
            torch.save((images, network(images).detach()), f"{count}.pt")
        print(json.dumps([json.loads(files["card.json"])["classes"], [m for m in sys.modules if "anp_vs" in m]]))
    """)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, env=environment, capture_output=True, check=True
    )
    assert json.loads(ran.stdout) == [FACTS["classes"], []]
    for count in (1, 2, 7):
        images, logits = torch.load(tmp_path / f"{count}.pt", weights_only=True)
        with torch.no_grad():
            agree(network(images), logits)


def test_onnx_gives_the_same_logits_and_carries_the_card(network: nn.Module, in_onnx: Path) -> None:
    path = in_onnx
    run = onnx_logits(path)
    for count in (1, 2, 7):
        images = images_for(network, count, torch.float32)
        with torch.no_grad():
            agree(network(images), run(images))
    model = onnx.load(str(path))
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    cards = [json.loads(p.value) for p in model.metadata_props if p.key == "card"]
    beside = json.loads(path.with_suffix(".json").read_text())
    assert cards == [beside]
    assert beside["classes"] == FACTS["classes"]
    # Only what is left: the file holds the compact network's numbers, four bytes each, and little else.
    assert sum(onnx.numpy_helper.to_array(t).size for t in model.graph.initializer) < 0.2 * 431_080


def test_a_residual_network_of_another_size(tmp_path: Path) -> None:
    residual = insert_gates(perturb(PreActNet(3, 4, (4, 8), 1)), residual="keep")
    residual.input_shape = (3, 20, 24)  # type: ignore[assignment]
    kill(residual, (3, {0: 0.5, 1: 0.7}))
    images = images_for(residual, 5, torch.float32)
    with torch.no_grad():
        wanted = residual.eval()(images)
    agree(wanted, onnx_logits(export(residual, tmp_path / "net", "onnx"))(images))
    program = torch.export.load(export(residual, tmp_path / "net", "torch-export"))
    agree(wanted, program.module()(images).detach())


def test_safetensors_come_back(network: nn.Module, tmp_path: Path) -> None:
    path = export(network, tmp_path / "small", "safetensors")
    again = load(path)
    images = images_for(network, 3, torch.float32)
    with torch.no_grad():
        agree(network(images), again(images))
    assert parameters(again) == sum(t.numel() for n, t in load_file(path).items() if n.endswith(("weight", "bias")))
    assert again.card["classes"] == FACTS["classes"]  # type: ignore[index]


class Branching(nn.Module):
    input_shape = (1, 4, 4)

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        x: Tensor = self.fc(images.flatten(1))
        return x if float(x.sum()) > 0 else -x


def test_what_cannot_be_exported_is_named(network: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"format is 'tflite'.*safetensors, torch-export, onnx"):
        export(network, tmp_path / "net", "tflite")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Branching"):
        export(Branching(), tmp_path / "net", "torch-export")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="another place"):
        export(network, tmp_path / "file" / "net", "torch-export")


def test_an_export_that_computes_something_else_is_removed(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anp_vs.deploy.export._torch_export", lambda net, path, *_: path.touch() or (lambda x: x.sum()))
    with pytest.raises(RunError, match="other logits"):
        export(network, tmp_path / "net", "torch-export")
    assert not list(tmp_path.iterdir())
    (tmp_path / "net.pt2").write_bytes(b"an earlier export")
    with pytest.raises(RunError, match="other logits"):
        export(network, tmp_path / "net", "torch-export")
    assert (tmp_path / "net.pt2").read_bytes() == b"an earlier export"


def test_one_draw_of_a_random_network_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="draws new weights in every pass"):
        export(make_bayesian(build("lenet5-caffe"), 1.0, -3.0), tmp_path / "net", "torch-export")
    assert not list(tmp_path.iterdir())


# -- eight bits -----------------------------------------------------------------------------------------------


def test_int8_is_smaller_and_close_to_the_float_network(tmp_path: Path) -> None:
    plain = build("lenet5-caffe", 3).eval()
    path = export(plain, tmp_path / "net", "onnx")
    images = images_for(plain, 200, torch.float32) * torch.linspace(0.1, 1, 200).view(-1, 1, 1, 1)
    small = quantise(path, images[::4])
    assert small.name == "net-int8.onnx"
    assert json.loads(small.with_suffix(".json").read_text())["quantised"] == "int8"
    assert small.stat().st_size < 0.3 * path.stat().st_size
    with torch.no_grad():
        wanted, found = plain(images), onnx_logits(small)(images)
    # Ranges are cut into 255 parts, layer after layer: a few parts in a hundred of how far logits spread.
    assert 0 < float((wanted - found).abs().mean()) < 0.05 * float(wanted.std(0).mean())


def test_bad_calibration_is_refused(in_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 16"):
        quantise(in_onnx, torch.rand(3, 1, 28, 28))
    with pytest.raises(InputError, match=r"span \[0, 255\]"):
        quantise(in_onnx, torch.linspace(0, 255, 16 * 784).view(16, 1, 28, 28))
    (tmp_path / "bad.onnx").write_bytes(b"no network")
    with pytest.raises(RunError, match=r"bad\.onnx could not be quantised"):
        quantise(tmp_path / "bad.onnx", torch.rand(16, 1, 28, 28))


def test_calibration_images_are_spread_over_the_split() -> None:
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    chosen = calibration_images(Split(images, torch.zeros(100, dtype=torch.int64)), 12) * 255
    assert chosen.flatten().round().tolist() == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
