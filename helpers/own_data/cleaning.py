"""Cleaning: find what is wrong with rows, repair what can be repaired, and count both.

Every rule here is a plain pattern, so it misses things and is sometimes wrong: measure it on rows whose truth is known
(`score`), and read what it found before you trust it.
"""

import html
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from datasketch import MinHash, MinHashLSH
from ftfy import fix_encoding

from helpers.data import DataError, Example, stream, taught_keys
from helpers.machine.progress import bar_if_long
from helpers.own_data.formats import Readable, recognise
from helpers.text.normalise import normalise

# ---- texts

INLINE = ("a", "abbr", "b", "code", "em", "font", "i", "img", "mark", "s", "small", "span", "strong", "sub", "sup", "u")
BLOCK = ("blockquote", "body", "br", "center", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "head", "hr")
BLOCK += ("html", "li", "ol", "p", "pre", "table", "tbody", "td", "th", "thead", "tr", "ul")
TAG = re.compile(rf"</?({'|'.join(INLINE + BLOCK)})\b[^<>]*>|<!--.{{0,2000}}?-->", re.IGNORECASE | re.DOTALL)
ENTITY = re.compile(r"&(?:#\d{2,6}|#x[0-9a-f]{2,5}|[a-z][a-z0-9]{1,30});", re.IGNORECASE)


def strip_html(text: str) -> str:
    """Remove tags, turn entities such as &amp; into what they stand for, and squeeze spaces; other texts stay as they are."""
    if not TAG.search(text) and not ENTITY.search(text):
        return text
    text = html.unescape(TAG.sub(lambda tag: "\n" if (tag[1] or "").lower() in BLOCK else "", text))
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
    """Return "en", "de", "fr" or "es" by the commonest words, or "" when fewer than two speak for one language."""
    votes = Counter(code for word in set(re.findall(r"\w+", text.lower())) for code in LANGUAGES.get(word, ()))
    (first, most), (_, next_most) = [*votes.most_common(2), ("", 0), ("", 0)][:2]
    return first if most >= 2 and most > next_most else ""


NOTHING = {"", "na", "n a", "none", "null", "nan", "todo", "tbd", "test", "xxx"}


def empty(answer: str) -> bool:
    """Tell whether an answer says nothing: blank, a dash, n/a."""
    return normalise(answer) in NOTHING


def unfinished(answer: str) -> bool:
    """Tell whether an answer stops without the mark that ends a sentence, as one that was cut off does."""
    return not re.search(r"[.!?\u2026:][\"')\]\u201d\u2019]*$", answer.rstrip())


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


def _alone(example: Example) -> bool:
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
        if not _alone(example):
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


SHINGLE, PERMUTATIONS, BANDS, BAND = 4, 128, 16, 8  # 16 bands of 8 numbers find pairs that are 80% alike, or more
READ = 20_000  # characters of a text that are compared


def shingles(text: str) -> set[str]:
    """Cut a text into all its pieces of four characters."""
    return {text[start : start + SHINGLE] for start in range(max(1, min(len(text), READ) - SHINGLE + 1))}


def minhash(text: str) -> MinHash:
    """Return a signature of 128 numbers; the share of them that two texts have in common is about their `likeness`.

    Source: Broder 1997, On the resemblance and containment of documents.
    """
    signature = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
    signature.update_batch([piece.encode() for piece in shingles(text)])
    return signature


def likeness(one: str, other: str) -> float:
    """Return the share of shingles that two texts have in common (Jaccard's index); 0 when they hold different numbers.

    "It costs 59 euros" and "It costs 95 euros" look alike and say different things.
    """
    if sorted(re.findall(r"\d+", one)) != sorted(re.findall(r"\d+", other)):
        return 0.0
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def matches(texts: Sequence[str], similar: float = 0.85, against: Sequence[str] | None = None) -> dict[int, int]:
    """Find for each text, by index, the first earlier one that it repeats; with `against`, the first of those.

    Texts match when they are equal after `normalise`, or else when they are at least so similar (1: equal only).
    Only texts whose signatures agree in a whole band are compared. So, by chance, 1 in 20 of the pairs that are 80% alike
    is missed, and 1 in 150 of those that are 85% alike.
    """
    known = [normalise(text) or text for text in against or ()]
    everything = known + [normalise(text) or text for text in texts]
    bands = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, BAND))
    found, exact, signatures = {}, {}, {}
    for index, text in enumerate(bar_if_long(everything, 1, "comparing", "text")):
        original, signature = exact.get(text), None
        if original is None and similar < 1:
            signature = minhash(text)
            likely = (
                other for other in sorted(bands.query(signature)) if signatures[other].jaccard(signature) > similar - 0.15
            )
            original = next((other for other in likely if likeness(text, everything[other]) >= similar), None)
        if index >= len(known) and original is not None:
            found[index - len(known)] = original
        elif index < len(known) or against is None:
            exact.setdefault(text, index)
            if signature is not None:
                signatures[index] = signature
                bands.insert(index, signature)
    return found


def deduplicate(examples: Sequence[Example], similar: float = 0.85) -> tuple[list[Example], list[tuple[Example, Example]]]:
    """Keep the first of rows that say the same; return those kept, and each removed row with the one that it repeats."""
    found = matches([example.text for example in examples], similar)
    kept = [example for index, example in enumerate(examples) if index not in found]
    return kept, [(examples[copy], examples[original]) for copy, original in found.items()]


def contaminated(train: Sequence[Example], test: Sequence[Example], similar: float = 0.85) -> list[Example]:
    """Return the training rows that ask a test question, word for word or nearly: with them a test measures memory.

    A conversation asks at each of its turns.
    """
    asked = [(index, key) for index, example in enumerate(train) for key in sorted(taught_keys([example]))]
    found = matches([key for _, key in asked], similar, [example.key for example in test])
    return [train[index] for index in sorted({asked[place][0] for place in found})]


# ---- reports


def faults(example: Example, longest: int = 4000) -> list[str]:
    """Name what seems to be wrong with one row. longest: characters of all that is said in it."""
    text = example.text
    checks = {
        "empty answer": empty(example.answer),
        "answer without an end": unfinished(example.answer) and not empty(example.answer),
        "HTML": strip_html(text) != text,
        "broken encoding": "\ufffd" in text or repair_encoding(text) != text,
        "personal data": mask(text) != text,
        "not English": language(text) not in ("en", ""),
        "question in the answer": _alone(example)
        and example.answer.rstrip().endswith("?")
        and not example.question.rstrip().endswith("?"),
        "too long": len(text) > longest,
    }
    return [name for name, found in checks.items() if found]


def excerpt(example: Example) -> str:
    """Quote how a question begins and how its answer ends; personal data are masked as well as `mask` can."""
    return f"{mask(example.question[:200])[:30]!r} ... {mask(example.answer[-200:])[-30:]!r}"


@dataclass
class Report:
    """What `report` found: how many rows there are, how many can be used, and what seems wrong, with places."""

    source: str
    rows: int = 0
    usable: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken_off: str = ""

    def add(self, name: str, where: str, example: Example | None = None) -> None:
        """Count one finding; the first three places are kept, and of the first how its row begins and ends."""
        self.counts[name] += 1
        if self.counts[name] <= 3:
            quoted = f" ({excerpt(example)})" if example and self.counts[name] == 1 else ""
            self.examples[name].append(where + quoted)

    def __str__(self) -> str:
        """Say it in a line a finding."""
        lines = [self.source, f"{self.rows} rows, {self.usable} of them can be used"]
        for name, number in self.counts.most_common():
            lines.append(f"{number:>8}  {name}: {'; '.join(self.examples[name])}{'; ...' if number > 3 else ''}")
        return "\n".join(lines + ([f"Not read to its end: {self.broken_off}"] if self.broken_off else []))


FILTER = 2**27  # bits of the table that remembers which questions were seen


def report(
    source: Readable,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    test: Sequence[Example] = (),
    longest: int = 4000,
) -> Report:
    """Look at every row of a source, of any size, in memory that does not grow with it. Arguments as in `data.read`.

    Repeated questions are counted with a Bloom filter (1970): exact for small files; of 7 million different questions,
    fewer than 0.1% are taken for repeated. test: questions that must not be there, compared after `normalise`.
    """
    source = recognise(source, format, columns)
    own_name = f"{source.name}, "
    found, seen = Report(str(source)), bytearray(FILTER // 8)
    held_back = {example.key for example in test}
    try:
        for where, row in stream(source):
            found.rows += 1
            if isinstance(row, DataError):
                found.add("cannot be used", str(row).removeprefix(own_name))
                continue
            found.usable += 1
            place = where.removeprefix(own_name)
            for name in faults(row, longest):
                found.add(name, place, row)
            if held_back and not held_back.isdisjoint(taught_keys([row])):
                found.add("test question", place, row)
            digest = blake2b(row.key.encode(), digest_size=16).digest()
            bits = [int.from_bytes(digest[start : start + 4]) % FILTER for start in (0, 4, 8, 12)]
            if all(seen[bit >> 3] >> (bit & 7) & 1 for bit in bits):
                found.add("question asked before", place, row)
            for bit in bits:
                seen[bit >> 3] |= 1 << (bit & 7)
    except DataError as error:
        found.broken_off = str(error)
    return found


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
