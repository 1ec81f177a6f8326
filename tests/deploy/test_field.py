"""A loaded network goes into the field's other tools as it is: [0, 1] images in, logits out. Skipped where not installed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anp_vs import compact, insert_gates, load, save
from anp_vs.cli import main
from anp_vs.data import load as load_data
from anp_vs.evaluation.models import find_model
from anp_vs.networks import build
from data.pictures import plain
from pruning.patterns import assert_same_function, kill, parameters, perturb

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore")]
EPS = 0.1


@pytest.fixture
def network(tmp_path: Path) -> nn.Module:
    return load(save(compact(perturb(build("lenet5-caffe", 4))), tmp_path / "net"))


@pytest.fixture
def images(network: nn.Module) -> Tensor:
    return torch.rand(6, 1, 28, 28)


def labels(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images).argmax(1)


def check(network: nn.Module, images: Tensor, attacked: Tensor) -> None:
    """In the threat model, and the loss of what the network said rose."""
    assert float((attacked - images).abs().max()) <= EPS + 1e-6
    assert 0 <= float(attacked.min()) <= float(attacked.max()) <= 1
    said = labels(network, images)
    with torch.no_grad():
        before = nn.functional.cross_entropy(network(images), said)
        after = nn.functional.cross_entropy(network(attacked), said)
    assert after > before


def test_torchattacks(network: nn.Module, images: Tensor) -> None:
    torchattacks: Any = pytest.importorskip("torchattacks")
    attack = torchattacks.PGD(network, eps=EPS, alpha=EPS / 4, steps=8)
    check(network, images, attack(images, labels(network, images)))


def test_art(network: nn.Module, images: Tensor) -> None:
    pytest.importorskip("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (1, 28, 28), 4, clip_values=(0.0, 1.0), device_type="cpu"
    )
    attack = ProjectedGradientDescent(classifier, eps=EPS, eps_step=EPS / 4, max_iter=8, verbose=False)
    attacked = attack.generate(images.numpy(), labels(network, images).numpy())
    check(network, images, torch.from_numpy(attacked))


def test_foolbox(network: nn.Module, images: Tensor) -> None:
    foolbox: Any = pytest.importorskip("foolbox")
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    attack = foolbox.attacks.LinfPGD(rel_stepsize=0.25, steps=8)
    _, attacked, _ = attack(model, images, labels(network, images), epsilons=EPS)
    check(network, images, attacked)


def test_robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `benchmark()` on CIFAR-10 takes the network as it is; its data set is replaced by random images."""
    evaluate: Any = pytest.importorskip("robustbench.eval")
    network = load(save(build("vgg16"), tmp_path / "net"))
    random = torch.rand(4, 3, 32, 32)
    said = labels(network, random)
    monkeypatch.setattr("robustbench.eval.load_clean_dataset", lambda *_, **__: (random, said))
    clean, robust = evaluate.benchmark(network, n_examples=4, dataset="cifar10", threat_model="Linf", eps=8 / 255)
    assert clean == 1.0
    assert 0 <= robust <= clean


ZOO = "robustbench.model_zoo.cifar10:Wong2020FastNet"
"""PreActResNet-18 with its normalisation inside, as their zoo builds it; its weights are random here."""


def test_a_network_of_robustbench_is_evaluated(tmp_path: Path) -> None:
    """`anp-vs evaluate module:factory` takes their zoo's class as it is; the clean accuracy is the one they count."""
    theirs: Any = pytest.importorskip("robustbench.utils")
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)
    for split in ("train", "test"):
        for label in range(10):
            folder = tmp_path / split / str(label)
            folder.mkdir(parents=True)
            for number in range(2):
                plain(tuple(pictures[label, :, number, number].tolist()), (32, 32)).save(folder / f"{number}.png")
    out = tmp_path / "row.json"
    words = ["evaluate", ZOO, "--data", f"folder:{tmp_path}", "--eps", "0.0314", "--limit", "8", "--steps", "2"]
    torch.manual_seed(1)
    assert main([*words, "--masking", "0", "--device", "cpu", "--out", str(out)]) == 0
    row = json.loads(out.read_text())
    torch.manual_seed(1)
    test = load_data(f"folder:{tmp_path}").test.head(8)
    clean = theirs.clean_accuracy(find_model(ZOO).network.eval(), test.images / 255, test.labels)
    assert row["clean_accuracy"] == pytest.approx(100 * clean)
    assert row["white_box_accuracy"] <= row["clean_accuracy"]


def test_a_network_of_robustbench_is_pruned() -> None:
    pytest.importorskip("robustbench.eval")
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    network = perturb(insert_gates(find_model(ZOO).network.double(), images))
    kill(network, (0, dict.fromkeys(range(4), 0.7)))
    small = compact(network, images)
    assert_same_function(network, small, images)
    assert parameters(small) < parameters(network) / 2
