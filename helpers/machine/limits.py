"""Limits: knobs out of reach, told before the work, and a loss that only rises, told after it."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from statistics import fmean
from typing import Any

SEEDS = range(2**63)


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that the generators of random numbers do not take."""
    if not isinstance(seed, Integral) or not SEEDS.start <= seed < SEEDS.stop:  # `1.5 in SEEDS` would count up to its end
        raise ValueError(f"The seed is {seed}. It has to be a whole number from 0 to {SEEDS[-1]}.")


def check_count(count: int, what: str) -> None:
    """Raise ValueError where fewer than none shall be drawn: Python would take that for "all but the last ones"."""
    if not isinstance(count, Integral) or count < 0:
        raise ValueError(f"{what}: {count!r} cannot be drawn. Ask for a whole number, 0 or more.")


def check_knobs(knobs: Mapping[str, Any], names: str, least: int = 1, whole: bool = True) -> None:
    """Raise ValueError where one of a lesson's knobs is no number of at least so much: before the work, and by its name.

    names: of those knobs, with spaces between them.  whole: whether a number with a point, 2.5 or 2.0, is none either.
    """
    kind, called = (Integral, "a whole number") if whole else (Real, "a number")
    for name in names.split():
        if not isinstance(knobs[name], kind) or not least <= knobs[name] < math.inf:  # refuses "not a number" as well
            raise ValueError(f"The knob {name} is {knobs[name]!r}. It has to be {called}, {least} or more.")


def check_rank(rank: int, layer: str, size: int) -> None:
    """Raise ValueError for an adapter that would be larger than its layer. size: the smaller of what goes in and out."""
    if not 1 <= rank <= size:
        raise ValueError(f"The rank is {rank}, and the layer {layer} takes one from 1 to {size}. 8 or 16 is usual.")


def rising_loss(losses: Sequence[float]) -> str:
    """Say that a loss only rises, and what to do; "" where it does not.

    losses: one a step, in nats a token. It rises when each of at least three steps is worse than the one before, or when, of
    at least eight, the last quarter is 10% worse than the first: what is left after the noise of single batches.
    """
    quarter = len(losses) // 4
    always = len(losses) >= 3 and all(later > earlier for earlier, later in pairwise(losses))
    if not always and not (quarter >= 2 and fmean(losses[-quarter:]) > 1.1 * fmean(losses[:quarter])):
        return ""
    return (
        f"The loss rose, from {losses[0]:.2f} to {losses[-1]:.2f}: the model got worse, and answers worse than before. "
        "Lower the learning rate, for example to a tenth, and train again."
    )
