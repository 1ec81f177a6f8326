"""python -m anp_vs.experiments.run: the released code's command lines, run here.

Each is translated to a recipe and a call, and to the `anp-vs` command that does the same, which is printed.
Source: src/experiments/run.py and README of the released TensorFlow code of Madaan, Shin, Hwang (ICML 2020).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from anp_vs import recipes
from anp_vs.errors import InputError, RunError
from anp_vs.experiments.flags import DESCRIPTIONS, TYPES, Flags, parse
from anp_vs.pruning.gate import THRESHOLD
from anp_vs.recipes import Recipe
from anp_vs.terminal import exit_status, plain_console
from anp_vs.training.run_directory import RunDirectory

TEST_STEPS = 40
"""Steps of the attack that a run is tested with, as in the published tables."""


@dataclass(frozen=True)
class Plan:
    """What a command line of the released code means here.

    Attributes:
        recipe: that is trained, or was.
        path: its run directory.
        command: words of the `anp-vs` command that does the same.
        notes: what a person who comes from the released code should know.
        black_box: run that black-box images are made on, or None for the one found by `anp-vs evaluate`.
    """

    recipe: Recipe
    path: Path
    command: list[str]
    notes: list[str]
    black_box: Path | None = None


def refuse(flags: Flags) -> None:
    """Refuse (InputError) what the released code accepts by name and this project does not offer."""
    bayes, adversarial = flags.net.endswith("_bayes"), flags.adv_train
    refusals = {
        "--net lenet_fc (the default) is not in the published tables; give --net lenet_conv or --net vgg16.":
            flags.net == "lenet_fc",
        "--draw_loss was never implemented in the released code; anp_vs.evaluation.landscape draws loss surfaces.":
            flags.draw_loss,
        "--vulnerability_type=max was never implemented in the released code: training suppresses the expected "
        "vulnerability. Leave the flag out.": flags.vulnerability_type == "max",
        "--attack=fgsm is not offered: rows are trained and measured with PGD. Leave the flag out, or give "
        "--pgd_steps=1 with --step_size at --eps; anp_vs.attacks.fgsm attacks a network in Python.":
            flags.attack == "fgsm",
        "--attack_ord=2 is not offered: recipes train and measure in the inf norm. anp_vs.attacks.pgd has norm='2'.":
            flags.attack_ord != "inf",
        f"--thres is {flags.thres}; a unit is pruned where E[pi] is at most {THRESHOLD}. Leave the flag out.":
            flags.thres != THRESHOLD,
        f"--net {flags.net} with --mode bbd: gates on Bayesian weights are not offered; give --mode base.":
            bayes and flags.mode == "bbd",
        f"--net {flags.net} without --adv_train=True: the tables have Bayesian networks only as AT BNN.":
            bayes and not adversarial,
        f"--net {flags.net} has no data set {flags.data}; give --data cifar10 or --data cifar100.":
            flags.net.startswith("vgg") and flags.data == "mnist",
        "--train_source=True trains a network without gates; give --mode base.":
            flags.train_source and flags.mode == "bbd",
        "--attack_source=bbd is not offered: black-box images are made on a network without gates. "
        "anp-vs evaluate RUN --black-box OTHER takes any run.": flags.attack_source != "base",
        "--white_box=False with --eval_mode train: training on transferred attacks is not offered.":
            not flags.white_box and flags.eval_mode == "train" and adversarial,
        f"--kl_weight is {flags.kl_weight}; the KL term is divided by it, so it must be positive.":
            bayes and flags.kl_weight <= 0,
    }  # fmt: skip
    for reason, applies in refusals.items():
        if applies:
            raise InputError(reason)


def row_of(flags: Flags) -> str:
    """The row of the tables that is trained."""
    if not flags.adv_train:
        return "bp" if flags.mode == "bbd" else "standard"
    if flags.net.endswith("_bayes"):
        return "at-bnn"
    return ("anp" if flags.mode == "bbd" else "at") + ("-vs" if flags.vulnerability else "")


def table_of(flags: Flags) -> str:
    """The table: lenet_conv is always trained on MNIST, and CIFAR under the released code's own protocol."""
    return "mnist" if flags.net.startswith("lenet") else f"{flags.data}-released"


def recipe_of(flags: Flags) -> tuple[Recipe, Recipe, list[str]]:
    """The recipe of a command line, the recipe of the table it differs from, and notes."""
    row, table, notes = row_of(flags), table_of(flags), []
    base = recipes.RECIPES[f"{table}/{row}"]
    method: dict[str, Any] = {
        "at": {"adversarial_weight": flags.adv_weight},
        "at-vs": {"adversarial_weight": flags.adv_weight, "lambda_": flags.lambda_weight},
        "anp": {"adversarial_weight": flags.adv_weight, "beta": flags.beta_weight},
        "anp-vs": {
            "adversarial_weight": flags.adv_weight, "beta": flags.beta_weight, "lambda_": flags.lambda_weight
        },
        "at-bnn": {"alpha": 1 / flags.kl_weight if flags.kl_weight else 0.0},
        "bp": {"beta": 1.0},
    }.get(row, {})  # fmt: skip
    changes: dict[str, Any] = {"method": method, "epochs": flags.n_epochs, "batch_size": flags.batch_size}
    if flags.seed is not None:
        changes["seed"] = flags.seed
    if flags.mode == "bbd":
        changes |= {"gate_lr": flags.init_lr, "lr": flags.init_lr / 10}
    elif "init_lr" in flags.given:
        notes.append("init_lr has no effect without gates, as in the released code: lr is 1e-3.")
    if flags.adv_train:
        ball = {"eps": flags.eps, "step": flags.step_size}
        changes |= {"attack": {**ball, "steps": flags.pgd_steps}, "test_attack": {**ball, "steps": TEST_STEPS}}
    if flags.train_source:
        source = recipes.RECIPES[f"{table}/black-box-source"]
        changes |= {"name": source.name, "seed": source.seed if flags.seed is None else flags.seed,
                    "black_box": source.black_box}  # fmt: skip
    if row == "at-vs" and "vulnerability" not in flags.given:
        notes.append(
            "vulnerability is True unless switched off, as in the released code: this is AT-VS, not AT. Give "
            "--vulnerability=False for AT."
        )
    if table != "mnist":
        notes.append(
            "Images are standardised, attacked and clipped to [0, 1] as in the released code, which says little about "
            f"robustness in pixels: the recipes {flags.data}/... are trained and attacked there."
        )
    if row == "at-bnn":
        notes.append(
            "AT BNN is trained on adversarial images alone, as its authors do; the released code mixes in clean ones."
        )
    if row == "bp" and "beta_weight" in flags.given:
        notes.append("beta_weight has no effect without adv_train, as in the released code: beta is 1.")
    if "save_freq" in flags.given:
        notes.append("save_freq has no counterpart: the state is saved every minute.")
    if table == "mnist" and flags.given & {"data"} and flags.data != "mnist":
        notes.append("lenet_conv is trained on mnist whatever --data says, as in the released code.")
    return recipes.override(base, changes), base, notes


def plan(flags: Flags) -> Plan:
    """Translate one command line.

    Raises:
        InputError: it asks for something that is not offered.
        RunError: it evaluates a run that is not there, or with another attack than the run is tested with.
    """
    refuse(flags)
    recipe, base, notes = recipe_of(flags)
    path = Path(flags.directory) if flags.directory else RunDirectory.default(recipe)
    if flags.eval_mode == "train":
        command = ["train", base.name, *differences(recipe, base)]
        command += ["--out", flags.directory] if flags.directory else []
        return Plan(recipe, path, command, notes)
    path = trained(flags, path)
    recipe = RunDirectory(path).read_recipe()
    command, black_box = ["evaluate", str(path)], None
    asked = recipes.Attack(flags.eps, flags.step_size, flags.pgd_steps)
    if flags.eval_mode == "attack" and asked != recipe.test_attack:
        held = recipe.test_attack
        raise RunError(
            f"{path} is tested with --eps {held.eps} --step_size {held.step} --pgd_steps {held.steps}, and asked were "
            f"{asked.eps}, {asked.step} and {asked.steps}. Give the former, or use anp_vs.evaluate in Python."
        )
    if flags.eval_mode == "attack" and not flags.white_box:
        black_box = RunDirectory.default(recipes.RECIPES[f"{table_of(flags)}/black-box-source"])
        if not RunDirectory(black_box).finished:
            raise RunError(
                f"There is no trained source of black-box attacks in {black_box}; train it by the same command with "
                f"--eval_mode train --train_source=True --mode base."
            )
        command += ["--black-box", str(black_box)]
    return Plan(recipe, path, command, notes, black_box)


def trained(flags: Flags, path: Path) -> Path:
    """The finished run to evaluate: with or without vulnerability, which the released code keeps in one place."""
    other, _, _ = recipe_of(replace(flags, vulnerability=not flags.vulnerability))
    candidates = [path]
    if not flags.directory and "vulnerability" not in flags.given:
        candidates.append(RunDirectory.default(other))
    for candidate in candidates:
        if RunDirectory(candidate).finished:
            return candidate
    raise RunError(f"There is no finished run in {path}; train it by the same command with --eval_mode train.")


def differences(recipe: Recipe, base: Recipe) -> list[str]:
    """Options of `anp-vs train` that make one recipe of the other."""
    words, before = [], recipes.to_dict(base)
    for name, value in recipes.to_dict(recipe).items():
        pairs = {f"{name}.{k}": (v, before[name][k]) for k, v in value.items()} if isinstance(value, dict) else {}
        for option, (now, then) in (pairs or {name: (value, before[name])}).items():
            if now != then:
                spelt = option.rstrip("_").replace("_", "-") + "_" * option.endswith("_")
                words += [f"--{spelt}", str(now)]
    return words


def main(arguments: Sequence[str] | None = None) -> int:
    """Translate, say so, and run; returns the exit status: 0, 2 for a user's mistake, 130 when stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    console = plain_console()
    asks = any(word in ("-h", "--help") for word in words)
    return exit_status(lambda: _help(console) if asks else _run(words, console))


def _help(console: Console) -> int:
    console.print("python -m anp_vs.experiments.run --flag value ...: the released code's command lines.", markup=False)
    for name, kind in TYPES.items():
        meaning = DESCRIPTIONS[name].removesuffix(".")
        console.print(f"  --{name} {kind}, {getattr(Flags(), name)!r} unless given: {meaning}.", markup=False)
    console.print("Everything else, such as where the data lie, is an option of anp-vs: see anp-vs --help.")
    return 0


def _run(words: list[str], console: Console) -> int:
    flags = parse(words)
    found = plan(flags)
    if "gpuid" in flags.given:  # before the first use of a GPU in this process
        os.environ["CUDA_VISIBLE_DEVICES"] = str(flags.gpuid)
    gpu = f"CUDA_VISIBLE_DEVICES={flags.gpuid} " if "gpuid" in flags.given else ""
    for line in (*found.notes, f"The same command here: {gpu}anp-vs {shlex.join(found.command)}"):
        console.print(line, markup=False)
    if flags.eval_mode == "train":
        from anp_vs.training.run import train

        train(found.recipe, out=found.path)
        return 0
    from anp_vs.evaluation.row import evaluate_run
    from anp_vs.report.tables import beside_published

    console.print(beside_published([evaluate_run(found.path, sources=[found.black_box] if found.black_box else [])]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
