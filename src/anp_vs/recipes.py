"""Each row of the tables, and the demo, as a typed frozen configuration with its source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from anp_vs.errors import InputError
from anp_vs.methods import ANP, ANPVS, AT, ATVS, BP, METHODS, AnyMethod, Standard
from anp_vs.networks import NETWORKS


@dataclass(frozen=True)
class Attack:
    """A PGD attack in the inf norm.

    Attributes:
        eps: radius in units of [0, 1] pixels, 0 to 1.
        step: length of a step, > 0, same units.
        steps: number of steps, >= 1.
    """

    eps: float = 0.3
    step: float = 0.01
    steps: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise InputError(f"eps is {self.eps}; it must lie in [0, 1], in units of pixels in [0, 1] (8/255 = 0.0314).")
        if not self.step > 0:
            raise InputError(f"The attack's step is {self.step}; it must be positive.")
        if self.steps < 1:
            raise InputError(f"The attack has {self.steps} steps; it needs at least 1.")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. Saved as YAML in the run directory; can be trained from again.

    Attributes:
        name: of the recipe; the run directory is named after it.
        source: where its values come from.
        data: digits, mnist, cifar10, cifar100, or folder:PATH.
        data_root: folder that holds the data set already; None downloads it.
        validation: images held out of the training set; None for the data set's default.
        network: a built-in network.
        method: the loss and its hyper-parameters.
        attack: the attack of training.
        test_attack: the attack of evaluation.
        restarts: of the strengthened attack reported beside it.
        epochs: passes over the training set.
        batch_size: images a step.
        optimiser: of the weights; the gates use Adam.
        lr: learning rate of the weights.
        gate_lr: learning rate of the gates' parameters.
        weight_decay: L2 penalty on all weights: its gradient is weight_decay * w.
        schedule: multistep (x0.1 at each milestone), cosine (to 0), or onecycle (linear up over a fifth, then down).
        milestones: shares of training at which the learning rates fall, for multistep.
        gate_schedule: the same for the gates' learning rate; cosine means constant there until the gates decide.
        eps_warmup: share of training over which the attack's radius grows from 0.
        decide_at: share of training after which the gates are fixed: multipliers become E[pi], what is pruned
            leaves the network, and the weights go on alone. 1 lets them learn to the end, as published.
        target_sparsity: fix the gates as soon as this percentage of the units is pruned; None waits.
        remove_after: units that stay pruned for this many steps leave the training network; 0 keeps them.
        average: decay of the running average of the weights that is evaluated and saved; 0 uses the last weights.
        augment: zero-pad 4, random crop and flip.
        start: recipe or run directory whose trained weights training begins with; None starts afresh.
        black_box: recipe of the independently trained network that black-box attacks are made on; None for none.
        seed: of everything random.
    """

    name: str
    source: str
    data: str
    network: str
    method: AnyMethod
    data_root: str | None = None
    validation: int | None = None
    attack: Attack = field(default_factory=Attack)
    test_attack: Attack = field(default_factory=lambda: Attack(steps=40))
    restarts: int = 5
    epochs: int = 200
    batch_size: int = 64
    optimiser: Literal["adam", "sgd"] = "adam"
    lr: float = 1e-3
    gate_lr: float = 1e-2
    weight_decay: float = 1e-4
    schedule: Literal["multistep", "cosine", "onecycle"] = "multistep"
    milestones: tuple[float, ...] = (0.5, 0.7)
    eps_warmup: float = 0.0
    decide_at: float = 1.0
    target_sparsity: float | None = None
    remove_after: int = 0
    average: float = 0.0
    augment: bool = False
    start: str | None = None
    black_box: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "restarts"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("lr", "gate_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive and finite.")
        for name in ("eps_warmup", "decide_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is a share of training and must lie in [0, 1].")
        if not 0 <= self.average < 1:
            raise InputError(f"average is {self.average}; a decay must lie in [0, 1), such as 0.999.")
        if self.target_sparsity is not None and not 0 < self.target_sparsity < 100:
            raise InputError(f"target_sparsity is {self.target_sparsity}; it must lie between 0 and 100 percent.")
        if self.weight_decay < 0 or self.remove_after < 0:
            raise InputError("weight_decay and remove_after must not be negative.")
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise InputError(f"milestones are {self.milestones}; each is a share of training in [0, 1].")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must lie in [0, 2^32).")
        if self.network not in NETWORKS:
            raise InputError(f"Unknown network {self.network!r}; choose one of {', '.join(sorted(NETWORKS))}.")


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _read(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Build a frozen dataclass from plain values: unknown fields and wrong types are refused by name."""
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(map(str, values)) - known):
        raise InputError(f"{where} has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}.")
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind, config=None if dataclasses.is_dataclass(kind) else ConfigDict(extra="forbid"))
    try:
        return _ADAPTERS[kind].validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"] if isinstance(p, str))
        raise InputError(f"{where}: {place or 'value'} is {first.get('input')!r}: {first['msg']}.") from None


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values; the method carries its name."""
    values = dataclasses.asdict(recipe)
    values["method"] = {"name": recipe.method.name, **values["method"]}
    values["milestones"] = list(recipe.milestones)
    return values


def from_dict(values: Mapping[str, Any], where: str = "The recipe") -> Recipe:
    """The recipe of plain values, checked field by field.

    Raises:
        InputError: naming the field, its value and what is accepted.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} is not a mapping of fields to values but {type(values).__name__}.")
    plain = dict(values)
    method = plain.get("method")
    if not isinstance(method, Mapping) or method.get("name") not in METHODS:
        raise InputError(f"{where}: method must hold a name, one of {', '.join(METHODS)}; got {method!r}.")
    kind = METHODS[str(method["name"])]
    plain["method"] = _read(kind, {k: v for k, v in method.items() if k != "name"}, f"Method {method['name']}")
    for name in ("attack", "test_attack"):
        if name in plain:
            if not isinstance(plain[name], Mapping):
                raise InputError(f"{where}: {name} must hold eps, step and steps; got {plain[name]!r}.")
            plain[name] = _read(Attack, plain[name], f"{where}: {name}")
    recipe: Recipe = _read(Recipe, plain, where)
    return recipe


def override(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields replaced; `method`, `attack` and `test_attack` take a mapping of their fields.

    Raises:
        InputError: for an unknown field or a value outside its range.
    """
    plain = to_dict(recipe)
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(plain.get(key), dict):
            other = key == "method" and value.get("name", recipe.method.name) != recipe.method.name
            plain[key] = dict(value) if other else plain[key] | dict(value)
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            named = {"name": value.name} if key == "method" else {}  # type: ignore[attr-defined]
            plain[key] = {**named, **dataclasses.asdict(value)}
        else:
            plain[key] = str(value) if isinstance(value, Path) else value
    return from_dict(plain)


def dump(recipe: Recipe) -> str:
    """The recipe as YAML."""
    return yaml.safe_dump(to_dict(recipe), sort_keys=False)


def load(path: Path) -> Recipe:
    """Read a recipe from a YAML file.

    Raises:
        InputError: the file is missing, is not YAML, or holds something else than a recipe.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a YAML recipe: {error}.") from error
    return from_dict(values, str(path))


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
    raise InputError(
        f"There is no recipe, run directory or YAML file {str(recipe)!r}. Recipes: {', '.join(sorted(RECIPES))}."
    )


PAPER = "Madaan, Shin, Hwang, ICML 2020"


def _rows(table: str, base: Recipe, *, beta: float, lambda_: float, source_epochs: int | None = None) -> dict[str, Recipe]:
    """The rows of one table: each differs from the base in its method and its start."""
    anp_start = f"{table}/standard"
    rows: dict[str, tuple[AnyMethod, str | None]] = {
        "standard": (Standard(), None),
        "bp": (BP(), anp_start),
        "at": (AT(), None),
        "at-vs": (ATVS(lambda_=lambda_), None),
        "anp": (ANP(beta=beta), anp_start),
        "anp-vs": (ANPVS(beta=beta, lambda_=lambda_), anp_start),
    }
    black_box = f"{table}/black-box-source"
    recipes = {
        f"{table}/{row}": replace(base, name=f"{table}/{row}", method=method, start=start, black_box=black_box)
        for row, (method, start) in rows.items()
    }
    # The source of black-box attacks is a network nobody else uses: the same AT, another seed.
    recipes[black_box] = replace(base, name=black_box, method=AT(), seed=1_000_003)
    return recipes


MNIST = Recipe(
    name="mnist", source=f"{PAPER}, section 5 and released code", data="mnist", network="lenet5-caffe", method=AT()
)
CIFAR10 = replace(
    MNIST, name="cifar10", data="cifar10", network="vgg16", attack=Attack(0.03, 0.007, 10),
    test_attack=Attack(0.03, 0.007, 40), milestones=(0.5, 0.8), augment=True,
)  # fmt: skip
CIFAR100 = replace(CIFAR10, name="cifar100", data="cifar100")
DIGITS = replace(
    MNIST, name="digits", source="the demo: scikit-learn's 1,797 digits, minutes on a laptop", data="digits",
    attack=Attack(0.2, 0.05, 7), test_attack=Attack(0.2, 0.01, 40), epochs=60, batch_size=100, lr=2e-3, gate_lr=0.05,
    schedule="cosine", eps_warmup=0.2, decide_at=0.5, remove_after=20, average=0.98,
)  # fmt: skip
DIGITS_BETA = 0.08
"""The KL term is divided by the 1,200 training images, a fiftieth of MNIST's: so is its weight."""
MNIST_CPU = replace(
    MNIST, name="mnist-cpu", source="reduced from the paper's recipe to fit two CPU cores; chosen on the validation split",
    attack=Attack(0.3, 0.075, 7), epochs=14, batch_size=128, lr=2e-3, gate_lr=0.1, schedule="cosine", eps_warmup=0.15,
    decide_at=0.5, remove_after=100, average=0.999,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {
    **_rows("mnist", MNIST, beta=4.0, lambda_=1e-3),
    **_rows("cifar10", CIFAR10, beta=2.0, lambda_=1e-4),
    **_rows("cifar100", CIFAR100, beta=1.0, lambda_=1e-1),
    **_rows("digits", DIGITS, beta=DIGITS_BETA, lambda_=1e-3),
    **_rows("mnist-cpu", MNIST_CPU, beta=4.0, lambda_=1e-3),
}
"""Every recipe by name: TABLE/ROW."""
