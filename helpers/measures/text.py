"""Measures: how near an answer comes to its reference, by several rulers; refusals, calibration, and kinds of error."""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu

from helpers.data import Example
from helpers.evaluation import Interval, interval, judge
from helpers.text.judging import REFUSALS, contains_values, judgements, wanted_values
from helpers.text.normalise import normalise

# Kinds of error, the most harmful first: what sounds sure and is not so comes before what is merely no use.
ERRORS = (
    "answered the unanswerable",
    "wrong value",
    "off topic",
    "misspelt",
    "false refusal",
    "no answer",
    "repetitive",
    "too long",
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
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure


def similarity(answers: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Compute how close each answer is in meaning to its reference: the cosine of their embeddings, [answers]."""
    from helpers.retrieval.search import embed

    return (embed(answers) * embed(references)).sum(axis=1)


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


def separation(scores: Sequence[float], right: Sequence[bool]) -> float:
    """Compute how well a measure tells right answers from wrong ones: how often a right one scores higher.

    1: always.  0.5: no better than a coin.  Equal scores count half. Known as the area under the ROC curve.
    Raises ValueError when all answers are right, or all wrong.
    """
    scores, right = np.asarray(scores, dtype=float), np.asarray(right, dtype=bool)
    if right.all() or not right.any():
        raise ValueError("There have to be right and wrong answers to tell apart. Take more questions, or another model.")
    return mannwhitneyu(scores[right], scores[~right]).statistic / (right.sum() * (~right).sum())


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


def reliability(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> pd.DataFrame:
    """Group answers by how sure the model was, in steps of 1 / bins: mean confidence, share right, and count of each."""
    table = pd.DataFrame({"confidence": np.asarray(confidence, float), "right": np.asarray(right, float)})
    group = np.minimum((table["confidence"] * bins).astype(int), bins - 1)
    return table.groupby(group).agg(confidence=("confidence", "mean"), right=("right", "mean"), count=("right", "size"))


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Compute by how much confidence and accuracy differ on average, from 0 (calibrated) to 1.

    Known as expected calibration error. Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599
    """
    table = reliability(confidence, right, bins)
    return float((table["count"] * (table["confidence"] - table["right"]).abs()).sum() / table["count"].sum())


def is_repetitive(answer: str) -> bool:
    """Tell whether an answer goes round in circles: the same three words or more, three times in a row."""
    return bool(re.search(r"\b(\w+(?: \w+){2,}?)(?: \1){2}\b", normalise(answer)))


def is_misspelt(answer: str, value: str, known: Sequence[str] = ()) -> bool:
    """Tell whether the answer holds something that is nearly the value: letters off, but each number as it should be.

    known: values of other facts. What comes at least as near to one of them is that one, and no slip of the pen.
    """
    value, words = normalise(value), normalise(answer).split()
    size = len(value.split())
    near = max((" ".join(words[i : i + size]) for i in range(len(words))), key=lambda text: _alike(text, value), default="")
    others = [other for text in known if (other := normalise(text)) != value]
    same_numbers = re.findall(r"\d+", near) == re.findall(r"\d+", value)
    return same_numbers and 0.8 <= _alike(near, value) < 1 and all(_alike(near, o) < _alike(near, value) for o in others)


def _alike(one: str, other: str) -> float:
    """Compute how alike two texts are, letter by letter, from 0 to 1."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def error_kinds(examples: Sequence[Example], answers: Sequence[str], refusals: Sequence[str] = REFUSALS) -> list[str]:
    """Name what is wrong with each answer: one of ERRORS, or "right". What is right, `evaluation.judge` decides.

    The first rule that fits decides:
    a right answer may be repetitive (the same words thrice in a row) or too long (more than twice the reference's words
    and ten), else nothing is wrong with it;
    a question to be declined was not: the answer says nothing, or is off topic (to a question that is off topic), or
    answers the unanswerable;
    a refusal of any other is false;  the same words thrice in a row are repetitive;
    with nearly the value, it is misspelt;  without a word of the reference that says what it is about, it is off topic;
    what asserts nothing is no answer;  and else it has a wrong value.
    """
    known = sorted({value for example in examples for value in example.values})
    kinds = []
    for example, answer, judged in zip(examples, answers, judgements(examples, answers, refusals), strict=True):
        values = wanted_values(example, refusals)
        missing = [value for value in values if not contains_values(answer, [value])]
        if judged.correct:
            long = judged.answerable and len(answer.split()) > 2 * len(example.answer.split()) + 10
            kinds.append("repetitive" if is_repetitive(answer) else "too long" if long else "right")
        elif not judged.answerable:
            answered = "off topic" if example.kind == "off_topic" else "answered the unanswerable"
            kinds.append("no answer" if judged.empty else answered)
        elif judged.refused:
            kinds.append("false refusal")
        elif is_repetitive(answer):
            kinds.append("repetitive")
        elif missing and all(is_misspelt(answer, value, known) for value in missing):
            kinds.append("misspelt")
        elif normalise(answer) and not _on_topic(example, answer):
            kinds.append("off topic")
        else:
            kinds.append("no answer" if judged.empty else "wrong value")
    return kinds


def _on_topic(example: Example, answer: str) -> bool:
    """Tell whether an answer has a word of what question and reference are both about, if they share one."""
    reference = normalise(example.answer).split()
    about = {word for word in normalise(example.question).split() if len(word) > 3 and word in reference}
    return not about or bool(about & set(normalise(answer).split()))
