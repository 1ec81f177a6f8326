"""One way to call our attacks, torchattacks', ART's and the authors' release of AutoAttack, with equal budgets.

torchattacks and ART install without their pinned dependencies, so that torch stays as it is:
    pip install --no-deps torchattacks adversarial-robustness-toolbox && pip install requests tqdm
The release is a checkout of github.com/fra31/auto-attack on the import path.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from anp_vs import attacks

Norm = Literal["inf", "2", "1"]
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class Case:
    """What one attack is asked to do."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    norm: Norm
    eps: float
    seed: int = 0
    steps: int = 30
    targets: int = 4
    queries: int = 300
    pgd_steps: int = 20


Run = Callable[[str, Case], Tensor]
"""The name of an attack and its case -> adversarial images."""


def runs(attack: str) -> int:
    """How many runs to take the mean of: random starts move one run by some tenths of a point."""
    return 10 if attack.startswith(("pgd", "apgd")) else 2 if attack == "square" else 1


def library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{name} is not installed ({error}); see the head of {__name__}")


def ours(attack: str, case: Case) -> Tensor:
    where = case.network, case.images, case.labels
    how: dict[str, Any] = {"eps": case.eps, "norm": case.norm}
    drawn = how | {"generator": torch.Generator().manual_seed(case.seed)}
    climb = drawn | {"steps": case.steps}
    makers: dict[str, Callable[[], Tensor]] = {
        "fgsm": lambda: attacks.fgsm(*where, **how),
        "pgd": lambda: attacks.pgd(*where, step=case.eps / 4, steps=case.pgd_steps, **drawn),
        "apgd-ce": lambda: attacks.apgd(*where, **climb),
        "apgd-dlr": lambda: attacks.apgd(*where, loss="dlr", **climb),
        "apgd-t": lambda: attacks.apgd(*where, targets=case.targets, **climb),
        "fab-t": lambda: attacks.fab(*where, targets=case.targets, **climb),
        "square": lambda: attacks.square(*where, queries=case.queries, **drawn),
    }
    return makers[attack]()


def ours_in_autoattack(attack: str, case: Case) -> Tensor:
    """Our whole ensemble, or the one attack of it, with the restarts and targets that it has there."""
    return attacks.autoattack(
        case.network,
        case.images,
        case.labels,
        eps=case.eps,
        norm=case.norm,
        attacks=None if attack == ENSEMBLE else [attack],
        steps=case.steps,
        queries=case.queries,
        targets=None if case.norm == "1" else case.targets,
        seed=case.seed,
    ).adversarial


def torchattacks(attack: str, case: Case) -> Tensor:
    peer = library("torchattacks")
    network, eps = case.network, case.eps
    common: dict[str, Any] = {"norm": f"L{case.norm}", "eps": eps, "seed": case.seed}
    climb = common | {"steps": case.steps}
    walk = {"eps": eps, "alpha": eps / 4, "steps": case.pgd_steps}
    makers: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: peer.FGSM(network, eps=eps),
        "pgd": lambda: peer.PGD(network, **walk) if case.norm == "inf" else peer.PGDL2(network, **walk),
        "apgd-ce": lambda: peer.APGD(network, loss="ce", **climb),
        "apgd-dlr": lambda: peer.APGD(network, loss="dlr", **climb),
        "apgd-t": lambda: peer.APGDT(network, n_classes=case.targets + 1, **climb),
        "fab-t": lambda: peer.FAB(network, multi_targeted=True, n_classes=case.targets + 1, **climb),
        "square": lambda: peer.Square(network, n_queries=case.queries, **common),
    }
    torch.manual_seed(case.seed)
    attacked: Tensor = makers[attack]()(case.images, case.labels)
    return attacked


def art(attack: str, case: Case) -> Tensor:
    library("art")
    evasion = importlib.import_module("art.attacks.evasion")
    estimators = importlib.import_module("art.estimators.classification")
    with torch.no_grad():
        classes = case.network(case.images[:2]).shape[1]
    classifier = estimators.PyTorchClassifier(
        case.network,
        nn.CrossEntropyLoss(),
        tuple(case.images.shape[1:]),
        classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    order: float = float("inf") if case.norm == "inf" else int(case.norm)
    common: dict[str, Any] = {"norm": order, "eps": case.eps, "batch_size": len(case.images)}
    climb = {**common, "eps_step": 2 * case.eps, "max_iter": case.steps, "nb_random_init": 1, "verbose": False}
    makers: dict[str, Callable[[], Any]] = {
        "fgsm": lambda: evasion.FastGradientMethod(classifier, **common),
        "pgd": lambda: evasion.ProjectedGradientDescent(
            classifier, eps_step=case.eps / 4, max_iter=case.pgd_steps, num_random_init=1, verbose=False, **common
        ),
        "apgd-ce": lambda: evasion.AutoProjectedGradientDescent(classifier, loss_type="cross_entropy", **climb),
        "apgd-dlr": lambda: evasion.AutoProjectedGradientDescent(
            classifier, loss_type="difference_logits_ratio", **climb
        ),
        "square": lambda: evasion.SquareAttack(
            classifier, max_iter=case.queries, nb_restarts=1, verbose=False, **common
        ),
    }
    numpy = importlib.import_module("numpy")
    numpy.random.seed(case.seed)
    torch.manual_seed(case.seed)
    return torch.tensor(makers[attack]().generate(case.images.numpy(), case.labels.numpy()))


def official(attack: str, case: Case) -> Tensor:
    """The release, or one of its attacks; its own restarts and targets in the 1-norm."""
    peer = library("autoattack").AutoAttack(
        case.network, norm=f"L{case.norm}", eps=case.eps, seed=case.seed, verbose=False, device="cpu"
    )
    for part in (peer.apgd, peer.apgd_targeted, peer.fab):
        part.n_iter = part.n_iter_orig = case.steps
    for part in (peer.apgd, peer.apgd_targeted):  # its constructor derives these from the number of steps
        part.n_iter_2, part.n_iter_min, part.size_decr = (
            max(int(share * case.steps), 1) for share in (0.22, 0.06, 0.03)
        )
    peer.square.n_queries = case.queries
    if case.norm != "1":
        peer.apgd_targeted.n_target_classes = case.targets
    peer.fab.n_target_classes = case.targets
    if attack != ENSEMBLE:
        peer.attacks_to_run = [attack]
    attacked: Tensor = peer.run_standard_evaluation(case.images, case.labels, bs=250)
    return attacked


PEERS: dict[str, Run] = {"torchattacks": torchattacks, "art": art, "official": official}
