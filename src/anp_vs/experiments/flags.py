"""The released code's flags: their names, types, defaults, and how they are written.

Source: src/experiments/run.py of the released TensorFlow code of Madaan, Shin, Hwang (ICML 2020).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from anp_vs.errors import InputError


@dataclass(frozen=True)
class Flags:
    """One command line of the released code, with its defaults.

    Attributes:
        eval_mode: train, test, or attack.
        gpuid: of the GPU.
        net: lenet_conv or vgg16; with the ending _bayes the network of the AT BNN rows.
        mode: base, or bbd with Beta-Bernoulli gates.
        data: mnist, cifar10 or cifar100; lenet_conv means mnist.
        batch_size: images a step.
        save_freq: epochs between saves.
        n_epochs: passes over the training set.
        directory: where the run is; None for the usual place.
        seed: of everything random.
        net_weights: number of gated units; the released code sets it by `net` whatever is given.
        kl_weight: the KL term of AT BNN is divided by it.
        beta_weight: weight of the gates' KL term.
        thres: E[pi] below which a unit is pruned.
        init_lr: learning rate of the gates; the weights get a tenth. Without gates it has no effect.
        adv_train: adversarial training.
        train_source: train the source of black-box attacks.
        attack: pgd or fgsm.
        attack_source: mode of that source.
        attack_ord: norm of the attack.
        pgd_steps: steps of PGD.
        adv_weight: weight of the adversarial against the clean cross-entropy.
        eps: radius of the attack.
        lambda_weight: weight of the vulnerability.
        step_size: of PGD.
        white_box: attack the network itself, or transfer from the source.
        draw_loss: draw the loss surface; never implemented.
        vulnerability: add the vulnerability to the loss; on unless switched off.
        vulnerability_type: expected or max; max was never implemented.
        given: names of the flags that were on the command line.
    """

    eval_mode: str = "train"
    gpuid: int = 0
    net: str = "lenet_fc"
    mode: str = "base"
    data: str = "cifar10"
    batch_size: int = 64
    save_freq: int = 20
    n_epochs: int = 200
    directory: str | None = None
    seed: int | None = None
    net_weights: int = 0
    kl_weight: float = 100.0
    beta_weight: float = 1.0
    thres: float = 1e-3
    init_lr: float = 1e-2
    adv_train: bool = False
    train_source: bool = False
    attack: str = "pgd"
    attack_source: str = "base"
    attack_ord: str = "inf"
    pgd_steps: int = 40
    adv_weight: float = 2.0
    eps: float = 0.03
    lambda_weight: float = 1e-4
    step_size: float = 0.007
    white_box: bool = True
    draw_loss: bool = False
    vulnerability: bool = True
    vulnerability_type: str = "expected"
    given: frozenset[str] = frozenset()


CHOICES = {
    "eval_mode": ("train", "test", "attack"),
    "net": ("lenet_conv", "vgg16", "lenet_conv_bayes", "vgg16_bayes"),
    "mode": ("base", "bbd"),
    "data": ("mnist", "cifar10", "cifar100"),
    "attack": ("pgd", "fgsm"),
    "attack_source": ("base", "bbd"),
    "attack_ord": ("inf", "2"),
    "vulnerability_type": ("expected", "max"),
}
TYPES = {field.name: str(field.type).removesuffix(" | None") for field in fields(Flags) if field.name != "given"}
DESCRIPTIONS = dict(re.findall(r"^ {8}(\w+): (.+)$", Flags.__doc__ or "", re.MULTILINE))
"""What each flag means, by name: its line above."""
TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def parse(words: Sequence[str]) -> Flags:
    """Read `--flag value`, `--flag=value`; of a boolean also `--flag` and `--noflag`.

    Raises:
        InputError: an unknown flag, a value missing, of the wrong type, or not one of the choices.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise InputError(f"{word!r} belongs to no flag; write --flag value or --flag=value.")
        if TYPES.get(name.removeprefix("no")) == "bool" and name not in TYPES and not equals:
            values[name.removeprefix("no")] = False
            continue
        if name not in TYPES:
            close = difflib.get_close_matches(name, TYPES, 1)
            hint = f"Did you mean --{close[0]}? " if close else ""
            raise InputError(f"Unknown flag --{name}. {hint}The flags are {', '.join(f'--{flag}' for flag in TYPES)}.")
        if not equals:
            if TYPES[name] == "bool" and (not rest or rest[0].lower() not in TRUTHS):
                text = "True"
            elif not rest or rest[0].startswith("--"):
                raise InputError(f"--{name} needs a value; write --{name} value or --{name}=value.")
            else:
                text = rest.pop(0)
        values[name] = _value(name, text)
    return Flags(**values, given=frozenset(values))


def _value(name: str, text: str) -> str | int | float | bool:
    kind = TYPES[name]
    if kind == "bool":
        if text.lower() in TRUTHS:
            return TRUTHS[text.lower()]
        raise InputError(f"--{name} is {text!r}; it must be True or False.")
    if kind in ("int", "float"):
        try:
            number = int(text) if kind == "int" else float(text)
            if math.isfinite(number):
                return number
        except (ValueError, OverflowError):
            pass
        raise InputError(f"--{name} is {text!r}; it must be {'a whole' if kind == 'int' else 'a finite'} number.")
    if name in CHOICES and text not in CHOICES[name]:
        raise InputError(f"--{name} is {text!r}; it must be one of {', '.join(CHOICES[name])}.")
    return text
