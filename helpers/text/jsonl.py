"""JSON Lines: a file's lines one at a time, each a JSON object; and what the fields of the course's own rows hold."""

import gzip
import json
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


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, packed with gzip or not."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            with gzip.open(raw) if packed else nullcontext(raw) as file:
                yield cast(IO[bytes], file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the packed file is damaged or cut short ({error}). Fetch or pack it again.") from None
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{path}: there is no such file. Check the path; the course's own data is in {DATA}.") from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be opened or read ({error.strerror}). Check that it is there and yours to read."
        ) from None


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


def decoded(content: bytes, where: str, first: bool) -> str:
    """Decode UTF-8; a byte order mark may stand at the very beginning."""
    try:
        return content.decode("utf-8-sig" if first else "utf-8")
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


def parse_json(text: str, where: str) -> object:
    """Parse JSON."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except KeyError as error:
        raise DataError(f"{where}: the field {error} stands twice. Keep one.") from None
    except (ValueError, RecursionError) as error:
        remedy = "Write one object a line, in double quotes; if it is another format, name it: --format csv"
        raise DataError(f"{where}: this is not JSON ({error}). {remedy}") from None


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """Read one object a line; blank lines are skipped."""
    for number, line in numbered_lines(path):
        where = f"{path}, line {number}"
        try:
            text = decoded(line, where, number == 1).strip()
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
    remedy = "Correct it, or name the columns, and no other will be read: --map question=question,answer=answer"
    fields |= {name: record[name] for name in OWN if name in record}
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
