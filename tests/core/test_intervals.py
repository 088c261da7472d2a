"""Intervals, paired tests and outcomes: right at small numbers, shown by simulation."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from helpers.evaluation import difference, interval, sign_flip_p, unpaired_difference
from helpers.text.outcome import Interval, Outcome, every

SIZES = (6, 7, 8, 10, 12, 16, 24, 40, 60, 80)


def test_an_interval_of_right_and_wrong_holds_the_true_rate():
    """For 6 to 80 units and rates from 2 to 98%: at least 95 of 100 samples. Counted, not drawn: every sample there can be.

    And it lies above the true rate, so that a box would say "holds" of what is not so, in at most 2.5 of 100.
    """
    worst, false = 1.0, 0.0
    for units in range(6, 81):
        found = [interval([1] * right + [0] * (units - right)) for right in range(units + 1)]
        low, high = np.array([i.low for i in found]), np.array([i.high for i in found])
        assert (np.diff(low) >= 0).all() and (np.diff(high) >= 0).all(), "more right answers never lower an end"
        assert (high - low > 0.02).all()
        for rate in np.linspace(0.02, 0.98, 49):
            covered = (low <= rate) & (rate <= high)
            chances = binom.pmf(np.arange(units + 1), units, rate)
            worst, false = min(worst, chances[covered].sum()), max(false, chances[low > rate].sum(), chances[high < rate].sum())
    assert worst >= 0.95 and false <= 0.025


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.85], ids="wordings alike: {}".format)
def test_an_interval_over_facts_with_three_wordings_holds_the_true_rate(alike):
    rng, worst = np.random.default_rng(0), 1.0
    for units in SIZES:
        for rate in (0.02, 0.1, 0.3, 0.5, 0.9, 0.98):
            odds = (1 - alike) / alike if alike else 1e6
            known = rng.beta(rate * odds, (1 - rate) * odds, (400, units))  # how likely each fact's wordings are right
            answers, groups = rng.random((3, 400, units)) < known, np.tile(np.arange(units), 3)
            found = [interval(answers[:, run].ravel(), groups) for run in range(400)]
            worst = min(worst, np.mean([i.low <= rate <= i.high for i in found]))
    assert worst >= 0.92  # 93 of 100, less what 400 runs leave to chance


def test_a_difference_holds_the_true_one_and_seldom_finds_what_is_not_there():
    rng, covered, false = np.random.default_rng(1), [], []
    rates = ((0.02, 0.02), (0.1, 0.1), (0.25, 0.25), (0.45, 0.45), (0.3, 0.1), (0.5, 0.1), (0.9, 0.0))
    for units in (6, 8, 12, 24, 60):
        for won, lost in rates if units <= 12 else rates[:4]:
            drawn = rng.random((400, units))
            steps = (drawn < won).astype(float) - ((drawn >= won) & (drawn < won + lost))
            found = [difference((row < 0), (row > 0)) for row in steps]
            covered.append(np.mean([i.low <= won - lost <= i.high for i in found]))
            if won == lost:
                false.append(np.mean([i.above().holds is True for i in found]))
    assert min(covered) >= 0.925
    assert np.mean(false) <= 0.025 and max(false) <= 0.045  # one true 2.5% shows up to 4.5% in 400 runs


@pytest.mark.parametrize("units", [1, 2, 3, 4, 5])
def test_fewer_than_six_units_never_tell(units):
    """Also when all agree: two of 2**5 sign patterns are no rarer than 6 in 100."""
    found = difference([0] * units, [1] * units)
    assert found.low <= 0 and found.above() == Outcome(None, 6) and not found.above()
    assert interval([1] * units).above(0.0) == Outcome(None, 6) == interval([0] * units).below(1.0)


def test_six_of_six_tell_and_four_of_twenty_do_not():
    assert difference([0] * 6, [1] * 6).above().holds is True
    few = difference([0] * 20, [1] * 4 + [0] * 16)  # four changed, all for the better: p is 2 of 2**4
    assert sign_flip_p([1] * 4 + [0] * 16) == pytest.approx(0.125)
    assert few.above().holds is None and few.low < 0 < few.high
    assert few.above().needed > 20


def test_more_wins_never_lower_the_interval():
    ends = [difference([0] * 12, [1] * won + [0] * (12 - won)) for won in range(13)]
    assert all(a.low <= b.low and a.high <= b.high for a, b in pairwise(ends))
    assert ends[11].low < ends[12].low < 1


def test_the_sign_flip_test_is_exact_and_close_to_students():
    assert sign_flip_p([1, 1, 1, 1, 1, 1]) == 2 / 64
    assert sign_flip_p([3, 2, 1]) == 2 / 8 and sign_flip_p([0, 0]) == sign_flip_p([5]) == 1.0
    steps = np.random.default_rng(2).normal(0.3, 1, 60)
    assert sign_flip_p(steps) == pytest.approx(ttest_1samp(steps, 0).pvalue, abs=0.01)


def test_the_interval_never_says_more_than_the_test():
    rng = np.random.default_rng(3)
    for _ in range(200):
        steps = rng.choice([-1, 0, 1], size=rng.integers(6, 20), p=[0.1, 0.5, 0.4])
        found = difference(steps < 0, steps > 0)
        if found.low > 0 or found.high < 0:
            assert sign_flip_p(steps) < 0.05


def test_wordings_of_one_fact_are_not_independent():
    facts = np.random.default_rng(3).random(40) < 0.5
    values, groups = np.repeat(facts, 3), np.repeat(np.arange(40), 3)
    grouped, alone = interval(values, groups), interval(values)
    assert grouped.high - grouped.low > 1.4 * (alone.high - alone.low)
    assert (grouped.units, grouped.count, alone.units) == (40, 120, 120)
    by_fact = interval(facts)  # the same as one value a fact
    assert (grouped.low, grouped.high) == pytest.approx((by_fact.low, by_fact.high))


def test_a_group_of_more_values_counts_for_more():
    found = interval([1, 1, 1, 1, 0, 1], ["a", "a", "a", "a", "b", "c"])
    assert found.mean == pytest.approx(5 / 6) and found.units == 3
    assert found.low <= found.mean <= found.high


def test_all_or_nothing_still_has_doubt():
    found = interval([1] * 20)
    assert (found.mean, found.high) == (1.0, 1.0) and 0.8 < found.low < 0.9
    assert interval([0] * 20).high == pytest.approx(1 - found.low)
    assert interval([True] * 60, np.repeat(np.arange(20), 3)) == Interval(1.0, found.low, 1.0, 60, 20)
    alike = difference([0, 1] * 10, [0, 1] * 10)
    assert alike.mean == 0 and alike.low == -alike.high < 0
    assert str(interval([0.5, 0.5])).startswith("50.0% (0.0% to 100")


def test_difference_is_paired():
    hard = np.random.default_rng(4).random(200)
    before, after = hard < 0.5, hard < 0.6  # after answers all that before did, and a tenth more
    paired = difference(before, after)
    assert paired.mean == pytest.approx(after.mean() - before.mean()) and paired.low > 0
    assert paired.high - paired.low < interval(after).high - interval(after).low
    with pytest.raises(ValueError, match="cannot be paired"):
        difference([1, 2], [1])
    with pytest.raises(ValueError, match="no values"):
        interval([])


def test_what_is_no_share_has_a_unit_and_students_interval():
    values = np.random.default_rng(5).normal(2.5, 0.4, 12)
    found, theirs = interval(values, unit="nats"), ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert str(found) == f"{values.mean():.2f} nats ({theirs.low:.2f} to {theirs.high:.2f})"
    assert interval([3.0], unit="nats").high == np.inf  # one value tells nothing about the next
    longer = difference(values, values + 1 + np.arange(12) / 10, unit="nats")
    assert longer.above() and longer.unit == "nats"
    alike = interval([2.5] * 10, unit="nats")  # no spread is known, so no number of units is promised
    assert alike.low == -np.inf and alike.above(2) == Outcome(None)
    with pytest.raises(ValueError, match="1 of 2 values are no numbers"):
        interval([1.0, np.nan], unit="nats")
    with pytest.raises(ValueError, match=r"2\.5.*unit='nats'"):
        interval([0.5, 2.5])


def test_an_unpaired_difference_holds_the_true_one():
    rng, covered = np.random.default_rng(6), []
    for units in (6, 12, 40):
        for one, other in ((0.1, 0.1), (0.5, 0.5), (0.2, 0.6), (0.02, 0.9)):
            found = [
                unpaired_difference(interval(rng.random(units) < one), interval(rng.random(units) < other)) for _ in range(400)
            ]
            covered.append(np.mean([i.low <= other - one <= i.high for i in found]))
    assert min(covered) >= 0.93
    assert every(True, found[0].above(), Outcome(None)).holds is None and every().holds is True


def test_different_units_are_not_compared():
    with pytest.raises(ValueError, match="% and nats cannot be compared"):
        unpaired_difference(interval([0, 1]), interval([2.0, 3.0], unit="nats"))


@pytest.mark.parametrize("sizes", [[1, 3] * 6, [10, *[1] * 11], [1, 1, 2, 4, 8, 16] * 2], ids=str)
def test_groups_of_unequal_size_hold_the_true_rate_too(sizes):
    rng, groups = np.random.default_rng(7), np.repeat(np.arange(len(sizes)), sizes)
    for rate in (0.1, 0.5, 0.9):
        known = rng.random((300, len(sizes))) < rate  # all of a group alike
        found = [interval(run[groups], groups) for run in known]
        assert np.mean([i.low <= rate <= i.high for i in found]) >= 0.92  # 93 of 100, less what 300 runs leave to chance
