"""Robustness against an attacker who may only ask the network: Square, with a stated number of queries."""

from __future__ import annotations

from torch import Tensor, nn

from anp_vs.attacks import geometry, square
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.noise import per_image, seed_of, seeded
from anp_vs.errors import InputError
from anp_vs.evaluation.finished import Finished
from anp_vs.evaluation.progress import stage
from anp_vs.evaluation.subject import LabelledImages, Subject, batches, count_of, device_of, first_batch


def query_accuracy(
    network: nn.Module,
    split: LabelledImages,
    *,
    eps: float,
    queries: int = 5000,
    norm: Norm = "inf",
    batch_size: int = 250,
    limit: int | None = None,
    seed: int = 0,
    draws: int = 1,
    finished: Finished | None = None,
    progress: bool = True,
) -> dict[str, float | int | str]:
    """Accuracy under Square (Andriushchenko et al. 2020, arXiv 1912.00049), which sees logits only.

    Args:
        network: any module, float images N x C x H x W in [0, 1] to logits N x K; not changed.
        split: a split of a data set, or a pair of float images in [0, 1] and int64 labels.
        eps: radius in pixel units, >= 0.
        queries: of each image, at most.
        norm: of the ball.
        batch_size: images at a time.
        limit: only the first so many images.
        seed: of the search.
        draws: passes averaged for a network that is random in evaluation mode.
        finished: where each batch's figure is kept, to go on from after an interruption.
        progress: show what is going on.

    Returns:
        query_accuracy in percent, with queries, images, eps, norm and seed.

    Raises:
        InputError: for values outside what is accepted, or a network that cannot be judged.
    """
    geometry.check_budget(eps, norm)
    if queries < 1:
        raise InputError(f"queries is {queries}; it must be at least 1.")
    count = count_of(split, limit)
    device = device_of(network)
    first, labels = first_batch(split, count, batch_size)
    subject = Subject(network, first, labels, draws=draws)
    finished, right = finished or Finished(), 0

    def standing(start: int, x: Tensor, y: Tensor) -> int:
        left = (subject.classify(x, y, seed, "clean", start).argmax(1) == y).nonzero().squeeze(1)
        if not len(left):
            return 0
        generators = per_image(seed, "square", (left + start).tolist())
        with seeded(seed_of(seed, "network/square", start), device):
            made = square(
                subject.attacked, x[left], y[left], eps=eps, norm=norm, queries=queries, draws=subject.draws,
                generator=generators,
            )  # fmt: skip
        logits = subject.classify(made, y[left], seed, "query", start)
        return int((logits.argmax(1) == y[left]).sum())

    with stage("queries", count, show=progress) as tell:
        for start, images, labels in batches(split, count, batch_size):
            done = start + len(labels)
            part = f"{queries} queries, images {start} to {done}"
            if finished.get(part) is None:
                finished.keep(part, standing(start, images.to(device), labels.to(device)))
            right += finished.get(part)
            tell(done, f"{100 * right / done:.2f} %")
    facts: dict[str, float | int | str] = {
        "queries": queries,
        "images": count,
        "eps": eps,
        "norm": norm,
        "seed": seed,
    }
    return {"query_accuracy": 100 * right / count} | facts
