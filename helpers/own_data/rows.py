"""Rows: conversations from any common format, as a stream, all at once, or with the reasons why some cannot be used."""

import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.data import Example
from helpers.own_data.layouts import DataSource, Readable, recognise
from helpers.own_data.names import LAYOUTS, ChoiceError
from helpers.text.jsonl import row_fields, write_lines
from helpers.text.messages import DataError, Message, is_text

if TYPE_CHECKING:
    from datasets import Dataset

LEFT_OUT = "rows are left out, as --take says"


def _example(record: object, where: str, source: DataSource) -> Example:
    """Make one record an Example, or say in one sentence what is wrong with it."""
    turns = source.turns(record, where)
    asking = max(number for number, turn in enumerate(turns[:-1]) if turn.role == "user")
    question, answer, steps = turns[asking].content, turns[-1].content, turns[asking + 1 : -1]
    example = Example(question, answer, _id(record, where, source), history=turns[:asking], steps=steps, where=where)
    if not source.own or not isinstance(record, dict):
        return example
    own = {name: record[name] for name in source.own if name in record}
    if isinstance(own.get("id"), int):
        own["id"] = str(own["id"])
    fields = row_fields({"question": question, "answer": answer} | own, where)
    return replace(example, **{name: fields[name] for name in own})


def _id(record: object, where: str, source: DataSource) -> str:
    """Take the column that was named as the id, if one was."""
    name = source.columns.get("id")
    if name is None or not isinstance(record, dict):
        return ""
    if (value := record.get(name)) is None:
        raise DataError(f"{where}: the field {name!r}, named as the id, is missing. Add it, or map no id.")
    if not is_text(value) and not isinstance(value, (int, float)):
        found = reprlib.repr(value)
        raise DataError(f"{where}, field {name!r}: expected text or a number, found {found}. Map another id, or none.")
    return str(value)


def rows(
    source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None, take: str | None = None
) -> Iterator[tuple[str, Example | DataError]]:
    """Yield where each row stands, and the row as an Example, or the DataError that says why it cannot be one.

    One row is held at a time (JSON, not JSON Lines, is held as a whole), so a file may be larger than the memory.
    Arguments as in `read_any`. Raises DataError where nothing more can be read, as in a file that was cut short.
    """
    source = recognise(source, format, columns, take)
    source.notes.clear()
    for where, record in source.records():
        try:
            if isinstance(record, DataError):
                yield where, record
            elif source.selection.takes(record, where):
                yield where, _example(record, where, source)
            else:
                source.notes[LEFT_OUT] += 1
        except ChoiceError:
            raise
        except DataError as error:
            yield where, error


def read_any(
    source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None, take: str | None = None
) -> list[Example]:
    """Read questions and answers from any common format, which `recognise` finds out and can say.

    source: a file (JSON Lines, JSON, CSV, TSV, Parquet; .gz or not), a Markdown file or folder of them, a name on the hub
    such as owner/name, a `datasets.Dataset` or a list of dicts. format, columns, take: as in `recognise`, where it needs help.
    A conversation becomes one row with all its turns: question and answer are its last ones. A Markdown section becomes one
    row as well: its text as the answer to its headings, for further pretraining or for making questions from.

    Raises DataError, with file, line, field and remedy, at the first line that cannot be used. Blank lines are skipped.
    """
    examples, refused = sift(source, format, columns, take, most=1)
    if refused:
        raise refused[0]
    return examples


def read_tests(paths: Iterable[str | Path], columns: Mapping[str, str] | None = None) -> list[Example]:
    """Read questions that must not be trained on. A file that has the named columns is read by them, others by their own."""
    examples = []
    for path in paths:
        try:
            examples += read_any(path, columns=columns)
        except DataError:
            if not columns:
                raise
            examples += read_any(path)
    return examples


def sift(
    source: Readable,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    take: str | None = None,
    most: float = inf,
) -> tuple[list[Example], list[DataError]]:
    """Read the rows that can be used, and beside them the reasons why others cannot; stop at so many of these at most."""
    source = recognise(source, format, columns, take)
    examples: list[Example] = []
    refused: list[DataError] = []
    for _, row in rows(source):
        if isinstance(row, DataError):
            refused.append(row)
        else:
            examples.append(row)
        if len(refused) >= most:
            break
    for note, number in source.notes.items():
        print(f"{source.name}: {note}: {number}", file=sys.stderr)
    if not examples and not refused and source.notes[LEFT_OUT]:
        raise DataError(f"{source.name}: no row is left, as --take leaves out all of them. Take more.")
    if not examples and not refused:
        raise DataError(f"{source.name}: the file holds no rows. Each line needs a question and an answer.")
    return examples, refused


def write_as(path: str | Path, examples: Iterable[Example], layout: str) -> None:
    """Write what is said as JSON Lines of a layout, one of `names.LAYOUTS` such as "messages"; `read_any` takes it back.

    Until all are written, an older file stays as it is. Raises DataError for a conversation where the layout holds but a
    question and an answer.
    """
    own = layout == "question_answer"
    write_lines(path, (example.row if own else _arranged(example.turns, layout) for example in examples))


def _arranged(turns: Sequence[Message], layout: str) -> dict:
    """Make a conversation one row of a layout, as `read_any` takes it back. Raises DataError where a layout cannot hold it."""
    if layout == "messages":
        return {"messages": [turn.row for turn in turns]}
    if layout == "sharegpt":
        speakers = {"user": "human", "assistant": "gpt"}
        rows = [{"from": speakers.get(turn.role, turn.role), "value": turn.content, **turn.row} for turn in turns]
        return {"conversations": [{k: v for k, v in row.items() if k not in ("role", "content")} for row in rows]}
    if layout not in LAYOUTS:
        raise DataError(f"{layout!r} is not written. Use one of {', '.join(LAYOUTS)}.")
    if len(turns) > 2:
        raise DataError(f"{turns[0].content[:60]!r}: {layout} holds one question and one answer. Write it as messages.")
    return dict(zip(LAYOUTS[layout], (turn.content for turn in turns), strict=True))


def to_dataset(examples: Iterable[Example]) -> "Dataset":
    """Make examples a `datasets.Dataset`, which `read_any` takes back."""
    from datasets import Dataset, Features, List, Value

    text, texts = Value("string"), List(Value("string"))
    turns = List({name: Value("int64") if name == "weight" else text for name in Message.__dataclass_fields__})
    features = dict.fromkeys(("question", "answer", "id", "kind"), text)
    features |= {"facts": texts, "values": texts, "history": turns, "steps": turns}
    rows = [asdict(example) for example in examples]
    return Dataset.from_list([{name: row[name] for name in features} for row in rows], features=Features(features))
