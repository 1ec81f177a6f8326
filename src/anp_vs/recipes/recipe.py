"""A training run's configuration: typed, frozen, checked, and written as YAML."""

from __future__ import annotations

import dataclasses
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from anp_vs.attacks.protocols import ProtocolName
from anp_vs.data.picture import PictureOptions
from anp_vs.errors import InputError
from anp_vs.methods import METHODS, AnyMethod
from anp_vs.networks import NETWORKS
from anp_vs.storage import read_text

LARGEST = 1_000_000
"""Largest count (epochs, steps, ...) a recipe may hold: more is a slip of the pen."""
LARGEST_FILE = 100_000
"""Bytes of the largest YAML recipe that is read; a real one has 1,500."""
MEASURED = ("precision", "layout", "compilation")
"""Fields that may say `auto`: a short measurement at the start of a run puts a value there."""
NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9][\w.+-]*(/[A-Za-z0-9][\w.+-]*)*")
"""Names of recipes: a relative path that cannot lead out of its folder."""


def shown(value: object) -> str:
    """A value a stranger gave, short enough for a message however it is nested."""
    return SHORT.repr(value)


SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = SHORT.maxlong = 120
SHORT.maxlevel = 3


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
            raise InputError(
                f"eps is {self.eps}; it must lie in [0, 1], in units of pixels in [0, 1] (8/255 = 0.0314)."
            )
        if not 0 < self.step <= 1:
            raise InputError(f"The attack's step is {self.step}; it must lie in (0, 1], in the same units as eps.")
        if not 1 <= self.steps <= LARGEST:
            raise InputError(f"The attack has {self.steps} steps; it needs 1 to {LARGEST:,}.")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run. Saved as YAML in the run directory; can be trained from again.

    Attributes:
        name: of the recipe; the run directory is named after it.
        source: where its values come from.
        data: digits, mnist, cifar10, cifar100, or folder:PATH.
        pictures: how the pictures of folder:PATH become images; the other data sets do not look at it.
        data_root: folder that holds the data set, or is to; None downloads it into the user's cache folder.
        validation: images held out of the training set; None for the data set's default, 0 trains without validation.
        network: a built-in network, or one that was registered (`anp_vs.networks.register`).
        method: the loss and its hyper-parameters.
        protocol: pixel-space; or released-code, to repeat how the published CIFAR rows were trained: each image is
            standardised, and that tensor is attacked (`anp_vs.attacks.protocols`). On grey images they are the same.
        attack: the attack of training; its eps and step are in units of what is attacked.
        test_attack: the attack of evaluation, likewise.
        restarts: of the strengthened attack reported beside it.
        epochs: passes over the training set.
        batch_size: images a step.
        optimiser: of the weights; the gates use Adam.
        lr: learning rate of the weights.
        gate_lr: learning rate of the gates' parameters.
        weight_decay: L2 penalty on all weights: its gradient is weight_decay * w.
        schedule: multistep (x0.1 at each milestone), cosine (to 0), or onecycle (linear up over a fifth, then down).
            The gates' learning rate follows the steps of multistep, and is constant under the others.
        milestones: shares of training at which the learning rates fall, for multistep.
        eps_warmup: share of training over which the attack's radius grows from 0.
        decide_at: share of training after which the gates are fixed: multipliers become E[pi], what is pruned
            leaves the network, and the weights go on alone. 1 lets them learn to the end, as published.
        target_sparsity: fix the gates as soon as this percentage of the units is pruned; None waits.
        beta_gain: g > 0 lets beta follow `target_sparsity`, so that it is reached shortly before `decide_at` whatever beta
            the method begins with: the KL term is multiplied by exp(g (how far behind, as a share of the way)); 0 keeps
            beta constant, as published. 10 is usual.
        cost_exponent: c in (m / mean m)^c, which a unit's KL term is multiplied by, m being the MACs that its
            removal spares an image and the powers scaled to a mean of 1; 0 prices all units alike, as published.
        residual: where a network adds two paths, keep leaves the stream's channels whole; share gives all layers that
            read them one gate, so that they can go, too. Only keep is as published, for networks that declare their gates.
        remove_after: units that stay pruned for this many steps leave the training network; 0 keeps them.
        average: decay of the running average of the weights that is evaluated and saved; 0 uses the last weights.
        precision: float32 or bfloat16, of training alone: evaluation is always float32, and so is everything that
            sees pixels (of which a GPU's convolutions keep 10 bits in training, TF32); auto takes what a short
            measurement at the start finds faster.
        layout: of feature maps in memory, channels-last or contiguous; auto as for the precision.
        compilation: whether the attacked network is compiled (torch.compile), from when its shape no longer changes:
            at once without gates, from `decide_at` on with them; auto measures that at the start of a long run.
        augment: zero-pad 4, random crop and flip.
        shift: zero-pad by so many pixels and crop at random, without mirroring; for pictures that have a right way
            round, in the place of `augment`.
        generated: .npz file of generated training images (`anp_vs.data.generated`); None for none. A row trained so is
            always named after it.
        generated_share: share of them in each batch, between 0 and 1; an epoch has as many steps as without them.
        dropout: factor on the probabilities of the network's own dropout layers, 0 to 1: 1 as it was built, 0 for none.
        awp: length of the adversarial weight perturbation relative to each layer's weights, see
            `anp_vs.methods.awp`; 0 for none.
        start: recipe, run directory or saved network whose trained weights training begins with; None starts
            afresh. What was pruned stays so: a method without gates trains the small network on. mnist/anp-vs is the
            recipe; a file of the shipped network of that name comes from anp-vs export mnist/anp-vs.
        teacher: recipe or run directory of a trained network that is distilled into this one (Hinton et al. 2015,
            arXiv 1503.02531): its class probabilities of the clean image are mixed into the label wherever the loss
            has one, of the clean and of the adversarial image (as in Goldblum et al. 2020, arXiv 1905.09747); gates
            that will be fixed decide without it. None for none.
        teacher_weight: share of the teacher in that mixture, 0 to 1.
        black_box: recipe of the independently trained network that black-box attacks are made on; None for none.
        on_trouble: what happens when a layer dies out, a gate collapses, or the network overfits the attack of
            training: stop; step-back to the last good epoch and go on at half the learning rates, three times at
            most; or say it and continue. Values that are not finite stop a run that does not step back.
        seed: of everything random.
    """

    name: str
    source: str
    data: str
    network: str
    method: AnyMethod
    pictures: PictureOptions = field(default_factory=PictureOptions)
    data_root: str | None = None
    validation: int | None = None
    protocol: ProtocolName = "pixel-space"
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
    beta_gain: float = 0.0
    cost_exponent: float = 0.0
    residual: Literal["keep", "share"] = "keep"
    remove_after: int = 0
    average: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    layout: Literal["auto", "channels-last", "contiguous"] = "auto"
    compilation: Literal["auto", "off", "on"] = "auto"
    augment: bool = False
    shift: int = 0
    generated: str | None = None
    generated_share: float = 0.7
    dropout: float = 1.0
    awp: float = 0.0
    start: str | None = None
    teacher: str | None = None
    teacher_weight: float = 0.7
    black_box: str | None = None
    on_trouble: Literal["stop", "step-back", "continue"] = "stop"
    seed: int = 0

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise InputError(
                f"name is {shown(self.name)}; the run directory is called after it, so it must be letters, digits and any "
                f"of _ . + - in parts divided by /, each beginning with a letter or digit, and at most 200 of them."
            )
        for name in ("epochs", "batch_size", "restarts"):
            if not 1 <= getattr(self, name) <= LARGEST:
                raise InputError(f"{name} is {shown(getattr(self, name))}; it must lie in 1 to {LARGEST:,}.")
        for name in ("lr", "gate_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive and finite.")
        if not 0 <= self.cost_exponent <= 2:
            raise InputError(f"cost_exponent is {self.cost_exponent}; it must lie in [0, 2].")
        if not 0 <= self.beta_gain <= 100:
            raise InputError(f"beta_gain is {self.beta_gain}; it must lie in [0, 100].")
        if self.beta_gain and (self.target_sparsity is None or not self.decide_at):
            raise InputError(
                f"beta_gain is {self.beta_gain}, and there is nothing to follow: give target_sparsity, and a decide_at above 0."
            )
        for name in ("eps_warmup", "decide_at"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it is a share of training and must lie in [0, 1].")
        if not 0 <= self.average < 1:
            raise InputError(f"average is {self.average}; a decay must lie in [0, 1), such as 0.999.")
        if self.target_sparsity is not None and not 1 <= self.target_sparsity < 100:
            raise InputError(
                f"target_sparsity is {self.target_sparsity}; it is a percentage, 1 to below 100 (80 for four fifths of the units)."
            )
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"weight_decay is {self.weight_decay}; it must be finite and not negative.")
        if not 0 <= self.remove_after <= LARGEST:
            raise InputError(
                f"remove_after is {shown(self.remove_after)}; it must lie in 0 (never) to {LARGEST:,} steps."
            )
        if not 0 <= self.shift <= 1000:
            raise InputError(f"shift is {shown(self.shift)}; it is a number of pixels in 0 to 1000.")
        if self.augment and self.shift:
            raise InputError(f"augment crops at random already; turn it off for a shift of {self.shift}.")
        if not 0 <= self.teacher_weight <= 1:
            raise InputError(f"teacher_weight is {self.teacher_weight}; it is a share and must lie in [0, 1].")
        if self.teacher is not None and self.method.hard_labels:
            raise InputError(
                f"MART needs labels, not a teacher's probabilities: train {self.name} without {shown(self.teacher)}."
            )
        share = self.generated_share
        if not (0 < share < 1 and (self.generated is None or 0 < round(share * self.batch_size) < self.batch_size)):
            raise InputError(
                f"generated_share is {share}; it must lie between 0 and 1 and make at least one image of a batch of "
                f"{self.batch_size} a generated one and leave one of the training set."
            )
        if not 0 <= self.dropout <= 1:
            raise InputError(
                f"dropout is {self.dropout}; it multiplies the network's own probabilities and must lie in [0, 1]."
            )
        if not 0 <= self.awp < 1:
            raise InputError(f"awp is {self.awp}; it is a share of each layer's norm and must lie in [0, 1).")
        if any(not 0 <= m <= 1 for m in self.milestones):
            raise InputError(f"milestones are {self.milestones}; each is a share of training in [0, 1].")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}; it must lie in [0, 2^32).")
        if self.network not in NETWORKS:
            raise InputError(f"Unknown network {self.network!r}; choose one of {', '.join(sorted(NETWORKS))}.")

    @property
    def fixes_gates(self) -> bool:
        """Whether there are gates and they stop learning before the end."""
        return self.method.gated and (self.decide_at < 1 or self.target_sparsity is not None)

    @property
    def extra_data(self) -> str:
        """What a row adds to its name when this trains on more than its data set; else nothing."""
        return f", {100 * self.generated_share:.3g} % generated images" if self.generated else ""


_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _read(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Build a frozen dataclass from plain values: unknown fields and wrong types are refused by name."""
    known = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(map(str, values)) - known):
        raise InputError(f"{where} has no field {shown(unknown[0])}; its fields are {', '.join(sorted(known))}.")
    for f in dataclasses.fields(kind):  # Python counts True as 1, a person does not
        given = values.get(f.name)
        if f.type != "bool" and any(
            isinstance(v, bool) for v in (given if isinstance(given, list | tuple) else [given])
        ):
            raise InputError(f"{where}: {f.name} is {shown(given)}; give {f.type} instead.")
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(
            kind, config=None if dataclasses.is_dataclass(kind) else ConfigDict(extra="forbid")
        )
    try:
        return _ADAPTERS[kind].validate_python(dict(values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        own = first.get("ctx", {}).get("error")
        if isinstance(own, InputError):
            raise InputError(f"{where}: {own}") from None
        place = ".".join(str(p) for p in first["loc"] if isinstance(p, str))
        raise InputError(f"{where}: {place or 'value'} is {shown(first.get('input'))}: {first['msg']}.") from None
    except (OverflowError, RecursionError) as error:
        raise InputError(f"{where} holds a value that is out of all bounds: {error}.") from None


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
        raise InputError(
            f"{where} is not a mapping of fields to values but {type(values).__name__}. Compare it with a run's "
            f"recipe.yaml."
        )
    plain = dict(values)
    method = plain.get("method")
    if not isinstance(method, Mapping) or str(method.get("name")) not in METHODS:
        raise InputError(f"{where}: method must hold a name, one of {', '.join(METHODS)}; got {shown(method)}.")
    kind = METHODS[str(method["name"])]
    plain["method"] = _read(kind, {k: v for k, v in method.items() if k != "name"}, f"Method {method['name']}")
    for name, part in (("attack", Attack), ("test_attack", Attack), ("pictures", PictureOptions)):
        if name in plain:
            if not isinstance(plain[name], Mapping):
                *most, last = (f.name for f in dataclasses.fields(part))
                fields = f"{', '.join(most)} and {last}"
                raise InputError(f"{where}: {name} must hold {fields}; got {shown(plain[name])}.")
            plain[name] = _read(part, plain[name], f"{where}: {name}")
    recipe: Recipe = _read(Recipe, plain, where)
    return recipe


def override(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """The recipe with some fields replaced; `method`, the attacks and `pictures` take a mapping of their fields.

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
        values = yaml.safe_load(read_text(path, LARGEST_FILE))
    # PyYAML lets lookups fail on tags with odd values, `!!int ""` or `!!bool x`.
    except (
        OSError,
        ValueError,
        yaml.YAMLError,
        LookupError,
        AttributeError,
        TypeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{path} cannot be read as a YAML recipe: {reason}. Compare it with a run's recipe.yaml."
        ) from error
    return from_dict(values, str(path))
