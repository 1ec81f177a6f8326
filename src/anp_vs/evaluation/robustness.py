"""How accurate a classifier stays under attack: a row of the published tables, and what goes beyond it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anp_vs.attacks import autoattack as run_autoattack
from anp_vs.attacks import geometry
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.noise import seeded
from anp_vs.attacks.protocols import Budget, EvaluationProtocol, ProtocolName, protocol_by_name
from anp_vs.device import full_float32
from anp_vs.errors import InputError
from anp_vs.evaluation.black_box import BlackBox
from anp_vs.evaluation.cost import macs
from anp_vs.evaluation.finished import ATTACKS, Finished
from anp_vs.evaluation.masking import DIAGNOSED, diagnose
from anp_vs.evaluation.progress import Step, stage
from anp_vs.evaluation.published_cost import published_cost
from anp_vs.evaluation.signs import square_after_gradients
from anp_vs.evaluation.subject import LabelledImages, Subject, batches, count_of, device_of, first_batch
from anp_vs.evaluation.tally import Tally
from anp_vs.evaluation.vulnerability import VulnerabilityMeter
from anp_vs.evaluation.white_box import Attacker, strongest
from anp_vs.networks.latents import Reduction, recorded


class Evaluation(dict[str, Any]):
    """The figures of one network by name, ready for JSON; and, as attributes, what happened to each image.

    Attributes:
        correct: setting (`clean`, `white_box`, `white_box_strongest`, `black_box`, `autoattack`) -> bool for
            each image, whether it was classified as labelled; for a random network in the first of its
            repeated evaluations.
        broken_by: for each image that AutoAttack ran on, the attack that broke it, "clean" for a mistake
            without one, None where it stands; empty without AutoAttack.
        margin: z_y - max_{i != y} z_i at AutoAttack's images, the smaller the nearer; None without.
    """

    correct: dict[str, Tensor]
    broken_by: Sequence[str | None] = ()
    margin: Tensor | None = None


@full_float32()
def evaluate(
    network: nn.Module,
    split: LabelledImages,
    *,
    eps: float,
    step: float,
    steps: int = 40,
    norm: Norm = "inf",
    restarts: int = 5,
    source: nn.Module | None = None,
    gated: nn.Module | None = None,
    batch_size: int = 250,
    limit: int | None = None,
    seed: int = 0,
    autoattack: int | None = None,
    draws: int = 1,
    classes: int | None = None,
    protocol: ProtocolName = "pixel-space",
    reduction: Reduction = "mean",
    masking: int | None = DIAGNOSED,
    finished: Finished | None = None,
    black_box_images: Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate a classifier clean and under attack, in float32.

    The white-box images are computed once: the accuracy and the vulnerability are taken on the same ones,
    made from all images whether they were classified correctly or not, as in the published tables. The
    strongest figure counts an image only if it is classified correctly clean, under that attack, under
    `restarts` - 1 more random starts of it, and under a PGD run of 100 steps on the margin.

    Args:
        network: any module, float images N x C x H x W in [0, 1] to logits N x K; not changed.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        eps: radius of the white-box and the black-box PGD, in pixel units, >= 0.
        step: length of its steps, in pixel units, > 0.
        steps: their number, >= 1.
        norm: of the ball, "inf", "2" or "1".
        restarts: random starts on the cross-entropy in the strongest figure, >= 1.
        source: a separately trained network on which the black-box images are made.
        gated: when `network` is the compact form of a gated network, the gated one: its features are where
            the vulnerability is measured, and its gates give the published cost columns.
        batch_size: images at a time.
        limit: evaluate only the first so many images.
        seed: of all random starts and of a random network's noise.
        autoattack: number of images, the first ones, to run AutoAttack on; None leaves it out.
        draws: passes averaged in predictions and gradients of a network that is random in evaluation mode; a
            network that is not is evaluated with one.
        classes: number of classes of the data, checked against the network's logits.
        protocol: `pixel-space`, or `released-code` to compare with the published CIFAR rows.
        reduction: of the vulnerability, over a layer's elements.
        masking: look for signs of masked gradients on so many images, the first ones (see `diagnose`); None
            leaves it out, as eps 0 and the protocol `released-code` do.
        finished: where the figures are kept batch by batch, to go on from after an interruption.
        black_box_images: folder of images that were made on this source before, and for those made now; None for none.
        progress: show what is going on.

    Returns:
        The columns of the published tables, accuracies in percent, None where something does not apply:
        clean_accuracy, white_box_accuracy, black_box_accuracy, white_box_vulnerability,
        black_box_vulnerability, memory_percent, flops_reduction, sparsity_percent. Then
        memory_percent_repeat_dense (with the slip of the released code, see `published_cost`),
        white_box_accuracy_strongest, autoattack_accuracy, autoattack_images, autoattack_after (accuracy after
        each of its attacks), diagnosis (`Diagnosis.as_dict`; one check more where AutoAttack was run), parameters, macs, images, norm, eps, step,
        steps, restarts, seed, protocol, reduction, random, draws. For a random network each accuracy is the mean of 5 evaluations, with their
        standard deviation in a column of the same name that ends in `_spread`.

    Raises:
        InputError: for values outside what is accepted, or a network that cannot be judged (see `Subject`).
    """
    budget = Budget(eps, step, steps, norm)
    way = protocol_by_name(protocol)
    count = count_of(split, limit)
    _check(budget, way.name, restarts, batch_size, autoattack, masking)
    device = device_of(network)
    first, labels = first_batch(split, count, batch_size)
    shown = way.prepare(first)
    target = Subject(way.adapt(network), shown, labels, draws=draws, classes=classes)
    sources = _companion(source, "source network", way, shown, labels, draws, classes)
    observed = _companion(gated, "gated network", way, shown, labels, draws, classes) or target
    _check_same(target, observed, shown)
    finished = finished or Finished()
    for role, subject in (("network", target), ("source network", sources)):
        if subject is not None:
            finished.recognise(role, subject.classify(shown.to(device), labels.to(device), seed, "recognise", 0))
    names = ["white_box", "black_box"] if sources else ["white_box"]
    meters = _meters(observed.network, names, reduction, shown[:1].to(device))

    attacker = Attacker(way, budget, seed)
    black_box = BlackBox(attacker, sources, black_box_images) if sources else None
    tally = Tally(target, seed)
    if before := finished.get(ATTACKS):
        tally.restore(before["tally"])
        for name, meter in meters.items():
            meter.restore(before["meters"][name])
    kept: list[tuple[Tensor, Tensor]] = []
    with stage("attacks", count, show=progress) as tell:
        for start, images, targets in batches(split, count, batch_size):
            x, y = way.prepare(images).to(device), targets.to(device)
            if autoattack is not None and start < autoattack:
                kept.append((x[: autoattack - start], y[: autoattack - start]))
            if start < finished.done:
                continue
            white = attacker(target, x, y, start, name="white-box")
            shots = {"clean": x, "white_box": white}
            shots["white_box_strongest"] = strongest(attacker, target, x, y, start, white, restarts)
            if black_box is not None:
                shots["black_box"] = black_box(x, y, start)
            for name, attacked in shots.items():
                tally.add(name, attacked, y, start)
            for name, meter in meters.items():
                meter.update(x, shots[name], start if target.random else None)
            sums = {name: meter.state() for name, meter in meters.items()}
            finished.keep(ATTACKS, {"done": start + len(y), "tally": tally.state(), "meters": sums})
            tell(finished.done, tally.line())

    row: dict[str, Any] = {}
    evaluation, search = Evaluation(), None
    if kept:
        x, y = (torch.cat(parts) for parts in zip(*kept, strict=True))
        with stage("AutoAttack", len(y), show=progress) as tell:
            result = run_autoattack(
                target.attacked, x, y, eps=eps, norm=norm, draws=target.draws, seed=seed,
                batch_size=batch_size, resume=finished.autoattack, progress=_reporter(tell, batch_size),
            )  # fmt: skip
        for start in range(0, len(y), batch_size):
            rows = slice(start, start + batch_size)
            tally.add("autoattack", result.adversarial[rows], y[rows], start)
        evaluation.broken_by, evaluation.margin = result.broken_by, result.margin
        search = square_after_gradients(result.after, len(y))
        row = {"autoattack_images": len(y), "autoattack_after": {n: 100 * a for n, a in result.after.items()}}
    if masking is not None and eps > 0 and way.name == "pixel-space":
        found = diagnose(
            network, split, eps=eps, step=step, steps=steps, norm=norm, source=source,
            limit=min(masking, count), batch_size=batch_size, seed=seed, draws=draws,
            finished=finished, progress=progress,
        )  # fmt: skip
        if search:
            found = replace(found, signs=(*found.signs, search))
        row["diagnosis"] = found.as_dict()
    row |= tally.columns()
    row |= {f"{name}_vulnerability": meter.result().value for name, meter in meters.items()}
    row |= _costs(target.network, gated if gated is not None else network, shown[:1].to(device))
    row |= {
        "images": count, "norm": norm, "eps": eps, "step": step, "steps": steps, "restarts": restarts,
        "seed": seed, "protocol": way.name, "reduction": reduction, "random": target.random,
        "draws": target.draws,
    }  # fmt: skip
    evaluation.update({name: row.get(name) for name in COLUMNS} | row)
    evaluation.correct = tally.correct()
    return evaluation


COLUMNS = (
    "clean_accuracy", "white_box_accuracy", "black_box_accuracy", "white_box_vulnerability",
    "black_box_vulnerability", "memory_percent", "flops_reduction", "sparsity_percent",
    "memory_percent_repeat_dense", "white_box_accuracy_strongest", "autoattack_accuracy", "autoattack_images",
    "autoattack_after", "diagnosis", "parameters", "macs",
)  # fmt: skip
"""Columns that every row has, with None where something was not measured or does not apply."""


def _check(
    budget: Budget, protocol: str, restarts: int, batch_size: int, autoattack: int | None, masking: int | None
) -> None:  # fmt: skip
    geometry.check_budget(budget.eps, budget.norm, budget.step, budget.steps)
    if restarts < 1 or batch_size < 1:
        raise InputError(f"restarts is {restarts} and batch_size {batch_size}; both must be at least 1.")
    if autoattack is not None and autoattack < 1:
        raise InputError(f"autoattack is {autoattack}; give the number of images to run it on, or None.")
    if masking is not None and masking < 1:
        raise InputError(f"masking is {masking}; give the number of images to look at, or None.")
    if autoattack is not None and protocol != "pixel-space":
        raise InputError(f"AutoAttack attacks pixels in [0, 1]; it cannot be run under the protocol {protocol!r}.")


def _check_same(target: Subject, observed: Subject, shown: Tensor) -> None:
    """Refuse a gated network that is not the one that `network` was made from."""
    if target is observed or target.random or observed.random:
        return
    shown = shown.to(target.device)
    with torch.no_grad():
        logits, others = target.network(shown), observed.network(shown)
    if logits.shape != others.shape or not torch.allclose(
        logits, others, rtol=0, atol=1e-3 * float(logits.abs().max())
    ):
        raise InputError(
            "the gated network gives other logits than the network that is evaluated, so it is not the one "
            "that it was compacted from. Give both from the same run."
        )


def _companion(
    network: nn.Module | None,
    role: str,
    way: EvaluationProtocol,
    shown: Tensor,
    labels: Tensor,
    draws: int,
    classes: int | None,
) -> Subject | None:
    if network is None:
        return None
    return Subject(way.adapt(network), shown, labels, draws=draws, classes=classes, role=role)


def _meters(
    network: nn.Module, names: Sequence[str], reduction: Reduction, shown: Tensor
) -> dict[str, VulnerabilityMeter]:
    """A meter for each attack; none for a network without latent features to look at."""
    try:
        with seeded(0, shown.device), recorded(network) as features, torch.no_grad():
            network(shown)
    except InputError:
        return {}
    if not features:
        return {}
    return {name: VulnerabilityMeter(network, reduction=reduction) for name in names}


def _costs(network: nn.Module, published: nn.Module, image: Tensor) -> dict[str, Any]:
    with seeded(0, image.device):
        row: dict[str, Any] = {"macs": macs(network, image)}
    row["parameters"] = sum(p.numel() for p in network.parameters())
    found, slip = published_cost(published), published_cost(published, repeat_dense=True)
    if found is not None and slip is not None:
        row |= {
            "sparsity_percent": found.sparsity_percent, "flops_reduction": found.flops_reduction,
            "memory_percent": found.memory_percent, "memory_percent_repeat_dense": slip.memory_percent,
        }  # fmt: skip
    return row


def _reporter(tell: Step, batch_size: int) -> Any:
    def report(attack: str, done: int, total: int, accuracy: float) -> None:
        tell(done * batch_size, f"{attack} {done}/{total}: {100 * accuracy:.2f} % robust")

    return report
