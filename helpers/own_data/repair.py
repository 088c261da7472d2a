"""Repair: put right what is wrong with texts and rows, and count how often that was right.

Every rule here is a plain pattern, so it misses things and is sometimes wrong: measure it on rows whose truth is known
(`score`), and read what it found before you trust it.
"""

import html
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import regex
from ftfy import fix_encoding

from helpers.data import Example
from helpers.text.normalise import normalise

# ---- texts

INLINE = "a|abbr|b|code|em|font|i|img|mark|s|small|span|strong|sub|sup|u"
BLOCK = "blockquote|body|br|center|dd|div|dl|dt|h[1-6]|head|hr|html|li|ol|p|pre|table|tbody|td|th|thead|tr|ul"
TAG = re.compile(rf"</?(?:{INLINE}|(?P<block>{BLOCK}))\b[^<>]*>|<!--.{{0,2000}}?-->", re.IGNORECASE | re.DOTALL)
ENTITY = re.compile(r"&(?:#\d{2,6}|#x[0-9a-f]{2,5}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)


def strip_html(text: str) -> str:
    """Remove tags, turn entities such as &amp; into what they stand for, and squeeze spaces; other texts stay as they are."""
    if not TAG.search(text) and not ENTITY.search(text):
        return text
    text = html.unescape(TAG.sub(lambda tag: "\n" if tag["block"] else "", text))
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def repair_encoding(text: str) -> str:
    """Put right characters of UTF-8 that were read as Latin-1 or cp1252, however often: cafÃ© becomes café.

    Other texts stay as they are, and so does a line of more than 2,000 characters: made with malice, one could take hours.
    """
    if text.isascii():
        return text
    return "\n".join(fix_encoding(line) if len(line) <= 2000 else line for line in text.split("\n"))


EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)+")
CARD = re.compile(r"(?<![\d-])\d(?:[ -]?\d){12,18}(?![\d-])")
PHONE = re.compile(r"(?<![\w+.-])(?:\+\d{1,3}|\(?0\d)[\d ()/-]{5,}\d(?![\w-])")
CAPITALISED = r"[A-Z\u00c0-\u00de][\w'-]+"
INTRODUCED = re.compile(rf"\b((?:I am|I'm|[Mm]y name is|[Rr]egards,|[Yy]ours,)\s+){CAPITALISED} {CAPITALISED}")


def luhn(number: str) -> bool:
    """Tell whether the last digit of a card number fits the others (ISO/IEC 7812-1)."""
    digits = [int(char) for char in reversed(number) if char.isdecimal()]
    return sum(digits[::2] + [sum(divmod(2 * digit, 10)) for digit in digits[1::2]]) % 10 == 0


def mask(text: str, names: Iterable[str] = ()) -> str:
    """Put [EMAIL], [CARD], [PHONE] and [NAME] in the place of personal data.

    Names are found where they are known (`names`: the customer's column) or introduced ("I am Ann Lee"), telephone numbers
    where they begin with + or 0. No pattern finds all: other names, addresses and ways to write a number slip through, so
    what must not leak has to be read by a person.
    """
    if "@" in text:
        text = EMAIL.sub("[EMAIL]", text)
    if re.search(r"\d", text):
        text = CARD.sub(lambda found: "[CARD]" if luhn(found[0]) else found[0], text)
        text = PHONE.sub(lambda found: "[PHONE]" if 9 <= sum(map(str.isdecimal, found[0])) <= 15 else found[0], text)
    for name in filter(str.strip, names):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "[NAME]", text) if name in text else text
    return INTRODUCED.sub(r"\1[NAME]", text)


WORDS = {
    "en": "the of and is to what how which who where when does do it my i you are for with tell me at was that this your",
    "de": "der das und ist zu wie welche wer wo wann nicht ein eine ich sie es mit von den dem kostet wiegt auf hat viel",
    "fr": "le la les et est que quel quelle qui où quand pas un une je vous il avec du des combien pèse coûte dans sur ce",
    "es": "el los las y es qué cuál quién dónde cuándo no una yo usted con del cuánto pesa cuesta por para tiene en se su",
}
LANGUAGES = {
    word: [code for code, words in WORDS.items() if word in words.split()] for word in " ".join(WORDS.values()).split()
}


def language(text: str) -> str:
    """Return "en", "de", "fr" or "es" by the commonest words, or another by its script, such as "zh"; "" when unsure.

    Fewer than two words are too few to speak for one of the four. A script that several languages share names its commonest.
    """
    for code, script in SCRIPTS.items():
        if not text.isascii() and len(script.findall(text[:2000])) * 3 > len(LETTER.findall(text[:2000])):
            return code
    votes = Counter(code for word in set(re.findall(r"\w+", text.lower())) for code in LANGUAGES.get(word, ()))
    (first, most), (_, next_most) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= 2 and most > next_most else ""


SCRIPTS = {  # Japanese mixes Chinese characters with its own, so it comes first
    code: regex.compile(rf"\p{{{name}}}")
    for code, name in {
        **{"ja": "Hiragana", "zh": "Han", "ko": "Hangul", "ar": "Arabic", "hi": "Devanagari", "ru": "Cyrillic"},
        **{"el": "Greek", "he": "Hebrew", "th": "Thai", "bn": "Bengali", "ta": "Tamil", "ka": "Georgian", "hy": "Armenian"},
    }.items()
}
LETTER = regex.compile(r"\p{L}")
NOTHING = {"", "na", "n a", "none", "null", "nan", "todo", "tbd", "test", "xxx"}


def empty(answer: str) -> bool:
    """Tell whether an answer says nothing: blank, a dash, n/a."""
    return normalise(answer) in NOTHING


# The marks that end a sentence, in many scripts; emoji; the end of a code block; and what may stand behind them.
END = regex.compile(
    r"(?:[.!?\u2026:\u3002\uff01\uff1f\uff1a\uff0e\u061f\u06d4\u0964\u0965\u1362\u104b]|\p{Emoji_Presentation}|\p{So}|```)"
    r"[\"')\]\u201d\u2019\u00bb\u203a\u300d\u300f\u3011\uff09\ufe0f\p{Emoji_Modifier}*_]*$"
)


def unfinished(answer: str) -> bool:
    """Tell whether an answer stops without the mark that ends a sentence, as one that was cut off does."""
    return not END.search(answer.rstrip())


# ---- rows


def realign(row: Mapping[str, str], patterns: Mapping[str, str]) -> dict[str, str]:
    """Put the cells of a row back where one slipped out and those after it moved up, if every pattern then fits.

    patterns: a regular expression for some columns, such as {"email": ".*@.*"}. A row that fits, or cannot be made to, stays.
    """
    names, cells = list(row), list(row.values())

    def fits(values: list[str]) -> bool:
        found = dict(zip(names, values, strict=True))
        return all(re.fullmatch(pattern, found[name] or "") for name, pattern in patterns.items())

    if not fits(cells):
        for place in range(len(cells)):
            moved = [*cells[:place], cells[-1], *cells[place:-1]]
            if not cells[-1] and fits(moved):
                return dict(zip(names, moved, strict=True))
    return dict(row)


def alone(example: Example) -> bool:
    """Tell whether a row is a question with its answer. In a longer conversation the assistant may well ask back."""
    return sum(turn.role != "system" for turn in example.turns) == 2


def swapped(examples: Sequence[Example]) -> list[Example]:
    """Return the rows whose question and answer stand in each other's place; a conversation's may not.

    Either the answer alone ends with a question mark, or the question is more often an answer in these rows.
    """
    asked = Counter(normalise(example.question) for example in examples)
    told = Counter(normalise(example.answer) for example in examples)

    def wrong(example: Example) -> bool:
        question, answer = example.question.rstrip(), example.answer.rstrip()
        if not alone(example):
            return False
        if question.endswith("?") or answer.endswith("?"):
            return not question.endswith("?")
        return told[normalise(question)] > asked[normalise(question)]

    return [example for example in examples if wrong(example)]


def newest(
    examples: Sequence[Example], dates: Mapping[str, str], key: Callable[[Example], Hashable] | None = None
) -> tuple[list[Example], list[Example]]:
    """Part rows into those that hold and those that a newer row with the same key contradicts: its answer is another one.

    dates: by a row's id, as 2024-12-31. key: what rows are about; the question, when left out.
    """
    keys = [key(example) if key else example.key for example in examples]
    latest: dict[Hashable, Example] = {}
    for about, example in zip(keys, examples, strict=True):
        if about not in latest or dates[example.id] > dates[latest[about].id]:
            latest[about] = example
    parts: tuple[list[Example], list[Example]] = ([], [])
    for about, example in zip(keys, examples, strict=True):
        parts[normalise(example.answer) != normalise(latest[about].answer)].append(example)
    return parts


def score(truth: Iterable[Mapping], before: Iterable[Example], after: Iterable[Example]) -> dict[str, Counter]:
    """Count for each fault the rows whose repair was "found", "missed", or "wrong": changed, but not into what is right.

    truth: the rows of data/raw/truth.jsonl. before, after: the rows as read, and as cleaned. Rows without a fault count as
    "none": found is left alone, wrong is changed or dropped.
    """

    def texts(examples: Iterable[Example]) -> dict[str, list[str]]:
        return {example.id: f"{example.question}\n{example.answer}".split() for example in examples}

    had, got = texts(before), texts(after)
    counts: dict[str, Counter] = defaultdict(Counter)
    for row in truth:
        id = row["ticket_id"]
        wanted = None if row["question"] is None else f"{row['question']}\n{row['answer']}".split()
        outcome = "found" if got.get(id) == wanted else "missed" if got.get(id) == had.get(id) else "wrong"
        for fault in row["faults"] or ["none"]:
            counts[fault][outcome] += 1
    return dict(counts)
