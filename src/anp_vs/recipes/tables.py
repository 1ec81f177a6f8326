"""Each row of the tables, and the demo, as a recipe with its source; and how one is found."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from anp_vs.errors import InputError
from anp_vs.methods import (
    ADMM,
    ANP,
    ANPVS,
    AT,
    ATBNN,
    ATVS,
    BP,
    TRADES,
    AnyMethod,
    PretrainedAT,
    Standard,
)
from anp_vs.recipes.recipe import Attack, Recipe, load, override

PAPER = "Madaan, Shin, Hwang, ICML 2020"


def _rows(
    table: str,
    base: Recipe,
    methods: Mapping[str, AnyMethod],
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Recipe]:
    """The rows of one table: each differs from the base in its method, its start, and the changes named for it."""
    starts = {
        "bp": "standard", "anp": "standard", "anp-vs": "standard", "admm": "at", "pretrained-at": "pretraining"
    }  # fmt: skip
    black_box = f"{table}/black-box-source"
    recipes = {}
    for row, method in methods.items():
        start = f"{table}/{starts[row]}" if row in starts else None
        recipe = replace(base, name=f"{table}/{row}", method=method, start=start, black_box=black_box)
        recipes[recipe.name] = replace(recipe, **(changes or {}).get(row, {}))
    # The source of black-box attacks is a network nobody else uses: the same AT, another seed.
    source = replace(base, name=black_box, method=methods["at"], seed=1_000_003)
    recipes[black_box] = replace(source, **(changes or {}).get("black-box-source", {}))
    return recipes


def _methods(beta: float, lambda_: float, *, vgg: bool = False, **kept: AnyMethod) -> dict[str, AnyMethod]:
    """The methods of a published table, by row, with each release's hyper-parameters; `kept` replaces some."""
    rows: dict[str, AnyMethod] = {
        "standard": Standard(),
        "bp": BP(),
        "at": AT(),
        "at-bnn": ATBNN(prior_sigma=0.1, initial_rho=-5.0) if vgg else ATBNN(),
        "pretraining": AT(),
        "pretrained-at": PretrainedAT(),
        "admm": ADMM(sparsity_percent=75.0 if vgg else 80.0),
        "trades": TRADES(beta=6.0 if vgg else 1.0),
        "at-vs": ATVS(lambda_=lambda_),
        "anp": ANP(beta=beta),
        "anp-vs": ANPVS(beta=beta, lambda_=lambda_),
    }
    return rows | {name.replace("_", "-"): method for name, method in kept.items()}


def _published(table: str, base: Recipe) -> dict[str, Recipe]:
    """A CIFAR table with the published hyper-parameters."""
    ten = base.data == "cifar10"
    return _rows(
        table, base, _methods(2.0 if ten else 1.0, 1e-4 if ten else 1e-1, vgg=True),
        {"pretraining": {"data": "cifar100" if ten else "cifar10"}, "pretrained-at": FINE_TUNING},
    )  # fmt: skip


def _reduced(effort: str, base: Recipe, beta: float, changes: Mapping[str, Mapping[str, Any]]) -> dict[str, Recipe]:
    """Both CIFAR tables, reduced: TRADES inside ANP-VS, and each data set's pre-training on the other."""
    inside = ANPVS(beta=beta, lambda_=1e-4, adversarial_loss="trades", robust_weight=6.0)
    recipes: dict[str, Recipe] = {}
    for data, other in (("cifar10", "cifar100"), ("cifar100", "cifar10")):
        recipes |= _rows(
            f"{data}-{effort}", replace(base, data=data), _methods(beta, 1e-4, vgg=True, bp=BP(beta=beta), anp_vs=inside),
            {**changes, "pretraining": {**changes["pretraining"], "data": other}},
        )  # fmt: skip
    return recipes


def _started_shortly(table: str, epochs: int, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """The rows with gates of adversarial training, and the few epochs of standard training that they start from."""
    name = f"{table}/short-start"
    start = replace(recipes[f"{table}/standard"], name=name, epochs=epochs, batch_size=64, lr=0.05, dropout=0.0)
    rows = [replace(recipes[f"{table}/{row}"], start=name) for row in ("anp", "anp-vs")]
    return {recipe.name: recipe for recipe in (start, *rows)}


MNIST = Recipe(
    name="mnist",
    source=f"{PAPER}, section 5 and released code",
    data="mnist",
    network="lenet5-caffe",
    method=AT(),
)
CIFAR10 = replace(
    MNIST, name="cifar10", data="cifar10", network="vgg16", attack=Attack(0.03, 0.007, 10),
    test_attack=Attack(0.03, 0.007, 40), milestones=(0.5, 0.8), augment=True,
)  # fmt: skip
CIFAR100 = replace(CIFAR10, name="cifar100", data="cifar100")
RELEASED: dict[str, Any] = {"network": "vgg16-standardised", "protocol": "released-code"}
"""How the published CIFAR rows were trained and tested: on standardised tensors that are clipped to [0, 1]."""
FIELD = replace(
    CIFAR10, source="what the field compares at: eps 8/255, half of the inner channels gone; not from the paper, not measured yet",
    attack=Attack(8 / 255, 2 / 255, 10), test_attack=Attack(8 / 255, 2 / 255, 40), epochs=60, batch_size=128, optimiser="sgd",
    lr=0.1, weight_decay=5e-4, schedule="onecycle", average=0.999, decide_at=0.5, target_sparsity=50.0, remove_after=1000,
)  # fmt: skip
CIFAR_GPU = replace(
    FIELD, source="what one GPU trains in minutes: eps 8/255, no extra data; not from the paper, not measured yet", epochs=40,
    batch_size=256, lr=0.2, gate_lr=0.02, eps_warmup=0.1,
)  # fmt: skip
DIGITS = replace(
    MNIST, name="digits", source="the demo: scikit-learn's 1,797 digits, a minute or two on two cores", data="digits",
    attack=Attack(0.1, 0.04, 4), test_attack=Attack(0.1, 0.005, 40), restarts=1, epochs=26, batch_size=100, lr=3e-3, gate_lr=0.1,
    schedule="cosine", eps_warmup=0.3, decide_at=0.5, target_sparsity=62.0, remove_after=20, average=0.98,
)  # fmt: skip
MNIST_CPU = replace(
    MNIST, name="mnist-cpu", source="fits two CPU cores: fewer and larger steps; chosen on the validation split",
    attack=Attack(0.3, 0.075, 7), epochs=14, batch_size=128, lr=2e-3, gate_lr=0.1, schedule="cosine", eps_warmup=0.15,
    decide_at=0.4, target_sparsity=84.3, remove_after=100, average=0.999,
)  # fmt: skip

CIFAR_CPU = replace(
    CIFAR10, source="two CPU cores with fast bfloat16: a short phase under gates, then the small network trains on; what stays "
    "dense is trained for three epochs", validation=1000, attack=Attack(8 / 255, 4 / 255, 3), test_attack=Attack(8 / 255, 2 / 255, 40), epochs=28,
    batch_size=128, optimiser="sgd", lr=0.1, gate_lr=0.05, weight_decay=2e-4, schedule="onecycle", eps_warmup=0.05,
    decide_at=0.08, remove_after=50, average=0.998,
)  # fmt: skip

PRICED: dict[str, Any] = {
    "epochs": 30, "lr": 3e-3, "eps_warmup": 0.067, "decide_at": 0.167, "target_sparsity": None, "cost_exponent": 0.3,
}  # fmt: skip
"""Five epochs under gates whose units are priced by the MACs they cost, then the small network trains on alone."""
SHORT: dict[str, Any] = {
    "epochs": 10, "batch_size": 64, "lr": 0.05, "schedule": "cosine", "attack": Attack(8 / 255, 0.0196, 2), "eps_warmup": 0.05,
    "gate_lr": 0.1, "cost_exponent": 0.3, "target_sparsity": 76.0, "decide_at": 0.17, "remove_after": 40, "dropout": 0.0,
    "average": 0.999,
}  # fmt: skip
"""At most 1.7 epochs under gates, then the small network trains on without dropout: what an afternoon of two cores allows."""
DENSE: dict[str, Any] = {"epochs": 3, "batch_size": 64, "lr": 0.05, "dropout": 0.0}
"""What two cores can train of a network that stays dense."""
QUICK: dict[str, Any] = {**DENSE, "attack": Attack(8 / 255, 10 / 255, 1)}
"""Dense adversarial training in one step from a random start (Wong et al. 2020, arXiv 2001.03994): its cost is the attack's."""
FINE_TUNING = {"epochs": 20, "lr": 1e-4}
"""Of an adversarially pre-trained network: a tenth of the epochs at a tenth of the learning rate."""

_TABLES: dict[str, Recipe] = {
    **_rows("mnist", MNIST, _methods(4.0, 1e-3), {"pretraining": {"data": "digits"}, "pretrained-at": FINE_TUNING}),
    **_published("cifar10", CIFAR10),
    **_published("cifar100", CIFAR100),
    **_published("cifar10-released", replace(CIFAR10, **RELEASED)),
    **_published("cifar100-released", replace(CIFAR100, **RELEASED)),
    # The KL term is divided by the number of training images, on digits a fiftieth of MNIST's: so is its weight.
    **_rows(
        "digits", DIGITS,
        {
            "standard": Standard(), "bp": BP(beta=0.5), "at": AT(), "at-vs": ATVS(), "trades": TRADES(beta=4.0),
            "anp": ANP(beta=0.5), "anp-vs": ANPVS(beta=0.5, adversarial_loss="trades", robust_weight=4.0),
        },
        {"standard": {"epochs": 10}, "black-box-source": {"epochs": 16}},
    ),
    **_rows(
        "mnist-cpu", MNIST_CPU,
        _methods(9.0, 1e-3, bp=BP(beta=12.0)),
        {
            "anp": PRICED, "anp-vs": PRICED, "standard": {"epochs": 3}, "bp": {"epochs": 4}, "at": {"epochs": 5}, "black-box-source": {"epochs": 4},
            "trades": {"epochs": 8}, "at-bnn": {"epochs": 8}, "admm": {"epochs": 6}, "at-vs": {"epochs": 8},
            "pretraining": {"data": "digits", "epochs": 40}, "pretrained-at": {"epochs": 5, "lr": 1e-3},
        },
    ),
    **_reduced(
        "cpu", CIFAR_CPU, 4.0,
        {
            "anp": SHORT, "anp-vs": SHORT, "standard": DENSE, "at": QUICK, "at-vs": QUICK,
            "black-box-source": QUICK, "at-bnn": QUICK, "admm": QUICK, "trades": {**QUICK, "attack": SHORT["attack"]},
            "bp": {
                **DENSE, "method": BP(beta=12.0), "schedule": "cosine", "gate_lr": 0.1, "decide_at": 0.5, "target_sparsity": 76.0,
                "cost_exponent": 0.3,
            },
            "pretraining": QUICK, "pretrained-at": {**QUICK, "epochs": 2, "lr": 1e-2},
        },
    ),
    **_reduced(
        "gpu", CIFAR_GPU, 2.0,
        {
            "standard": {"epochs": 20}, "bp": {"epochs": 20}, "black-box-source": {"epochs": 15},
            "pretraining": {"epochs": 20}, "pretrained-at": {"epochs": 8, "lr": 2e-2},
        },
    ),
    **{
        name: recipe
        for network in ("resnet18", "preactresnet18", "wideresnet28-4", "wideresnet28-10")
        for name, recipe in _rows(
            f"cifar10-{network}", replace(FIELD, network=network),
            {
                "standard": Standard(), "at": AT(), "trades": TRADES(beta=6.0),
                "anp-vs": ANPVS(beta=2.0, lambda_=1e-4, adversarial_loss="trades", robust_weight=6.0),
            },
        ).items()
    },
}  # fmt: skip
RECIPES: dict[str, Recipe] = {
    **_TABLES,
    **_started_shortly("cifar10-cpu", 1, _TABLES),
    **_started_shortly("cifar100-cpu", 2, _TABLES),
    "mnist-best/anp-vs": replace(
        _TABLES["mnist-cpu/at-vs"], name="mnist-best/anp-vs", source="mnist-cpu/anp-vs, whose small network is trained on against a "
        "larger eps, with a dense robust teacher; chosen on the validation split", start="mnist-cpu/anp-vs",
        teacher="mnist-cpu/admm", attack=Attack(0.36, 0.09, 7), epochs=36, eps_warmup=0.0, shift=1,
    ),
    "cifar10-best/anp-vs": replace(
        _TABLES["cifar10-cpu/trades"], name="cifar10-best/anp-vs", source="cifar10-cpu/anp-vs, whose small network is trained on "
        "with the loss of TRADES", start="cifar10-cpu/anp-vs", epochs=12, batch_size=128, lr=0.05, schedule="cosine",
        attack=Attack(8 / 255, 0.0196, 2), eps_warmup=0.0, dropout=0.0, average=0.999,
    ),
    **{
        f"{table}/anp-vs-small": replace(_TABLES[f"{table}/anp-vs"], name=f"{table}/anp-vs-small", target_sparsity=70.0)
        for table in ("cifar10-gpu", "cifar100-gpu")
    },
}  # fmt: skip
"""Every recipe by name: TABLE/ROW."""


def find(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name, by path of a YAML file, by run directory, or itself.

    Raises:
        InputError: nothing of that name exists.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if str(recipe) in RECIPES:
        return RECIPES[str(recipe)]
    path = Path(recipe)
    if path.is_dir() and (path / "recipe.yaml").exists():
        return load(path / "recipe.yaml")
    if path.is_file():
        return load(path)
    near = difflib.get_close_matches(str(recipe), RECIPES, 5) or ["digits/anp-vs", "mnist-cpu/anp-vs"]
    raise InputError(
        f"There is no recipe, run directory or YAML file {str(recipe)!r}. Recipes are such as {', '.join(near)}; "
        f"all of them: anp-vs recipes."
    )


def prerequisite(recipe: Recipe, field: Literal["start", "teacher"] = "start") -> Recipe | None:
    """The recipe whose trained network this one starts with or learns from: same seed, same images; None without one.

    When this recipe's data, pictures or (to start from) network are not those of the other, the other is trained on
    this one's, under a name of its own. Other data are only those of a built-in recipe that starts from the same
    network: that is what pre-training is for.
    """
    wanted = getattr(recipe, field)
    if wanted not in RECIPES:
        return None
    other = RECIPES[wanted]
    accepted = [other, *(each for each in RECIPES.values() if field == "start" and each.start == wanted)]
    shared = ("data", "pictures", "network", "protocol") if field == "start" else ("data", "pictures")
    own = {
        name: getattr(recipe, name) for name in shared
        if all(getattr(recipe, name) != getattr(each, name) for each in accepted)
    }  # fmt: skip
    handed_on: dict[str, Any] = {"seed": recipe.seed, "data_root": recipe.data_root}
    if own.get("data", other.data) == recipe.data:
        handed_on["validation"] = recipe.validation
    if own:
        handed_on |= {**own, "batch_size": recipe.batch_size, "name": f"{recipe.name}-{field}"}
    return override(other, handed_on)
