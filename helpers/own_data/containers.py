"""Containers: how files, folders, data sets and the hub store rows; each is read record by record."""

import csv
import json
import os
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path

from helpers.machine.paths import DATA
from helpers.machine.walk import files_below
from helpers.text.jsonl import LONGEST_LINE, decoded, json_lines, numbered_lines, opened, parse_json, repeated
from helpers.text.markdown import sections
from helpers.text.messages import DataError

# How rows are stored, by the usual ends of a file's name. More is told by the first bytes.
CONTAINERS = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet",),
    "markdown": (".md", ".markdown"),
    "hub": (),
}
LARGEST_JSON = 2**30  # bytes of a JSON file, unpacked: unlike the others, it is held in memory as a whole


def _json(path: Path) -> Iterator[tuple[str, object]]:
    """Read a list of objects, or an object around one list."""
    with opened(path) as file:
        packed = file.read(LARGEST_JSON + 1)
    if len(packed) > LARGEST_JSON:
        raise DataError(f"{path}: larger than {LARGEST_JSON >> 20} MB. Write it as JSON Lines (.jsonl): one object a line.")
    content = parse_json(decoded(packed, str(path), True), str(path))
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else [content]
    if len(lists) != 1 or not isinstance(lists[0], list):
        raise DataError(f"{path}: expected a list of objects, found {reprlib.repr(content)}. Write [{{...}}, {{...}}].")
    for number, record in enumerate(lists[0], 1):
        yield f"{path}, row {number}", record


def _delimiter(path: Path) -> str:
    """Return what parts the first line into the most columns; between equals, a comma may rather be part of a name."""
    _, line = next(numbered_lines(path), (1, b""))
    return max("\t;|,", key=re.sub('"[^"]*"', "", decoded(line, f"{path}, line 1", True)).count)


def _table(path: Path, delimiter: str) -> Iterator[tuple[str, object]]:
    """Read CSV or TSV whose first line names the columns. Cells in double quotes may hold anything, new lines too."""
    lines = (decoded(line, f"{path}, line {number}", number == 1) for number, line in numbered_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
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
            if (twice := repeated(names)) is not None:
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
    """Read a page, or all pages below a folder, as sections: the question is the headings, the answer the text."""
    for page in files_below(path, CONTAINERS["markdown"]) if path.is_dir() else [path]:
        lines = (decoded(line, f"{page}, line {number}", number == 1) for number, line in numbered_lines(page))
        for section in sections(lines, page.stem):
            yield f"{page}, line {section.line}", {"question": section.heading, "answer": section.text}


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


def _container(path: Path) -> str:
    """Recognise how a file stores its rows, by the end of its name or by how it begins."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    ending = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else "".join(suffixes[-1:])
    for container, endings in CONTAINERS.items():
        if ending in endings and container != "json":
            return container
    with opened(path) as file:
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


def located(source: str | Path | Iterable[dict], format: str | None) -> tuple[str, Path | Iterable[dict], str]:
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
        if not files_below(path, CONTAINERS["markdown"]):
            raise DataError(f"{name}: a folder is read for its Markdown, but there is no such file (*.md) in it.")
        return name, path, "markdown"
    if not os.path.isfile(path):
        raise DataError(f"{name[:300]}: there is no such file. Check the path; the course's own data is in {DATA}.")
    return name, path, container or _container(path)


def record_stream(name: str, content: Path | Iterable[dict], container: str) -> Iterator[tuple[str, object]]:
    """Yield where each record stands, and the record, or the DataError that says why there is none."""
    if not isinstance(content, Path):
        return ((f"{name}, row {number}", record) for number, record in enumerate(content, 1))
    if container in ("csv", "tsv"):
        return _table(content, "\t" if container == "tsv" else _delimiter(content))
    return {"jsonl": json_lines, "json": _json, "parquet": _parquet, "markdown": _markdown}[container](content)
