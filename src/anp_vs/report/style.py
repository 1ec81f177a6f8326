"""How the report's pictures look: panels as wide as a phone, in the page's colours, as SVG that is part of the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Stand-ins: the SVG holds the page's variable in their place, so that a picture follows light and dark.
INK, MUTED, GRID, CARD = "#0a0101", "#0a0102", "#0a0103", "#0a0104"
GOOD, BAD = "#0a0105", "#0a0106"
SERIES = tuple(f"#0a02{number:02d}" for number in range(1, 9))
_VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "line", CARD: "card", GOOD: "good", BAD: "bad",
    **{colour: f"s{number}" for number, colour in enumerate(SERIES, 1)},
}  # fmt: skip

_METHODS = {
    "anp-vs": (0, "o", "-"), "at": (1, "s", "-"), "trades": (2, "^", "-"), "standard": (3, "D", "-"),
    "bp": (4, "v", "-"), "pretrained-at": (5, "P", "-"), "admm": (6, "X", "-"), "at-bnn": (7, "*", "-"),
    "anp": (0, "o", "--"), "at-vs": (1, "s", "--"), "mart": (2, "^", "--"),
}  # fmt: skip
"""Method -> its colour, marker and line: the same in every picture; ablations share a colour, dashed."""

WIDTH = 4.5  # inches of 72 points: as wide as a phone shows without shrinking the text
_LABEL, _TICK = 9.0, 8.5


def look(method: str, number: int = 0) -> dict[str, Any]:
    """Colour, marker and line style of a method; a further configuration of it (number 1, 2, ...) has other lines and marks."""
    place, marker, line = _METHODS.get(method, (3, ".", ":"))
    lines, fills = (line, ":", "-."), ("full", "none", "left", "top", "right", "bottom")
    return {
        "color": SERIES[place], "marker": marker, "linestyle": lines[number % 3], "fillstyle": fills[number % 6],
        "markerfacecoloralt": CARD,
    }  # fmt: skip


def methods() -> frozenset[str]:
    """The methods that have a look of their own."""
    return frozenset(_METHODS)


def panel(height: float = 2.7, *, rows: int = 1, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row.

    Args:
        height: in inches.
        rows: of axes.
        columns: of axes.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)  # type: ignore[union-attr, call-arg]
    FigureCanvasSVG(figure)
    axes = [figure.add_subplot(rows, columns, place + 1) for place in range(rows * columns)]
    for each in axes:
        dress(each)
    return figure, axes


def dress(axes: Axes) -> None:
    """Give axes the page's colours and sizes."""
    axes.set_facecolor("none")
    axes.tick_params(colors=MUTED, labelsize=_TICK, length=3, width=0.6)
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_edgecolor(MUTED)
        spine.set_linewidth(0.6)


def name_axes(axes: Axes, x: str, y: str) -> None:
    """Labels in the page's ink."""
    axes.set_xlabel(x, color=INK, fontsize=_LABEL)
    axes.set_ylabel(y, color=INK, fontsize=_LABEL)


def legend(axes: Axes, columns: int = 2) -> None:
    """A legend above the axes, where there is something to tell apart."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(
            handles, labels, loc="lower left", bbox_to_anchor=(0, 1.01), ncols=columns, frameon=False, fontsize=_TICK,
            labelcolor=INK, borderaxespad=0, handlelength=1.8, columnspacing=1.2,
        )  # fmt: skip


def svg(figure: Figure, alt: str, key: str) -> Markup:
    """The figure as an SVG element.

    Args:
        figure: as `panel` made it.
        alt: what it shows, for those who do not see it.
        key: unlike any other picture's of the page; a prefix of the ids inside.
    """
    file = io.BytesIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "anp-vs"}):
        figure.savefig(file, format="svg", transparent=True, dpi=144, metadata=dict.fromkeys(("Date", "Creator")))
    text = file.getvalue().decode("utf-8")
    text = text[text.index("<svg ") :]
    for pattern, put in _REWRITES:
        text = pattern.sub(put, text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var(--{variable})")
    text = re.sub(r' id="([^"]*)"', rf' id="{key}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r' href="#([^"]*)"', rf' href="#{key}-\1"', text)
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert box is not None  # matplotlib always writes it
    head = f'<svg viewBox="{box[0][9:-1]}" role="img" aria-label="{escape(alt)}">'
    return Markup(re.sub(r"^<svg [^>]*>", lambda _: head, text))  # noqa: S704 - matplotlib escapes the texts it draws


_REWRITES: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL), ""),
    (re.compile(r"\s*<style [^>]*>.*?</style>", re.DOTALL), ""),  # it would style the whole page
    (re.compile(r"<!--.*?-->\n?", re.DOTALL), ""),
    (re.compile(r'\sxmlns(:\w+)?="[^"]*"'), ""),
    (re.compile(r"xlink:href="), "href="),
    (re.compile(r"font: ([\d.]+px) [^;\"]*"), r"font: \1 var(--font)"),
)
"""What makes a file of its own an element of a page."""
