"""Shortest way from an image to a hyperplane without leaving [0, 1], in the inf-, 2- and 1-norm."""

import torch
from torch import Tensor

from anp_vs.attacks.geometry import Norm


def to_hyperplane(points: Tensor, slope: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """The smallest d, measured in `norm`, with <slope, d> = offset and 0 <= points + d <= 1.

    Moving along the sign that changes <slope, d> the right way, coordinate i goes by m_i in [0, u_i], u_i its
    room to the box. The minimiser is m_i = min(t, u_i) for the inf-norm and min(t |slope_i|, u_i) for the
    2-norm, with the one t that meets the hyperplane, and for the 1-norm the room of the steepest coordinates
    in turn. Where the hyperplane cannot be met, d goes as near to it as the box allows.

    Args:
        points: N x C x H x W in [0, 1].
        slope: normal of each hyperplane, of that shape.
        offset: N.
        norm: "inf", "2" or "1".

    Returns:
        d, shaped like `points`.
    """
    size = slope.flatten(1)
    scale = size.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(slope.dtype).tiny)
    size = size / scale  # its squares must not underflow
    sign = size.sign() * offset.sign()[:, None]
    wanted = offset.abs()[:, None] / scale
    size = size.abs()
    flat = points.flatten(1)
    room = torch.where(sign > 0, 1.0 - flat, flat) * (sign != 0)
    if norm == "1":
        moved = _steepest_first(size, room, wanted)
    elif norm == "2":
        level = _level(size.square(), torch.where(size > 0, room / size, torch.zeros_like(room)), wanted)
        moved = torch.minimum(level * size, room)
    else:
        moved = torch.minimum(_level(size, room, wanted), room)
    return (sign * moved).view_as(points)


def _level(rates: Tensor, limits: Tensor, wanted: Tensor) -> Tensor:
    """The t (N x 1) with sum_i rates_i min(t, limits_i) = wanted; the largest limit where there is none."""
    limits, order = limits.sort(dim=1)
    rates = rates.gather(1, order)
    before = (rates * limits).cumsum(dim=1) - rates * limits
    still = rates.flip(1).cumsum(dim=1).flip(1)  # the rate of what has not reached its limit before each kink
    at_kink = before + still * limits  # the sum when t is at each kink; it does not decrease
    kink = (at_kink < wanted).sum(dim=1, keepdim=True)
    last = kink.clamp(max=limits.shape[1] - 1)
    rate = still.gather(1, last).clamp_(min=torch.finfo(rates.dtype).tiny)
    level = (wanted - before.gather(1, last)) / rate
    return torch.where(kink < limits.shape[1], level, limits[:, -1:]).clamp_(min=0.0)


def _steepest_first(slope: Tensor, room: Tensor, wanted: Tensor) -> Tensor:
    """How far each coordinate goes when the steepest use up their room first."""
    ordered, order = slope.sort(dim=1, descending=True)
    gains = ordered * room.gather(1, order)
    before = gains.cumsum(dim=1) - gains
    share = (wanted - before).clamp_(min=0.0) / ordered.clamp(min=torch.finfo(slope.dtype).tiny)
    moved = torch.minimum(share, room.gather(1, order)) * (ordered > 0)
    return torch.zeros_like(room).scatter_(1, order, moved)
