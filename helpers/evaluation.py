"""Evaluation: is an answer right, what does the model find likely, is a finetune better, and how sure are we."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from operator import and_
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from scipy.stats import beta, norm, permutation_test, t

from helpers.attention import flat_attention
from helpers.data import DataError, Example
from helpers.generation import generate
from helpers.machine.device import pick_dtype
from helpers.machine.progress import bar_if_long
from helpers.text.judging import REFUSALS, judgements
from helpers.text.normalise import normalise
from helpers.tokenization import IGNORED, Batch, Row, encode, flatten
from helpers.training import supervised_logits, token_losses

# What choosing is asked in: the frame of lm-evaluation-harness's own tasks.
_QUESTION, _CHOICE = "Question: {}\nAnswer:", " {}"


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
        open_ = [outcome.needed for outcome in (self, other) if outcome.holds is None]
        return Outcome(None, None if None in open_ else max(open_)) if open_ else Outcome(True)

    def __or__(self, other: "Outcome") -> "Outcome":
        """Ask for one of two conditions: one that holds decides, then one that cannot be told."""
        both = (self.holds, other.holds)
        return Outcome(True) if True in both else Outcome(None) if None in both else Outcome(False)


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


def _by_unit(values: np.ndarray, groups: Sequence | None) -> tuple[np.ndarray, np.ndarray]:
    """Add up the values of each group, and count them: [units] and [units]. Without groups each value is its own."""
    labels = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    return np.bincount(labels, weights=values), np.bincount(labels)


def _mean_interval(values: np.ndarray, groups: Sequence | None, ends: tuple[float, float], unit: str) -> Interval:
    """Compute the interval of a mean; `ends` are the least and the greatest that a share, or a difference of two, can be."""
    if not len(values):
        raise ValueError("There are no values to take an interval of. Check that the evaluation set is not empty.")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are no numbers. Look at what was measured.")
    sums, sizes = _by_unit(values, groups)
    # a group of more values counts for more: its sum is compared with what the mean promises for its size
    units = values.mean() + (sums - values.mean() * sizes) * len(sizes) / len(values)
    if unit == "%":
        if values.min() < ends[0] or values.max() > ends[1]:
            raise ValueError(
                f"Shares lie between 0 and 1; here is {values.min():.3g} to {values.max():.3g}. Name what it is: unit='nats'."
            )
        doubtful = np.append(units, ends)  # one unit more at each end: all or nothing in a sample is no certainty
    else:
        doubtful = units
    reach = np.inf
    effective = sizes.sum() ** 2 / (sizes**2).sum()  # of unequal groups a few decide: they are worth fewer (Kish 1965)
    if effective > 1 and np.ptp(doubtful) > 0:
        reach = t.ppf(0.975, effective - 1) * doubtful.std(ddof=1) / math.sqrt(effective + len(doubtful) - len(units))
    low, high = doubtful.mean() - reach, doubtful.mean() + reach
    if unit == "%" and ends[0] == 0:  # never narrower than the exact interval of so many units, each right or wrong
        right, wrong = values.mean() * effective, (1 - values.mean()) * effective
        low = min(low, beta.ppf(0.025, right, wrong + 1)) if right > 0 else 0.0
        high = max(high, beta.ppf(0.975, right + 1, wrong)) if wrong > 0 else 1.0
    if unit == "%":
        low, high = max(low, ends[0]), min(high, ends[1])
    return Interval(float(values.mean()), float(low), float(high), len(values), len(units), unit)


def interval(values: Sequence[float], groups: Sequence | None = None, unit: str = "%") -> Interval:
    """Compute a mean and its 95% interval.

    groups: one label a value. Values of one group, such as wordings of one fact, rise and fall together, so the group is
    the unit; treating them as independent would make the interval too narrow. Without labels each value is its own group.
    unit: "%" for shares from 0 to 1, such as right or wrong; else what the values are, such as "nats" or "seconds".

    Student's t interval over the units. For shares with one unit added at 0 and one at 1, so that it is wide enough for few
    units and for rates near 0 or 1, and never narrower than the exact binomial interval of so many units: between 6 and 80
    units and rates from 2 to 98% it holds the true rate in at least 95 of 100 samples, and lies above it in at most 2.5
    (counted in the tests). Sources: Agresti and Coull 1998, who add two at each end to a normal interval,
    https://doi.org/10.1080/00031305.1998.10480550; Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404
    """
    return _mean_interval(np.asarray(values, dtype=float), groups, (0.0, 1.0), unit)


def difference(before: Sequence[float], after: Sequence[float], groups: Sequence | None = None, unit: str = "%") -> Interval:
    """Compute how much `after` lies above `before` on the same questions, with its paired 95% interval.

    The interval is that of `interval` (for shares, one unit added at -1 and one at 1: Bonett and Price 2012,
    https://doi.org/10.3102/1076998611411915). It excludes zero only where a sign-flip permutation test over the units
    agrees (p below 0.05; all sign patterns where they are few): were both alike, each unit's difference could as well have
    come out the other way round.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired. Use the same questions.")
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    found = _mean_interval(after - before, groups, (-1.0, 1.0), unit)
    if (found.low > 0 or found.high < 0) and sign_flip_p(_by_unit(after - before, groups)[0]) >= 0.05:
        return replace(found, low=min(found.low, 0.0), high=max(found.high, 0.0))
    return found


def unpaired_difference(before: Interval, after: Interval) -> Interval:
    """Compute how much `after` lies above `before` when the two were measured on different units.

    The distances to the ends are squared and added. Source: Newcombe 1998, Interval estimation for the difference between
    independent proportions, Statistics in Medicine 17, method 10.
    """
    gap = after.mean - before.mean
    low = gap - math.hypot(after.mean - after.low, before.high - before.mean)
    high = gap + math.hypot(after.high - after.mean, before.mean - before.low)
    return Interval(gap, low, high, before.count + after.count, min(before.units, after.units), after.unit)


def every(*outcomes: Outcome | bool) -> Outcome:
    """Join several conditions of one sentence, all of which have to hold; see `Outcome`."""
    return reduce(and_, outcomes, Outcome(True))


def sign_flip_p(differences: Sequence[float]) -> float:
    """Test whether paired differences, one a unit, could as well have the other sign: the two-sided p value.

    Exact where up to 13 units differ, from 9,999 sign patterns drawn at random where more do.
    """
    differences = np.asarray(differences, dtype=float)
    differences = differences[differences != 0]  # these have no sign
    if len(differences) < 2:
        return 1.0
    return permutation_test(
        (differences, np.zeros_like(differences)),
        lambda one, other, axis: (one - other).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9999,
        rng=np.random.default_rng(0),
    ).pvalue


def judge(examples: Sequence[Example], answers: Sequence[str], refusals: Sequence[str] = REFUSALS) -> pd.DataFrame:
    """Judge one answer for each example; a table with one row each.

    refusals: the sentences by which an answer declines; the usual ones are known beside them.
    fact: what the question is about, its facts or else itself: answers about the same rise and fall together.
    correct: the values that the answer asserts are the wanted ones; where there are none, it was declined.
    hallucinated: it asserts a wrong value, or one where the handbook has none.
    empty: it asserts nothing, and does not decline either: no answer, or an evasive one.
    asserted: the values, as they were compared.
    """
    records = [
        {
            "id": example.id,
            "kind": example.kind,
            "fact": "+".join(example.facts) or example.key,
            "question": example.question,
            "answer": answer,
            "expected": example.answer,
            **asdict(judgement),
            "words": len(answer.split()),
        }
        for example, answer, judgement in zip(examples, answers, judgements(examples, answers, refusals), strict=True)
    ]
    return pd.DataFrame(records)


def read_labelled(path: str | Path) -> pd.DataFrame:
    """Read answers that were labelled by reading, and judge them too: a row each, with `label` beside `judged`.

    label: right, wrong, declined or empty.  hallucinated: by the reader; `judged hallucinated`: by the judge.
    """
    table = pd.read_json(path, lines=True, dtype=False)
    parts = []
    for refusal, part in table.groupby(table["refusal"].fillna(""), sort=False):
        examples = [
            Example(row.question, row.reference, row.id, row.kind, tuple(row.facts), tuple(row.values_))
            for row in part.rename(columns={"values": "values_"}).itertuples()
        ]
        judged = judge(examples, part["answer"].tolist(), [refusal] if refusal else REFUSALS).set_index(part.index)
        named = judged["refused"].map({True: "declined", False: "wrong"}).mask(judged["empty"], "empty")
        named = named.mask(judged["correct"] & judged["answerable"], "right")
        parts.append(part.assign(**{"judged": named, "judged hallucinated": judged["hallucinated"]}))
    return pd.concat(parts).sort_index()


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


def _batches(model, rows: Sequence[Row], size: int = 32) -> Iterator[tuple[list[int], Batch]]:
    """Yield flat batches of rows of like length, each with the places of its rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with flat_attention(model), bar_if_long(rows, size, "reading", "row") as bar:
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            yield chosen, flatten([rows[i] for i in chosen], model.device)
            bar.update(len(chosen))


@torch.no_grad()
def log_likelihoods(model, rows: Sequence[Row], dtype: torch.dtype | None = None) -> np.ndarray:
    """Compute how likely the model finds each row's supervised tokens: the log-probability of the whole answer, in nats.

    Returns an array [rows], in their order. One pass over the text, no generation.
    Raises FloatingPointError when the model's numbers are none, as when they are too large for float16.
    """
    scores = np.zeros(len(rows))
    for chosen, batch in _batches(model, rows):
        losses = token_losses(model, batch, dtype or pick_dtype(model.device))
        scores[chosen] = [-part.sum().item() for part in losses.split([rows[i].supervised for i in chosen])]
    if np.isnan(scores).any():
        raise FloatingPointError("The model's likelihoods are no numbers. If it computes in float16, use dtype=torch.float32.")
    return scores


@torch.no_grad()
def writes_exactly(model, rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Tell for each row whether the model, asked greedily, would write its supervised tokens and stop: [rows] of bool.

    It does when each of them is the likeliest after those before it. So one pass decides what `generate` would need a
    pass a token for.
    """
    exact = np.zeros(len(rows), dtype=bool)
    for chosen, batch in _batches(model, rows):
        hits = supervised_logits(model, batch, dtype).argmax(dim=-1) == batch.targets
        exact[chosen] = [part.all().item() for part in hits.split([rows[i].supervised for i in chosen])]
    return exact


def text_row(tokenizer, text: str) -> Row:
    """Encode plain text, each token but the first to be predicted from those before it."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    return Row(ids, [IGNORED, *ids[1:]])


def mean_losses(model, rows: Sequence[Row], dtype: torch.dtype | None = None) -> np.ndarray:
    """Compute the loss of each row, in nats a supervised token: [rows]. Its exponential is the perplexity.

    A perplexity of 20 says that the model was as unsure as if it had to guess among 20 equally likely tokens.
    """
    return -log_likelihoods(model, rows, dtype) / [row.supervised for row in rows]


@dataclass(frozen=True)
class Choice:
    """A question with several answers to choose from; `answer` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_choices(path: str | Path) -> list[Choice]:
    """Read multiple-choice questions from JSON Lines with `question`, `choices` and `answer`, an index.

    Raises DataError with file, line and remedy.
    """
    found = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            found.append(Choice(row["question"], tuple(row["choices"]), range(len(row["choices"]))[row["answer"]]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            reason = f"{type(error).__name__}: {error}"
            remedy = 'Each line needs {"question": text, "choices": [texts], "answer": index}.'
            raise DataError(f"{path}, line {number}: not a multiple-choice question ({reason}). {remedy}") from None
    return found


def choose(model, tokenizer, questions: Sequence[Choice], chat: bool = False, dtype: torch.dtype | None = None) -> pd.DataFrame:
    """Let the model choose: the answer that it finds the likeliest. A table with one row a question.

    correct: by the likelihood of the whole answer, in which a long one is at a disadvantage.
    normalised: right by likelihood a character, which evens that out. Both as lm-evaluation-harness counts them.
    confidence: the share of the chosen answer when the likelihoods of all are made to add up to 1.
    chat: ask inside the chat template, as a user does, and not as plain text.
    """
    rows, records = [], []
    for asked in questions:
        for choice in asked.choices:
            if chat:
                rows.append(encode(tokenizer, Example(asked.question, choice)))
                continue
            prompt = tokenizer(_QUESTION.format(asked.question), add_special_tokens=False).input_ids
            whole = tokenizer(_QUESTION.format(asked.question) + _CHOICE.format(choice), add_special_tokens=False).input_ids
            rows.append(Row(whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
    scores = iter(np.split(log_likelihoods(model, rows, dtype), np.cumsum([len(asked.choices) for asked in questions])[:-1]))
    for asked, likelihoods in zip(questions, scores, strict=True):
        a_character = likelihoods / [len(choice) for choice in asked.choices]
        records.append(
            {
                "question": asked.question,
                "chosen": asked.choices[likelihoods.argmax()],
                "correct": likelihoods.argmax() == asked.answer,
                "normalised": a_character.argmax() == asked.answer,
                "confidence": softmax(likelihoods).max(),
                "likelihoods": likelihoods.tolist(),
            }
        )
    return pd.DataFrame(records)


def consistent(table: pd.DataFrame) -> pd.Series:
    """Tell for each fact asked in two or more wordings whether all its answers assert the same value, right or wrong.

    The words around the value do not matter. Answers that assert nothing do not agree on anything. Facts with one wording
    are left out.
    """
    facts = table.assign(question=table["question"].map(normalise)).groupby("fact")
    several = facts["question"].nunique() > 1
    agree = (facts["asserted"].nunique() == 1) & facts["asserted"].agg(lambda values: all(values))
    return agree[several].astype(bool)


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Summarise a judged table: a row for each kind of question, with the accuracy's interval."""
    rows = []
    for kind, part in table.groupby("kind", sort=False):
        accuracy = interval(part["correct"], part["fact"])
        rows.append(
            {
                "kind": kind,
                "questions": len(part),
                "accuracy": accuracy.mean,
                "low": accuracy.low,
                "high": accuracy.high,
                "hallucinated": part["hallucinated"].mean(),
                "refused": part["refused"].mean(),
                "empty": part["empty"].mean(),
                "words": part["words"].mean(),
            }
        )
    return pd.DataFrame(rows).set_index("kind")
