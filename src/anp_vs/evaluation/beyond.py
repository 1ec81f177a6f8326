"""What a row says beyond attacks: accuracy on corrupted images, and accuracy that is proven."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from torch import nn

from anp_vs.attacks.geometry import Norm
from anp_vs.errors import InputError
from anp_vs.evaluation.certify import certify_smoothed
from anp_vs.evaluation.corruptions import evaluate_corruptions
from anp_vs.evaluation.finished import Finished
from anp_vs.evaluation.intervals import certified
from anp_vs.evaluation.subject import FEWEST_DRAWS, LabelledImages, Subject, batches, count_of, device_of, first_batch
from anp_vs.networks.copying import copied

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)
"""Radii that interval bounds are tried at, as shares of the attack's: a network not trained for them proves small ones."""
SIGMA = 0.25
"""Of the smoothing noise, in pixel units: the middle one of Cohen et al. 2019."""
RADII = (0.0, 0.25, 0.5, 0.75)
"""2-norm radii that the smoothed classifier's certified accuracy is given at."""
_BATCH = 50  # bounds of dense layers take images x classes x inputs


def beyond_attacks(
    network: nn.Module,
    split: LabelledImages,
    *,
    eps: float,
    norm: Norm = "inf",
    corruptions: int | None = None,
    certify: int | None = None,
    seed: int = 0,
    draws: int = 1,
    finished: Finished | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Corruptions and certificates, ready for JSON.

    Args:
        network: any module, float images N x C x H x W in [0, 1] to logits N x K; not changed.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        eps: radius of the row's attack in pixel units, which the interval bounds' radii are shares of.
        norm: of that attack: interval bounds hold in the inf norm, and are left out for another.
        corruptions: classify this many images, the first ones, under each corruption; None leaves that out.
        certify: certify this many images; None leaves that out.
        seed: of all noise.
        draws: passes averaged for a network that is random in evaluation mode.
        finished: where figures are kept as they come, to go on from after an interruption.
        progress: show what is going on.

    Returns:
        `corruptions`: see `CorruptionTable`. `certificates`: `images`, the accuracy in percent that interval bounds
        prove at each radius (or why they say nothing), and that of the smoothed classifier.

    Raises:
        InputError: a count is below 1.
    """
    result: dict[str, Any] = {}
    if corruptions is not None:
        table = evaluate_corruptions(
            network, split, limit=corruptions, seed=seed, draws=draws, finished=finished, progress=progress
        )
        result["corruptions"] = table.as_dict()
    if certify is not None:
        count = count_of(split, certify)
        smoothed = certify_smoothed(
            network, split, sigma=SIGMA, limit=count, seed=seed, finished=finished, progress=progress
        )
        result["certificates"] = {
            "images": count,
            **_intervals(network, split, count, eps, norm, finished or Finished()),
            "smoothed": {
                "sigma": SIGMA,
                "samples": smoothed.samples,
                "alpha": smoothed.alpha,
                "accuracy": [{"radius": r, "accuracy": smoothed.certified_accuracy(r)} for r in RADII],
            },
        }
    return result


def _intervals(
    network: nn.Module, split: LabelledImages, count: int, eps: float, norm: Norm, finished: Finished
) -> dict[str, Any]:
    if norm != "inf":
        return {"interval": None, "interval_missing": f"they hold in the inf norm, and this attack's is {norm}."}
    radii = list(dict.fromkeys(share * eps for share in SHARES))  # at eps 0 they are one
    proven = [0] * len(radii)
    judged, device = copied(network).eval(), device_of(network)
    first, first_labels = first_batch(split, count, _BATCH)
    if Subject(network, first, first_labels, draws=FEWEST_DRAWS).random:
        missing = "the network is random in evaluation mode, and bounds of one draw prove nothing about the others."
        return {"interval": None, "interval_missing": missing}
    try:
        for start, images, labels in batches(split, count, _BATCH):
            part = f"interval bounds, images {start} to {start + len(labels)}"
            if finished.get(part) is None:
                x, y = images.to(device), labels.to(device)
                finished.keep(part, [int(certified(judged, x, y, radius).sum()) for radius in radii])
            proven = [sum(pair) for pair in zip(proven, finished.get(part), strict=True)]
    except InputError as error:
        return {"interval": None, "interval_missing": str(error)}
    return {
        "interval": [
            {"eps": radius, "accuracy": 100 * right / count} for radius, right in zip(radii, proven, strict=True)
        ]
    }


def described(row: Mapping[str, Any]) -> list[str]:
    """What a row holds of this, one sentence each."""
    lines = []
    if table := row.get("corruptions"):
        means = {name: fmean(values) for name, values in table["accuracy"].items()}
        worst = min(means, key=means.__getitem__)
        lines.append(
            f"Under common corruptions {table['mean']:.1f} % on average over {table['images']} images; least under "
            f"{worst}, {means[worst]:.1f} %."
        )
    if found := row.get("certificates"):
        if found["interval"] is None:
            lines.append(f"Interval bounds say nothing: {found['interval_missing']}")
        else:
            steps = ", ".join(f"{point['accuracy']:.1f} % at eps {point['eps']:.3g}" for point in found["interval"])
            lines.append(f"Proven in the inf-norm by interval bounds, of {found['images']} images: {steps}.")
        smoothed = found["smoothed"]
        right, *rest = smoothed["accuracy"]
        steps = ", ".join(f"{point['accuracy']:.1f} % within {point['radius']}" for point in rest)
        lines.append(
            f"Smoothed by noise of {smoothed['sigma']}: {right['accuracy']:.1f} % right, proven in the 2-norm {steps}; each "
            f"proof fails with probability {smoothed['alpha']} at most."
        )
    return lines
