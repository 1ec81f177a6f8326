"""Pictures of what an attack does inside a network, drawn from a run's figures/*.json."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from anp_vs.report.style import BAD, CARD, GRID, INK, MUTED, SERIES, legend, name_axes, panel

Data = Mapping[str, Any]
_ACROSS = 2  # histograms side by side


def units_left(data: Data) -> Figure:
    """Bars: what is left of each layer, of what there was."""
    layers = data["layers"]
    figure, (axes,) = panel(0.7 + 0.27 * len(layers))
    places = range(len(layers))
    shares = [100 * layer["left"] / layer["original"] for layer in layers]
    axes.barh(places, [100.0] * len(layers), color=GRID, height=0.66)
    axes.barh(places, shares, color=SERIES[0], height=0.66)
    for place, layer in zip(places, layers, strict=True):
        axes.text(101.5, place, f"{layer['left']:,} / {layer['original']:,}", va="center", color=INK, fontsize=8)
    axes.set_yticks(places, [layer["path"] for layer in layers])
    axes.set_xlim(0, 140)
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.invert_yaxis()
    axes.grid(visible=False)
    name_axes(axes, f"{data['kind']} left, %", "")
    return figure


def histogram(data: Data) -> Figure:
    """For each layer how many units move how far under attack; the units that are exactly zero apart, hatched."""
    layers = data["layers"]
    rows = ceil(len(layers) / _ACROSS)
    figure, panels = panel(0.3 + 1.55 * rows, rows=rows, columns=_ACROSS)
    for axes, layer in zip(panels, layers, strict=False):
        edges = layer["edges"]
        width = edges[1] - edges[0]
        axes.bar(edges[:-1], layer["counts"], width=width, align="edge", color=SERIES[0], label="moving")
        axes.bar(
            [-2.5 * width], [layer["zeros"]], width=2 * width, color="none", edgecolor=BAD, hatch="////", linewidth=0.8,
            label="exactly zero",
        )  # fmt: skip
        axes.set_ylim(0, max(*layer["counts"], layer["zeros"], 1) * 1.18)
        axes.text(
            -2.5 * width,
            layer["zeros"],
            f"{layer['zeros']}",
            ha="center",
            va="bottom",
            color=BAD,
            fontsize=7.5,
        )
        axes.set_title(
            f"{layer['path']}: {layer['original_units']} units, mean {layer['value']:.3g}",
            color=INK,
            fontsize=8,
        )
        axes.set_xlim(-4.5 * width, edges[-1])
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=4)
    for axes in panels[len(layers) :]:
        axes.set_visible(False)
    figure.supxlabel("vulnerability of a unit, mean |z − z̃|", color=INK, fontsize=9)
    figure.supylabel("units", color=INK, fontsize=9)
    return figure


def against_gates(data: Data) -> Figure | None:
    """Vulnerability of each unit against its gate's E[pi]; None for a network without gates."""
    layers = [layer for layer in data["layers"] if layer["expected_pi"] is not None]
    if not layers:
        return None
    figure, (axes,) = panel(2.9)
    for number, layer in enumerate(layers):
        axes.plot(
            layer["expected_pi"], layer["units"], linestyle="", marker="osD^v"[number % 5], markersize=3.2,
            markeredgewidth=0, alpha=0.6, color=SERIES[number % len(SERIES)], label=layer["path"],
        )  # fmt: skip
    axes.axvline(1e-3, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    name_axes(axes, "E[π] of the unit's gate (left of the dashed line: pruned)", "vulnerability")
    legend(axes, columns=4)
    return figure


def surface(data: Data) -> Figure:
    """Heat map of the mean loss in the plane of the gradient's step and a random one."""
    figure, (axes,) = panel(3.5)
    along, aside, loss = data["along"], data["aside"], np.array(data["loss"])
    half = (along[1] - along[0]) / 2
    box = (aside[0] - half, aside[-1] + half, along[0] - half, along[-1] + half)
    image = axes.imshow(loss, origin="lower", extent=box, aspect="equal", cmap="viridis", interpolation="nearest")
    lines = axes.contour(aside, along, loss, levels=6, colors="white", linewidths=0.6, alpha=0.8)
    axes.clabel(lines, fontsize=7, fmt="%.2g")
    axes.add_patch(Rectangle((-1, -1), 2, 2, fill=False, edgecolor="white", linewidth=1.2, linestyle="--"))
    axes.plot([0], [0], marker="+", color="white", markersize=9, markeredgewidth=1.6)
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=3, width=0.6)
    bar.outline.set_visible(False)
    bar.set_label("mean cross-entropy", color=INK, fontsize=9)
    name_axes(axes, "random direction, in eps", "gradient direction, in eps")
    return figure


def maps(data: Data) -> Figure:
    """Images, clean and attacked, each with the same channels of the input layer; where those go below zero, zero is mid-scale."""
    channels, shown = data["channels"], len(data["shown"])
    figure, panels = panel(1.28 * shown + 0.3, rows=2 * shown, columns=len(channels) + 1)
    across = len(channels) + 1
    for image in range(shown):
        for row, kind in enumerate(("clean", "adversarial")):
            first = (2 * image + row) * across
            said = data[f"{kind}_predictions"][image]
            _picture(panels[first], np.array(data[f"{kind}_images"][image]))
            panels[first].set_ylabel(f"{'attacked' if row else 'clean'}\n→ {said}", color=INK, fontsize=7.5)
            both = np.array([data["clean"][image], data["adversarial"][image]])
            signed, peak = both.min() < 0, max(np.abs(both).max(), 1e-12)
            for place, channel in enumerate(channels):
                axes = panels[first + 1 + place]
                share = np.array(data[kind][image][place])[None] / peak
                _picture(axes, (share + 1) / 2 if signed else share, "RdBu_r" if signed else "magma")
                if image == row == 0:
                    axes.set_title(f"#{channel}", color=INK, fontsize=7.5)
    return figure


def _picture(axes: Axes, image: np.ndarray[Any, Any], cmap: str = "gray") -> None:
    """One image, C x H x W in [0, 1]."""
    if image.shape[0] == 3:
        axes.imshow(image.transpose(1, 2, 0), interpolation="nearest")
    else:
        axes.imshow(image[0], cmap=cmap, vmin=0, vmax=1, interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def distortion(data: Data) -> Figure:
    """Mean distortion of the input layer, over images and channels."""
    figure, (axes,) = panel(2.9)
    image = axes.imshow(np.array(data["distortion"]), cmap="inferno", vmin=0, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, shrink=0.9)
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=3, width=0.6)
    bar.outline.set_visible(False)
    bar.set_label("mean |z₁ − z̃₁|", color=INK, fontsize=9)
    return figure


def corruptions(data: Data) -> Figure:
    """Accuracy on common corruptions, mean over the severities, with the range from the mildest to the worst."""
    names = list(data["accuracy"])
    figure, (axes,) = panel(0.8 + 0.24 * len(names))
    means = [float(np.mean(data["accuracy"][name])) for name in names]
    places = list(range(len(names)))
    for place, name in zip(places, names, strict=True):
        values = data["accuracy"][name]
        axes.plot([min(values), max(values)], [place, place], color=GRID, linewidth=4, solid_capstyle="round")
    axes.plot(
        means,
        places,
        linestyle="",
        marker="o",
        color=SERIES[0],
        markeredgecolor=CARD,
        label="mean of severities",
    )
    axes.axvline(data["clean"], color=MUTED, linestyle="--", linewidth=0.9, label="clean")
    axes.set_yticks(places, [name.replace("-", " ") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 101)
    name_axes(axes, "accuracy, %", "")
    legend(axes)
    return figure
