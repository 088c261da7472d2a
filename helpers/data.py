"""Data: question and answer rows, read from any common format, checked, and split without leaks."""

import json
import random
import reprlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.machine.files import written_aside
from helpers.own_data.formats import OWN, Readable, Source, arrange, recognise
from helpers.text.messages import DataError, Message, is_text, messages
from helpers.text.normalise import normalise

if TYPE_CHECKING:
    from datasets import Dataset

ANSWERS = ("all", "last")  # of a conversation: which are learnt
KINDS = ("fact", "multi_fact", "unanswerable", "off_topic")


@dataclass(frozen=True)
class Example:
    """One question with its answer, or a conversation that ends in them.

    `facts` are the ids of the facts that the answer rests on: rows that share one must stay in one split.
    `values` are the strings that a right answer has to contain.
    `history` is what was said before the question: a system's text, earlier questions and their answers.
    `steps` is what came between question and answer, such as calls of tools and their results.
    `where` is the file and line that the row comes from, for messages about it.
    """

    question: str
    answer: str
    id: str = ""
    kind: str = "fact"
    facts: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    steps: tuple[Message, ...] = ()
    where: str = field(default="", compare=False, repr=False)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation: from the first turn to the answer."""
        return (*self.history, Message("user", self.question), *self.steps, Message("assistant", self.answer))

    @property
    def messages(self) -> list[dict]:
        """The whole conversation as chat templates and OpenAI's clients take it."""
        return [turn.plain for turn in self.turns]

    @property
    def asked(self) -> list[dict]:
        """What the model reads before it answers: all messages but the answer."""
        return self.messages[:-1]

    @property
    def text(self) -> str:
        """All that is said, a turn a line."""
        return "\n".join(turn.content + turn.tool_calls for turn in self.turns)

    @property
    def key(self) -> str:
        """What is asked, normalised: the question after what was said before, without the system's text.

        Two rows with the same key ask the same; "Yes, please." after two different offers has two keys.
        """
        return _key(self.turns[:-1])

    @property
    def name(self) -> str:
        """The row's name in a message: where it stands, its id, or how its question begins."""
        return self.where or repr(self.id or self.question[:60])

    def with_texts(self, change: Callable[[str], str]) -> "Example":
        """The row with every text of the conversation changed, as a repair does; `values` stay."""
        history, steps = (tuple(turn.with_texts(change) for turn in turns) for turns in (self.history, self.steps))
        return replace(self, question=change(self.question), answer=change(self.answer), history=history, steps=steps)


def _key(turns: Iterable[Message]) -> str:
    """Make turns, but for the system's, one normalised text; of signs alone, such as emojis, it stays as it is."""
    text = "\n".join(turn.content + turn.tool_calls for turn in turns if turn.role != "system")
    return normalise(text) or text


def _example(record: object, where: str, source: Source) -> Example:
    """Make one record an Example, or say in one sentence what is wrong with it."""
    turns = source.turns(record, where)
    asking = max(number for number, turn in enumerate(turns[:-1]) if turn.role == "user")
    example = Example(
        turns[asking].content, turns[-1].content, history=turns[:asking], steps=turns[asking + 1 : -1], where=where
    )
    if source.mapped or source.layout != "question_answer":  # a file from elsewhere: its other columns mean other things
        name = source.columns.get("id")
        if name is not None and record.get(name) is None:
            raise DataError(f"{where}: the field {name!r}, named as the id, is missing. Add it, or map no id.")
        if name is not None and not is_text(record[name]) and not isinstance(record[name], (int, float)):
            found = reprlib.repr(record[name])
            raise DataError(f"{where}, field {name!r}: expected text or a number, found {found}. Map another id, or none.")
        return example if name is None else replace(example, id=str(record[name]))
    remedy = "Correct it, or name the columns, and no other will be read: --map question=question,answer=answer"
    for name in ("id", "kind"):
        if not is_text(record.get(name, "")):
            raise DataError(f"{where}, field {name!r}: expected text, found {reprlib.repr(record[name])}. {remedy}")
    for name in ("facts", "values"):
        entries = record.get(name, [])
        if not isinstance(entries, list) or not all(entry and is_text(entry) for entry in entries):
            raise DataError(f"{where}, field {name!r}: expected a list of texts, found {reprlib.repr(entries)}. {remedy}")
    if record.get("kind", "fact") not in KINDS:
        found = reprlib.repr(record["kind"])
        raise DataError(f"{where}, field 'kind': {found} is unknown. Use one of {', '.join(KINDS)}. {remedy}")
    own = {name: record[name] for name in OWN if name in record}
    for name in own.keys() & {"history", "steps"}:
        try:
            own[name] = messages(own[name] or (), f"{where}, field {name!r}")
        except DataError as error:
            raise DataError(f"{error} {remedy}") from None
    return replace(example, **{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def stream(
    source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Example | DataError]]:
    """Yield where each row stands, and the row as an Example, or the DataError that says why it cannot be one.

    One row is held at a time (JSON, not JSON Lines, is held as a whole), so a file may be larger than the memory.
    Arguments as in `read`. Raises DataError where nothing more can be read, as in a file that was cut short.
    """
    source = recognise(source, format, columns)
    for where, record in source.records():
        try:
            yield where, record if isinstance(record, DataError) else _example(record, where, source)
        except DataError as error:
            yield where, error


def read(source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None) -> list[Example]:
    """Read questions and answers from any common format, which `recognise` finds out and can say.

    source: a file (JSON Lines, JSON, CSV, TSV, Parquet; .gz or not), a Markdown file or folder of them, a name on the hub
    such as owner/name, a `datasets.Dataset` or a list of dicts. format, columns: as in `recognise`, where it needs help.
    A conversation becomes one row with all its turns: question and answer are its last ones. A Markdown section becomes one
    row as well: its text as the answer to its headings, for further pretraining or for making questions from.

    Raises DataError, with file, line, field and remedy, at the first line that cannot be used. Blank lines are skipped.
    """
    examples, refused = sift(source, format, columns, most=1)
    if refused:
        raise refused[0]
    return examples


def sift(
    source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None, most: float = inf
) -> tuple[list[Example], list[DataError]]:
    """Read the rows that can be used, and beside them the reasons why others cannot; stop at so many of these at most."""
    source = recognise(source, format, columns)
    examples, refused = [], []
    for _, row in stream(source):
        (refused if isinstance(row, DataError) else examples).append(row)
        if len(refused) >= most:
            break
    if not examples and not refused:
        raise DataError(f"{source.name}: the file holds no rows. Each line needs a question and an answer.")
    return examples, refused


def write(path: str | Path, examples: Iterable[Example], layout: str = "question_answer") -> None:
    """Write examples as JSON Lines, in a form that `read` reads back unchanged.

    In another of `formats.LAYOUTS`, such as "messages", only what is said is kept. Until all are written, an older file stays
    as it is. Raises DataError for a conversation where the layout holds but a question and an answer.
    """
    with written_aside(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            row = _row(example) if layout == "question_answer" else arrange(example.turns, layout)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(example: Example) -> dict:
    """Make an example a row of the course's own; what came before the question, and between, only where there was anything."""
    row = {name: getattr(example, name) for name in ("question", "answer", "id", "kind", "facts", "values")}
    more = {name: [turn.row for turn in getattr(example, name)] for name in ("history", "steps")}
    return row | {name: turns for name, turns in more.items() if turns}


def to_dataset(examples: Iterable[Example]) -> "Dataset":
    """Make examples a `datasets.Dataset`, which `read` takes back."""
    from datasets import Dataset, Features, List, Value

    text, texts = Value("string"), List(Value("string"))
    turns = List({name: Value("int64") if name == "weight" else text for name in Message.__dataclass_fields__})
    features = dict.fromkeys(("question", "answer", "id", "kind"), text)
    features |= {"facts": texts, "values": texts, "history": turns, "steps": turns}
    rows = [asdict(example) for example in examples]
    return Dataset.from_list([{name: row[name] for name in features} for row in rows], features=Features(features))


def draw(purpose: str, seed: int = 0) -> random.Random:
    """Make the random numbers for one purpose, such as "tested facts": two purposes never share a draw by accident."""
    return random.Random(f"{purpose}/{seed}")


def taught_keys(examples: Iterable[Example]) -> set[str]:
    """Collect what training asks, as `Example.key` has it: each question of a conversation, alone and after what was before."""
    keys = set()
    for example in examples:
        keys.add(example.key)
        asked = example.turns[: len(example.history) + 1]
        for number, turn in enumerate(asked):
            if turn.role == "user":
                keys |= {_key([turn]), _key(asked[: number + 1])}
    return keys


def leaks(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """Return the test examples that training asks, after normalising both: at any turn of its conversations."""
    seen = taught_keys(train)
    return [example for example in test if example.key in seen]


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


def split(
    examples: Iterable[Example],
    held_out: float = 0.1,
    seed: int = 0,
    group: Callable[[Example], Hashable] | None = None,
) -> tuple[list[Example], list[Example]]:
    """Split into training and held-out rows, so that no fact and no question stands on both sides.

    Rows are linked when they share a fact, or the same question, or what `group` returns for them, such as the product
    or the customer; linked rows go to one side together. `held_out` is the share of rows wanted on the second side.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the rows, such as 0.1 for a tenth.")
    examples = list(examples)
    parent: dict[str, str] = {}

    def root(key: str) -> str:  # the key that stands for all rows linked with this one
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    keys = [(*example.facts, "question: " + example.key) for example in examples]
    if group:
        keys = [(*linked, f"group: {group(example)!r}") for linked, example in zip(keys, examples, strict=True)]
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
