"""Layouts: how a record says question and answer, or a whole conversation; recognised, and said in one line."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TypeAlias

from helpers.own_data.containers import CONTAINERS, located, record_stream
from helpers.text.jsonl import OWN, no_object
from helpers.text.messages import DataError, Message, listed, messages, text_field

# How a row says question and answer: the fields that it has to have, the answer's last.
LAYOUTS = {
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),  # and, where a row has one, "input": it is added to the question
    "instruction_response": ("instruction", "response"),
    "input_output": ("input", "output"),
    "messages": ("messages",),  # OpenAI: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]
    "sharegpt": ("conversations",),  # [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]
}
FORMATS = (*CONTAINERS, *LAYOUTS)
SAMPLE = 100  # rows that are looked at to find one with a question and an answer


def _conversation(turns: object, where: str) -> tuple[Message, ...]:
    """Read a conversation up to its last answer that is to be learnt: what comes after it, nothing would be made of."""
    said = messages(turns, where)
    roles = [turn.role for turn in said]
    if "user" not in roles or roles[-1] != "assistant":
        raise DataError(f"{where}: expected a question and at last an answer, found {roles}. Drop what follows the answer.")
    learnt = [number for number, turn in enumerate(said) if turn.role == "assistant" and turn.weight]
    if not learnt or "user" not in roles[: learnt[-1]]:
        raise DataError(f"{where}: no answer to a question is to be learnt. Give one the weight 1, or drop the row.")
    if said[learnt[-1]].tool_calls:
        raise DataError(
            f"{where}, turn {learnt[-1] + 1}: calls a tool, and no answer follows. Add result and answer, or drop the row."
        )
    return said[: learnt[-1] + 1]


# A path, a name on the hub, a `datasets.Dataset`, a list of dicts, or what `recognise` has made of one of these.
Readable: TypeAlias = "str | Path | DataSource | Iterable[dict]"


@dataclass(frozen=True)
class DataSource:
    """Rows whose format has been recognised. `str()` of it says how it will be read.

    `columns` maps the fields of the layout to the names that the file has for them.
    """

    name: str
    content: Path | Iterable[dict]
    container: str
    layout: str = "question_answer"
    columns: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    mapped: bool = False

    @property
    def own(self) -> bool:
        """Whether other columns mean what they mean in the course's own rows."""
        return self.layout == "question_answer" and not self.mapped

    def __str__(self) -> str:
        """Say in one line what was recognised, and which columns are left out."""
        if self.container == "markdown":
            return f"{self.name}: read as markdown (*.md), a row a section: its headings are the question, its text the answer."
        read = ", ".join(name if part == name else f"{part} = {name!r}" for part, name in self.columns.items())
        unread = f" Not read: {listed(self.unread)}." if self.unread else ""
        return f"{self.name}: read as {self.container}, {self.layout} ({read}).{unread}"

    def records(self) -> Iterator[tuple[str, object]]:
        """Yield where each record stands, and the record, or the DataError that says why there is none."""
        return record_stream(self.name, self.content, self.container)

    def turns(self, record: object, where: str) -> tuple[Message, ...]:
        """Take a conversation from a record: a question and its answer, or all that was said up to the last answer."""
        if not isinstance(record, dict):
            raise DataError(no_object(record, where))
        names = [self.columns[field] for field in LAYOUTS[self.layout]]
        if self.layout in ("messages", "sharegpt"):
            return _conversation(record.get(names[0]), f"{where}, field {names[0]!r}")
        question, answer = (text_field(record, name, where) for name in names)
        given = record.get(self.columns["input"]) if self.layout == "alpaca" else None
        if given is not None and not (isinstance(given, str) and not given.strip()):
            question += "\n\n" + text_field(record, self.columns["input"], where)
        return Message("user", question), Message("assistant", answer)


def _understood(record: dict, where: str, format: str | None, mapped: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Find out how a row says question and answer: the layout, and the name of each of its fields in this file."""
    if mapped:
        return "question_answer", {"question": "question", "answer": "answer"} | dict(mapped)
    spelt = {str(column).strip().casefold(): column for column in record}
    complete = [layout for layout, fields in LAYOUTS.items() if spelt.keys() >= set(fields)]
    if "alpaca" in complete and "input_output" in complete:  # its "input" belongs to the instruction
        complete.remove("input_output")
    likely = [layout for layout, fields in LAYOUTS.items() if not spelt.keys().isdisjoint(fields)]
    layout = format if format in LAYOUTS else (complete or likely or ["question_answer"])[0]
    if format not in LAYOUTS and len(complete) > 1:
        raise DataError(f"{where}: could be {' or '.join(complete)}. Name one: --format {layout}")
    named = {}
    for part in (*LAYOUTS[layout], *(["input"] if layout == "alpaca" else [])):
        named[part] = spelt.get(part, part)
        if len(same := [column for column in record if str(column).strip().casefold() == part]) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, same))} may both be the {part}. Rename one.")
    return layout, named


def recognise(source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None) -> DataSource:
    """Find out how a file, a folder of Markdown, a data set or a name on the hub is to be read.

    `format` names one of FORMATS where that is not clear: how the rows are stored, or how they say question and answer.
    `columns` names the columns: {"question": "Frage", "answer": "Antwort"}, and "id" if one is to be kept.
    """
    if isinstance(source, DataSource):
        return source
    mapped = dict(columns or {})
    if format not in (None, *FORMATS):
        raise DataError(f"{format!r} is no known format. Use one of {', '.join(FORMATS)}.")
    if strange := set(mapped) - {"question", "answer", "id"}:
        raise DataError(f"{min(strange)!r} cannot be mapped. Write it as question=COLUMN,answer=COLUMN")
    name, content, container = located(source, format)
    first, refused = None, None
    for where, record in islice(DataSource(name, content, container).records(), SAMPLE):  # the first that has all fields
        if not isinstance(record, dict):
            refused = refused or (record if isinstance(record, DataError) else DataError(no_object(record, where)))
            continue
        layout, named = _understood(record, where, format, mapped)
        read = {*named.values(), *(OWN if layout == "question_answer" and not mapped else ())}
        unread = tuple(column for column in record if column not in read)
        found = DataSource(name, content, container, layout, named, unread, bool(mapped))
        first = first or (found, record, where)
        if all(column in record for field, column in named.items() if field in LAYOUTS[layout]):
            return found
    if first:
        first[0].turns(*first[1:])  # says which field is missing
    raise refused or DataError(f"{name}: the file holds no rows. Each line needs a question and an answer.")
