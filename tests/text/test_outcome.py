import numpy as np
import pytest
from scipy.stats import norm

from helpers.evaluation import interval
from helpers.text.outcome import Outcome, units_needed


def test_outcomes_join():
    holds, fails, open_ = Outcome(True), Outcome(False), Outcome(None, 40)
    assert (holds & True, holds & False, holds & fails) == (holds, fails, fails)
    assert holds & open_ == open_ & True == open_ and open_ & fails == fails  # what fails needs no more units
    assert (holds | open_, fails | open_, fails | fails) == (holds, Outcome(None), fails)
    assert (open_ & Outcome(None, 90)).needed == 90 and (open_ & Outcome(None)).needed is None
    assert [bool(outcome) for outcome in (holds, fails, open_)] == [True, False, False]


def test_above_and_below_a_bound():
    found = interval([1] * 16 + [0] * 8)
    assert found.above(0.4) and found.below(0.9) and found.above(0.9).holds is False and found.below(0.4).holds is False
    assert found.above(0.6).holds is None and found.above(0.6).needed > 24
    assert found.above(0.7) == Outcome(None)  # the mean lies below: no number of units is promised


def better_than_chance(values):
    """The usual test, by its normal approximation."""
    return values.mean() - norm.ppf(0.975) * values.std() / len(values) ** 0.5 > 0


def test_units_needed_paired_agrees_with_simulation():
    """0.10 of the questions are won and 0.04 are lost; with the number computed, four runs in five find out."""
    won, lost = 0.10, 0.04
    needed = units_needed(won - lost, np.sqrt(won + lost - (won - lost) ** 2))
    drawn = np.random.default_rng(0).choice([1, -1, 0], p=[won, lost, 1 - won - lost], size=(2000, needed))
    assert np.mean([better_than_chance(row) for row in drawn]) == pytest.approx(0.8, abs=0.03)


def test_units_needed_unpaired_agrees_with_simulation():
    before, after = 0.7, 0.8
    needed = units_needed(after - before, np.sqrt(before * (1 - before) + after * (1 - after)))
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(2000):
        first, second = rng.random(needed) < before, rng.random(needed) < after
        error = np.sqrt(first.var() / needed + second.var() / needed)
        found += abs(second.mean() - first.mean()) > norm.ppf(0.975) * error
    assert found / 2000 == pytest.approx(0.8, abs=0.03)
    assert needed == pytest.approx(291, abs=3)  # textbooks say 293, with pooled variance: 294


def test_the_spread_of_an_interval_is_that_of_its_units():
    values = np.random.default_rng(2).normal(size=400)
    assert interval(values, unit="nats").spread == pytest.approx(values.std(ddof=1))
    tied = np.repeat(values[:100], 4)
    assert interval(tied, np.repeat(np.arange(100), 4), unit="nats").spread == pytest.approx(values[:100].std(ddof=1))
    with pytest.raises(ValueError, match="No number of units"):
        units_needed(0, 1.0)
    with pytest.raises(ValueError, match="No number of units"):
        units_needed(0.1, 1.0, power=1.0)
