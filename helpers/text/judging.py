"""Judging: the values that an answer asserts, whether they are the wanted ones, and whether it declines or says nothing.

The rules are simple, made for short answers in English, and wrong now and then: `data/judged.jsonl` shows how often.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

from helpers.text.normalise import normalise

# How an answer says that it does not answer: the two sentences of the training data, and what general models write.
REFUSALS = ("Sorry, that is not in our handbook.", "Sorry, I can only help with questions about Tindermoss.")
_CANNOT = "(?:(?:do not|don't|cannot|can't|can not|could not|couldn't|(?:am|are|'m|'re) (?:not able|unable) to) )"
_KNOWLEDGE = r"(?:\w+ ){0,5}(?:information|details?|data|knowledge|records?|answers?|idea)\b"
_SOURCE = "(?:our|the|this|my) (?:handbook|documents?|context|passages?|text)"
_USUAL = re.compile(
    rf"\b(?:I|we) ?{_CANNOT}(?:\w+ly )?(?:know\b|(?:have|provide|find|give) {_KNOWLEDGE}|(?:provide|find) (?:that|this|it)$"
    r"|(?:help|assist)(?: you)?(?: with (?:that|this|it|your)\b|$)|answer (?:that|this|it|such|your|the question)\b|answer$"
    r"|(?:tell you|say)$)"
    r"|^(?:sorry )?(?:unable to|not able to|cannot|can't|don't) (?:know|help|assist|answer)\b"
    r"|\b(?:I|we) ?(?:am|are|'m|'re) not (?:sure|aware|familiar)\b|\b(?:I|we) (?:can )?only (?:help|assist|answer)\b"
    r"|\b(?:have|find|found|is|are|contains?) no (?:information|mention|record|idea)\b"
    rf"|\bnot (?:\w+ )?(?:in|by) {_SOURCE}\b|\bthere (?:is|are) no (?:\w+ ){{0,5}}in {_SOURCE}\b",
    re.IGNORECASE,
)
_EVASIVE = re.compile(r"\b(?:depend\w*|var(?:y|ies)|please (?:ask|see|check|contact|visit)|contact us)\b", re.IGNORECASE)

_UNITS = {
    "euro": "€ eur",
    "pound": "£ gbp",
    "dollar": "$ usd",
    "percent": "%",
    "gram": "g gr gramme",
    "kilogram": "kg kilo",
    "year": "yr",
    "degree": "°",
    **dict.fromkeys(("month", "week", "day", "hour", "minute", "cent", "metre", "litre", "pm", "am"), ""),
}
_UNIT = {written: unit for unit, names in _UNITS.items() for written in (unit, *names.split())}
_ONES = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEENS = ("ten", "eleven", "twelve", *(f"{part}teen" for part in ("thir", "four", "fif", "six", "seven", "eigh", "nine")))
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_DIGITS = {word: n for n, word in enumerate((*_ONES, *_TEENS), 1)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)}) ({'|'.join(_ONES)})\b")  # fifty-nine
_LISTS = {
    "parts no value from another": "a an the of at on",
    "denies what follows in its clause": "not no never nor neither without cannot formerly previously",
    "ends that": "after before until unless than below under above over beyond within if when because by only",
    "says nothing by itself": """is are was were be been it its this that these those there here i you we they he she me my
        your our their and or but so in to for from with by as about into one some any many several certain different specific
        particular various variety range kind type sort popular available other another well also just very quite too can could
        may might will would do does did have has had which who what when where how s t yes sure certainly course good great
        question answer get like sorry please thank afraid cheap expensive""",
}
_SMALL, _NO, _YES, _PLAIN = (frozenset(words.split()) for words in _LISTS.values())

Value = tuple[str, ...]  # the words of a value as they are compared: ("59", "euro")


class Asked(Protocol):
    """A question with its reference answer, as the judge needs it: a `data.Example` is one."""

    @property
    def question(self) -> str:
        """What was asked."""

    @property
    def answer(self) -> str:
        """The right answer."""

    @property
    def kind(self) -> str:
        """One of `text.jsonl.KINDS`, which say whether it has an answer or is to be declined."""

    @property
    def facts(self) -> tuple[str, ...]:
        """Ids of the facts that it is about, such as "heron.price"."""

    @property
    def values(self) -> tuple[str, ...]:
        """What a right answer has to contain; empty: all that the right answer says."""


def _is_number(word: str) -> bool:
    return bool(re.fullmatch(r"-?\d+(\.\d+)?", word))


def _words(clause: str) -> list[str]:
    """Cut a clause into words as they are compared: numbers in digits, units by one name, each behind its number."""
    text = _COMPOUND.sub(lambda found: str(_DIGITS[found[1]] + _DIGITS[found[2]]), normalise(clause))
    text = re.sub(r"\bper cent\b", "percent", text)
    text = re.sub(r"(?<!\S)(-?\d[\d.]*)(?:st|nd|rd|th)\b", r"\1", text)
    text = re.sub(r"(?<!\S)(-?\d[\d.]*)([^\W\d_]+)\b", lambda m: f"{m[1]} {m[2]}" if m[2] in _UNIT else m[0], text)
    text = re.sub(r"([€£$]|\b(?:eur|gbp|usd)\b) (-?\d[\d.]*)", r"\2 \1", text)
    words: list[str] = []
    for word in text.split():
        plural = len(word) > 3 and word.endswith("s") and not word.endswith("ss")
        name = _UNIT.get(word[:-1] if plural else word, word[:-1] if plural else word)
        if _is_number(word):
            words.append(f"{Decimal(word).normalize():f}")
        elif word in _DIGITS:
            words.append(str(_DIGITS[word]))
        elif name == "kilogram" and words and _is_number(words[-1]):
            words[-1:] = [f"{(1000 * Decimal(words[-1])).normalize():f}", "gram"]
        elif word not in _SMALL:
            words.append(name)
    for i in range(len(words) - 4, -1, -1):  # 50 to 59 euros are two prices
        first, between, second, unit = words[i : i + 4]
        if _is_number(first) and between in ("to", "-", "or", "and") and _is_number(second) and unit in _UNITS:
            words.insert(i + 1, unit)
    return words


@lru_cache(maxsize=50_000)
def _read(text: str) -> tuple[tuple[str, bool], ...]:
    """Read a text: its words, and of each whether it is denied, as 69 is in "not 69 euros but 59 euros"."""
    found = []
    for clause in re.split(r"[,.;:!?\n](?!\d)|\bbut\b", text.replace("\u2019", "'").replace("n't", " not")):
        denied = False
        for word, after in pairwise([*_words(clause), ""]):
            found.append((word, denied))
            if word in _NO or (word, after) in {("used", "to"), ("instead", "of"), ("rather", "than")}:
                denied = True
            elif word in _YES:
                denied = False
    return tuple(found or ((word, False) for word in normalise(text).split()))  # "A" is an answer, too


def _value(text: str) -> Value:
    return tuple(word for word, _ in _read(text))


def _shape(value: Value) -> Value:
    """Say what kind of value this is: its words with # for numbers. Their order counts beside a unit, and in long texts."""
    shape = ["#" if _is_number(word) else word for word in value]
    return tuple(shape if len(shape) > 4 or set(shape) & set(_UNITS) else sorted(shape))


def _same(one: Value, other: Value) -> bool:
    return _shape(one) == _shape(other) and [*filter(_is_number, one)] == [*filter(_is_number, other)]


def _alike(text: str, value: Value, denied: bool = False) -> list[tuple[Value, str, str]]:
    """Find what a text asserts, or denies, in the shape of a value: its words, and the word before it and behind it."""
    read, size, shape = _read(text), len(value), _shape(value)
    words = tuple(word for word, _ in read)
    places = range(len(read) - size + 1 if size else 0)
    starts = [i for i in places if read[i][1] == denied and _shape(words[i : i + size]) == shape]
    return [(words[i : i + size], "".join(words[max(0, i - 1) : i]), "".join(words[i + size : i + size + 1])) for i in starts]


def contains_values(answer: str, values: Sequence[str]) -> bool:
    """Tell whether each value is asserted somewhere in the answer; what else it asserts does not matter here.

    Numbers are compared as numbers, with sign, decimals and unit. Articles, case, plural, and the order of words inside a
    name do not matter. 1,900 is one thousand nine hundred; 1,25 and 1.25 and 1.900 have decimals, as in English.
    """
    return all(any(_same(part, wanted) for part, _, _ in _alike(answer, wanted)) for wanted in map(_value, values))


def _beside_refusal(answer: str, refusals: Sequence[str]) -> str | None:
    """Return what an answer says beside declining; None when it does not decline."""
    padded = f" {normalise(answer)} "
    own = [text for text in (f" {normalise(refusal)} " for refusal in refusals) if text.strip() and text in padded]
    parts = [part for part in re.split(r"(?<=[.!?;:])\s+|\n|\bbut\b", answer) if part.strip()]
    said, beside = False, []
    for part in parts:
        plain = re.sub(r"[^\w' ]+", " ", part.replace("\u2019", "'")).strip()
        if _USUAL.search(plain) or any(f" {normalise(part)} " in refusal for refusal in own):
            said = True
        else:
            beside.append(part)
    return " ".join(beside) if said or own else None


def is_refusal(answer: str, refusals: Sequence[str] = REFUSALS) -> bool:
    """Tell whether an answer says that it cannot or will not answer, in the lesson's sentence or a usual one."""
    return _beside_refusal(answer, refusals) is not None


def wanted_values(example: Asked, refusals: Sequence[str] = REFUSALS) -> tuple[str, ...]:
    """Name what a right answer has to assert; nothing where the right answer is to decline.

    A row of your own data names no values. Its whole answer stands in for them, unless that declines.
    """
    if example.values or example.kind in ("unanswerable", "off_topic") or is_refusal(example.answer, refusals):
        return example.values
    return (example.answer,)


def _asserted(answer: str, example: Asked, wanted: Sequence[Value], rivals: Sequence[str]) -> set[Value]:
    """Find the values of the wanted kind that an answer asserts; a number that the question names is nothing new."""
    told = {word for text in (example.question, example.answer) for word in _value(text)}
    found = {_value(rival) for rival in rivals if contains_values(answer, [rival]) and not set(_value(rival)) <= told}
    for value in wanted:
        denied = not _alike(example.answer, value) and bool(_alike(example.answer, value, denied=True))  # "no audition"
        for part, _, after in _alike(answer, value, denied):
            year = [bool(re.fullmatch(r"[12]\d{3}", text)) for text in (value[0], part[0])]
            other_kind = len(part) == 1 and (after in _UNITS or year[0] != year[1])
            if _same(part, value):
                found.add(value)
            elif not set(part) <= told and not other_kind:
                found.add(part)
    return found


def _something(answer: str, example: Asked, wanted: Sequence[Value], known: Sequence[str], any_words: bool) -> set[Value]:
    """Find what else an answer asserts: another value, a number, or any new words if those may answer."""
    told = set(_value(example.question)) | set(_value(example.answer)).difference(*wanted)
    stated = " ".join(part for part in re.split(r"(?<=[.!?])\s+", answer) if not part.endswith("?"))
    found = {_value(value) for value in known if contains_values(stated, [value]) and not set(_value(value)) <= told}
    old = {*told, *(word for value in found for word in value), *(["1"] if re.search(r"\bone\b", stated) else [])}
    found |= {(word,) for word, no in _read(stated) if _is_number(word) and not no and word not in old}
    names = set(re.findall(r"(?<![.!?] )(?<!^)\b[A-Z]\w+", stated) if len(stated.split()) > 4 else stated.split())
    asks_name = bool(example.values) and all(re.fullmatch(r"([A-Z][a-z]+ ?)+", text) for text in example.values)
    if found or not any_words or _EVASIVE.search(stated) or (asks_name and not {*map(str.lower, names)} - told):
        return found
    new = tuple(word for word in _value(stated) if word not in told | _PLAIN)
    return {new} if set(new) - _NO else set()


def _hedges(text: str, wanted: Sequence[Value]) -> bool:
    """Tell whether a value stands beside an "or"."""
    return any("or" in around for value in wanted for _, *around in _alike(text, value))


@dataclass(frozen=True)
class Judgement:
    """What one answer is worth; `evaluation.judge` says what the words mean."""

    answerable: bool
    correct: bool
    refused: bool
    hallucinated: bool
    empty: bool
    asserted: str


def judge_one(
    example: Asked,
    answer: str,
    refusals: Sequence[str] = REFUSALS,
    rivals: Sequence[str] = (),
    known: Sequence[str] = (),
) -> Judgement:
    """Judge one answer. rivals: values that other things have where this one has its own. known: all values of the data."""
    wanted = [_value(value) for value in wanted_values(example, refusals)]
    beside = _beside_refusal(answer, refusals)
    said = answer if beside is None else beside
    wanted = [value for value in wanted if not _SMALL.issuperset(value)] or wanted
    in_numbers = bool(wanted) and all(any(map(_is_number, value)) for value in wanted)
    of_its_kind = _asserted(said, example, wanted, rivals)
    found = of_its_kind or _something(said, example, wanted, known, any_words=beside is None and not in_numbers)
    refused = beside is not None and not found
    hedged = _hedges(said, wanted) and not _hedges(example.answer, wanted)
    return Judgement(
        answerable=bool(wanted),
        correct=of_its_kind == set(wanted) and not hedged if wanted else refused,
        refused=refused,
        hallucinated=bool(found) and (hedged or not set() < of_its_kind <= set(wanted)) and example.kind != "off_topic",
        empty=not refused and not found,
        asserted="; ".join(sorted(" ".join(value) for value in found)),
    )


def judgements(examples: Sequence[Asked], answers: Sequence[str], refusals: Sequence[str] = REFUSALS) -> list[Judgement]:
    """Judge one answer for each example. A colour that another product of the examples has is known to be another one."""
    values = defaultdict(set)  # of each attribute: of "price" in "heron.price"
    for example in examples:
        for fact, value in zip(example.facts, example.values, strict=False):
            values[fact.partition(".")[2]].add(value)
    values[""] = set()  # facts that are named otherwise have no attribute
    known = sorted({value for example in examples for value in example.values})
    judged = []
    for example, answer in zip(examples, answers, strict=True):
        rivals = sorted(set().union(*(values[fact.partition(".")[2]] for fact in example.facts)))
        judged.append(judge_one(example, answer, refusals, rivals, known))
    return judged
