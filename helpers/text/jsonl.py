"""JSON Lines: a file's lines one at a time, each a JSON object; and what the fields of the course's own rows hold."""

import bz2
import gzip
import io
import json
import lzma
import re
import reprlib
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import IO, Any, cast

from helpers.machine.files import written_aside
from helpers.machine.paths import DATA
from helpers.text.messages import DataError, is_text, messages, text_field

LONGEST_LINE = 2**24  # bytes; what is longer is hardly a row, and would fill the memory
KINDS = ("fact", "multi_fact", "unanswerable", "off_topic")
OWN = ("id", "kind", "facts", "values", "history", "steps")  # what the course's own rows say besides question and answer
MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class _Recoded:
    """A file in UTF-16 or UTF-32, read as UTF-8. Its lines end with a new line only."""

    def __init__(self, file: IO[bytes], encoding: str):
        self.text = io.TextIOWrapper(cast(Any, file), encoding, newline="\n")

    def read(self, size: int = -1) -> bytes:
        return self.text.read(size).encode()

    def readline(self, size: int = -1) -> bytes:
        return self.text.readline(size).encode()


def _unpacked(raw: IO[bytes], start: bytes) -> Any:
    """Unpack a file that is packed in one of the usual ways, which its first bytes tell."""
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(raw)
    if re.match(rb"BZh[1-9]1AY&SY", start):
        return bz2.open(raw)
    if start.startswith(b"\xfd7zXZ\0"):
        return lzma.open(raw)
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        from pyarrow import input_stream  # a second to load, and seldom needed

        return io.BufferedReader(input_stream(raw, compression="zstd"))
    return nullcontext(raw)


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file to read, packed (gzip, bzip2, xz, zstd) or not; UTF-16 and UTF-32 with a mark come as UTF-8.

    Raises DataError where there is none, where it cannot be read, and where it is damaged.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(f"{path}: is a pipe or a device, which can be read only once. Write it to a file, and give that.")
        with path.open("rb") as raw:
            start = raw.read(10)
            raw.seek(0)
            with _unpacked(raw, start) as file:
                begin = file.peek(4)
                mark = next((mark for mark in MARKS if begin.startswith(mark)), None)
                yield cast(IO[bytes], _Recoded(file, MARKS[mark]) if mark else file)
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: there is no such file. Check the path; the course's own data is in {DATA}.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the packed file is damaged or cut short ({error}). Fetch or pack it again.") from None
    except UnicodeError as error:
        raise DataError(f"{path}: begins as UTF-16 and goes on otherwise ({error}). Save the file as UTF-8.") from None
    except OSError as error:
        if error.errno is None:  # of bz2 and pyarrow, which say so of damage
            raise DataError(f"{path}: the packed file is damaged or cut short ({error}). Fetch or pack it again.") from None
        raise DataError(f"{path}: cannot be opened or read ({error.strerror}). Check that it is yours to read.") from None


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number a file's lines, holding one at a time."""
    with opened(path) as file:
        for number in count(1):
            line = file.readline(LONGEST_LINE + 1)
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}, line {number}: longer than {LONGEST_LINE >> 20} MB. Write one row a line.")
            if not line:
                return
            yield number, line


def decoded(content: bytes, where: str) -> str:
    """Decode UTF-8. Byte order marks at the beginning go, as at the joints of files that were put together."""
    try:
        return content.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start} is not UTF-8. Save the file as UTF-8 and try again.") from None


def repeated(names: Iterable[str]) -> str | None:
    """Return the first name that stands twice."""
    return next((name for name, number in Counter(names).items() if number > 1), None)


def _object(pairs: list[tuple[str, object]]) -> dict:
    """Make a JSON object a dict; a field that stands twice would silently lose its first value."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise KeyError(repeated(name for name, _ in pairs))
    return made


def _remedy(text: str, error: Exception) -> str:
    """Say what to do about a text that is no JSON, by what it looks like."""
    place = error.pos if isinstance(error, json.JSONDecodeError) else 0
    if re.match(r"[\[\s]{0,80}(?:\{\s{0,80}|\[)'", text):
        return "It is Python's way of writing, with single quotes: write it with json.dumps."
    if re.compile("None|True|False").match(text, place):
        return "It is Python's way of writing None, True and False: write it with json.dumps."
    if re.match(r"[\[\s]{0,80}\{\s{0,80}[\u201c\u201d\u201e\u2018\u2019\u00ab]", text) or text[place : place + 1] in (
        "\u201c",
        "\u201d",
    ):
        return 'It has typographic quotes: put straight ones (") in their place.'
    reason = error.msg if isinstance(error, json.JSONDecodeError) else ""
    if reason.startswith("Invalid control"):
        return "A text holds a line break or another control character: write \\n for it."
    if reason.startswith("Invalid \\"):
        return "A backslash in a text is written twice: \\\\."
    if reason.startswith("Extra data") and text[place] == ",":
        return "A comma stands behind the object: take it out, or put all of them into one list, in [ and ]."
    if reason.startswith("Expecting ','"):
        return 'A comma is missing here, or a " within a text is not written as \\".'
    if reason.startswith("Unterminated"):
        return "It is not closed: write each object in one line; if the file was cut short, fetch it again."
    if re.match(r",\s{0,80}[}\]]", text[max(0, place - 80) : place + 80][-160:]) or re.search(
        r",\s{0,40}$", text[max(0, place - 40) : place]
    ):
        return "There is a comma too many before } or ]: take it out."
    if text[place : place + 1] in ("{", "[") and reason.startswith("Extra data"):
        return "Several objects follow one another: write one a line (.jsonl), or a list of them."
    if text.startswith(("{", "[")) and place >= len(text.rstrip()) - 1:
        return "It is not closed: write each object in one line; if the file was cut short, fetch it again."
    return "Write one object a line, in double quotes; if it is another format, name it: --format csv"


def parse_json(text: str, where: str) -> object:
    """Parse JSON. Raises DataError that says what it looks like instead, and what to do."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except KeyError as error:
        raise DataError(f"{where}: the field {error} stands twice. Keep one.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: this is not JSON ({error}). {_remedy(text, error)}") from None


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """Read one object a line; blank lines are skipped. Yields where it stands, and the object or why there is none."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            text = decoded(line, where).strip()
            record = parse_json(text, where) if text else None
        except DataError as error:
            yield where, error
        else:
            if text:
                yield where, record


def write_lines(path: str | Path, records: Iterable[dict]) -> None:
    """Write an object a line. Until all are written, an older file stays as it is."""
    with written_aside(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def row_fields(record: object, where: str) -> dict[str, Any]:
    """Take the fields of one of the course's own rows, as `Example` has them, or say in one sentence what is wrong."""
    if isinstance(record, DataError):  # why the line gave no record
        raise record
    if not isinstance(record, dict):
        raise DataError(no_object(record, where))
    fields: dict[str, Any] = {name: text_field(record, name, where) for name in ("question", "answer")}
    fields |= {name: record[name] for name in OWN if name in record}
    remedy = "Correct it, or name the columns, and no other will be read: --map question=question,answer=answer"
    for name in fields.keys() & {"id", "kind"}:
        if not is_text(fields[name]):
            raise DataError(f"{where}, field {name!r}: expected text, found {reprlib.repr(fields[name])}. {remedy}")
    for name in fields.keys() & {"facts", "values"}:
        entries = fields[name]
        if not isinstance(entries, list) or not all(entry and is_text(entry) for entry in entries):
            raise DataError(f"{where}, field {name!r}: expected a list of texts, found {reprlib.repr(entries)}. {remedy}")
        fields[name] = tuple(entries)
    if fields.get("kind", "fact") not in KINDS:
        found = reprlib.repr(fields["kind"])
        raise DataError(f"{where}, field 'kind': {found} is unknown. Use one of {', '.join(KINDS)}. {remedy}")
    for name in fields.keys() & {"history", "steps"}:
        try:
            fields[name] = messages(fields[name] or (), f"{where}, field {name!r}")
        except DataError as error:
            raise DataError(f"{error} {remedy}") from None
    return fields


def no_object(record: object, where: str) -> str:
    """Say that a record has no fields."""
    found = reprlib.repr(record)[:40]
    return f'{where}: expected an object such as {{"question": ..., "answer": ...}}, found {found!r}.'
