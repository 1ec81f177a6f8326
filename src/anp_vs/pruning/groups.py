"""Groups of tensors that share their channels, and where gates can go.

A gate stands in front of a layer that mixes channels, on what the layer reads. A channel leaves when no layer of
its group needs it, so all layers that read one group share one gate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from anp_vs.errors import InputError
from anp_vs.pruning.flow import pieces
from anp_vs.pruning.graph import Graph
from anp_vs.pruning.points import Point

Residual = Literal["keep", "share"]


@dataclass(frozen=True)
class Decision:
    """What becomes of the channels that one layer reads.

    Attributes:
        layer: path of a convolution or dense layer.
        units: how many can be pruned one by one; 0 where all stay.
        gate: path of the layer in front of which their gate stands (itself, or another that reads the same
            channels), or None.
        reason: why so, for people.
    """

    layer: str
    units: int
    gate: str | None
    reason: str


@dataclass(eq=False)
class Group:
    """Tensors that keep the same channels: unit k covers the k-th of `units` equal parts of each.

    Attributes:
        units: the largest number of parts that every operation of the group can drop one by one.
        readers: layers that mix the group's channels, in the order of the forward pass.
        added: an addition of two tensors is in the group (a residual stream).
        whole: why all channels must stay, or empty.
    """

    units: int
    readers: list[Point] = field(default_factory=list)
    added: bool = False
    whole: str = ""

    def take_in(self, other: Group) -> None:
        """Join another group into this one."""
        self.units = math.gcd(self.units, other.units)
        self.readers += other.readers
        self.added |= other.added
        self.whole = self.whole or other.whole


def find_groups(graph: Graph) -> dict[Point, Group]:
    """The group of every tensor."""
    groups: dict[Point, Group] = {}

    def join(one: Point, other: Point) -> None:
        kept, gone = groups[one], groups[other]
        if kept is not gone:
            kept.take_in(gone)
            for point, group in groups.items():
                groups[point] = kept if group is gone else group

    for point in graph.points:
        groups[point] = Group(point.channels)
        if point.rule == "mix":
            groups[point.inputs[0]].readers.append(point)
        elif point.rule == "whole":
            for one in (point, *point.inputs):
                groups[one].whole = groups[one].whole or point.why
        elif point.rule not in ("cat", "gate"):
            for source in point.inputs:
                join(point, source)
            if point.rule in ("grouped", "groupnorm"):
                groups[point].units = math.gcd(groups[point].units, pieces(point))
            groups[point].added |= point.rule == "add" and len(point.inputs) > 1
    order = {point: place for place, point in enumerate(graph.points)}
    for group in set(groups.values()):
        group.readers.sort(key=lambda point: order[point])
    return groups


def decide(graph: Graph, residual: Residual) -> list[Decision]:
    """For every convolution and dense layer, in the order of the forward pass, whether it gets a gate.

    Raises:
        InputError: `residual` is neither `keep` nor `share`.
    """
    if residual not in ("keep", "share"):
        raise InputError(f"residual is {residual!r}; choose 'keep' (streams through additions stay whole) or 'share'.")
    groups = find_groups(graph)
    return [
        _decision(point, groups, residual)
        for point in graph.points
        if point.module is not None and point.module._parameters.get("weight") is not None and _is_layer(point)
    ]


def _is_layer(point: Point) -> bool:
    weight = point.module._parameters["weight"] if point.module is not None else None
    return weight is not None and weight.dim() > 1


def _decision(point: Point, groups: dict[Point, Group], residual: Residual) -> Decision:
    path = point.path
    if point.rule == "grouped":
        return Decision(path, 0, None, "its groups leave together with the channels that are read from them")
    if point.rule != "mix":
        return Decision(path, 0, None, f"left whole: {point.why}")
    group = groups[point.inputs[0]]
    if group.whole:
        return Decision(path, 0, None, f"what it reads is left whole: {group.whole}")
    if group.added and residual == "keep":
        why = "what it reads goes through an addition, and residual='keep'"
        return Decision(path, 0, None, f"left whole: {why}")
    if group.units < 2:
        return Decision(path, 0, None, "what it reads is left whole: its channels can only leave all together")
    first = group.readers[0].path
    reason = "gated" if first == path else f"shares the gate of {first}"
    return Decision(path, group.units, first, reason)
