"""Evaluation: is an answer right, what does the model find likely, is a finetune better, and how sure are we."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from scipy.stats import binomtest

from helpers.attention import flat_attention
from helpers.data import DataError, Example, normalise
from helpers.generation import generate
from helpers.judging import REFUSALS, judgements
from helpers.models import pick_dtype
from helpers.tokenization import IGNORED, Batch, Row, encode, flatten
from helpers.training import supervised_logits, token_losses

# What choosing is asked in: the frame of lm-evaluation-harness's own tasks.
_QUESTION, _CHOICE = "Question: {}\nAnswer:", " {}"


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval, and the number of values behind it."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        """Write it as percentages."""
        return f"{self.mean:.1%} ({self.low:.1%} to {self.high:.1%})"


def interval(values: Sequence[float], groups: Sequence | None = None, samples: int = 2000, seed: int = 0) -> Interval:
    """Compute a mean and its 95% bootstrap interval.

    groups: one label a value. Values of one group, such as wordings of one fact, rise and fall together, so whole
    groups are redrawn; treating them as independent would make the interval too narrow. Without labels each value is
    its own group.
    When all values are 0, or all 1, redrawing cannot show any doubt; the Wilson interval of the groups stands in.
    """
    values = np.asarray(values, dtype=float)
    if not len(values):
        raise ValueError("There are no values to take an interval of. Check that the evaluation set is not empty.")
    labels = np.unique(np.arange(len(values)) if groups is None else np.asarray(groups), return_inverse=True)[1]
    sums, sizes = np.bincount(labels, weights=values), np.bincount(labels)
    mean = values.mean()
    if np.ptp(values) == 0 and mean in (0, 1):
        ci = binomtest(int(mean * len(sizes)), len(sizes)).proportion_ci(method="wilson")
        return Interval(mean, ci.low, ci.high, len(values))
    drawn = np.random.default_rng(seed).integers(len(sizes), size=(samples, len(sizes)))
    low, high = np.percentile(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1), [2.5, 97.5])
    return Interval(mean, low, high, len(values))


def difference(before: Sequence[float], after: Sequence[float], groups: Sequence | None = None, **options) -> Interval:
    """Compute how much `after` lies above `before` on the same questions, with its paired bootstrap interval.

    It is above zero beyond chance when the interval's low end is.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired. Use the same questions.")
    found = interval(np.asarray(after, dtype=float) - np.asarray(before, dtype=float), groups, **options)
    if found.mean == found.low == 0 < found.high:  # all alike: doubt on both sides
        return replace(found, low=-found.high)
    return found


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
            "fact": "+".join(example.facts) or normalise(example.question) or example.question,
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
    answers = generate(model, tokenizer, [example.question for example in examples], max_new_tokens, progress=progress)
    return judge(examples, answers, refusals)


def _batches(model, rows: Sequence[Row], size: int = 32) -> Iterator[tuple[list[int], Batch]]:
    """Yield flat batches of rows of like length, each with the places of its rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with flat_attention(model):
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            yield chosen, flatten([rows[i] for i in chosen], model.device)


@torch.no_grad()
def log_likelihoods(model, rows: Sequence[Row], dtype: torch.dtype | None = None) -> np.ndarray:
    """Compute how likely the model finds each row's supervised tokens: the log-probability of the whole answer, in nats.

    Returns an array [rows], in their order. One pass over the text, no generation.
    """
    scores = np.zeros(len(rows))
    for chosen, batch in _batches(model, rows):
        losses = token_losses(model, batch, dtype or pick_dtype(model.device))
        scores[chosen] = [-part.sum().item() for part in losses.split([rows[i].supervised for i in chosen])]
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
