"""A picture of the page: a drawing with a title, what it shows in words, and where its data lies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from anp_vs.report.style import svg


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Attributes:
        title: heading.
        drawing: SVG.
        caption: what is seen, on how many images, under which attack.
        data: the file of the run directory that holds the figures.
    """

    title: str
    drawing: Markup
    caption: str
    data: str


@dataclass(frozen=True)
class Sketch:
    """A picture that is not put on the page yet.

    Attributes:
        title: heading.
        figure: the drawing; None where the run cannot have it, which is no lack.
        data: the file that holds the figures.
        caption: what is seen.
        alt: for those who do not see it; title and caption by default.
    """

    title: str
    figure: Figure | None
    data: str
    caption: str
    alt: str = ""


def put(sketches: Iterable[Sketch], key: str, of: str) -> list[Picture]:
    """Pictures for the page.

    Args:
        sketches: in order.
        key: unlike that of any other call for the same page.
        of: what is pictured, for the alternative texts.
    """
    return [
        Picture(
            sketch.title,
            svg(sketch.figure, sketch.alt or f"{sketch.title}, {of}. {sketch.caption}", f"{key}-{number}"),
            sketch.caption,
            sketch.data,
        )
        for number, sketch in enumerate(sketches)
        if sketch.figure is not None
    ]


def under(data: Mapping[str, Any], *, attacked: bool = True) -> str:
    """The conditions of a figure, in words."""
    attack = f"PGD-{data['steps']} with steps of {data['step']:.4g}, " if attacked else ""
    where = f"eps {data['eps']:.4g} in norm {data['norm']}, {data['protocol']}"
    return f"{data['images']:,} test images, {attack}{where}."
