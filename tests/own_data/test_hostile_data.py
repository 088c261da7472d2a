"""Hostile files: whatever is in them, reading gives rows or one clear error. Never a hang, never a part taken for the whole."""

import csv
import gzip
import json
import os
import random
import re
import sys
import time
from dataclasses import asdict

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from helpers.data import Example, split, write
from helpers.own_data.duplicates import deduplicate
from helpers.own_data.names import FORMATS, LAYOUTS
from helpers.own_data.repair import SCRIPTS, WORDS, language, mask, repair_encoding, strip_html
from helpers.own_data.report import faults, inspect_data
from helpers.own_data.rows import read_any, sift, to_dataset, write_as
from helpers.text.messages import DataError

# Few examples, always the same ones, none of them slow: a slow one would be a hang in the making.
settings.register_profile(
    "hostile",
    max_examples=150,
    deadline=2000,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
hostile = settings.get_profile("hostile")
ENDINGS = ("jsonl", "json", "csv", "tsv", "parquet", "md", "txt", "jsonl.gz")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)
# A byte order mark at the beginning of a line is no text: it goes, as at the joints of files that were put together.
UNMARKED = TEXTS.filter(lambda text: not re.search("^\ufeff", text, re.MULTILINE))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
MAGIC = [b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\xef\xbb\xbf", b"\xff\xfe", b"{", b"[", b'"']
NAMES = st.sampled_from([name for fields in LAYOUTS.values() for name in fields] + ["id", "kind", "facts", "values", "role"])
GOOD = [Example(f"Question {number}?", f"Answer {number}, at \u20ac 5.") for number in range(60)]


def outcome(source, **options):
    """Read a source: its rows, whose texts can be used and written again, or None after one clear error."""
    try:
        rows = read_any(source, **options)
    except DataError as error:
        said = str(error)
        assert "\n" not in said and re.search(r"\. [A-Z]|: expected ", said), said  # what is wrong, and what to do
        if isinstance(source, os.PathLike) and source.exists():
            assert str(source) in said or options, said
        return None
    assert rows
    for row in rows:
        assert row.question.strip() and row.answer.strip() and isinstance(row.id, str)
        json.dumps(asdict(row), ensure_ascii=False).encode()  # no halves of characters
    return rows


def written(tmp_path, content, ending="jsonl"):
    path = tmp_path / f"rows.{ending}"
    path.write_bytes(content)
    return path


@hostile
@given(content=st.binary(max_size=300), ending=st.sampled_from(ENDINGS))
def test_random_bytes(tmp_path, content, ending):
    outcome(written(tmp_path, content, ending))


@hostile
@given(
    start=st.sampled_from([b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b"\xef\xbb\xbf", b"\xff\xfe", b"{", b"[", b'"']),
    rest=st.binary(),
)
def test_random_bytes_behind_a_known_beginning(tmp_path, start, rest):
    for format in (None, "csv", "parquet"):
        outcome(written(tmp_path, start + rest, "txt"), format=format)


@hostile
@given(records=st.lists(st.dictionaries(NAMES | st.text(max_size=5), JSON, max_size=5) | JSON, max_size=4))
def test_any_json_in_any_field(tmp_path, records):
    """Numbers where text belongs, lists, nothing at all, strange names: as lines and as one list."""
    lines = "\n".join(json.dumps(record) for record in records)
    for layout in (None, *LAYOUTS):
        outcome(written(tmp_path, lines.encode()), format=layout)
    outcome(written(tmp_path, json.dumps(records).encode(), "json"))


@hostile
@given(
    roles=st.lists(st.sampled_from(["system", "user", "assistant", "human", "gpt", "tool", 3, None]), max_size=5),
    text=TEXTS | st.integers() | st.none(),
    names=st.sampled_from([("role", "content"), ("from", "value"), ("role", "value"), ("from", "content")]),
    more=st.dictionaries(st.sampled_from(["weight", "tool_calls", "tool_call_id", "name"]), JSON, max_size=2),
)
def test_any_conversation(tmp_path, roles, text, names, more):
    turns = [dict(zip(names, (role, text), strict=True)) | more for role in roles]
    for field in ("messages", "conversations"):
        rows = outcome(written(tmp_path, json.dumps({field: turns}).encode()))
        for row in rows or []:
            assert row.with_texts(str) == row
        assert rows is None or roles[-1] in ("assistant", "gpt")


@hostile
@given(pairs=st.lists(st.tuples(UNMARKED, UNMARKED), min_size=1, max_size=5), layout=st.sampled_from(list(LAYOUTS)))
def test_all_text_survives_every_format(tmp_path, pairs, layout):
    examples = [Example(question, answer) for question, answer in pairs]
    write_as(tmp_path / "rows.jsonl", examples, layout)
    packed = written(tmp_path, gzip.compress((tmp_path / "rows.jsonl").read_bytes()), "jsonl.gz")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *pairs])
    for source in (tmp_path / "rows.jsonl", packed, tmp_path / "rows.csv", to_dataset(examples)):
        assert [(row.question, row.answer) for row in read_any(source)] == pairs


@pytest.mark.parametrize("ending", ["jsonl.gz", "json", "jsonl", "parquet"])
def test_a_file_cut_anywhere_is_never_taken_for_whole(tmp_path, ending):
    path = tmp_path / f"whole.{ending}"
    if ending == "parquet":
        to_dataset(GOOD).to_parquet(path)
    elif ending == "json":
        path.write_text(json.dumps([{"question": row.question, "answer": row.answer} for row in GOOD]))
    else:
        write(tmp_path / "rows.jsonl", GOOD)
        content = (tmp_path / "rows.jsonl").read_bytes()
        path.write_bytes(gzip.compress(content) if ending.endswith("gz") else content)
    content = path.read_bytes()
    assert len(read_any(path)) == len(GOOD)
    for end in random.Random(0).sample(range(len(content) - 1), 60):
        rows = outcome(written(tmp_path, content[:end], ending))
        # lines tell of themselves whether they are whole; of what stood behind the last one they cannot know
        assert rows is None or (ending == "jsonl" and rows == GOOD[: len(rows)] and content[end - 1 : end + 1].count(b"\n"))


@hostile
@given(place=st.floats(0, 1), content=st.binary(min_size=1, max_size=8), ending=st.sampled_from(["parquet", "jsonl.gz"]))
def test_damage_inside_a_packed_file(tmp_path, place, content, ending):
    path = tmp_path / f"whole.{ending}"
    if not path.exists() and ending == "parquet":
        to_dataset(GOOD).to_parquet(path)
    elif not path.exists():
        write(tmp_path / "rows.jsonl", GOOD)
        path.write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes(), mtime=0))
    damaged = bytearray(path.read_bytes())
    at = round(place * (len(damaged) - len(content)))
    damaged[at : at + len(content)] = content
    rows = outcome(written(tmp_path, bytes(damaged), ending))
    assert rows is None or ending == "parquet" or rows == GOOD  # gzip has a sum of its contents; plain Parquet has none


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("int64", 7),
        ("double", 0.5),
        ("binary", b"\xff"),
        ("date32", 2**30),
        ("duration[s]", 2**62),
        ("bool", True),
        ("null", None),
    ],
)
def test_parquet_columns_of_other_kinds(tmp_path, kind, value):
    column = pyarrow.array([value], kind)
    for field in ("question", "answer", "more"):
        table = {"question": ["q"], "answer": ["a"], field: column}
        parquet.write_table(pyarrow.table(table), tmp_path / "rows.parquet")
        rows = outcome(tmp_path / "rows.parquet")
        assert rows is None or field == "more" or getattr(rows[0], field) in ("7", "0.5", "true")


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\r\n", "\n\n\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("last", [True, False])
def test_newlines_and_byte_order_marks(tmp_path, newline, mark, last):
    lines = [json.dumps({"question": row.question, "answer": row.answer}) for row in GOOD[:3]]
    end = newline if last else ""
    assert outcome(written(tmp_path, (mark + newline.join(lines) + end).encode())) == GOOD[:3]
    table = ["question,answer", *(f'{row.question},"{row.answer}"' for row in GOOD[:3])]
    assert outcome(written(tmp_path, (mark + newline.join(table) + end).encode(), "csv")) == GOOD[:3]
    mixed = lines[0] + "\n" + lines[1] + "\r\n" + lines[2] + end
    assert outcome(written(tmp_path, (mark + mixed).encode())) == GOOD[:3]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "cp1252"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "md"])
def test_other_encodings_are_refused_unless_a_mark_names_them(tmp_path, encoding, ending):
    text = {"json": '[{"question": "q", "answer": "\u00e9"}]', "csv": "question,answer\nq,\u00e9", "md": "# q\n\u00e9"}
    content = text.get(ending, '{"question": "q", "answer": "\u00e9"}')
    with pytest.raises(DataError, match=r"rows\.\w+"):
        read_any(written(tmp_path, content.encode(encoding), ending))
    marked = written(tmp_path, content.encode("utf-32" if encoding.startswith("utf-32") else "utf-16"), ending)
    assert [(row.question.split(": ")[-1], row.answer) for row in read_any(marked)] == [("q", "\u00e9")]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "json", "md"])
@pytest.mark.parametrize("place", ["question", "answer"])
def test_null_characters(tmp_path, ending, place):
    pair = {"question": "What is it?", "answer": "It is so."} | {place: "nu\0ll"}
    content = {
        "jsonl": json.dumps(pair),
        "json": json.dumps([pair]),
        "csv": "question,answer\n" + ",".join(pair.values()),
        "tsv": "question\tanswer\n" + "\t".join(pair.values()),
        "md": f"# {pair['question']}\n{pair['answer']}",
    }
    with pytest.raises(DataError, match="holds a null character"):
        read_any(written(tmp_path, content[ending].encode(), ending))


def test_wrong_gzip(tmp_path):
    line = b'{"question": "q", "answer": "a"}\n'
    assert len(outcome(written(tmp_path, line, "jsonl.gz"))) == 1  # not packed in spite of its name
    assert len(outcome(written(tmp_path, gzip.compress(line), "jsonl"))) == 1  # packed in spite of its name
    assert len(outcome(written(tmp_path, gzip.compress(line) * 3, "jsonl.gz"))) == 3  # parts one after another
    for content in (
        gzip.compress(gzip.compress(line)),  # packed twice
        gzip.compress(line) + b"something behind it",
        gzip.compress(line)[:-4],
        b"\x1f\x8b",
        b"\x1f\x8b" + line,
    ):
        assert outcome(written(tmp_path, content, "jsonl.gz")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="making links needs rights that Windows does not give to all")
def test_links_pipes_and_folders(tmp_path):
    write(tmp_path / "rows.jsonl", GOOD)
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "rows.jsonl")
    (tmp_path / "nowhere.jsonl").symlink_to(tmp_path / "gone.jsonl")
    (tmp_path / "circle.jsonl").symlink_to(tmp_path / "circle.jsonl")
    assert read_any(tmp_path / "link.jsonl") == GOOD
    for name in ("nowhere.jsonl", "circle.jsonl", "x" * 5000, "nu\0ll"):
        with pytest.raises(DataError, match=r"no such file|Too many levels of symbolic links"):
            read_any(tmp_path / name)
    folder = tmp_path / "pages"
    folder.mkdir()
    (folder / "page.md").write_text("# Heading\ntext")
    (folder / "loop").symlink_to(folder)
    (folder / "a folder.md").mkdir()
    assert [row.question for row in read_any(folder)] == ["Heading"]
    os.mkfifo(folder / "pipe.md")  # to open it would wait for a writer
    assert len(read_any(folder)) == 1
    (folder / "broken.md").symlink_to(tmp_path / "gone.md")
    with pytest.raises(DataError, match=r"broken\.md: there is no such file"):
        read_any(folder)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n \t\n", b"\xef\xbb\xbf", gzip.compress(b"", mtime=0)])
@pytest.mark.parametrize("ending", ENDINGS)
def test_empty_files(tmp_path, content, ending):
    assert outcome(written(tmp_path, content, ending)) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"question": "q", "answer": "a", "answer": "b"}',
        '{"question": "q", "answer": "a", "more": {"x": 1, "x": 1}}',
        '{"messages": [{"role": "user", "role": "assistant", "content": "c"}]}',
    ],
)
def test_a_field_that_stands_twice(tmp_path, line):
    for path in (written(tmp_path, line.encode()), written(tmp_path, f"[{line}]".encode(), "json")):
        with pytest.raises(DataError, match=r"stands twice\. Keep one"):
            read_any(path)


@pytest.mark.parametrize("depth", [10, 300, 900, 980, 2000, 100_000])
@pytest.mark.parametrize("field", ["question", "id", "facts", "more", "input", "messages"])
def test_deep_json(tmp_path, depth, field):
    pair = {"question": "q", "answer": "a"} if field != "input" else {"instruction": "q", "output": "a"}
    fields = ", ".join(f'"{name}": "{text}"' for name, text in pair.items() if name != field)
    for opened, closed in (("[", "]"), ('{"x": ', "}")):
        line = f'{{{fields}, "{field}": {opened * depth}{"0" if "x" in opened else ""}{closed * depth}}}'
        rows = outcome(written(tmp_path, line.encode()))
        assert rows is None or field in ("more", "id", "facts")  # a learner's own id and facts are not read
        outcome(written(tmp_path, line.encode()), columns={"question": "answer", "id": field} if field != "input" else None)


def test_huge_lines_and_many_columns(tmp_path):
    """Each of these would take hours if some step compared everything with everything."""
    million = 1_000_000
    assert len(read_any(written(tmp_path, json.dumps({"question": "q" * million, "answer": "a"}).encode()))) == 1
    assert outcome(written(tmp_path, b"x" * (2**24 + 1))) is None  # no line may be longer
    assert outcome(written(tmp_path, b"," * million, "csv")) is None
    names = ",".join(map(str, range(200_000)))
    assert outcome(written(tmp_path, f"question,answer,{names}\nq,a".encode(), "csv")) is None
    many = json.dumps({"question": "q", "answer": "a"} | {str(number): 0 for number in range(200_000)})
    rows = outcome(written(tmp_path, many.encode()))
    assert len(rows) == 1
    assert outcome(written(tmp_path, many.replace('"199999"', '"199998"').encode())) is None
    assert len(str(inspect_data(written(tmp_path, many.encode())))) < 2000
    assert outcome(written(tmp_path, b'question,answer\n"' + b"q,a\n" * million, "csv")) is None  # a quote left open


def test_a_packed_file_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.own_data.containers.LARGEST_JSON", 2**20)
    bomb = written(tmp_path, gzip.compress(b"[" + b" " * 2**22 + b"]"), "json.gz")
    with pytest.raises(DataError, match=r"larger than 1 MB\. .* one object a line"):
        read_any(bomb)
    assert outcome(written(tmp_path, gzip.compress(b" " * 2**25), "jsonl.gz")) is None


EVIL = {  # each made to take a careless pattern's breath away: some 20,000 signs
    "misread": "\u00c3" + "\u0083" * 20_000,
    "misread pairs": "\u00c3\u0083" * 10_000,
    "telephone": "(0" * 10_000,
    "spaced digits": "0 " * 10_000,
    "dashes": "+1" + "-" * 20_000,
    "card": "4" * 20_000,
    "dots": "a@" + "b." * 10_000 + "@",
    "at signs": "a@" * 10_000,
    "comments": "<!--" * 5_000,
    "tags": "<a " * 7_000,
    "open": "<" * 20_000,
    "entity": "&" + "a" * 20_000,
    "numbered entities": "&#" * 10_000,
    "introductions": "I am " * 4_000,
    "long name": "I am A" + "a" * 20_000,
    "full stops": "." * 20_000,
    "closing marks": '.")' * 7_000 + "x",
    "spaces": " " * 20_000 + "x",
}


@pytest.mark.parametrize("name", EVIL)
def test_no_pattern_hangs(name):
    """What compares every sign with every other takes seconds here, and hours for a line of 16 MB."""
    began = time.process_time()
    faults(Example(EVIL[name], EVIL[name]))
    assert time.process_time() - began < 1


@hostile
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_repairs_bear_any_text(text):
    for repair in (repair_encoding, strip_html, mask):
        assert isinstance(repair(text), str)
    faults(Example(text, text))
    assert language(text) in ("", *WORDS, *SCRIPTS)


@hostile
@given(rows=st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=8))
def test_cleaning_loses_no_row_unnoticed(rows):
    examples = [Example(question, answer, id=str(number)) for number, (question, answer) in enumerate(rows)]
    kept, removed = deduplicate(examples)
    assert sorted([*kept, *(copy for copy, _ in removed)], key=str) == sorted(examples, key=str)
    assert deduplicate(kept)[0] == kept
    try:
        train, held_out = split(kept, 0.3)
    except DataError:
        return
    assert sorted([*train, *held_out], key=str) == sorted(kept, key=str)


@hostile
@given(
    records=st.lists(st.dictionaries(st.text(max_size=3) | NAMES | st.integers(), JSON, max_size=4), max_size=4),
    format=st.sampled_from(FORMATS) | st.none(),
    columns=st.none() | st.dictionaries(st.sampled_from(["question", "answer", "id", "x"]), st.text(max_size=3)),
)
def test_any_list_of_dicts_and_any_wish(records, format, columns):
    if format != "hub":
        outcome(records, format=format, columns=columns)


@hostile
@given(content=st.lists(st.text(max_size=20), max_size=5), rest=st.text(max_size=20))
def test_what_is_refused_is_counted(tmp_path, content, rest):
    """`sift` and `report` lose no line: each is a row or a reason."""
    lines = [json.dumps({"question": text, "answer": rest}) for text in content]
    path = written(tmp_path, "\n".join([*lines, rest.replace("\n", " ")]).encode("utf-8", "replace"))
    wanted = len(lines) + bool(rest.replace("\n", " ").strip())
    found = inspect_data(path) if wanted and outcome(path) else None
    assert found is None or found.rows == found.usable == wanted
    try:
        rows, refused = sift(path)
    except DataError:
        return
    assert len(rows) + len(refused) == wanted
