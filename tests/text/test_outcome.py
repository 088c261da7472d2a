import numpy as np
import pytest
from scipy.stats import norm

from helpers.evaluation import difference, interval
from helpers.text.outcome import Interval, Outcome, every, smallest_shown, units_needed


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


@pytest.mark.parametrize("units", [6, 7, 12, 24, 60, 400])
def test_the_smallest_that_shows_is_the_inverse_of_the_units_needed(units):
    for spread in (0.3, 1.0, 40.0):
        least = smallest_shown(spread, units)
        assert units_needed(least, spread) == units_needed(-least, spread) == units
        assert units_needed(0.99 * least, spread) > units
    assert smallest_shown(1.0, units, power=0.9) > smallest_shown(1.0, units) > smallest_shown(1.0, units + 1)


@pytest.mark.parametrize("units", [8, 24, 60])
def test_a_difference_that_just_shows_is_found_in_8_of_10_runs(units):
    spread = 0.5
    runs = np.random.default_rng(3).normal(smallest_shown(spread, units), spread, (1000, units))
    found = [interval(run, unit="nats") for run in runs]
    assert np.mean([bool(one.above()) for one in found]) == pytest.approx(0.8, abs=0.03)
    assert np.mean([one.shows for one in found]) == pytest.approx(smallest_shown(spread, units), rel=0.05)


@pytest.mark.parametrize(("won", "lost"), [(0.45, 0.05), (0.53, 0.1)])
def test_a_paired_difference_of_shares_that_just_shows_is_found_in_8_of_10_runs(won, lost):
    """As the box of 24 facts says it: of each fact, the finetune wins it, loses it, or does as before."""
    drawn = np.random.default_rng(4).choice([1, -1, 0], p=[won, lost, 1 - won - lost], size=(200, 24))
    found = [difference(run < 0, run > 0) for run in drawn]
    assert np.median([one.shows for one in found]) == pytest.approx(won - lost, abs=0.02)
    assert np.mean([bool(one.above()) for one in found]) == pytest.approx(0.8, abs=0.08)


def test_an_outcome_says_what_its_numbers_would_show():
    shares, nats = interval([1, 0, 0] * 8), Interval(0.5, 0.1, 0.9, 24, 24, "nats")
    assert shares.above(0.9).shows == shares.below(0.1).shows == {"%": shares.shows}
    assert nats.above().shows == nats.below().shows == {"nats": pytest.approx(smallest_shown(nats.spread, 24))}
    joined = every(True, shares.above(0.2), nats.above(), interval([1, 0] * 40).above(0.2))
    assert joined.shows == (shares.above(0.2) | nats.above()).shows == {"%": shares.shows, "nats": nats.shows}
    assert joined.power == f"{100 * shares.shows:.0f} points, {nats.shows:.2g} nats or more in 8 of 10 runs"
    assert Interval(900.0, 200.0, 1600.0, 24, 24, "ms").above().power.startswith("990 ms or more")
    assert Outcome(True).power == interval([1] * 5).above().power == interval([2.0] * 9, unit="nats").above().power == ""
    assert shares.above(0.9) == Outcome(False)  # equal is what says the same


def test_the_spread_of_an_interval_is_that_of_its_units():
    values = np.random.default_rng(2).normal(size=400)
    assert interval(values, unit="nats").spread == pytest.approx(values.std(ddof=1))
    tied = np.repeat(values[:100], 4)
    assert interval(tied, np.repeat(np.arange(100), 4), unit="nats").spread == pytest.approx(values[:100].std(ddof=1))
    with pytest.raises(ValueError, match="No number of units"):
        units_needed(0, 1.0)
    with pytest.raises(ValueError, match="No number of units"):
        units_needed(0.1, 1.0, power=1.0)
    with pytest.raises(ValueError, match="There are 1 units"):
        smallest_shown(1.0, 1)
