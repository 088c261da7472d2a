"""Outcome: what a measurement says, in words: an interval, and whether by it a sentence holds.

`evaluation.interval` and `evaluation.difference` compute the intervals.
"""

import math
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_

from scipy.stats import norm, t

FEWEST = 6  # units: with fewer, no outcome is rare enough by chance (2 of 2**5 signs is more than 5 in 100)


@dataclass(frozen=True)
class Outcome:
    """What a measurement says of a sentence: it holds, it does not, or so little data cannot tell (None).

    needed: how many units would tell in 8 of 10 runs, if things are as they look; None: nobody knows, or it is told.
    """

    holds: bool | None
    needed: int | None = None

    def __bool__(self) -> bool:
        """Count only what holds as true."""
        return self.holds is True

    def __and__(self, other: "Outcome | bool") -> "Outcome":
        """Join two conditions: one that fails decides, then one that cannot be told."""
        other = other if isinstance(other, Outcome) else Outcome(bool(other))
        if False in (self.holds, other.holds):
            return Outcome(False)
        untold = [outcome.needed for outcome in (self, other) if outcome.holds is None]
        if not untold:
            return Outcome(True)
        known = [needed for needed in untold if needed is not None]
        return Outcome(None, max(known) if len(known) == len(untold) else None)

    def __or__(self, other: "Outcome") -> "Outcome":
        """Ask for one of two conditions: one that holds decides, then one that cannot be told."""
        both = (self.holds, other.holds)
        return Outcome(True) if True in both else Outcome(None) if None in both else Outcome(False)


def every(*outcomes: Outcome | bool) -> Outcome:
    """Join several conditions of one sentence, all of which have to hold; see `Outcome`."""
    return reduce(and_, outcomes, Outcome(True))


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval.

    count: values behind it.  units: what was drawn independently, such as facts, each with several wordings.
    unit: "%" for shares, which are written as percentages; else the name of the unit, such as "nats".
    """

    mean: float
    low: float
    high: float
    count: int
    units: int
    unit: str = "%"

    def __str__(self) -> str:
        """Write mean, low and high end."""
        if self.unit == "%":
            return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"
        digits = ".0f" if abs(self.mean) >= 100 else ".2f"
        return f"{self.mean:{digits}} {self.unit} ({self.low:{digits}} to {self.high:{digits}})"

    @property
    def spread(self) -> float:
        """Standard deviation of the units, read from the interval's width."""
        return (self.high - self.low) / 2 / t.ppf(0.975, max(1, self.units - 1)) * math.sqrt(self.units)

    def above(self, bound: float = 0.0) -> Outcome:
        """Tell whether the true mean lies above a bound: the whole interval does, none of it does, or it cannot be told."""
        if self.units < FEWEST:
            return Outcome(None, FEWEST)
        if self.low > bound or self.high <= bound:
            return Outcome(self.low > bound)
        looks_so = self.mean > bound and math.isfinite(self.spread)
        return Outcome(None, max(self.units + 1, units_needed(self.mean - bound, self.spread)) if looks_so else None)

    def below(self, bound: float = 0.0) -> Outcome:
        """Tell whether the true mean lies below a bound; as `above`."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low).above(-bound)


def units_needed(gap: float, spread: float, power: float = 0.8) -> int:
    """Compute how many units tell a difference of `gap` beyond chance (at 95%) with a probability of `power`.

    spread: paired, two models on the same units: the standard deviation of the differences;
    unpaired, each on units of its own: the root of the sum of both squared standard deviations, and that many for each.
    Source: the two-sided z test for a mean, as in any textbook.
    """
    if gap == 0 or not 0 < power < 1:
        raise ValueError(f"gap is {gap} and power is {power}. No number of units tells a gap of 0, or is sure to tell.")
    return max(FEWEST, math.ceil(((norm.ppf(0.975) + norm.ppf(power)) * spread / gap) ** 2))
