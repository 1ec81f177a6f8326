"""The command line: it parses, calls, and prints; it computes nothing."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import tyro
from rich.console import Console
from rich.logging import RichHandler

from anp_vs import recipes
from anp_vs.commands import (
    CompactCommand,
    CostCommand,
    DemoCommand,
    EvaluateCommand,
    ExportCommand,
    RecipesCommand,
    ReportCommand,
    ReproduceCommand,
    TrainCommand,
)
from anp_vs.errors import InputError
from anp_vs.provenance import IMPORTED, proposed, versions
from anp_vs.terminal import OutputConsole, exit_status, plain_console

USAGE = """anp-vs: train image classifiers that resist attacks and are small, and measure both honestly.

  anp-vs demo                    about three minutes: handwritten digits, ANP-VS beside AT, no download
  anp-vs train RECIPE            train a recipe, or go on where it was stopped
  anp-vs evaluate RUN_OR_MODEL   a row of the tables, and whether the figures can be trusted
  anp-vs compact RUN             take the pruned channels out and save the small network
  anp-vs export RUN              the small network as safetensors, torch-export or ONNX, also int8
  anp-vs cost RUN_OR_MODEL       parameters, bytes, MACs, memory, latency
  anp-vs report RUNS             one HTML page: tables, verdicts, figures, provenance
  anp-vs reproduce TABLE         all rows of a published table: train, evaluate, report, on this machine or many
  anp-vs recipes                 every recipe with its source

Each command explains itself with --help; --version names the versions. Networks of your own: anp-vs --import MODULE COMMAND ..., where the
module (looked for in this folder first) calls anp_vs.networks.register.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 for a user's mistake, 130 when stopped by a signal, 141 when nobody reads on."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    _speak_plainly()
    if words and words[0].startswith("--import="):
        words[:1] = words[0].split("=", 1)
    if words and words[0] == "--import":
        return _with_module(words[1:])
    return exit_status(lambda: _command(words))


def _command(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if words[0] == "--version":
        print(f"anp-vs {versions()['anp-vs']}, torch {versions()['torch']}")
        return 0
    if (command := COMMANDS.get(words[0])) is None:
        raise InputError(f"There is no command {words[0]!r}; the commands are {', '.join(COMMANDS)}.")
    return command(words[1:])


def _with_module(words: list[str]) -> int:
    """Import a module of the user's, which registers networks, and run the command behind its name."""
    status = exit_status(lambda: _register(words))
    return status or main(words[1:])


def _register(words: list[str]) -> int:
    if not words:
        raise InputError("--import needs the name or file of a module that registers your networks.")
    file = Path(words[0])
    named = file.suffix == ".py" and file.is_file()
    sys.path.insert(0, str(file.resolve().parent if named else Path.cwd()))
    IMPORTED.append(words[0])
    try:
        importlib.import_module(file.stem if named else words[0])
    except ImportError as error:
        raise InputError(
            f"--import {words[0]}: {error}. Give a .py file, or a module in this folder or the environment."
        ) from error
    return 0


def _speak_plainly() -> None:
    """Warnings and log records as plain lines."""
    console = plain_console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False, show_level=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    warnings.showwarning = lambda message, *_, **__: console.print(f"anp-vs: {message}", markup=False)


def train(words: list[str]) -> int:
    """anp-vs train RECIPE [--field value ...]."""
    if not words or words[0].startswith("-"):
        print("usage: anp-vs train RECIPE [--epochs 3 --method.beta 2 ...]\n")
        print("RECIPE is one of these, a YAML file, or the directory of a stopped run. Its fields, with what they")
        print("mean and their values: anp-vs train RECIPE --help\n")
        list_recipes([])
        return 0 if words else 2
    from anp_vs.training.run import train as run_training

    recipe = recipes.find(words[0])
    config = (tyro.conf.AvoidSubcommands,)
    default = TrainCommand(
        recipe, out=Path(words[0]) if Path(words[0]).is_dir() and words[0] not in recipes.RECIPES else None
    )
    asked = tyro.cli(TrainCommand, default=default, args=words[1:], prog=f"anp-vs train {words[0]}", config=config)
    run = run_training(
        asked.recipe, out=asked.out, device=asked.device, devices=asked.devices, nodes=asked.nodes, quiet=asked.quiet,
    )  # fmt: skip
    shown = {k: f"{k} {v:.2f}" for k, v in run.metrics.items() if k.endswith(("accuracy", "sparsity"))}
    training = [shown.pop(name) for name in list(shown) if name.startswith("train_")]
    if validation := [shown.pop(name) for name in list(shown) if name.endswith("accuracy")]:
        shown["validation"] = f"on the validation split {', '.join(validation)}"
    if training:
        shown["training"] = f"on the last training batches {', '.join(training)}"
    print(f"{run.path}: {'; '.join(shown.values())}\nNext: {proposed(f'evaluate {run.path}')}")
    return 0


def evaluate(words: list[str]) -> int:
    """anp-vs evaluate RUN_OR_MODEL."""
    from anp_vs.evaluation.beyond import described
    from anp_vs.evaluation.row import Conditions, evaluate_model, evaluate_run, row_file
    from anp_vs.report.tables import show

    asked = tyro.cli(EvaluateCommand, args=words, prog="anp-vs evaluate")
    options = {
        "data_root": asked.data_root, "sources": asked.black_box, "limit": asked.limit, "autoattack": asked.autoattack,
        "queries": asked.queries, "corruptions": asked.corruptions, "certify": asked.certify, "masking": asked.masking or None, "protocol": asked.protocol, "device": asked.device,
    }  # fmt: skip
    conditions = Conditions(asked.data, asked.eps, asked.step, asked.steps, asked.norm, draws=asked.draws)
    if (run := Path(asked.target)).is_dir():
        if conditions != Conditions():
            raise InputError(
                f"{run} is a run: it is evaluated under its recipe. For another data set or attack "
                f"give its network: anp-vs evaluate {run}/network.safetensors --eps ... --out FILE."
            )
        row = evaluate_run(run, asked.out, **options)
        out = asked.out or row_file(run, row["protocol"])
    else:
        out = asked.out or Path("evaluation.json")
        row = evaluate_model(asked.target, conditions, out=out, **options)
    show([row])
    print(
        f"\n{row['diagnosis']['verdict']}\n" if row["diagnosis"] else "Signs of masked gradients were not looked for."
    )
    if row["vulnerability_of"] == "compact":
        print(
            "V is that of compact features, which hold the gates' factors: it does not compare with rows of gated runs."
        )
    if row["black_box_accuracy"] is None:
        print(f"No black-box figures: {_source_to_train(run) if run.is_dir() else ''}give --black-box RUN_OR_MODEL.")
    if "query_accuracy" in row:
        print(f"{row['query_accuracy']:.2f} % under Square with {row['queries']} queries an image.")
    for line in described(row):
        print(line)
    print(f"The row with its provenance: {out}; each image: {out.with_name(out.stem + '-images.json')}")
    return 0


def _source_to_train(run: Path) -> str:
    """What to say about the black-box source that a run's recipe names and that is not there."""
    from anp_vs.training.run_directory import RunDirectory, root_of

    recipe = RunDirectory(run).read_recipe()
    source = recipes.RECIPES.get(recipe.black_box or "")
    if source is None:
        return ""
    same = "" if recipe.data == source.data else f" --data {recipe.data}"
    pictures = ", with the same --pictures options" if same else ""
    place = RunDirectory.default(source, root_of(run, recipe))
    return f"train the source first ({proposed(f'train {source.name}{same} --out {place}')}{pictures}), or "


def compact(words: list[str]) -> int:
    """anp-vs compact RUN."""
    from anp_vs import serialization
    from anp_vs.pruning.compact import compact as make_small
    from anp_vs.pruning.silent import without_silent

    asked = tyro.cli(CompactCommand, args=words, prog="anp-vs compact")
    path = asked.run / "network.safetensors" if asked.run.is_dir() else asked.run
    network = serialization.load(path)
    silent: dict[str, int] = {}
    small = make_small(network, multiple=asked.multiple)
    trained: dict[str, str] = serialization.card_of(network).get("recipe") or {}
    # Standardised images are no images in [0, 1]; a multiple that was asked for stays one.
    if asked.multiple == 1 and trained.get("protocol", "pixel-space") == "pixel-space":
        small, silent = without_silent(small)
    saved = serialization.save(small, asked.out or path.with_name("compact.safetensors"), silent_units=silent)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (network, small))
    print(f"{saved}: {after:,} of {before:,} parameters")
    if silent:
        units = ", ".join(f"{count} before {layer}" for layer, count in silent.items())
        print(f"Units that are zero on every image in [0, 1], as interval bounds prove, left, too: {units}.")
    return 0


def export(words: list[str]) -> int:
    """anp-vs export RUN."""
    from anp_vs.deploy.run import export_run

    asked = tyro.cli(ExportCommand, args=words, prog="anp-vs export")
    for path in export_run(asked.run, asked.format, asked.out, int8=asked.int8, data_root=asked.data_root):
        print(f"{path}: {path.stat().st_size:,} bytes; its card: {path.with_suffix('.json')}")
    return 0


def cost(words: list[str]) -> int:
    """anp-vs cost RUN_OR_MODEL."""
    from anp_vs import serialization
    from anp_vs.evaluation.cost import cost as measure
    from anp_vs.networks import NETWORKS, build

    asked = tyro.cli(CostCommand, args=words, prog="anp-vs cost")
    network = serialization.load(serialization.locate(asked.network))
    card = serialization.card_of(network)
    full = build(card["architecture"], card["logits"]) if card["architecture"] in NETWORKS else None
    figures = measure(network, latency=asked.latency, against=full)
    print(json.dumps(figures.as_dict(), indent=2))
    return 0


def report(words: list[str]) -> int:
    """anp-vs report RUNS."""
    from anp_vs.evaluation.missing import measure_missing
    from anp_vs.report.page import write_report
    from anp_vs.report.runs import find_runs

    asked = tyro.cli(ReportCommand, args=words, prog="anp-vs report")
    if asked.figures:
        say = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True, markup=False).print
        left_out = measure_missing(
            find_runs(asked.runs), images=asked.images, seconds=asked.seconds, data_root=asked.data_root, tell=say,
        )  # fmt: skip
        for sentence in left_out:
            say(sentence)
    print(f"{write_report(asked.runs, asked.out)}: open it in a browser; nothing in it is fetched from elsewhere.")
    return 0


def reproduce(words: list[str]) -> int:
    """anp-vs reproduce TABLE."""
    from anp_vs.report.page import write_report
    from anp_vs.report.tables import show_blocks
    from anp_vs.reproduce import table
    from anp_vs.reproduce.plan import plan

    asked = tyro.cli(ReproduceCommand, args=words, prog="anp-vs reproduce", config=(tyro.conf.AvoidSubcommands,))
    # A worker of the cluster has a folder of its own, from which relative paths would lead elsewhere.
    out = asked.out.resolve() if asked.cluster else asked.out
    data_root = str(asked.data_root.resolve()) if asked.data_root else None
    jobs = plan(
        asked.table, rows=asked.rows or None, seeds=asked.seeds, effort=asked.recipe, root=out, data_root=data_root,
        autoattack=asked.autoattack,
    )  # fmt: skip
    overview = table.reproduce(
        jobs, cluster=asked.cluster, retries=asked.retries, cpus=asked.cpus, gpus=asked.gpus, device=asked.device,
        dry=asked.dry,
    )  # fmt: skip
    if asked.dry:
        OutputConsole().print(overview.plan())
        return 0
    if runs := table.evaluated(overview):
        show_blocks(runs)
        print(f"The page: {write_report(runs, out / f'{asked.table}-{asked.recipe}.html')}")
    lost = overview.count("failed") + overview.count("left out")
    if lost:
        print(f"{lost} of {len(jobs)} jobs failed or were left out; run the same command again to go on with them.")
    return 1 if lost else 0


def list_recipes(words: list[str]) -> int:
    """anp-vs recipes."""
    tyro.cli(RecipesCommand, args=words, prog="anp-vs recipes")
    for table in dict.fromkeys(name.split("/")[0] for name in recipes.RECIPES):
        rows = [recipe for name, recipe in recipes.RECIPES.items() if name.split("/")[0] == table]
        first, width = rows[0], max(26, *(len(recipe.name) for recipe in rows))
        print(f"{table}: {first.data}, {first.network}. {first.source}.")
        for recipe in rows:
            print(f"    {recipe.name:<{width}}  {recipe.epochs:>3} epochs  {recipe.method.source}")
    return 0


def demo(words: list[str]) -> int:
    """anp-vs demo."""
    from anp_vs.demo import run

    return run(tyro.cli(DemoCommand, args=words, prog="anp-vs demo").out)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "demo": demo, "train": train, "evaluate": evaluate, "compact": compact, "export": export, "cost": cost,
    "report": report, "reproduce": reproduce, "recipes": list_recipes,
}  # fmt: skip
