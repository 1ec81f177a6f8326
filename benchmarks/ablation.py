"""What each part of ANP-VS contributes, and what robustness costs as beta is swept: trained, measured, drawn.

    python benchmarks/ablation.py [--work RUNS] [--table digits] [--seeds 3] [--only NAME ...]

Without --work the two pictures are drawn again from results/ablation.json. With it every variant of TABLE/anp-vs is trained
with every seed (what is done is not done again), evaluated on the test set with PGD and the strengthened PGD, on request with
AutoAttack, and results/ablation.json, docs/ablation.svg and docs/pareto.svg are written.
Nothing is chosen by these figures: a recipe is chosen by the validation split, and this shows what its parts do.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

from anp_vs import recipes
from anp_vs.evaluation.row import evaluate_run
from anp_vs.provenance import provenance
from anp_vs.recipes import override
from anp_vs.storage import write_atomically
from anp_vs.terminal import exit_status
from anp_vs.training.run import train
from anp_vs.training.run_directory import MetricsLog, RunDirectory

HOME = Path(__file__).resolve().parent.parent
BASE = "anp-vs"
PLAIN = "plain cross-entropies"
AT_SUMMED, SUMMED = "AT-VS, V summed", "plain cross-entropies, V summed"
PAPER = ("at", "at-vs", AT_SUMMED, "anp", PLAIN, SUMMED)
"""The ablation of the paper: with and without gates, with and without suppression, V as the mean and as the sum."""
LABELS = {
    "at": "AT", "at-vs": "AT-VS", AT_SUMMED: AT_SUMMED, "anp": "ANP", PLAIN: "ANP-VS, plain cross-entropies",
    SUMMED: "ANP-VS, plain cross-entropies, V summed",
}  # fmt: skip
GREY, BLUE, ORANGE = "#888888", "#3b82c4", "#d9772b"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"method": {"adversarial_loss": "ce"}},
    SUMMED: {"method": {"adversarial_loss": "ce", "reduction": "sum"}},
    "MART inside": {"method": {"adversarial_loss": "mart"}},
    "gates see V": {"method": {"gate_loss": "adversarial+vulnerability"}},
    "no weight average": {"average": 0.0},
    "no eps warm-up": {"eps_warmup": 0.0},
    "gates learn to the end": {"decide_at": 1.0, "target_sparsity": None},
    "one-cycle schedule": {"schedule": "onecycle"},
    "pictures shifted": {"shift": 2},
    "AWP": {"awp": 0.005},
    "units priced by their MACs": {"cost_exponent": 0.3},
}
"""What each changes of TABLE/anp-vs, one thing at a time."""
DENSE = {"trades": "TRADES, dense"}
TAUGHT = "dense TRADES as teacher"
LONGER = "fine-tuned with TRADES"
"""The small network that TABLE/anp-vs ended with, trained on for half as many epochs at a third of the learning rate."""
BETAS = (0.03, 0.1, 0.3, 0.5, 1.0)
"""Factors of the recipe's beta; the gates are fixed when it is time for it, whatever the sparsity. From 3 on a layer dies out."""
MEASURED = (
    "clean_accuracy", "white_box_accuracy", "white_box_accuracy_strongest", "autoattack_accuracy",
    "white_box_vulnerability", "sparsity_percent", "flops_reduction", "macs", "parameters", "train_seconds",
)  # fmt: skip
VALIDATION = ("validation_clean_accuracy", "validation_robust_accuracy")
"""What a recipe is chosen by: the last figures of the run itself, on its validation split."""


def plan(table: str) -> dict[str, recipes.Recipe]:
    """Every variant by its name in the results."""
    base = recipes.find(f"{table}/{BASE}")
    chosen = {row: recipes.find(f"{table}/{row}") for row in ("at", "at-vs", "anp", BASE, "trades")}
    changes = (
        VARIANTS
        | {TAUGHT: {"teacher": f"{table}/trades"}}
        | {
            f"beta x {factor:g}": {"method": {"beta": factor * base.method.beta}, "target_sparsity": None}  # type: ignore[union-attr]
            for factor in BETAS
        }
    )
    for name, change in changes.items():
        chosen[name] = override(base, {**change, "name": named(table, name)})
    chosen[AT_SUMMED] = override(chosen["at-vs"], {"name": named(table, AT_SUMMED), "method": {"reduction": "sum"}})
    longer = {"start": base.name, "epochs": base.epochs // 2, "lr": base.lr / 3, "eps_warmup": 0.0}
    chosen[LONGER] = override(chosen["trades"], {**longer, "name": named(table, LONGER)})
    return chosen


def named(table: str, variant: str) -> str:
    """The recipe name of a variant."""
    return f"{table}-ablation/" + re.sub(r"[^a-z0-9.]+", "-", variant.lower())


def measure(recipe: recipes.Recipe, work: Path, autoattack: int, data_root: str | None) -> dict[str, Any]:
    """Train and evaluate one variant with one seed, unless that is done; returns its row."""
    run = RunDirectory(RunDirectory.default(recipe, work))
    train(recipe, out=run.path, quiet=True)  # a finished run is checked to be this recipe's
    row = json.loads(run.evaluation.read_text()) if run.evaluation.exists() else None
    if row is None or (row["autoattack_images"] or 0) < autoattack:
        row = evaluate_run(run.path, autoattack=autoattack or None, masking=None, progress=False, data_root=data_root)
    last = [line for line in MetricsLog.read(run.metrics) if "robust_accuracy" in line][-1]
    chosen_by = {name: last[name.removeprefix("validation_")] for name in VALIDATION}
    return {name: row[name] for name in MEASURED} | chosen_by


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means and standard deviations over seeds."""
    result: dict[str, Any] = {}
    for name in (*MEASURED, *VALIDATION):
        if any(row[name] is None for row in rows):
            continue
        values = [float(row[name]) for row in rows]
        result[name] = {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None, "values": values}
    return result


def draw(found: dict[str, dict[str, Any]], table: str, folder: Path) -> None:
    """The two pictures, readable on white and on black."""
    loss = recipes.find(f"{table}/{BASE}").method.adversarial_loss.upper()  # type: ignore[union-attr]
    judge, judged = next(
        (column, label)
        for column, label in (("autoattack_accuracy", "AutoAttack"), ("white_box_accuracy_strongest", "strongest PGD"))
        if all(column in figures for figures in found.values())
    )
    draw_ablation(found, f"ANP-VS, {loss} inside: the recipe", judge, judged, folder / "ablation.svg")
    draw_cost(found, judge, judged, folder / "pareto.svg")


def draw_ablation(found: dict[str, dict[str, Any]], recipe: str, judge: str, judged: str, path: Path) -> None:
    """Accuracies of the paper's four, of the recipe, and of what changes it."""
    changed = {name: f"… {name}" for name in (*VARIANTS, TAUGHT, LONGER) if name not in PAPER}
    labels = {name: label for name, label in (LABELS | {BASE: recipe} | changed | DENSE).items() if name in found}
    figure = Figure(figsize=(7.5, 0.32 * len(labels) + 1), layout="constrained")
    axes = figure.subplots()
    for column, colour, label in (
        ("clean_accuracy", GREY, "clean"),
        ("white_box_accuracy", BLUE, "PGD-40"),
        (judge, ORANGE, judged),
    ):
        means = [found[name][column]["mean"] for name in labels]
        spread = [found[name][column]["sd"] or 0 for name in labels]
        axes.errorbar(means, range(len(labels)), xerr=spread, fmt="o", color=colour, capsize=3, label=label)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.invert_yaxis()
    axes.axhline(sum(name in found for name in PAPER) - 0.5, color=GREY, linewidth=0.8, linestyle="--")
    axes.set_xlabel("test accuracy, %: mean and standard deviation over seeds")
    finish(figure, [axes], path)


def draw_cost(found: dict[str, dict[str, Any]], judge: str, judged: str, path: Path) -> None:
    """Robust accuracy against multiply-accumulates and against parameters, as beta is swept."""
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    swept = sorted((name for name in found if name.startswith("beta x ")), key=lambda name: float(name.split()[-1]))
    groups = [
        ("ANP-VS, beta times the number beside the mark", swept, "o-", BLUE),
        ("AT", ["at"], "s", ORANGE),
        ("TRADES", ["trades"], "^", GREY),
    ]
    for axes, cost, title in zip(
        panels, ("macs", "parameters"), ("multiply-accumulates of one image", "parameters"), strict=True
    ):
        for label, members, style, colour in groups:
            members = [name for name in members if name in found]
            x, y, error = (
                [found[name][column][what] or 0 for name in members]
                for column, what in ((cost, "mean"), (judge, "mean"), (judge, "sd"))
            )
            axes.errorbar(x, y, yerr=error, fmt=style, color=colour, capsize=3, label=label)
            for name, at_x, at_y in zip(members, x, y, strict=True):
                if name in swept:
                    axes.annotate(
                        name.removeprefix("beta x "), (at_x, at_y), (6, -11), textcoords="offset points",
                        color=GREY, fontsize=8,
                    )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.1)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(title)
    panels[0].set_ylabel(f"accuracy under {judged}, %")
    finish(figure, panels, path)


def finish(figure: Figure, panels: Iterable[Axes], path: Path) -> None:
    """Colours that do for a light and a dark page, one legend above all panels, and the file."""
    panels = list(panels)
    for axes in panels:
        axes.grid(visible=True, color=GREY, alpha=0.25)
        axes.set_axisbelow(True)
        axes.tick_params(which="both", colors=GREY)
        axes.spines[["left", "bottom"]].set_color(GREY)
        axes.spines[["right", "top"]].set_visible(False)
        axes.xaxis.label.set_color(GREY)
        axes.yaxis.label.set_color(GREY)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside upper left", ncols=len(labels), labelcolor=GREY)
    with rc_context({"svg.hashsalt": "anp-vs"}):  # drawn again from the same data, the file is the same
        figure.savefig(path, transparent=True, metadata={"Date": None})


def main() -> int:
    """Parse and do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder of the run directories; without it nothing is trained")
    parser.add_argument(
        "--table", default="digits", help="whose anp-vs is taken apart: digits, mnist-cpu, cifar10, ..."
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--autoattack", type=int, default=0, help="test images AutoAttack is run on; 0 for none")
    parser.add_argument("--only", nargs="*", help="variants by name; all by default")
    parser.add_argument("--data-root")
    asked = parser.parse_args()
    out = HOME / "results" / "ablation.json"
    if asked.work is None:
        stored = json.loads(out.read_text())
        draw(stored["variants"], stored["table"], HOME / "docs")
        return 0
    variants = plan(asked.table)
    facts = {"table": asked.table, "seeds": asked.seeds, "autoattack_images": asked.autoattack}
    if unknown := set(asked.only or ()) - set(variants):
        parser.error(f"--only: no variant {sorted(unknown)[0]!r}; there are {', '.join(variants)}")
    found: dict[str, Any] = {}
    if asked.only:  # the others stay as they were measured
        stored = json.loads(out.read_text())
        if any(stored[name] != value for name, value in facts.items()):
            parser.error(f"--only adds to what {out} holds, so it needs the same --table, --seeds and --autoattack")
        found = stored["variants"]
    for name in asked.only or variants:
        recipe = variants[name]
        seeded = [override(recipe, {"seed": seed, "data_root": asked.data_root}) for seed in range(asked.seeds)]
        found[name] = summary([measure(each, asked.work, asked.autoattack, asked.data_root) for each in seeded])
        figures = ", ".join(f"{c} {found[name][c]['mean']:.2f}" for c in MEASURED[:3])
        print(f"{name}: {figures}", flush=True)
        write_atomically(out, json.dumps({**facts, "variants": found, **provenance()}, indent=2).encode() + b"\n")
    draw(found, asked.table, HOME / "docs")
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
