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
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from anp_vs.attacks import geometry
from anp_vs.attacks.losses import ce
from anp_vs.attacks.pgd import ascend
from anp_vs.attacks.prediction import input_gradient
from anp_vs.evaluation.cost import macs
from anp_vs.methods import AT
from anp_vs.networks import build
from anp_vs.provenance import provenance
from anp_vs.pruning.compact import compact
from anp_vs.pruning.compiled import Compiled
from anp_vs.pruning.gate import gate_parameters, gates, weight_parameters
from anp_vs.pruning.graph import Graph, example_for
from anp_vs.pruning.insertion import insert_gates
from anp_vs.pruning.precision import Precision, lowered, on_pixels
from anp_vs.pruning.shrinking import shrink
from anp_vs.pruning.twin import Twin
from anp_vs.recipes import RECIPES
from anp_vs.training.tuning import SMALL_MACS

BATCH = 128
SETTINGS = {"lenet5-caffe": (0.3, 0.01, 20), "vgg16": (8 / 255, 2 / 255, 2)}
"""eps, step, steps. VGG-16 takes two steps: a step is what is compared, and it takes a second."""
TRAINING = {"lenet5-caffe": "mnist/at", "vgg16": "cifar10/at"}
"""The recipes whose attack a training step is compared with."""
PARTS = ("pgd", "steps", "inference", "memory", "compilation", "run")
UNITS = Path(__file__).resolve().parent.parent / "results" / "anp_vs_units.json"
Contestant = Callable[[], object]
TWINS: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()
"""Traced once a network, as in training."""


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


def ours(network: nn.Module, images: Tensor, labels: Tensor, eps: float, step: float, steps: int,
         precision: Precision = "float32") -> Tensor:  # fmt: skip
    """What a training step does: build the twin from the present weights, then attack it."""
    if network not in TWINS:
        TWINS[network] = Twin(network, example_for(network))
    TWINS[network].precision = precision
    twin = TWINS[network].build()
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


def clock() -> float:
    """Seconds; of one thread its processor's, so that other processes on that core do not count."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def take_turns(contestants: dict[str, Contestant], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, run in contestants.items():
            began = clock()
            run()
            if turn:
                seconds[name].append(clock() - began)
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
    network: nn.Module, attack: Callable[..., Tensor], images: Tensor, labels: Tensor, budget: Any,
    precision: Precision = "float32", first: frozenset[str] = frozenset(),
) -> None:  # fmt: skip
    """One step of adversarial training on clean and adversarial images, with the given attack."""
    network.eval()
    adversarial = attack(network, images, labels, *budget)
    network.train()
    with lowered(network, set(first), precision):
        loss = AT().objective(network, images, adversarial, labels, len(images)).weights
    torch.autograd.grad(loss, list(weight_parameters(network)))


def fastest_peer(network: nn.Module, images: Tensor, labels: Tensor, budget: Any) -> Callable[..., Tensor]:
    """The PGD of the peer that users train with: torchattacks' where it is installed, else the plain loop."""
    try:
        import torchattacks

        attack = torchattacks.PGD(network, eps=budget[0], alpha=budget[1], steps=budget[2])
    except ImportError:
        return plain
    return lambda network, images, labels, *_: attack(images, labels)


def with_units(name: str, units: Sequence[int]) -> nn.Module:
    """A gated network of which so many units of each gate are alive, in training: the others have left it."""
    network = insert_gates(build(name))
    dead = {
        path: torch.arange(gate.units) >= alive
        for (path, gate), alive in zip(gates(network).items(), units, strict=True)
    }
    shrink(network, dead)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def without(name: str, share: float) -> nn.Module:
    """The same of which this share of every layer's units is gone."""
    return with_units(name, [max(1, round((1 - share) * g.units)) for g in gates(insert_gates(build(name))).values()])


def short(name: str) -> str:
    """Of a network, as the results' keys have it."""
    return name.split("-")[0].removesuffix("5")


def batch_for(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    return torch.rand(BATCH, *network.input_shape), torch.randint(0, 10, (BATCH,))  # type: ignore[misc]


def dense(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor, tuple[float, float, int]]:
    """The network as everybody builds it and as ours is laid out, images, labels, and the attack."""
    network, laid_out = build(name).eval(), build(name).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = batch_for(network)
    return network, laid_out, images, labels, SETTINGS[name]


def pgd(name: str, repeats: int) -> dict[str, Any]:
    """PGD on the dense network against that of every peer."""
    network, laid_out, images, labels, budget = dense(name)
    attacks = peers(network, images, labels, *budget)
    attacks["anp-vs"] = lambda: ours(laid_out, images, labels, *budget)
    seconds = take_turns(attacks, repeats)
    found = {f"pgd_{short(name)}": compare(seconds)}
    if "adv-lib" in seconds:
        found[f"pgd_{short(name)}_adv_lib"] = compare({who: seconds[who] for who in ("adv-lib", "anp-vs")})
    gflop = 3 * 2 * macs(network, images[:1]) * BATCH * budget[2] / 1e9  # forward, and the gradient: as much again
    found[f"pgd_{short(name)}"]["share_of_matrix_peak"] = {
        who: round(2 / 3 * gflop / value / matrix_peak(), 3)
        for who, value in found[f"pgd_{short(name)}"]["median_seconds"].items()
    }
    return found


def training_steps(name: str, repeats: int) -> dict[str, Any]:
    """A step of adversarial training on the dense network, with as many steps of the attack as the paper's recipe."""
    network, laid_out, images, labels, _ = dense(name)
    attack = RECIPES[TRAINING[name]].attack
    budget = (attack.eps, attack.step, attack.steps)
    peer = fastest_peer(network, images, labels, budget)
    first = frozenset(on_pixels(Graph(laid_out, example_for(laid_out)).points)[1])
    steps: dict[str, Contestant] = {
        "plain loop": lambda: training_step(network, plain, images, labels, budget),
        "torchattacks": lambda: training_step(network, peer, images, labels, budget),
        "anp-vs": lambda: training_step(laid_out, ours, images, labels, budget),
    }
    found = {f"at_{short(name)}": compare(take_turns(steps, repeats))}
    if macs(network, images[:1]) > SMALL_MACS:  # where training chooses its precision by measuring
        low = partial(ours, precision="bfloat16")

        def under_autocast() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                training_step(network, peer, images, labels, budget)

        steps["peer under autocast by hand"] = under_autocast
        steps["anp-vs"] = lambda: training_step(laid_out, low, images, labels, budget, "bfloat16", first)
        seconds = take_turns(steps, repeats)
        by_hand = {who: seconds[who] for who in ("peer under autocast by hand", "anp-vs")}
        users = {who: values for who, values in seconds.items() if who != "peer under autocast by hand"}
        found[f"at_{short(name)}_bfloat16"] = compare(users)
        found[f"at_{short(name)}_bfloat16_against_autocast"] = compare(by_hand)
    return found


def whole_run(repeats: int) -> dict[str, Any]:
    """The measured ANP-VS run on MNIST, epoch by epoch, against as many epochs of AT with the peer's attack."""
    recipe = RECIPES["mnist-cpu/anp-vs"]
    ends = json.loads(UNITS.read_text())["units"]
    budget = (recipe.attack.eps, recipe.attack.step, recipe.attack.steps)
    images, labels = torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    dense = build("lenet5-caffe")
    peer = fastest_peer(dense, images, labels, budget)
    contestants: dict[str, Contestant] = {"torchattacks": lambda: training_step(dense, peer, images, labels, budget)}
    # An epoch counts with the units it began with: a little too much, never too little.
    began = [[20, 50, 800, 500], *ends[:-1]]
    states: dict[str, nn.Module] = {}
    for units in began:
        key = "x".join(map(str, units))
        if key not in states:
            states[key] = with_units("lenet5-caffe", units)
            contestants[key] = partial(gated_step, states[key], recipe.method, images, labels, budget)
    seconds = take_turns(contestants, repeats)
    totals = {
        "torchattacks": [len(began) * value for value in seconds["torchattacks"]],
        "anp-vs": [sum(seconds["x".join(map(str, units))][turn] for units in began) for turn in range(repeats)],
    }
    epochs = [round(statistics.median(seconds["x".join(map(str, units))]), 5) for units in began]
    return {"whole_run_lenet": compare(totals) | {"seconds_a_step_by_epoch": epochs, "epochs": len(began)}}


def gated_step(network: nn.Module, method: Any, images: Tensor, labels: Tensor, budget: Any) -> None:
    """A step of ANP-VS: attack on the twin, both losses, both groups of gradients."""
    adversarial = ours(network, images, labels, *budget)
    network.train()
    objective = method.objective(network, images, adversarial, labels, len(images))
    torch.autograd.grad(objective.weights, weight_parameters(network), retain_graph=True)
    torch.autograd.grad(objective.gates, gate_parameters(network))


def inference(name: str, repeats: int) -> dict[str, Any]:
    """The compact network against the full one, in evaluation, and how much of the ratio of MACs is realised."""
    found = {}
    full, small = build(name).eval(), compact(without(name, 0.75))
    for batch in (1, BATCH):
        images = torch.rand(batch, *full.input_shape)  # type: ignore[misc]
        contestants: dict[str, Contestant] = {"full network": partial(full, images), "anp-vs": partial(small, images)}
        try:
            fast = torch.compile(small)
            with torch.inference_mode():
                fast(images)
            contestants["anp-vs, compiled"] = partial(fast, images)
        except Exception as error:  # no C++ compiler here, or one too old
            print(f"torch.compile left out: {type(error).__name__}")
        with torch.inference_mode():
            seconds = take_turns(contestants, 3 * repeats)
        result = compare({who: seconds[who] for who in ("full network", "anp-vs")})
        result["median_seconds"] |= {who: round(statistics.median(values), 6) for who, values in seconds.items()}
        result["macs_ratio"] = round(macs(full, images[:1]) / macs(small, images[:1]), 2)
        found[f"inference_{short(name)}_batch_{batch}"] = result
    return found


def compilation(name: str, repeats: int) -> dict[str, Any]:
    """The attack's gradient on the twin of a network of which three quarters are out, and on the same twin compiled."""
    network = without(name, 0.75)
    images, labels = batch_for(network)
    found, large = {}, macs(build(name), images[:1]) > SMALL_MACS
    precisions: tuple[Precision, ...] = ("float32", "bfloat16") if large else ("float32",)
    for precision in precisions:
        maker = Twin(network, example_for(network), precision=precision)
        began = clock()
        compiled = Compiled().take(maker.build(own_kernels=False), images, labels)
        waited = clock() - began
        twins = {"twin": maker.build(), "anp-vs": compiled}
        contestants: dict[str, Contestant] = {
            who: partial(input_gradient, twin, images, labels, ce) for who, twin in twins.items()
        }
        key = f"compilation_{short(name)}_{precision}"
        found[key] = compare(take_turns(contestants, 3 * repeats)) | {"seconds_to_compile": round(waited, 1)}
    return found


def memory(name: str, repeats: int) -> dict[str, Any]:
    """Peak memory of a process that attacks, in MiB above what it had before, for the plain loop and for ours.

    The median of several processes in turns: where the allocator puts things differs from one to the next.
    """
    mebibytes: dict[str, list[float]] = {"plain loop": [], "anp-vs": []}
    for _ in range(repeats):
        for who, found in mebibytes.items():
            code = f"from speed import attack_once; attack_once({name!r}, {who!r})"
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
            )
            found.append(float(done.stdout.split()[-1]))
    medians = {who: round(statistics.median(found), 1) for who, found in mebibytes.items()}
    ranges = {who: [round(min(found), 1), round(max(found), 1)] for who, found in mebibytes.items()}
    return {f"memory_{short(name)}": {"mebibytes": medians, "least_and_most": ranges}}


def attack_once(name: str, who: str) -> None:
    """What `memory` starts: attack once, print by how many MiB the peak grew."""
    torch.set_num_threads(1)
    network = build(name).eval()
    images, labels = batch_for(network)
    with torch.inference_mode():
        network(images[:1])
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    references.write_text("5")  # the peak so far, which may be the importing of libraries, is forgotten

    def kibibytes(name: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))

    before = kibibytes("VmRSS")
    (plain if who == "plain loop" else ours)(network, images, labels, *SETTINGS[name])
    print((kibibytes("VmHWM") - before) / 1024)


@cache
def matrix_peak(size: int = 2048) -> float:
    """GFLOP/s of a float32 matrix product here, the best of some."""
    matrix, best = torch.rand(size, size), 0.0
    for _ in range(8):
        began = clock()
        torch.matmul(matrix, matrix)
        best = max(best, 2 * size**3 / (clock() - began) / 1e9)
    return best


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="*", default=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("results/speed.json"))
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(0)
    asked.out.parent.mkdir(exist_ok=True)
    results = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    source = provenance()
    facts = {"machine": source["hardware"], "command": source["command"], "commit": source["commit"]}
    facts["clock"] = "processor" if torch.get_num_threads() == 1 else "wall"
    work = [("pgd", partial(pgd, name, asked.repeats)) for name in asked.networks]
    work += [("steps", partial(training_steps, name, asked.repeats)) for name in asked.networks]
    work += [("inference", partial(inference, name, asked.repeats)) for name in asked.networks]
    work += [("memory", partial(memory, name, asked.repeats)) for name in asked.networks]
    work += [("compilation", partial(compilation, name, asked.repeats)) for name in asked.networks]
    work += [("run", partial(whole_run, asked.repeats))]
    for part in (part for name, part in work if name in asked.parts):
        for key, value in part().items():
            results[key] = value | facts
            print(key, json.dumps(value))
        asked.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
