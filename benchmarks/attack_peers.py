"""Our attacks beside torchattacks, ART and the authors' release of AutoAttack, with equal budgets.

    python benchmarks/attack_peers.py [--official DIR] [--data-root DIR] [--only WORD ...] [--out results/peers.json]

DIR is a checkout of github.com/fra31/auto-attack. Lower robust accuracy is the stronger attack. All images are
classified again by this program, the same way for both, and must lie in the ball. A line is kept as soon as it is
measured, in the place of an earlier one; lines that are planned no more go. `--only` measures the cases whose names
hold every WORD. Seconds are of one processor core, so that what else the machine does hardly counts.

Networks: `digits-robust` and `digits-standard`, small CNNs on 8 x 8 digits (adversarially trained or not);
`mnist-anp-vs`, the shipped compact LeNet; `cifar-small`, a CNN of 48 channels trained here against PGD.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import anp_vs
from anp_vs.attacks import pgd
from anp_vs.provenance import provenance

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from attacks import peers
from attacks.small_networks import digits_network, distances, held_out

FULL = {"steps": 100, "targets": 9, "queries": 5000}  # the standard ensemble; APGD-T has 5 targets in the 1-norm
SMALL = {"steps": 30, "targets": 4, "queries": 300}  # of single attacks beside the libraries


@dataclass(frozen=True)
class Line:
    """One comparison."""

    network: str
    norm: peers.Norm
    eps: float
    images: int
    attack: str
    whose: str
    runs: int = 1

    @property
    def name(self) -> str:
        """What tells it from the others."""
        return f"{self.whose} {self.attack} {self.norm} {self.network} {self.images}"


def plan() -> list[Line]:
    """All comparisons, the cheap ones first."""
    lines: list[Line] = []
    small: list[tuple[str, peers.Norm, float]] = [
        ("digits-robust", "inf", 0.15), ("digits-robust", "2", 0.8),
        ("digits-standard", "inf", 0.05), ("digits-standard", "2", 0.3),
    ]  # fmt: skip
    for network, norm, eps in small:
        for attack in ("fgsm", "pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"):
            runs = peers.runs(attack)
            if (attack, norm) != ("fgsm", "2"):
                lines.append(Line(network, norm, eps, 1000, attack, "torchattacks", runs))
            if not attack.endswith("-t"):
                lines.append(Line(network, norm, eps, 1000, attack, "art", runs))
    for attack in (peers.ENSEMBLE, "apgd-ce", "apgd-t", "fab-t", "square"):
        lines += [
            Line("digits-robust", "inf", 0.15, 200, attack, "official"),
            Line("digits-robust", "2", 0.8, 200, attack, "official"),
            Line("digits-robust", "1", 1.5, 500, attack, "official"),
            Line("mnist-anp-vs", "inf", 0.3, 200, attack, "official"),
            Line("mnist-anp-vs", "2", 2.0, 100, attack, "official"),
            Line("cifar-small", "inf", 8 / 255, 100, attack, "official"),
            Line("cifar-small", "2", 0.5, 100, attack, "official"),
            Line("cifar-small", "1", 8.0, 100, attack, "official"),
        ]
    return lines


def main() -> None:
    """Measure what is asked for and can be measured here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path("runs/peers"), help="where cifar-small is kept")
    parser.add_argument("--out", type=Path, default=Path("results/peers.json"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    whose, names = versions(asked.official), [line.name for line in plan()]
    for line in plan():
        if line.whose not in whose or not set(asked.only) <= set(line.name.split()):
            continue
        measured = measure(line, *load(line.network, asked.data_root, asked.work))
        command = f"python benchmarks/attack_peers.py --official DIR --data-root DIR --only {line.name}"
        entry = measured | {"whose": whose[line.whose], **provenance(), "command": command}
        kept = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else []
        kept = [other for other in kept if other["name"] in names and other["name"] != line.name] + [entry]
        kept.sort(key=lambda other: names.index(other["name"]))
        asked.out.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        print(line.name, {key: measured[key] for key in measured if key[:4] in ("ours", "thei")}, flush=True)


def versions(official: Path | None) -> dict[str, str]:
    """The other implementations that are here, and which version each is."""
    found = {}
    for name, package in {"torchattacks": "torchattacks", "art": "adversarial-robustness-toolbox"}.items():
        try:
            found[name] = f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            print(f"{package} is not installed: left out")
    if official is not None:
        sys.path.append(str(official))
        git = ["git", "-C", str(official), "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
        found["official"] = f"github.com/fra31/auto-attack {commit}"
    return found


@cache
def load(name: str, data_root: str | None, work: Path) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with its test images and labels."""
    if name.startswith("digits"):
        return digits_network(name == "digits-robust"), *held_out(1000)
    data = anp_vs.data.load("mnist" if name.startswith("mnist") else "cifar10", data_root)
    network = anp_vs.load("mnist/anp-vs") if name == "mnist-anp-vs" else cifar_network(data.train, work)
    test = data.test.head(1000)
    return network.eval(), test.images / 255, test.labels


def cifar_network(train: anp_vs.data.Split, work: Path) -> nn.Module:
    """Trained against PGD-3 (inf, 8/255) on 8,000 images for 8 epochs, once."""

    def block(wide: int, out: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())

    torch.manual_seed(0)
    parts = block(3, 16, 2), block(16, 32, 2), block(32, 48, 2), block(48, 48, 1), nn.AdaptiveAvgPool2d(2)
    network = nn.Sequential(Standardise(), *parts, nn.Flatten(), nn.Linear(192, 10))
    kept = work / "cifar-small.safetensors"
    if kept.exists():
        return anp_vs.load(kept, network)
    images, labels, eps = train.images[:8000] / 255, train.labels[:8000], 8 / 255
    optimiser = torch.optim.Adam(network.parameters(), 4e-3)
    for _ in range(8):
        for rows in torch.randperm(len(images)).split(128):
            batch = pgd(network, images[rows], labels[rows], eps=eps, step=0.6 * eps, steps=3)
            optimiser.zero_grad()
            functional.cross_entropy(network.train()(batch), labels[rows]).backward()
            optimiser.step()
    anp_vs.save(network.eval(), kept, input_shape=(3, 32, 32))
    return network


class Standardise(nn.Module):
    """Pixels to values around zero."""

    def forward(self, images: Tensor) -> Tensor:
        """N x C x H x W of any range to the same shape."""
        return (images - 0.45) / 0.25


def measure(line: Line, network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Robust accuracy in percent under both, the mean over the runs, which have the same seeds for both."""
    images, labels = images[: line.images], labels[: line.images]
    network.requires_grad_(False)
    budget = FULL if line.whose == "official" else SMALL
    sides = {
        "ours": peers.ours_in_autoattack if line.whose == "official" else peers.ours,
        "theirs": peers.PEERS[line.whose],
    }
    result: dict[str, Any] = {"name": line.name, **vars(line), **budget}
    for side, run in sides.items():
        accuracies, began = [], time.process_time()
        for seed in range(line.runs):
            case = peers.Case(network, images, labels, line.norm, line.eps, seed, **budget)
            found = run(line.attack, case)
            inside = distances(images, found, line.norm) <= line.eps * 1.0001
            with torch.no_grad():
                broken = (network(found).argmax(1) != labels) & inside | (network(images).argmax(1) != labels)
            accuracies.append(100 * float((~broken).double().mean()))
        result[side] = round(statistics.mean(accuracies), 3)
        result[f"{side}_seconds"] = round((time.process_time() - began) / line.runs, 1)
        if line.runs > 1:
            result[f"{side}_spread"] = round(statistics.stdev(accuracies), 3)
    return result


if __name__ == "__main__":
    main()
