"""AutoAttack, Croce & Hein 2020 (arXiv 2003.01690): an ensemble without parameters to choose.

The `standard` ensemble of the authors' release: APGD on cross-entropy, APGD on the targeted DLR, targeted
FAB, Square. Networks that are random in evaluation mode are given `draws` > 1 and meet APGD on cross-entropy
and on DLR with averaged gradients (the release's `rand` version).
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from anp_vs.attacks import geometry, losses
from anp_vs.attacks.apgd import apgd
from anp_vs.attacks.fab import fab
from anp_vs.attacks.frozen import frozen
from anp_vs.attacks.geometry import Norm
from anp_vs.attacks.noise import per_image, seed_of, seeded
from anp_vs.attacks.prediction import checked, predict
from anp_vs.attacks.square import square
from anp_vs.attacks.state import State
from anp_vs.errors import InputError

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The ensemble for deterministic networks."""
RANDOM = ("apgd-ce", "apgd-dlr")
"""The ensemble for networks that are random in evaluation mode."""
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square")

Progress = Callable[[str, int, int, float], None]
"""Called after each batch: attack, batches done, batches of this attack, robust accuracy so far in [0, 1]."""


@dataclass(frozen=True)
class AutoAttackResult:
    """What the ensemble found, image by image, as classified in one last pass over `adversarial`."""

    adversarial: Tensor
    """N x C x H x W, in the threat model exactly; where robust, the one nearest to a wrong class."""
    robust: Tensor
    """bool, N: classified as labelled, clean and under every attack."""
    broken_by: list[str | None]
    """The attack that found `adversarial`, "clean" for a mistake without an attack, None where robust."""
    margin: Tensor
    """z_y - max_{i != y} z_i at `adversarial`, N; of log-probabilities when draws > 1."""
    clean_accuracy: float
    """In [0, 1]."""
    after: dict[str, float] = field(default_factory=dict)
    """Robust accuracy in [0, 1] after each attack, in their order."""

    @property
    def accuracy(self) -> float:
        """Robust accuracy in [0, 1]."""
        return float(self.robust.double().mean())


def autoattack(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    norm: Norm = "inf",
    attacks: Sequence[str] | None = None,
    steps: int = 100,
    queries: int = 5000,
    targets: int | None = None,
    restarts: int | None = None,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 250,
    resume: str | Path | None = None,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """Run the ensemble; an image leaves it as soon as an attack breaks it.

    What an attack does to an image is a function of (seed, attack, index of the image), so a run that was
    stopped and resumed ends like one that was not.

    Args:
        network: float images in [0, 1] to logits N x K; attacked in evaluation mode, left as it was.
        images: float32, N x C x H x W in [0, 1], on the network's device.
        labels: int64, N.
        eps: radius in pixel units, >= 0.
        norm: of the ball, "inf", "2" or "1".
        attacks: of "apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", in their order; when None
            `STANDARD`, or `RANDOM` for draws > 1.
        steps: of each APGD and FAB run.
        queries: of Square, for each image.
        targets: classes of "apgd-t" and "fab-t", at most K - 1; when None 9, for "apgd-t" in the 1-norm 5.
        restarts: of "apgd-ce" and "apgd-dlr"; when None 1, and 5 in the 1-norm.
        draws: passes averaged in each gradient and each prediction of a random network; 20 in the release.
        seed: of all randomness.
        batch_size: images attacked, and classified, together.
        resume: file where the state is kept after each batch; a run with the same arguments goes on from it.
        progress: called after each batch.

    Returns:
        The outcome of each image.

    Raises:
        InputError: for arguments outside what is accepted, or a network that is random while draws is 1.
        RunError: when the file at `resume` is damaged or belongs to another evaluation.
    """
    names = tuple(attacks) if attacks is not None else (RANDOM if draws > 1 else STANDARD)
    geometry.check_images(images, labels)
    geometry.check_budget(eps, norm, steps=steps)
    counts = {
        "queries": queries,
        "targets": targets,
        "restarts": restarts,
        "draws": draws,
        "batch_size": batch_size,
    }
    _check(names, counts)
    climb = functools.partial(apgd, steps=steps, draws=draws)
    again = restarts or (5 if norm == "1" else 1)
    run: dict[str, Callable[..., Tensor]] = {
        "apgd-ce": functools.partial(climb, restarts=again),
        "apgd-dlr": functools.partial(climb, restarts=again, loss="dlr"),
        "apgd-t": functools.partial(climb, targets=targets or (5 if norm == "1" else 9)),
        "fab-t": functools.partial(fab, steps=steps, targets=targets or 9, draws=draws),
        "square": functools.partial(square, queries=queries, draws=draws),
    }
    settings = (str(norm), float(eps), names, steps, tuple(counts.values()), seed)
    with frozen(network):
        ensemble = _Ensemble(network, images.detach(), labels, draws, seed, batch_size)
        logits = ensemble.classify(ensemble.images)
        if draws == 1:
            ensemble.check_deterministic(logits)
        state = State.open(None if resume is None else Path(resume), settings, ensemble.images, labels, logits)
        for number, name in enumerate(names):
            if number < state.attack:
                continue  # finished before the interruption
            state.begin(number)
            attack = functools.partial(run[name], eps=eps, norm=norm)
            for done in ensemble.attack(state, name, attack):
                if progress is not None:
                    progress(name, done, -(-len(state.queue) // batch_size), state.accuracy)
            state.finish(number)
        logits = ensemble.classify(state.adversarial)
    robust = logits.argmax(dim=1) == labels
    finders = ("clean", *names)
    broken_by = [
        None if stands else finders[source + 1]
        for stands, source in zip(robust.tolist(), state.source.tolist(), strict=True)
    ]
    return AutoAttackResult(
        adversarial=state.adversarial,
        robust=robust,
        broken_by=broken_by,
        margin=-losses.margin(logits, labels),
        clean_accuracy=float((state.logits.argmax(dim=1) == labels).double().mean()),
        after=dict(zip(names, state.after, strict=True)),
    )


def _check(names: tuple[str, ...], counts: dict[str, int | None]) -> None:
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names or len(set(names)) != len(names):
        raise InputError(f"attacks is {names}; it must name at least one of {', '.join(NAMES)}, none of them twice.")
    for name, count in counts.items():
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be at least 1. Leave it out for the standard's value.")


@dataclass(frozen=True)
class _Ensemble:
    """A frozen network and the images, in batches that do not depend on where a run was stopped."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    draws: int
    seed: int
    batch_size: int

    def classify(self, images: Tensor) -> Tensor:
        """Logits of all images, batch after batch in their order; of log-probabilities when draws > 1."""
        parts = []
        for begin in range(0, len(images), self.batch_size):
            rows = slice(begin, begin + self.batch_size)
            with seeded(seed_of(self.seed, "classify", begin), images.device):
                parts.append(predict(checked(self.network, self.labels[rows]), images[rows], self.draws))
        return torch.cat(parts)

    def check_deterministic(self, logits: Tensor) -> None:
        """Refuse (InputError) a network whose second answer to the first batch is not `logits`."""
        again = predict(self.network, self.images[: self.batch_size])
        scale = float(again.abs().max())
        if not torch.allclose(again, logits[: self.batch_size], rtol=1e-3, atol=1e-4 * scale):
            raise InputError(
                "two passes of the network over the same images differ in evaluation mode: it is random, and "
                "draws is 1. Pass draws=20 to attack and classify it on average over its noise."
            )

    def attack(self, state: State, name: str, attack: Callable[..., Tensor]) -> Iterator[int]:
        """Go on with the state's queue; yields the number of batches done after each."""
        while state.done < len(state.queue):
            rows = state.queue[state.done : state.done + self.batch_size]
            images, labels = self.images[rows], self.labels[rows]
            with seeded(seed_of(self.seed, f"network/{name}", state.done), images.device):
                generator = per_image(self.seed, name, rows.tolist())
                found = attack(self.network, images, labels, generator=generator)
                logits = predict(self.network, found, self.draws)
            state.take(rows, found, logits.argmax(dim=1) != labels, -losses.margin(logits, labels))
            yield -(-state.done // self.batch_size)
