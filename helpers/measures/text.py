"""Measures: how near an answer comes to its reference, by several rulers; and how well a model declines."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from helpers.data import Example
from helpers.evaluation import interval, judge
from helpers.retrieval.search import embed
from helpers.text.judging import REFUSALS
from helpers.text.normalise import normalise
from helpers.text.outcome import Interval


def measure(examples: Sequence[Example], answers: Sequence[str], refusals: Sequence[str] = REFUSALS) -> pd.DataFrame:
    """Measure each answer against its reference by every ruler: a table with one row each, from 0 (bad) to 1."""
    references = [example.answer for example in examples]
    pairs = list(zip(answers, references, strict=True))
    return pd.DataFrame(
        {
            "exact match": [float(exact_match(*pair)) for pair in pairs],
            "token F1": [token_f1(*pair) for pair in pairs],
            "ROUGE-L": [rouge_l(*pair) for pair in pairs],
            "similarity": similarity(answers, references),
            "value match": judge(examples, answers, refusals)["correct"].astype(float),
        }
    )


def exact_match(answer: str, reference: str) -> bool:
    """Tell whether two texts are the same but for case, spaces, and marks that carry no meaning: C++ is not C#.

    For what is asked for with nothing beside it: a label, a name, a number.
    """
    return normalise(answer) == normalise(reference)


def same_form(answer: str, reference: str) -> bool:
    """Tell whether two texts are the same to the letter, but for spaces around lines: where the form is what was asked for."""
    ours, theirs = ([line.strip() for line in text.strip().splitlines()] for text in (answer, reference))
    return ours == theirs


def token_f1(answer: str, reference: str) -> float:
    """Compute the overlap of words, from 0 to 1: the harmonic mean of precision and recall, articles left out.

    Source: Rajpurkar et al. 2016, SQuAD, https://arxiv.org/abs/1606.05250
    """
    ours, theirs = (
        [word for word in normalise(text).split() if word not in ("a", "an", "the")] for text in (answer, reference)
    )
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else float(ours == theirs)


def rouge_l(answer: str, reference: str) -> float:
    """Compute ROUGE-L, from 0 to 1: the F-measure of the longest common subsequence of words.

    Source: Lin 2004, https://aclanthology.org/W04-1013; Google's library `rouge_score` does it.
    """
    from rouge_score.rouge_scorer import RougeScorer  # it takes two seconds to load

    return RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure


def similarity(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Compute how close each answer is in meaning to its reference: the cosine of their embeddings, [answers]."""
    return (embed(answers) * embed(references)).sum(axis=1)


def refusal(table: pd.DataFrame) -> dict[str, Interval | None]:
    """Take from a judged table how well the model declines.

    precision: of the questions that it declined, how many were to be declined.  None: it declined none.
    recall: of the questions that were to be declined, how many it did decline.  None: there were none.
    """
    declined, to_decline = table["refused"], ~table["answerable"]
    groups = table["fact"]
    return {
        "precision": interval(to_decline[declined], groups[declined]) if declined.any() else None,
        "recall": interval(declined[to_decline], groups[to_decline]) if to_decline.any() else None,
    }
