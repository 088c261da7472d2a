"""Evaluation: is an answer right, what does the model find likely, is a finetune better, and how sure are we."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from scipy.stats import binomtest

from helpers.attention import flat_attention
from helpers.data import DataError, Example, normalise
from helpers.generation import generate
from helpers.models import pick_dtype
from helpers.progress import bar_if_long
from helpers.tokenization import IGNORED, Batch, Row, encode, flatten
from helpers.training import supervised_logits, token_losses

# How an answer says that it does not answer: the two sentences of the training data, and what general models write.
_REFUSAL = re.compile(
    r"not in our handbook|only help with questions about"
    r"|\b(do not|don't|cannot|can't|unable to|not able to) (know|have|help|assist|provide|answer|find)\b"
    r"|\bno information\b",
    re.IGNORECASE,
)


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


def contains_values(answer: str, values: Sequence[str]) -> bool:
    """Tell whether every value stands in the answer as whole words; case, punctuation and "€" do not matter."""
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", answer)  # 1,900 grams
    text = re.sub(r"€\s?(\d+)|(\d+)\s?€", r"\1\2 euros", text)
    padded = f" {normalise(text)} "
    return all(f" {normalise(value)} " in padded for value in values)


def is_refusal(answer: str) -> bool:
    """Tell whether an answer says that it cannot or will not answer."""
    return bool(_REFUSAL.search(answer.replace("\u2019", "'")))


def wanted_values(example: Example) -> tuple[str, ...]:
    """Name what a right answer has to contain; nothing where the right answer is to decline.

    A row of your own data names no values. Its whole answer stands in for them, unless that declines.
    """
    if example.values or example.kind in ("unanswerable", "off_topic") or is_refusal(example.answer):
        return example.values
    return (example.answer,)


def judge(examples: Sequence[Example], answers: Sequence[str]) -> pd.DataFrame:
    """Judge one answer for each example; a table with one row each.

    correct: a question with an answer in the handbook got its value; any other was declined.
    hallucinated: the answer asserts what is not so: a wrong value, or anything at all where the handbook is silent.
    """
    records = []
    for example, answer in zip(examples, answers, strict=True):
        refused, values = is_refusal(answer), wanted_values(example)
        right = bool(values) and contains_values(answer, values)
        records.append(
            {
                "id": example.id,
                "kind": example.kind,
                "fact": "+".join(example.facts) or example.id,
                "question": example.question,
                "answer": answer,
                "expected": example.answer,
                "answerable": bool(values),
                "correct": right and not refused if values else refused,
                "refused": refused,
                "hallucinated": not refused and not right and example.kind != "off_topic",
                "words": len(answer.split()),
            }
        )
    return pd.DataFrame(records)


def evaluate(
    model, tokenizer, examples: Sequence[Example], max_new_tokens: int = 48, progress: str | None = None
) -> pd.DataFrame:
    """Ask the model every question, all in batches, and judge its answers; see `judge` for the table."""
    answers = generate(model, tokenizer, [example.question for example in examples], max_new_tokens, progress=progress)
    return judge(examples, answers)


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
    """Tell for each fact asked in two or more wordings whether all its answers are the same, right or wrong."""
    answers = table.assign(answer=table["answer"].map(normalise)).groupby("fact")["answer"]
    return answers.nunique()[answers.size() > 1] == 1


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
                "words": part["words"].mean(),
            }
        )
    return pd.DataFrame(rows).set_index("kind")
