"""Errors: what is wrong with an answer, by kinds that say what to mend."""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

from helpers.data import Example
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


def _on_topic(example: Example, answer: str) -> bool:
    """Tell whether an answer has a word of what question and reference are both about, if they share one."""
    reference = normalise(example.answer).split()
    about = {word for word in normalise(example.question).split() if len(word) > 3 and word in reference}
    return not about or bool(about & set(normalise(answer).split()))
