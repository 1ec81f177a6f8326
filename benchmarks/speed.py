"""How fast attacks, training steps and compact networks are, against what a user could pick instead.

    python benchmarks/speed.py [--repeats 7] [--threads 2] [--out results/speed.json]

All contestants of one comparison take turns in one run, so that whatever else the machine does hits all of them.
A ratio is the median over turns of (fastest peer's seconds / our seconds); low and high are its quartiles. Peers that
are not installed are left out and said; the plain loop is always there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.attacks import geometry
from anp_vs.attacks.losses import ce
from anp_vs.attacks.pgd import ascend
from anp_vs.methods import AT
from anp_vs.networks import build
from anp_vs.provenance import provenance
from anp_vs.pruning.compact import compact, example_for
from anp_vs.pruning.gate import gates
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.twin import Twin

BATCH = 128
SETTINGS = {"lenet5-caffe": (0.3, 0.01, 20), "vgg16": (8 / 255, 2 / 255, 2)}
"""eps, step, steps. VGG-16 takes two steps: a step is what is compared, and it takes a second."""
Contestant = Callable[[], object]


def plain(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """The loop everybody writes: autograd on the network as it is."""
    adversarial = (images + torch.empty_like(images).uniform_(-eps, eps)).clamp(0, 1)
    for _ in range(steps):
        adversarial.requires_grad_()
        loss = functional.cross_entropy(network(adversarial), labels)
        (gradient,) = torch.autograd.grad(loss, adversarial)
        adversarial = adversarial.detach() + step * gradient.sign()
        adversarial = (images + (adversarial - images).clamp(-eps, eps)).clamp(0, 1)
    return adversarial


def ours(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int) -> Tensor:
    """What a training step does: build the twin from the present weights, then attack it."""
    twin = Twin(network, example_for(network)).build()
    lower, upper = geometry.box(images, eps)
    start = torch.clamp(images + torch.empty_like(images).uniform_(-eps, eps), lower, upper)
    return ascend(twin, start, lower, upper, labels, step, steps, ce)


def peers(
    network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int
) -> dict[str, Contestant]:
    """PGD of every installed peer library on the same work."""
    found: dict[str, Contestant] = {"plain loop": lambda: plain(network, images, labels, eps, step, steps)}
    try:
        import torchattacks

        attack = torchattacks.PGD(network, eps=eps, alpha=step, steps=steps)
        found["torchattacks"] = lambda: attack(images, labels)
    except ImportError:
        pass
    try:
        import foolbox

        model = foolbox.PyTorchModel(network, bounds=(0, 1))
        linf = foolbox.attacks.LinfPGD(abs_stepsize=step, steps=steps)
        found["foolbox"] = lambda: linf.run(model, images, labels, epsilon=eps)
    except ImportError:
        pass
    try:
        from adv_lib.attacks import pgd_linf

        found["adv-lib"] = lambda: pgd_linf(network, images, labels, eps, steps=steps, absolute_step_size=step)
    except ImportError:
        pass
    try:
        from art.attacks.evasion import ProjectedGradientDescentPyTorch
        from art.estimators.classification import PyTorchClassifier

        shape = tuple(images.shape[1:])
        classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1))
        art = ProjectedGradientDescentPyTorch(
            classifier, eps=eps, eps_step=step, max_iter=steps, num_random_init=1, batch_size=BATCH, verbose=False
        )
        arrays = images.numpy(), labels.numpy()
        found["ART"] = lambda: art.generate(*arrays)
    except ImportError:
        pass
    return found


def take_turns(contestants: dict[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def compare(seconds: dict[str, list[float]], us: str = "anp-vs") -> dict[str, Any]:
    """The ratio of the fastest other contestant (by median) to ours, with its spread over turns."""
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    fastest = min((name for name in medians if name != us), key=lambda name: medians[name])
    ratios = sorted(a / b for a, b in zip(seconds[fastest], seconds[us], strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3), "against": fastest,
            "median_seconds": {name: round(value, 5) for name, value in medians.items()}}  # fmt: skip


def training_step(
    network: nn.Module, attack: Callable[..., Tensor], images: Tensor, labels: Tensor, budget: Any
) -> None:
    """One step of adversarial training on clean and adversarial images, with the given attack."""
    network.eval()
    adversarial = attack(network, images, labels, *budget)
    network.train()
    objective = AT().objective(network, images, adversarial, labels, len(images))
    torch.autograd.grad(objective.weights, list(network.parameters()))


def pruned(name: str, share: float) -> nn.Module:
    """A gated network of which this share of every layer's units is dead, compacted."""
    network = insert_gates(build(name)).eval()
    for gate in gates(network).values():
        dead = torch.arange(gate.units) >= max(1, round((1 - share) * gate.units))
        gate.a_uc.data[dead], gate.b_uc.data[dead] = -10.0, 3.0
    return compact(network)


def measure(name: str, repeats: int) -> dict[str, dict[str, Any]]:
    """All comparisons of one network."""
    short = name.split("-")[0].removesuffix("5")
    network, laid_out = build(name).eval(), build(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = torch.rand(BATCH, *network.input_shape), torch.randint(0, 10, (BATCH,))  # type: ignore[misc]
    budget = SETTINGS[name]
    attacks = peers(network, images, labels, *budget)
    attacks["anp-vs"] = lambda: ours(network, images, labels, *budget)
    steps: dict[str, Contestant] = {
        "plain loop": lambda: training_step(network, plain, images, labels, budget),
        "anp-vs": lambda: training_step(laid_out, ours, images, labels, budget),
    }
    full, small = build(name).eval(), pruned(name, 0.75)
    passes: dict[str, Contestant] = {"full network": lambda: full(images), "anp-vs": lambda: small(images)}
    found = {f"pgd_{short}": compare(take_turns(attacks, repeats)), f"at_{short}": compare(take_turns(steps, repeats))}
    with torch.inference_mode():
        found[f"inference_{short}_realised"] = compare(take_turns(passes, 3 * repeats))
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="*", default=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    source = provenance()
    facts = {"machine": source["hardware"], "command": source["command"], "commit": source["commit"]}
    for name in asked.networks:
        for key, value in measure(name, asked.repeats).items():
            results[key] = value | facts
            print(key, value)
    asked.out.parent.mkdir(exist_ok=True)
    asked.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
