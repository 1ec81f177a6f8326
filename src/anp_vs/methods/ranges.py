"""Refuse hyper-parameters outside their range, all with one sentence."""

from __future__ import annotations

import math

from anp_vs.errors import InputError


def in_range(
    method: object,
    field: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Refuse a field that is not a finite number within its bounds.

    Args:
        method: a dataclass instance with a `name`.
        field: the name of one of its fields that holds a number.
        at_least: least value accepted.
        above: the value must be larger than this.
        below: the value must be smaller than this.

    Raises:
        InputError: naming the method, the field, its value, what is accepted, and the default.
    """
    value = getattr(method, field)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and value >= at_least and above < value < below:
        return
    bounds = {"at least": at_least, "above": above, "below": below}
    accepted = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
    raise InputError(
        f"{getattr(method, 'name', type(method).__name__)}: {field} is {value!r}; it must be a finite number "
        f"{accepted}. The default is {getattr(type(method), field, None)!r}."
    )


def one_of(method: object, field: str, choices: tuple[str, ...]) -> None:
    """Refuse (InputError) a field that is none of `choices`."""
    value = getattr(method, field)
    if value not in choices:
        raise InputError(
            f"{getattr(method, 'name', type(method).__name__)}: {field} is {value!r}; it must be one of "
            f"{', '.join(map(repr, choices))}."
        )
