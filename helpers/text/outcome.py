"""Outcome: what a measurement says, in words: an interval, and whether by it a sentence holds.

`evaluation.interval` and `evaluation.difference` compute the intervals.
"""

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_

from scipy.stats import norm, t

POWER = 0.8  # a test is planned so that it finds what is there in 8 of 10 runs
FEWEST = 6  # units: with fewer, no outcome is rare enough by chance (2 of 2**5 signs is more than 5 in 100)


@dataclass(frozen=True)
class Outcome:
    """What a measurement says of a sentence: it holds, it does not, or so little data cannot tell (None).

    needed: how many units would tell in 8 of 10 runs, if things are as they look; None: nobody knows, or it is told.
    shows: unit → the smallest difference that these numbers would show in 8 of 10 runs, see `Interval.shows`; of several
    conditions, the largest. Empty where nothing was drawn. Two outcomes that say the same are equal whatever this is.
    """

    holds: bool | None
    needed: int | None = None
    shows: dict[str, float] = field(default_factory=dict, compare=False)

    def __bool__(self) -> bool:
        """Count only what holds as true."""
        return self.holds is True

    def __and__(self, other: "Outcome | bool") -> "Outcome":
        """Join two conditions: one that fails decides, then one that cannot be told."""
        other = other if isinstance(other, Outcome) else Outcome(bool(other))
        shows = self._shows_beside(other)
        if False in (self.holds, other.holds):
            return Outcome(False, None, shows)
        untold = [outcome.needed for outcome in (self, other) if outcome.holds is None]
        if not untold:
            return Outcome(True, None, shows)
        known = [needed for needed in untold if needed is not None]
        return Outcome(None, max(known) if len(known) == len(untold) else None, shows)

    def __or__(self, other: "Outcome") -> "Outcome":
        """Ask for one of two conditions: one that holds decides, then one that cannot be told."""
        both = (self.holds, other.holds)
        return Outcome(True if True in both else None if None in both else False, None, self._shows_beside(other))

    def _shows_beside(self, other: "Outcome") -> dict[str, float]:
        """Put together what two conditions would show: of each unit, the larger difference."""
        units = [*self.shows, *(unit for unit in other.shows if unit not in self.shows)]
        return {unit: max(self.shows.get(unit, 0.0), other.shows.get(unit, 0.0)) for unit in units}

    @property
    def power(self) -> str:
        """Say what these numbers would show: "12 points or more in 8 of 10 runs"; nothing where nothing was drawn."""
        told = []
        for unit, least in self.shows.items():
            least, unit = (100 * least, "points") if unit == "%" else (least, unit)
            told.append(f"{least:,.0f} {unit}" if least >= 10 else f"{least:.2g} {unit}")
        return f"{', '.join(told)} or more in {10 * POWER:.0f} of 10 runs" if told else ""


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

    @property
    def shows(self) -> float | None:
        """The smallest difference from a bound that so many units with this spread show in 8 of 10 runs.

        Shares have to differ by a little more, as their interval lies nearer to the middle than their mean, see `interval`.
        None where nothing would show: too few units, or nothing tells how much they vary.
        """
        if self.units < FEWEST or not math.isfinite(self.spread):
            return None
        return smallest_shown(self.spread, self.units) + abs(self.mean - (self.low + self.high) / 2)

    def above(self, bound: float = 0.0) -> Outcome:
        """Tell whether the true mean lies above a bound: the whole interval does, none of it does, or it cannot be told."""
        if self.units < FEWEST:
            return Outcome(None, FEWEST)
        shows = {} if self.shows is None else {self.unit: self.shows}
        if self.low > bound or self.high <= bound:
            return Outcome(self.low > bound, None, shows)
        looks_so = self.mean > bound and shows
        needed = max(self.units + 1, units_needed(self.mean - bound, self.spread)) if looks_so else None
        return Outcome(None, needed, shows)

    def below(self, bound: float = 0.0) -> Outcome:
        """Tell whether the true mean lies below a bound; as `above`."""
        return replace(self, mean=-self.mean, low=-self.high, high=-self.low).above(-bound)


def smallest_shown(spread: float, units: int, power: float = POWER) -> float:
    """Compute the smallest difference that so many units tell beyond chance (at 95%) with a probability of `power`.

    spread: as in `units_needed`, whose inverse this is.
    Source: the two-sided t test for a mean, with Student's t in both places, as in Snedecor and Cochran, Statistical Methods.
    """
    if units < 2 or not 0 < power < 1:
        raise ValueError(f"There are {units} units and power is {power}. One unit shows nothing, and nothing is sure to show.")
    return (t.ppf(0.975, units - 1) + t.ppf(power, units - 1)) * spread / math.sqrt(units)


def units_needed(gap: float, spread: float, power: float = POWER) -> int:
    """Compute how many units tell a difference of `gap` beyond chance (at 95%) with a probability of `power`.

    spread: paired, two models on the same units: the standard deviation of the differences;
    unpaired, each on units of its own: the root of the sum of both squared standard deviations, and that many for each.
    Source: as `smallest_shown`. The normal distribution gives a number that is some two units too small: from there it goes up.
    """
    if gap == 0 or not 0 < power < 1:
        raise ValueError(f"gap is {gap} and power is {power}. No number of units tells a gap of 0, or is sure to tell.")
    units = max(FEWEST, math.ceil(((norm.ppf(0.975) + norm.ppf(power)) * spread / gap) ** 2))
    while smallest_shown(spread, units, power) > abs(gap):
        units += 1
    return units
