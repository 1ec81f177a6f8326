"""MNIST in pictures: accuracy against eps and against steps, and how far an attack moves the units of each layer.

    python benchmarks/figures.py [--runs runs/mnist-cpu] [--data-root DATA] [--images 500]

The curves are those of the diagnosed runs of RECIPES in results/tables.json, with the radii BETWEEN measured in addition;
the movement is measured on seed 0 of standard, at and anp-vs, under the test attack of each. What results/mnist_figures.json
holds of the same network is not measured again; without --runs nothing is. Writes that file, docs/mnist-curves.svg and
docs/mnist-histograms.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ablation import BLUE, GREY, ORANGE, finish
from matplotlib.figure import Figure

from anp_vs.evaluation import curves
from anp_vs.evaluation.figure_files import network_of
from anp_vs.evaluation.figures import Exhibit, vulnerability
from anp_vs.provenance import provenance
from anp_vs.storage import write_atomically

HOME = Path(__file__).resolve().parent.parent
OUT = HOME / "results" / "mnist_figures.json"
RECIPES = {
    "mnist-cpu/at": ("AT", ORANGE, "s-"),
    "mnist-cpu/trades": ("TRADES", GREY, "^-"),
    "mnist-cpu/admm": ("ADMM", "#3f9e6b", "D-"),
    "mnist-cpu/anp-vs": ("ANP-VS", BLUE, "o-"),
}
"""Recipe -> label, colour, line."""
HISTOGRAMS = {"standard": "Standard", "at": "AT", "anp-vs": "ANP-VS"}
LAYERS = {"gate1": "convolution 1", "gate2": "convolution 2", "gate4": "dense 1"}
BINS = 16
BETWEEN = (0.35, 0.4, 0.45, 0.5)
"""Radii between those of a diagnosis: what happens just beyond that of training."""


def curve(row: dict[str, Any], run: Path, data_root: str | None) -> dict[str, Any]:
    """A diagnosed row's curves, with the radii between measured on the same images; the unbounded one left out.

    Raises:
        SystemExit: the run holds another network than the row.
    """
    if row["network_sha256"] != network_of(run):
        sys.exit(f"{run} holds another network than its row in results/tables.json; evaluate it again.")
    found = row["diagnosis"]
    exhibit = Exhibit(run, found["images"], data_root)
    between = [vars(point) for point in curves.against_eps(exhibit.sample, exhibit.budget, BETWEEN)]
    radii = [point for point in found["against_eps"] if point["eps"] < 1] + between
    return {name: row[name] for name in ("recipe", "run_seed", "network_sha256", "eps", "steps")} | {
        "images": found["images"],
        "against_eps": sorted(radii, key=lambda point: point["eps"]),
        "against_steps": found["against_steps"],
        "of_the_row": {name: row[name] for name in ("command", "commit", "hardware", "versions")},
        "of_the_radii_between": provenance(),
    }


def movement(run: Path, data_root: str | None, images: int) -> dict[str, Any]:
    """Vulnerability of every unit of a run's network, with where it comes from."""
    exhibit = Exhibit(run, images, data_root)
    facts = {"recipe": exhibit.recipe.name, "run_seed": exhibit.recipe.seed, "network_sha256": network_of(run)}
    return facts | provenance() | {"attack": exhibit.conditions(images)} | vulnerability(exhibit)


def measure(found: dict[str, Any], runs: Path, data_root: str | None, images: int) -> None:
    """Add to `found`, and to the file, what it lacks of the networks below `runs`."""
    rows = json.loads((HOME / "results" / "tables.json").read_text())
    diagnosed = [row for row in rows if row["recipe"] in RECIPES and row.get("diagnosis")]
    tasks = [("vulnerability", row, runs / row / "seed0", partial(movement, images=images)) for row in HISTOGRAMS]
    for row in diagnosed:
        name = f"{row['row']}/seed{row['run_seed']}"
        tasks.append(("curves", name, runs / name, partial(curve, row)))
    for kind, name, run, measured in tasks:
        have = found.setdefault(kind, {})
        if have.get(name, {}).get("network_sha256") != network_of(run):
            have[name] = measured(run=run, data_root=data_root)
            write_atomically(OUT, json.dumps(found, indent=1).encode() + b"\n")


def draw_curves(runs: list[dict[str, Any]], path: Path) -> None:
    """Two panels, against eps and against steps; one line a run."""
    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    by_eps, by_steps = figure.subplots(1, 2)
    named: set[str] = set()
    for run in sorted(runs, key=lambda run: list(RECIPES).index(run["recipe"])):
        label, colour, style = RECIPES[run["recipe"]]
        for axes, key, across in ((by_eps, "against_eps", "eps"), (by_steps, "against_steps", "steps")):
            x, y = zip(*((point[across], point["accuracy"]) for point in run[key]), strict=True)
            axes.plot(x, y, style, color=colour, label=None if label in named else label, linewidth=1.3, markersize=4)
        named.add(label)
    eps, steps = runs[0]["eps"], runs[0]["steps"]
    counts = [point["steps"] for point in runs[0]["against_steps"]]
    by_eps.axvline(eps, color=GREY, linewidth=0.8, linestyle="--")
    by_eps.set_xlabel(f"eps of PGD-{steps} (dashed: the attack of the tables)")
    by_eps.set_ylabel("accuracy, %")
    by_steps.set_xscale("log")
    by_steps.set_xticks(counts, [str(count) for count in counts])
    by_steps.minorticks_off()
    by_steps.set_xlabel(f"steps of PGD at eps {eps:g} (axis cut)")
    finish(figure, (by_eps, by_steps), path)


def draw_histograms(found: dict[str, Any], path: Path) -> None:
    """A row of panels for each layer, a column for each network; the units that are exactly zero apart, hatched."""
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    grid = figure.subplots(len(LAYERS), len(HISTOGRAMS), sharex="row", sharey="row")
    layers = {row: {layer["path"]: layer for layer in found[row]["layers"]} for row in HISTOGRAMS}
    for panels, (name, described) in zip(grid, LAYERS.items(), strict=True):
        widest = max(max(layers[row][name]["units"]) for row in HISTOGRAMS)
        width = widest / BINS
        for axes, (row, label) in zip(panels, HISTOGRAMS.items(), strict=True):
            layer = layers[row][name]
            moving = torch.tensor([value for value in layer["units"] if value > 0])
            left = [width * place for place in range(BINS)]
            axes.bar(left, moving.histc(BINS, 0, widest), width, align="edge", color=BLUE, label="units that move")
            axes.bar(
                -2 * width, layer["zeros"], 1.6 * width, color="none", edgecolor=ORANGE, hatch="////",
                label="units that are exactly zero",
            )  # fmt: skip
            axes.annotate(
                str(layer["zeros"]), (-2 * width, layer["zeros"]), (0, 2), textcoords="offset points", ha="center",
                color=ORANGE, fontsize=8,
            )  # fmt: skip
            axes.set_title(f"{label}, mean {layer['value']:.3f}", color=GREY, fontsize=9)
            axes.margins(y=0.15)
            axes.locator_params(nbins=4)
        panels[0].set_ylabel(f"units of {described}")
    attack = found["at"]["attack"]
    figure.supxlabel(
        f"vulnerability of a unit: mean |z − z̃| under PGD-{attack['steps']}, eps {attack['eps']:g}, "
        f"on the first {attack['images']:,} test images", color=GREY, fontsize=10,
    )  # fmt: skip
    finish(figure, grid.flat, path)


def main() -> None:
    """Measure what is missing and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="folder that holds standard/seed0, at/seed0 and anp-vs/seed0")
    parser.add_argument("--data-root")
    parser.add_argument("--images", type=int, default=500)
    asked = parser.parse_args()
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    if asked.runs is not None:
        measure(found, asked.runs, asked.data_root, asked.images)
    draw_curves(list(found["curves"].values()), HOME / "docs" / "mnist-curves.svg")
    draw_histograms(found["vulnerability"], HOME / "docs" / "mnist-histograms.svg")


if __name__ == "__main__":
    main()
