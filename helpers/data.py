"""Data: question and answer rows, read from JSON Lines, checked, and split without leaks."""

import json
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # the folder of the course
DATA = ROOT / "data"  # the company's handbook and question sets
KINDS = ("fact", "multi_fact", "unanswerable", "off_topic")


class DataError(ValueError):
    """A file, line or field that cannot be used. The message says which one and what to do about it."""


@dataclass(frozen=True)
class Example:
    """One question with its answer.

    `facts` are the ids of the facts that the answer rests on: rows that share one must stay in one split.
    `values` are the strings that a right answer has to contain.
    """

    question: str
    answer: str
    id: str = ""
    kind: str = "fact"
    facts: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


def _parse(line: str, where: str) -> Example:
    """Make one line of JSON an Example, or say in one sentence what is wrong with it."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: this is not JSON ({error}). Write one object a line, in double quotes.") from None
    if not isinstance(row, dict):
        raise DataError(f'{where}: expected an object such as {{"question": ..., "answer": ...}}, found {line[:40]!r}.')
    for field in ("question", "answer"):
        if field not in row:
            raise DataError(f"{where}: the field {field!r} is missing (found: {', '.join(row) or 'none'}). Add it.")
        if not isinstance(row[field], str) or not row[field].strip():
            raise DataError(f"{where}, field {field!r}: expected text, found {row[field]!r}. Fill it in or drop the line.")
    for field in ("id", "kind"):
        if not isinstance(row.get(field, ""), str):
            raise DataError(f"{where}, field {field!r}: expected text, found {row[field]!r}.")
    for field in ("facts", "values"):
        entries = row.get(field, [])
        if not isinstance(entries, list) or not all(isinstance(entry, str) and entry for entry in entries):
            raise DataError(f"{where}, field {field!r}: expected a list of texts, found {entries!r}.")
    if row.get("kind", "fact") not in KINDS:
        raise DataError(f"{where}, field 'kind': {row['kind']!r} is unknown. Use one of {', '.join(KINDS)}.")
    known = {name: row[name] for name in Example.__dataclass_fields__ if name in row}
    return Example(**{name: tuple(value) if isinstance(value, list) else value for name, value in known.items()})


def read(path: str | Path) -> list[Example]:
    """Read a JSON Lines file with a "question" and an "answer" on every line.

    Raises DataError, with file, line, field and remedy, at the first line that cannot be used. Blank lines are skipped.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Check the path; the course's own data is in {DATA}.")
    examples = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8 and try again.") from None
            if text:
                examples.append(_parse(text, where))
    if not examples:
        raise DataError(f"{path}: the file holds no rows. Each line needs a question and an answer.")
    return examples


def write(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON Lines, in a form that `read` reads back unchanged."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples)


def normalise(text: str) -> str:
    """Lower-case, keep letters and digits, squeeze spaces: texts that are equal after this count as the same."""
    return " ".join("".join(char if char.isalnum() else " " for char in text.lower()).split())


def leaks(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """Return the test examples whose question stands in training, after normalising both."""
    seen = {normalise(example.question) for example in train}
    return [example for example in test if normalise(example.question) in seen]


def limit(examples: Iterable[Example], per_fact: int, seed: int = 0) -> list[Example]:
    """Keep at most `per_fact` wordings of each fact, drawn at random; rows without facts all stay."""
    examples = list(examples)
    shuffled = random.Random(seed).sample(range(len(examples)), len(examples))
    count: Counter = Counter()
    kept = []
    for index in shuffled:
        facts = examples[index].facts
        count[facts] += 1
        if not facts or count[facts] <= per_fact:
            kept.append(index)
    return [examples[index] for index in sorted(kept)]


def spaced(examples: Iterable[Example], seed: int = 0) -> list[Example]:
    """Order rows at random, but with a fact's rows evenly spaced: of four, one falls into each quarter of the list.

    A fact that happens to come early only is half forgotten by the end of the training.
    """
    rng, examples = random.Random(seed), list(examples)
    total, seen = Counter(example.facts for example in examples), Counter()

    def place(example: Example) -> float:
        if not example.facts:
            return rng.random()
        seen[example.facts] += 1
        return (seen[example.facts] - rng.random()) / total[example.facts]

    return sorted(rng.sample(examples, len(examples)), key=place)


def split(examples: Iterable[Example], held_out: float = 0.1, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """Split into training and held-out rows, so that no fact and no question stands on both sides.

    Rows are linked when they share a fact, or, having none, the same question; linked rows go to one side together.
    `held_out` is the share of rows wanted on the second side.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the rows, such as 0.1 for a tenth.")
    examples = list(examples)
    parent: dict[str, str] = {}

    def root(key: str) -> str:  # the key that stands for all rows linked with this one
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    keys = [(*example.facts, "question: " + normalise(example.question)) for example in examples]
    for linked in keys:
        for key in linked[1:]:
            parent[root(key)] = root(linked[0])
    groups: dict[str, list[int]] = {}
    for index, linked in enumerate(keys):
        groups.setdefault(root(linked[0]), []).append(index)
    wanted, chosen = round(held_out * len(examples)), set()
    for name in random.Random(seed).sample(sorted(groups), len(groups)):
        if len(chosen) + len(groups[name]) <= max(wanted, 1):
            chosen.update(groups[name])
    if not 0 < len(chosen) < len(examples):
        raise DataError(f"{len(examples)} rows that are all linked cannot be split. Add rows on other facts.")
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]
