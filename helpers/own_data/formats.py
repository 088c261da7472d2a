"""Formats: files, folders and data sets of questions and answers, recognised and read row by row."""

import csv
import gzip
import json
import os
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import BinaryIO

from helpers.machine.paths import DATA
from helpers.text.messages import DataError, Message, listed, messages, text_field

# How rows are stored, by the usual ends of a file's name. More is told by the first bytes.
CONTAINERS = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet",),
    "markdown": (".md",),
    "hub": (),
}
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
OWN = ("id", "kind", "facts", "values", "history", "steps")  # what the course's own rows say besides question and answer
LONGEST_LINE = 2**24  # bytes; what is longer is hardly a row, and would fill the memory
LARGEST_JSON = 2**30  # bytes of a JSON file, unpacked: unlike the others, it is held in memory as a whole
SAMPLE = 100  # rows that are looked at to find one with a question and an answer


# ---- from bytes to records: each reader yields where a record stands, and the record or why it cannot be had


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file, packed with gzip or not."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else nullcontext(raw) as file:
                yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the packed file is damaged or cut short ({error}). Fetch or pack it again.") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened or read ({error.strerror}). Check that it is there and yours to read."
        ) from None


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number a file's lines, holding one at a time."""
    with _opened(path) as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB. Write one row a line.")
            if not line:
                return
            yield number, line


def _text(content: bytes, where: str, first: bool) -> str:
    """Decode UTF-8; a byte order mark may stand at the very beginning."""
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8 and try again.") from None


def _twice(names: Iterable[str]) -> str | None:
    """Return the first name that stands twice."""
    return next((name for name, number in Counter(names).items() if number > 1), None)


def _object(pairs: list[tuple[str, object]]) -> dict:
    """Make a JSON object a dict; a field that stands twice would silently lose its first value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise KeyError(_twice(name for name, _ in pairs))
    return made


def _parsed(text: str, where: str) -> object:
    """Parse JSON."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except KeyError as error:
        raise DataError(f"{where}: the field {error} stands twice. Keep one.") from None
    except (ValueError, RecursionError) as error:
        remedy = "Write one object a line, in double quotes; if it is another format, name it: --format csv"
        raise DataError(f"{where}: this is not JSON ({error}). {remedy}") from None


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    """Read one object a line; blank lines are skipped."""
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        try:
            text = _text(line, where, number == 1).strip()
            record = _parsed(text, where) if text else None
        except DataError as error:
            yield where, error
        else:
            if text:
                yield where, record


def _json(path: Path) -> Iterator[tuple[str, object]]:
    """Read a list of objects, or an object around one list."""
    with _opened(path) as file:
        content = file.read(LARGEST_JSON + 1)
    if len(content) > LARGEST_JSON:
        raise DataError(f"{path}: larger than {LARGEST_JSON >> 20} MB. Write it as JSON Lines (.jsonl): one object a line.")
    content = _parsed(_text(content, str(path), True), str(path))
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise DataError(f"{path}: expected a list of objects, found {reprlib.repr(content)}. Write [{{...}}, {{...}}].")
    for number, record in enumerate(lists[0], 1):
        yield f"{path}, row {number}", record


def _delimiter(path: Path) -> str:
    """Return what parts the first line into the most columns; between equals, a comma may rather be part of a name."""
    _, line = next(_lines(path), (1, b""))
    return max("\t;|,", key=re.sub('"[^"]*"', "", _text(line, f"{path}, line 1", True)).count)


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, object]]:
    """Read CSV or TSV whose first line names the columns. Cells in double quotes may hold anything, new lines too."""
    lines = (_text(line, f"{path}, line {number}", number == 1) for number, line in _lines(path))
    rows, names = csv.reader(lines, delimiter=delimiter, strict=True), []
    while True:
        where = f"{path}, line {rows.line_num + 1}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            remedy = "Look for a quote that is not closed, or not doubled inside a cell, and save with usual line ends."
            raise DataError(f"{where}: {error}. {remedy}") from None
        if cells is None:
            return
        if not names:
            names = [name.strip() for name in cells]
            if (twice := _twice(names)) is not None:
                raise DataError(f"{where}: the column {twice!r} stands twice. Rename one.")
        elif len(cells) == len(names):
            yield where, dict(zip(names, cells, strict=True))
        elif cells:
            remedy = f"Put cells that hold a {delimiter!r} or a new line in double quotes."
            yield where, DataError(f"{where}: expected {len(names)} cells, found {len(cells)}. {remedy}")


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    """Read a Parquet file, a thousand rows at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    numbers = count(1)
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    yield f"{path}, row {next(numbers)}", record
    except (ArrowException, OSError, ValueError, OverflowError) as error:  # the latter: dates beyond those of Python
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: this Parquet file is damaged ({reason}). Fetch or write it again.") from None


def _markdown(path: Path) -> Iterator[tuple[str, object]]:
    """Read a page, or all pages below a folder, as sections: the question is the headings, the answer the text.

    A heading without text of its own goes on in the headings of those below it.
    """
    pages = sorted(page for page in path.rglob("*.md") if page.is_file() or page.is_symlink()) if path.is_dir() else [path]
    for page in pages:
        headings, start, text, fenced = {0: page.stem}, 1, [], False

        def section(page: Path, start: int, headings: dict[int, str], text: list[str]) -> Iterator[tuple[str, object]]:
            titles = [title for level, title in sorted(headings.items()) if level or len(headings) == 1]
            if answer := "".join(text).strip():
                yield f"{page}, line {start}", {"question": ": ".join(titles), "answer": answer}

        for number, line in _lines(page):
            line = _text(line, f"{page}, line {number}", number == 1)
            fenced ^= line.lstrip().startswith(("```", "~~~"))
            heading = None if fenced else re.match(r"(#{1,6})\s+(.*?)[\s#]*$", line)
            if not heading:
                text.append(line)
                continue
            yield from section(page, start, headings, text)
            level = len(heading[1])
            headings = {above: title for above, title in headings.items() if above < level} | {level: heading[2]}
            start, text = number, []
        yield from section(page, start, headings, text)


def _hub(name: str) -> Iterable[dict]:
    """Fetch a data set's training split from the hub, or from the cache of an earlier time."""
    from datasets import load_dataset
    from huggingface_hub import constants

    try:
        return load_dataset(name, split="train")
    except Exception as error:  # the hub's client lets many kinds through: sockets, HTTP, timeouts, wrong files
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{type(error).__name__}: {error}".split("\n")[0][:160]
        remedy = "Check the name and the network, or fetch the data set elsewhere and give its file."
        raise DataError(f"{name}: there is no such file, and the hub did not give this data set ({why}). {remedy}") from None


# ---- from records to questions and answers


def _no_object(record: object, where: str) -> str:
    """Say that a record has no fields."""
    found = reprlib.repr(record)[:40]
    return f'{where}: expected an object such as {{"question": ..., "answer": ...}}, found {found!r}.'


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


@dataclass(frozen=True)
class Source:
    """Rows whose format has been recognised. `str()` of it says how it will be read.

    `columns` maps the fields of the layout to the names that the file has for them.
    """

    name: str
    content: Path | Iterable[dict]
    container: str
    layout: str = "question_answer"
    columns: Mapping[str, str] | None = None
    unread: tuple[str, ...] = ()
    mapped: bool = False

    def __str__(self) -> str:
        """Say in one line what was recognised, and which columns are left out."""
        if self.container == "markdown":
            return f"{self.name}: read as markdown (*.md), a row a section: its headings are the question, its text the answer."
        read = ", ".join(name if part == name else f"{part} = {name!r}" for part, name in self.columns.items())
        unread = f" Not read: {listed(self.unread)}." if self.unread else ""
        return f"{self.name}: read as {self.container}, {self.layout} ({read}).{unread}"

    def records(self) -> Iterator[tuple[str, object]]:
        """Yield where each record stands, and the record, or the DataError that says why there is none."""
        if self.container in ("csv", "tsv"):
            return _table(self.content, "\t" if self.container == "tsv" else _delimiter(self.content))
        readers = {"jsonl": _jsonl, "json": _json, "parquet": _parquet, "markdown": _markdown}
        if self.container in readers:
            return readers[self.container](self.content)
        return ((f"{self.name}, row {number}", record) for number, record in enumerate(self.content, 1))

    def turns(self, record: object, where: str) -> tuple[Message, ...]:
        """Take a conversation from a record: a question and its answer, or all that was said up to the last answer."""
        if not isinstance(record, dict):
            raise DataError(_no_object(record, where))
        names = [self.columns[field] for field in LAYOUTS[self.layout]]
        if self.layout in ("messages", "sharegpt"):
            return _conversation(record.get(names[0]), f"{where}, field {names[0]!r}")
        question, answer = (text_field(record, name, where) for name in names)
        given = record.get(self.columns["input"]) if self.layout == "alpaca" else None
        if given is not None and not (isinstance(given, str) and not given.strip()):
            question += "\n\n" + text_field(record, self.columns["input"], where)
        return Message("user", question), Message("assistant", answer)


Readable = str | Path | Source | Iterable[dict]  # a path, a name on the hub, a `datasets.Dataset`, a list of dicts


def _container(path: Path) -> str:
    """Recognise how a file stores its rows, by the end of its name or by how it begins."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    for container, endings in CONTAINERS.items():
        if ending in endings and container != "json":
            return container
    with _opened(path) as file:
        start = file.read(LONGEST_LINE).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"PK\x03\x04"):
        raise DataError(f"{path}: this is an Excel or zip file. Save the table as CSV, or unpack it.")
    if start.startswith(b"PAR1"):
        return "parquet"
    if start.startswith(b"{"):  # an object a line, or one object over many lines?
        try:
            json.loads(start.splitlines()[0])
        except (ValueError, RecursionError):
            return "json"
    return "json" if start.startswith(b"[") else "jsonl"


def _located(source: str | Path | Iterable[dict], format: str | None) -> tuple[str, Path | Iterable[dict], str]:
    """Find what is to be read: its name, the path or the rows, and how these are stored."""
    if isinstance(source, Mapping):
        raise DataError(f"This data set has parts. Give one of them: {', '.join(map(repr, source))}.")
    if not isinstance(source, (str, Path)):
        return "data set", source if iter(source) is not source else list(source), "dataset"
    name, path, container = str(source), Path(source), format if format in CONTAINERS else None
    on_hub = re.fullmatch(r"\w[\w.-]*/[\w.-]+", path.as_posix()) and not os.path.exists(path.parent)
    file_like = path.suffix.lower() in (".gz", *(ending for endings in CONTAINERS.values() for ending in endings))
    if container == "hub" or (container is None and on_hub and not file_like):
        return name, _hub(path.as_posix()), "hub"
    if os.path.isdir(path):
        if not any(path.rglob("*.md")):
            raise DataError(f"{name}: a folder is read for its Markdown, but there is no such file (*.md) in it.")
        return name, path, "markdown"
    if not os.path.isfile(path):
        raise DataError(f"{name[:300]}: there is no such file. Check the path; the course's own data is in {DATA}.")
    return name, path, container or _container(path)


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
    for field in (*LAYOUTS[layout], *(["input"] if layout == "alpaca" else [])):
        named[field] = spelt.get(field, field)
        if len(same := [column for column in record if str(column).strip().casefold() == field]) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, same))} may both be the {field}. Rename one.")
    return layout, named


def recognise(source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None) -> Source:
    """Find out how a file, a folder of Markdown, a data set or a name on the hub is to be read.

    `format` names one of FORMATS where that is not clear: how the rows are stored, or how they say question and answer.
    `columns` names the columns: {"question": "Frage", "answer": "Antwort"}, and "id" if one is to be kept.
    """
    if isinstance(source, Source):
        return source
    mapped = dict(columns or {})
    if format not in (None, *FORMATS):
        raise DataError(f"{format!r} is no known format. Use one of {', '.join(FORMATS)}.")
    if strange := set(mapped) - {"question", "answer", "id"}:
        raise DataError(f"{min(strange)!r} cannot be mapped. Write it as question=COLUMN,answer=COLUMN")
    name, content, container = _located(source, format)
    first, refused = None, None
    for where, record in islice(Source(name, content, container).records(), SAMPLE):  # the first that has all fields
        if not isinstance(record, dict):
            refused = refused or (record if isinstance(record, DataError) else DataError(_no_object(record, where)))
            continue
        layout, named = _understood(record, where, format, mapped)
        read = {*named.values(), *(OWN if layout == "question_answer" and not mapped else ())}
        unread = tuple(column for column in record if column not in read)
        found = Source(name, content, container, layout, named, unread, bool(mapped))
        first = first or (found, record, where)
        if all(column in record for field, column in named.items() if field in LAYOUTS[layout]):
            return found
    if first:
        first[0].turns(*first[1:])  # says which field is missing
    raise refused or DataError(f"{name}: the file holds no rows. Each line needs a question and an answer.")


def arrange(turns: Sequence[Message], layout: str) -> dict:
    """Make a conversation one row of a layout, as `read` takes it back. Raises DataError where a layout cannot hold it."""
    if layout == "messages":
        return {"messages": [turn.row for turn in turns]}
    if layout == "sharegpt":
        speakers = {"user": "human", "assistant": "gpt"}
        rows = [{"from": speakers.get(turn.role, turn.role), "value": turn.content, **turn.row} for turn in turns]
        return {"conversations": [{k: v for k, v in row.items() if k not in ("role", "content")} for row in rows]}
    if len(turns) > 2:
        raise DataError(f"{turns[0].content[:60]!r}: {layout} holds one question and one answer. Write it as messages.")
    return dict(zip(LAYOUTS[layout], (turn.content for turn in turns), strict=True))
