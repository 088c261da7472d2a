"""DataReport: what a source of rows holds and what seems wrong with it, in memory that does not grow with it."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from helpers.data import Example
from helpers.own_data.layouts import Readable, recognise
from helpers.own_data.names import ChoiceError
from helpers.own_data.repair import alone, empty, language, mask, repair_encoding, strip_html, unfinished
from helpers.own_data.rows import rows
from helpers.text.messages import DataError, asked_keys
from helpers.text.normalise import normalise

STYLE = "answer without an end"  # a finding, unless most answers are so: labels, numbers, lines of code


def _repeats(example: Example) -> bool:
    """Tell whether an answer is its question, or begins with all of it, if that is more than three words."""
    asked, told = normalise(example.question), normalise(example.answer)
    return bool(asked) and (asked == told or (asked.count(" ") > 2 and f"{told} ".startswith(f"{asked} ")))


def faults(example: Example, longest: int = 4000) -> list[str]:
    """Name what seems to be wrong with one row. longest: characters of all that is said in it."""
    text = example.text
    checks = {
        "empty answer": empty(example.answer),
        STYLE: unfinished(example.answer) and not empty(example.answer),
        "HTML": strip_html(text) != text,
        "broken encoding": "\ufffd" in text or repair_encoding(text) != text,
        "personal data": mask(text) != text,
        "not English": language(text) not in ("en", ""),
        "answer repeats the question": _repeats(example),
        "question in the answer": alone(example)
        and example.answer.rstrip().endswith("?")
        and not example.question.rstrip().endswith("?"),
        "too long": len(text) > longest,
    }
    return [name for name, found in checks.items() if found]


def excerpt(example: Example) -> str:
    """Quote how a question begins and how its answer ends; personal data are masked as well as `mask` can."""
    return f"{mask(example.question[:200])[:30]!r} ... {mask(example.answer[-200:])[-30:]!r}"


@dataclass
class DataReport:
    """What `inspect_data` found: how many rows there are, how many can be used, and what seems wrong, with places."""

    source: str
    rows: int = 0
    usable: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    broken_off: str = ""
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, where: str, example: Example | None = None) -> None:
        """Count one finding; the first three places are kept, and of the first how its row begins and ends."""
        self.counts[name] += 1
        if self.counts[name] <= 3:
            quoted = f" ({excerpt(example)})" if example and self.counts[name] == 1 else ""
            self.examples[name].append(where + quoted)

    def __str__(self) -> str:
        """Say it in a line a finding."""
        lines = [self.source, f"{self.rows} rows, {self.usable} of them can be used", *self.notes]
        for name, number in self.counts.most_common():
            lines.append(f"{number:>8}  {name}: {'; '.join(self.examples[name])}{'; ...' if number > 3 else ''}")
        return "\n".join(lines + ([f"Not read to its end: {self.broken_off}"] if self.broken_off else []))


class BloomFilter:
    """Remembers which texts it has seen, in 16 MB whatever their number (Bloom 1970).

    Exact for small files; of 7 million different texts, fewer than 0.1% are taken for seen.
    """

    def __init__(self, bits: int = 2**27):
        """Start with nothing seen. bits: of the table; a text sets four of them."""
        self.bits, self.table = bits, bytearray(bits // 8)

    def seen(self, text: str) -> bool:
        """Tell whether a text was seen before; from now on it was."""
        digest = blake2b(text.encode(), digest_size=16).digest()
        places = [int.from_bytes(digest[start : start + 4]) % self.bits for start in (0, 4, 8, 12)]
        before = all(self.table[place >> 3] >> (place & 7) & 1 for place in places)
        for place in places:
            self.table[place >> 3] |= 1 << (place & 7)
        return before


def inspect_data(
    source: Readable,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    test: Sequence[Example] = (),
    longest: int = 4000,
    take: str | None = None,
) -> DataReport:
    """Look at every row of a source, of any size, in memory that does not grow with it. Arguments as in `read_any`.

    test: questions that must not be there, compared after `normalise`. longest: characters of all that a row says.
    Raises ChoiceError where the owner of the data has to decide what is learnt.
    """
    source = recognise(source, format, columns, take)
    own_name = f"{source.name}, "
    found, asked = DataReport(str(source)), BloomFilter()
    held_back = {example.key for example in test}
    try:
        for where, row in rows(source):
            found.rows += 1
            if isinstance(row, DataError):
                found.add("cannot be used", str(row).removeprefix(own_name))
                continue
            found.usable += 1
            place = where.removeprefix(own_name)
            for name in faults(row, longest):
                found.add(name, place, row)
            if held_back and not held_back.isdisjoint(asked_keys(row.turns)):
                found.add("test question", place, row)
            said_before = "text seen before" if source.layout == "text" else "question asked before"
            if asked.seen(normalise(row.answer) if source.layout == "text" else row.key):
                found.add(said_before, place, row)
    except ChoiceError:
        raise
    except DataError as error:
        found.broken_off = str(error)
    found.notes = [f"{note}: {number}" for note, number in source.notes.items()]
    if found.counts[STYLE] * 2 > found.usable > 3:
        found.notes.append(f"{found.counts.pop(STYLE)} answers end without a mark: most do, so that is taken for their style")
    return found
