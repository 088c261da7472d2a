"""Containers: how files store rows; each is recognised by its first bytes, and read record by record."""

import csv
import json
import os
import re
import reprlib
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, count, islice
from pathlib import Path

from helpers.own_data.names import ALL_LAYOUTS, CONTAINERS, ChoiceError
from helpers.text.jsonl import LONGEST_LINE, decoded, json_lines, numbered_lines, opened, parse_json, repeated
from helpers.text.markdown import sections
from helpers.text.messages import DataError

LARGEST_JSON = 2**30  # bytes of a JSON file, unpacked: unlike the others, it is held in memory as a whole
LARGEST_TEXT = 20_000  # characters of a paragraph
START = 2**16  # bytes that tell how a file stores its rows
HEAD = 20  # lines of a table in which its header is looked for
csv.field_size_limit(LONGEST_LINE)  # a cell may be as long as a line

Records = Iterator[tuple[str, object]]  # where a record stands, and the record, or the DataError that says why there is none

SAVE_AS = "Save the table as CSV (UTF-8)"
REFUSED: tuple[tuple[bytes, str, str], ...] = (  # how other files begin, what they are, and what to do
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", SAVE_AS),
    (rb"SQLite format 3\0", "an SQLite database", "Export the table as CSV"),
    (rb"version https://git-lfs\.github\.com", "a Git LFS pointer, not the file itself", "Fetch it with: git lfs pull"),
    (
        rb"(?i)\s{0,80}<(!doctype html|html|head|body|table)",
        "a web page",
        "Download the file itself, not the page that shows it",
    ),
    (rb"\s{0,80}<\?xml", "an XML file", "Convert it to CSV or JSON Lines"),
    (rb"%PDF-", "a PDF", "Copy its text into a .txt or .md file"),
    (rb"\{\\rtf", "an RTF document", "Save it as plain text (UTF-8)"),
    (rb"\x80[\x02-\x05]", "a Python pickle, which may run code when opened", "Save its rows as JSON Lines"),
    (rb"\x93NUMPY", "a NumPy array", "Save its rows as JSON Lines"),
    (rb"7z\xbc\xaf|Rar!|\x04\x22\x4d\x18", "a packed archive", "Unpack it"),
    (rb"\x89HDF", "an HDF5 file", "Export its table as CSV or Parquet"),
    (rb"ORC|Obj\x01", "an ORC or Avro file", "Convert it to Parquet"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8", "a picture", "Give the text that it shows, as a file"),
)


def _zip_kind(path: Path) -> tuple[str, str]:
    """Say what a zip file holds, and what to do."""
    try:
        names = zipfile.ZipFile(path).namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "an Excel or zip file, damaged or cut short", "Fetch it again, and save the table as CSV"
    if any(name.startswith("xl/") for name in names):
        return "an Excel file", SAVE_AS
    if any(name.startswith("word/") for name in names):
        return "a Word document", "Save it as plain text (UTF-8)"
    if "mimetype" in names and "content.xml" in names:
        return "an OpenDocument file", f"{SAVE_AS}, or the text as plain text"
    shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    return f"a zip file ({shown or 'empty'})", "Unpack it, and give the file or the folder that was in it"


def _refuse(path: Path, start: bytes) -> None:
    """Raise DataError for a file of another kind, which its first bytes tell."""
    kind, remedy = next(((kind, remedy) for begin, kind, remedy in REFUSED if re.match(begin, start)), ("", ""))
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        kind, remedy = _zip_kind(path)
    if start[257:262] == b"ustar":
        kind, remedy = "a tar archive", "Unpack it, and give the file or the folder that was in it"
    if kind:
        raise DataError(f"{path}: this is {kind}. {remedy}.")


def container_of(path: Path) -> str:
    """Recognise how a file stores its rows, by how it begins and by the end of its name. Raises DataError for other kinds."""
    with opened(path) as file:
        start = file.read(START).lstrip(b"\xef\xbb\xbf")
        if start.lstrip().startswith(b"{") and b"\n" not in start:
            start += file.readline(LONGEST_LINE)
    _refuse(path, start[:1024])
    if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"FEA1")):
        container = "parquet" if start.startswith(b"PAR1") else "arrow"
        with path.open("rb") as raw:
            if raw.read(4) != start[:4]:
                raise DataError(f"{path}: this is a packed {container.capitalize()} file. Unpack it, and give what was in it.")
        return container
    if start.count(b"\0") * 4 > len(start):
        raise DataError(f"{path}: mostly null bytes: UTF-16 without a mark, or no text at all. Save the file as UTF-8.")
    endings = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in (".gz", ".bz2", ".xz", ".zst")][-1:]
    named = next((name for name, known in CONTAINERS.items() if set(endings) & set(known)), "")
    if named in ("parquet", "arrow"):
        raise DataError(f"{path}: this {named.capitalize()} file is damaged, or none. Fetch or write it again.")
    start = start.lstrip()
    if named == "markdown" or (named in ("csv", "tsv") and not re.match(rb'(\[\s*)?\{\s*"', start)):
        return named
    if start.startswith(b"{"):  # an object a line, or one object over many lines?
        line, _, rest = start.partition(b"\n")
        line = line.rstrip()
        if named == "json" and not rest.strip():
            return "json"
        try:
            json.loads(line)
        except (ValueError, RecursionError):
            return "jsonl" if re.search(rb"\},?$", line) and named != "json" else "json"
        return "jsonl"
    if start.startswith(b"["):
        return "json"
    head = start.decode("utf-8", "ignore").splitlines()[:HEAD]
    number, delimiter, known = _header(head)
    if known and (not named or delimiter in head[number]):
        return "csv"
    return "text" if named == "text" else "jsonl"


# ---- JSON


def _columns(content: dict) -> list[dict] | None:
    """Make rows of columns, as pandas writes them: {"a": {"0": ...}}, {"a": [...]} or {"columns": ..., "data": ...}."""
    values = list(content.values())
    layouts = [set(fields) for fields in ALL_LAYOUTS.values()]
    if values and all(isinstance(row, dict) and any(row.keys() >= fields for fields in layouts) for row in values):
        return values  # rows by their numbers
    names, data = content.get("columns"), content.get("data")
    if isinstance(names, list) and isinstance(data, list) and all(isinstance(row, list) for row in data):
        return [dict(zip(map(str, names), row, strict=False)) for row in data]
    if len(values) > 1 and all(isinstance(value, dict) and value.keys() == values[0].keys() for value in values):
        return [{name: content[name][key] for name in content} for key in values[0]]
    if len(values) > 1 and all(isinstance(value, list) and len(value) == len(values[0]) for value in values):
        cells = [cell for value in values for cell in value[:20]]
        known = any(set(content) >= set(fields) for fields in ALL_LAYOUTS.values())
        if known or not any(isinstance(cell, dict) for cell in cells):
            return [dict(zip(content, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _rows_of(content: object, path: Path) -> list:
    """Find the rows in what a JSON file holds: a list, an object around one, columns, or a single row."""
    if isinstance(content, list):
        return content
    if isinstance(content, dict):
        if (rows := _columns(content)) is not None:
            return rows
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if not lists or any(set(content) >= set(fields) for fields in ALL_LAYOUTS.values()):
            return [content]
        if len(lists) == 1:
            return next(iter(lists.values()))
        if len(lists) > 1 and all(isinstance(value[0], dict) for value in lists.values() if value):
            raise ChoiceError(f"{path}: has parts: {', '.join(lists)}. Write the one that is meant to a file of its own.")
    raise DataError(f"{path}: expected a list of objects, found {reprlib.repr(content)}. Write [{{...}}, {{...}}].")


def _json(path: Path) -> Records:
    """Read a list of objects, an object around one, or columns."""
    with opened(path) as file:
        packed = file.read(LARGEST_JSON + 1)
    if len(packed) > LARGEST_JSON:
        raise DataError(f"{path}: larger than {LARGEST_JSON >> 20} MB. Write it as JSON Lines (.jsonl): one object a line.")
    content = parse_json(decoded(packed, str(path)), str(path))
    for number, record in enumerate(_rows_of(content, path), 1):
        yield f"{path}, row {number}", record


# ---- tables


def _cells(line: str, delimiter: str) -> list[str]:
    """Cut a line into cells, roughly; a quote may still be open at its end."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:  # an old Mac's line ends, which the reader will speak of
        return []


def _header(lines: list[str]) -> tuple[int, str, bool]:
    """Find the line that names the columns and what parts them; and tell whether its names are known ones.

    It may stand below Excel's "sep=;" and below titles, which leave cells empty. Between delimiters that part equally often,
    a comma may rather be part of a name.
    """
    for delimiter in "\t;|,":
        below = 0  # how many fields a layout has to have: a single one may as well be a word of a row
        for number, line in enumerate(lines[:HEAD]):
            cells = _cells(line, delimiter) if len(line) < 100_000 else []
            said = {cell.casefold() for cell in cells if cell}
            if any(said >= set(fields) for fields in ALL_LAYOUTS.values() if len(fields) > below):
                return number, delimiter, True
            if len(said) > 1:
                if "" not in cells:  # the names, if these are unknown, or values
                    break
                below = 1
    if lines and (excel := re.match(r'"?sep=(.)"?\s*$', lines[0])):
        return 1, excel[1], False
    for number, line in enumerate(lines[:HEAD]):
        bare = re.sub('"[^"]*"', "", line)
        if (likely := max("\t;|,", key=bare.count)) in bare:
            return number, likely, False
    return 0, ",", False


def _named(cells: list[str], names: list[str]) -> dict[str, str]:
    """Make cells a record; a column without a name is one only where there is something in it."""
    named = {name: cell for name, cell in zip(names, cells, strict=True) if name}
    return named | {f"column {n}": cell for n, cell in enumerate(cells, 1) if not names[n - 1] and cell.strip()}


def _table(path: Path, delimiter: str, notes: Counter) -> Records:
    """Read CSV or TSV whose first line names the columns. Cells in double quotes may hold anything, new lines too."""
    lines = (decoded(line, f"{path}, line {number}") for number, line in numbered_lines(path))
    head = list(islice(lines, HEAD))
    skipped, found, known = _header(head)
    if any(line.strip(" \t\r\n,;|") and not line.lower().startswith(("sep=", '"sep=')) for line in head[:skipped]):
        notes[f"the column names are read from line {skipped + 1}; what stands above is left out"] += 1
    rows = csv.reader(chain(head[skipped:], lines), delimiter=found if known else delimiter or found, strict=True)
    names: list[str] = []
    while True:
        where = f"{path}, line {skipped + rows.line_num + 1}"
        try:
            cells = next(rows, None)
        except csv.Error as error:
            remedy = "Look for a quote that is not closed, or not doubled inside a cell, and save with usual line ends."
            raise DataError(f"{where}: {error}. {remedy}") from None
        if cells is None:
            return
        if not any(cell.strip() for cell in cells):
            continue
        if not names:
            names = [name.strip() for name in cells]
            if (twice := repeated(filter(None, names))) is not None:
                raise DataError(f"{where}: the column {twice!r} stands twice. Rename one.")
            continue
        if [cell.strip() for cell in cells] == names:
            notes["lines that repeat the column names are left out"] += 1
            continue
        if len(cells) > len(names) and not any(cell.strip() for cell in cells[len(names) :]):
            cells = cells[: len(names)]
        if len(cells) == len(names):
            yield where, _named(cells, names)
        else:
            remedy = f"Put cells that hold a {rows.dialect.delimiter!r} or a new line in double quotes."
            yield where, DataError(f"{where}: expected {len(names)} cells, found {len(cells)}. {remedy}")


# ---- others


def _arrow(path: Path, container: str) -> Records:
    """Read a Parquet, Arrow or Feather file, a thousand rows at a time."""
    import pyarrow  # a second to load, and needed for these files only
    from pyarrow import feather, ipc
    from pyarrow.parquet import ParquetFile

    def batches() -> Iterator:
        if container == "parquet":
            with ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=1000)
            return
        with opened(path) as file:
            start = file.read(6)
        if start.startswith(b"FEA1"):
            yield from feather.read_table(path).to_batches(max_chunksize=1000)
        elif start == b"ARROW1":
            with pyarrow.memory_map(os.fspath(path)) as mapped, ipc.open_file(mapped) as file:
                yield from (file.get_batch(number) for number in range(file.num_record_batches))
        else:
            with pyarrow.memory_map(os.fspath(path)) as mapped, ipc.open_stream(mapped) as file:
                yield from file

    numbers = count(1)
    try:
        for batch in batches():
            for start in range(0, batch.num_rows, 1000):
                for record in batch.slice(start, 1000).to_pylist():
                    yield f"{path}, row {next(numbers)}", record
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the latter: dates beyond Python's
        if isinstance(error, DataError):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: this {container.capitalize()} file is damaged ({reason}). Fetch or write it again.") from None


def _markdown(path: Path) -> Records:
    """Read a page as sections: the question is the headings, the answer the text."""
    lines = (decoded(line, f"{path}, line {number}") for number, line in numbered_lines(path))
    for section in sections(lines, path.stem):
        yield f"{path}, line {section.line}", {"question": section.heading, "answer": section.text}


def _paragraphs(path: Path) -> Records:
    """Read plain text, a paragraph a record: blank lines stand between them. A very long one is cut at a line's end."""
    start, taken = 1, ""
    for number, line in numbered_lines(path):
        text = decoded(line, f"{path}, line {number}").rstrip() + "\n"
        if taken.strip() and (not text.strip() or len(taken) + len(text) > LARGEST_TEXT):
            yield f"{path}, line {start}", {"title": path.stem, "text": taken.strip()}
            taken = ""
        start = start if taken else number
        taken = taken + text if text.strip() else ""
    if taken.strip():
        yield f"{path}, line {start}", {"title": path.stem, "text": taken.strip()}


def record_stream(name: str, content: list[Path] | Iterable[dict], container: str, notes: Counter) -> Records:
    """Yield the records of files, or of rows that are at hand. container: how files store them; "": each as it begins.

    notes: what was done to them without being asked is counted in it.
    """
    if not isinstance(content, list) or not content or not isinstance(content[0], Path):
        yield from ((f"{name}, row {number}", record) for number, record in enumerate(content, 1))
        return
    for path in content:
        kind = container or container_of(path)
        if kind in ("csv", "tsv"):
            yield from _table(path, "\t" if kind == "tsv" else "", notes)
        elif kind in ("parquet", "arrow"):
            yield from _arrow(path, kind)
        else:
            readers = {"jsonl": json_lines, "json": _json, "markdown": _markdown, "text": _paragraphs}
            yield from readers[kind](path)
