"""Evaluation: is an answer right (`judge`), is a finetune better (`difference`), and how sure are we (`interval`)."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import beta, permutation_test, t

from helpers.data import Example
from helpers.generation import generate
from helpers.text.judging import REFUSALS, judgements
from helpers.text.normalise import normalise
from helpers.text.outcome import Interval


def evaluate(
    model,
    tokenizer,
    examples: Sequence[Example],
    max_new_tokens: int = 48,
    progress: str | None = None,
    refusals: Sequence[str] = REFUSALS,
) -> pd.DataFrame:
    """Ask the model every question, all in batches, and judge its answers; see `judge` for the table."""
    answers = generate(model, tokenizer, [example.asked for example in examples], max_new_tokens, progress=progress)
    return judge(examples, answers, refusals)


def judge(examples: Sequence[Example], answers: Sequence[str], refusals: Sequence[str] = REFUSALS) -> pd.DataFrame:
    """Judge one answer for each example; a table with one row each.

    refusals: the sentences by which an answer declines; the usual ones ("I do not know") count beside them.
    fact: what the question is about (`about`): answers about the same rise and fall together.
    correct: the values that the answer asserts are the wanted ones; where there are none, it was declined.
    answerable: there is a value to be told.  refused: the answer declines.  words: how many it has.
    hallucinated: it asserts a wrong value, or one where the handbook has none; off topic, nothing is.
    empty: it asserts nothing, and does not decline either: no answer, or an evasive one.
    asserted: the values, as they were compared.
    """
    records = [
        {
            "id": example.id,
            "kind": example.kind,
            "fact": about(example),
            "question": example.question,
            "answer": answer,
            "expected": example.answer,
            **asdict(judgement),
            "words": len(answer.split()),
        }
        for example, answer, judgement in zip(examples, answers, judgements(examples, answers, refusals), strict=True)
    ]
    return pd.DataFrame(records)


def about(example: Example) -> str:
    """Name what a question is about: its facts; of an unanswerable one the product it names; else the question itself.

    The product is the first capitalised word, of two letters or more, that does not begin a sentence. Two questions about
    one product that does not exist are answered, or declined, alike.
    """
    name = re.search(r"(?<![.?!:] )(?<!^)\b[A-Z]\w+", example.question) if example.kind == "unanswerable" else None
    return "+".join(example.facts) or (name.group() if name else example.key)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise a judged table: a row for each kind of question, with the accuracy and the ends of its interval."""
    kinds = table.groupby("kind", sort=False)
    found = {kind: interval(part["correct"], part["fact"]) for kind, part in kinds}
    rows = [{"questions": i.count, "accuracy": i.mean, "low": i.low, "high": i.high} for i in found.values()]
    shares = kinds[["hallucinated", "refused", "empty", "words"]].mean()
    return pd.DataFrame(rows, index=pd.Index(found, name="kind")).join(shares)


def consistent(table: pd.DataFrame) -> pd.Series:
    """Tell for each fact asked in two or more wordings whether all its answers assert the same value, right or wrong.

    The words around the value do not matter. Answers that assert nothing do not agree on anything. Facts with one wording
    are left out, and so are unanswerable questions: of one product they ask different things.
    """
    asked = table[table["kind"] != "unanswerable"]
    facts = asked.assign(question=asked["question"].map(normalise)).groupby("fact")
    several = facts["question"].nunique() > 1
    agree = (facts["asserted"].nunique() == 1) & facts["asserted"].agg(lambda values: all(values))
    return agree[several].astype(bool)


def interval(values: ArrayLike, groups: ArrayLike | None = None, unit: str = "%") -> Interval:
    """Compute a mean and its 95% interval.

    groups: one label a value. Values of one group, such as wordings of one fact, rise and fall together, so the group is
    the unit; treating them as independent would make the interval too narrow. Without labels each value is its own group.
    unit: "%" for shares from 0 to 1, such as right or wrong; else what the values are, such as "nats" or "seconds". Where
    these are all equal, or there is but one unit, nothing tells how much they vary: the interval has no ends.

    Student's t interval over the units. For shares with one unit added at 0 and one at 1, so that it is wide enough for few
    units and for rates near 0 or 1, and never narrower than the exact binomial interval of so many units: between 6 and 80
    units and rates from 2 to 98% it holds the true rate in at least 95 of 100 samples, and lies above it in at most 2.5
    (counted in the tests). Sources: Agresti and Coull 1998, who add two at each end to a normal interval,
    https://doi.org/10.1080/00031305.1998.10480550; Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404
    """
    return _mean_interval(np.asarray(values, dtype=float), groups, (0.0, 1.0), unit)


def difference(before: ArrayLike, after: ArrayLike, groups: ArrayLike | None = None, unit: str = "%") -> Interval:
    """Compute how much `after` lies above `before` on the same questions, with its paired 95% interval.

    The interval is that of `interval` (for shares, one unit added at -1 and one at 1: Bonett and Price 2012,
    https://doi.org/10.3102/1076998611411915). It excludes zero only where a sign-flip permutation test over the units
    agrees (p below 0.05; all sign patterns where they are few): were both alike, each unit's difference could as well have
    come out the other way round.
    """
    old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if len(old) != len(new):
        raise ValueError(f"{len(old)} values before and {len(new)} after cannot be paired. Use the same questions.")
    found = _mean_interval(new - old, groups, (-1.0, 1.0), unit)
    if (found.low > 0 or found.high < 0) and sign_flip_p(_by_unit(new - old, groups)[0]) >= 0.05:
        return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
    return found


def unpaired_difference(before: Interval, after: Interval) -> Interval:
    """Compute how much `after` lies above `before` when the two were measured on different units.

    The distances to the ends are squared and added. Source: Newcombe 1998, Interval estimation for the difference between
    independent proportions, Statistics in Medicine 17, method 10.
    """
    if before.unit != after.unit:
        raise ValueError(f"{before.unit} and {after.unit} cannot be compared. Measure both in the same unit.")
    gap = after.mean - before.mean
    low = gap - math.hypot(after.mean - after.low, before.high - before.mean)
    high = gap + math.hypot(after.high - after.mean, before.mean - before.low)
    return Interval(gap, low, high, before.count + after.count, min(before.units, after.units), after.unit)


def _mean_interval(values: np.ndarray, groups: ArrayLike | None, ends: tuple[float, float], unit: str) -> Interval:
    """Compute the interval of a mean; `ends` are the least and the greatest that a share, or a difference of two, can be."""
    if not len(values):
        raise ValueError("There are no values to take an interval of. Check that the evaluation set is not empty.")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are no numbers. Look at what was measured.")
    if unit == "%" and (values.min() < ends[0] or values.max() > ends[1]):
        found = f"{values.min():.3g} to {values.max():.3g}"
        raise ValueError(f"Shares lie between 0 and 1; here is {found}. Name what it is: unit='nats'.")
    sums, sizes = _by_unit(values, groups)
    # a group of more values counts for more: its sum is compared with what the mean promises for its size
    units = values.mean() + (sums - values.mean() * sizes) * len(sizes) / len(values)
    # of shares one unit more at each end: all or nothing in a sample is no certainty
    doubtful = np.append(units, ends) if unit == "%" else units
    reach, paired = np.inf, ends[0] < 0
    effective = sizes.sum() ** 2 / (sizes**2).sum()  # of unequal groups a few decide: they are worth fewer (Kish 1965)
    if effective > 1 and np.ptp(doubtful) > 0:
        reach = t.ppf(0.975, effective - 1) * doubtful.std(ddof=1) / math.sqrt(effective + len(doubtful) - len(units))
    low, high = doubtful.mean() - reach, doubtful.mean() + reach
    if unit == "%" and not paired:  # never narrower than the exact interval of so many units, each right or wrong
        right, wrong = values.mean() * effective, (1 - values.mean()) * effective
        low = min(low, beta.ppf(0.025, right, wrong + 1)) if right > 0 else 0.0
        high = max(high, beta.ppf(0.975, right + 1, wrong)) if wrong > 0 else 1.0
    if unit == "%":
        low, high = max(low, ends[0]), min(high, ends[1])
    return Interval(float(values.mean()), float(low), float(high), len(values), len(units), unit)


def _by_unit(values: np.ndarray, groups: ArrayLike | None) -> tuple[np.ndarray, np.ndarray]:
    """Add up the values of each group, and count them: [units] and [units]. Without groups each value is its own."""
    labels = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    return np.bincount(labels, weights=values), np.bincount(labels)


def sign_flip_p(differences: ArrayLike) -> float:
    """Test whether paired differences, one a unit, could as well have the other sign: the two-sided p value.

    Exact where up to 13 units differ, from 9,999 sign patterns drawn at random where more do.
    """
    steps = np.asarray(differences, dtype=float)
    steps = steps[steps != 0]  # the others have no sign
    if len(steps) < 2:
        return 1.0
    return permutation_test(
        (steps, np.zeros_like(steps)),
        lambda one, other, axis: (one - other).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).pvalue
