"""Shapes: files as people really have them. Each is read as its format means it, or refused in one line that helps."""

import bz2
import gzip
import io
import json
import lzma
import os
import sqlite3
import sys
import tarfile
import time
import zipfile
from datetime import date
from types import SimpleNamespace

import pyarrow
import pytest
from pyarrow import feather

from helpers.own_data.layouts import recognise
from helpers.own_data.names import ChoiceError
from helpers.own_data.report import inspect_data
from helpers.own_data.rows import read_any, read_tests, rows, sift
from helpers.text.messages import DataError

Q, A = "How much is it?", "Ten euros."
LINE = json.dumps({"question": Q, "answer": A})
ASK, TELL = {"role": "user", "content": Q}, {"role": "assistant", "content": A}


def told(row):
    return [(turn.role, turn.content) for turn in row.turns]


def pairs(source, **options):
    return [(row.question, row.answer) for row in read_any(source, **options)]


def line(**fields):
    return json.dumps(fields)


def csv(*lines, end="\n"):
    return end.join(lines) + end


def gemini(text, role="user"):
    return {"role": role, "parts": [{"text": text}]}


# Each of these says Q and A, and nothing else.
SAME = {
    "query.jsonl": line(query=Q, response=A),
    "prompt.jsonl": line(prompt=Q, response=A),
    "input.jsonl": line(input=Q, target=A),
    "QA.csv": csv("Q,A", f"{Q},{A}"),
    "question-response.jsonl": line(question=Q, response=A),
    "completion.jsonl": line(prompt=[ASK], completion=[TELL]),
    "completion text.jsonl": line(prompt=[ASK], completion=A),
    "nested input.jsonl": line(input={"messages": [ASK]}, output=A),
    "nested both.jsonl": line(input={"messages": [ASK]}, output=TELL),
    "parts.jsonl": line(messages=[ASK | {"content": [{"type": "text", "text": Q}]}, TELL | {"content": [A]}]),
    "input_text.jsonl": line(messages=[ASK | {"content": [{"type": "input_text", "text": Q}]}, TELL]),
    "capitals.jsonl": line(Messages=[{"role": "User", "content": Q}, {"role": "ASSISTANT", "content": A}]),
    "bot.jsonl": line(messages=[{"role": "human", "content": Q}, {"role": "bot", "content": A}]),
    "model.jsonl": line(messages=[ASK, {"role": "model", "content": A}]),
    "from.jsonl": line(conversations=[{"from": "Human", "value": Q}, {"from": "GPT", "value": A}]),
    "gemini.jsonl": line(contents=[gemini(Q), gemini(A, "model")]),
    "cell.csv": csv("messages", '"' + json.dumps([ASK, TELL]).replace('"', '""') + '"'),
    "list.jsonl": json.dumps([{"question": Q, "answer": A}]),
    "pretty list.jsonl": json.dumps([{"question": Q, "answer": A}], indent=1),
    "lines.json": LINE + "\n",
    "one object.json": json.dumps({"question": Q, "answer": A}, indent=1),
    "one chat.json": json.dumps({"messages": [ASK, TELL]}, indent=1),
    "pandas.json": json.dumps({"question": {"0": Q}, "answer": {"0": A}}),
    "columns.json": json.dumps({"question": [Q], "answer": [A]}),
    "split.json": json.dumps({"columns": ["question", "answer"], "index": [0], "data": [[Q, A]]}),
    "around.json": json.dumps({"version": 2, "rows": [{"question": Q, "answer": A}]}),
    "excel.csv": csv("sep=;", "question;answer", f"{Q};{A}", end="\r\n"),
    "excel quoted.csv": csv('"sep=;"', "question;answer", f"{Q};{A}"),
    "blank rows.csv": csv("question,answer", "", ",", f"{Q},{A}", " , ", ""),
    "blank first.csv": csv("", "question,answer", f"{Q},{A}"),
    "nameless.csv": csv("question,answer,,", f"{Q},{A},,"),
    "longer rows.csv": csv("question,answer", f"{Q},{A},,"),
    "pandas index.csv": csv(",question,answer", f"0,{Q},{A}"),
    "title.csv": csv("Our questions", "question,answer", f"{Q},{A}"),
    "title with a comma.csv": csv('"Ours, 2024",', ",", "question;answer", f"{Q};{A}"),
    "long cell.csv": csv("question,answer,log", f"{Q},{A},{'x' * 300_000}"),
    "spaces.csv": csv(" Question , ANSWER ", f"{Q},{A}"),
    "pipes.csv": csv("question|answer", f"{Q}|{A}"),
    "two marks.csv": "\ufeff\ufeff" + csv("question,answer", f"{Q},{A}"),
    "two marks.jsonl": "\ufeff\ufeff" + LINE,
    "squad.jsonl": line(question=Q, answers={"text": [A, "Ten."], "answer_start": [0, 0]}),
    "no ending": LINE,
    "table without an ending": csv("question,answer", f"{Q},{A}"),
    "ids.jsonl": line(question=Q, answer=A, id=7),
    "own kind.jsonl": line(question=Q, answer=A, kind="riddle", facts="none", values=3),
    "text beside.jsonl": line(instruction=Q, output=A, text=f"### Instruction: {Q} ### Response: {A}"),
    "prompt in parts.jsonl": line(prompt=[{"type": "text", "text": Q}], completion=[{"type": "text", "text": A}]),
    "blank system.jsonl": line(system=" ", messages=[{"role": "system", "content": ""}, ASK, TELL]),
    "pandas by rows.json": json.dumps({"0": {"question": Q, "answer": A}}),
    "titles.csv": csv('"Ours, draft",,', "Exported,2024-01-01,", "question,answer,date", f"{Q},{A},x"),
    "header again.csv": "\ufeff" + csv("question,answer", f"{Q},{A}") + "\ufeff" + csv("Question ,answer".lower()),
    "lines.csv": LINE,
    "list.csv": json.dumps([{"question": Q, "answer": A}]),
    "table.jsonl": csv("question,answer", f"{Q},{A}"),
    "table.txt": csv("question;answer", f"{Q};{A}"),
    "commas.tsv": csv("question,answer", f"{Q},{A}"),
    "scores of one kind.jsonl": line(question=Q, answer=A, label="positive", score="high"),
}


@pytest.mark.parametrize("name", SAME)
def test_harmless_shapes_are_taken(tmp_path, name):
    (tmp_path / name).write_text(SAME[name], encoding="utf-8", newline="")
    assert pairs(tmp_path / name) == [(Q, A)], str(recognise(tmp_path / name))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, bz2.compress, lzma.compress, lambda b: pyarrow.compress(b, "zstd", asbytes=True)]
)
def test_encodings_with_a_mark_and_packed_files(tmp_path, encoding, pack):
    said = Q + " \u2028 \U0001f600"
    for name, content in (("a.jsonl", line(question=said, answer=A)), ("a.csv", csv("question,answer", f"{said},{A}"))):
        (tmp_path / name).write_bytes(pack(content.encode(encoding)))
        assert pairs(tmp_path / name) == [(said, A)]


def test_what_stands_beside_joins_the_conversation(tmp_path):
    dolly = {"instruction": Q, "context": "The kettle.", "response": A, "category": "closed_qa"}
    assert pairs([dolly]) == [(f"{Q}\n\nThe kettle.", A)] and "category" in str(recognise([dolly]))
    squad = {"id": "7", "title": "T", "context": "The kettle.", "question": Q, "answers": {"text": [A], "answer_start": [0]}}
    assert pairs([squad]) == [(f"{Q}\n\nThe kettle.", A)]
    for name in ("system", "System", "system_prompt"):
        (row,) = read_any([{name: "Be kind.", "question": Q, "response": A}])
        assert told(row) == [("system", "Be kind."), ("user", Q), ("assistant", A)]
    said = [("user", "Hi?"), ("assistant", "Hello."), ("user", Q), ("assistant", A)]
    for history in (
        [["Hi?", "Hello."]],
        json.dumps([["Hi?", "Hello."]]),
        [{"role": "user", "content": "Hi?"}, TELL | {"content": "Hello."}],
    ):
        assert told(read_any([{"instruction": Q, "output": A, "history": history}])[0]) == said
        assert told(read_any([{"question": Q, "answer": A, "history": history}])[0]) == said
    (row,) = read_any([{"system": "Be kind.", "messages": [ASK, TELL]}])
    assert told(row)[0] == ("system", "Be kind.") and len(row.turns) == 3
    (row,) = read_any([{"system_instruction": {"parts": [{"text": "Be kind."}]}, "contents": [gemini(Q), gemini(A, "model")]}])
    assert told(row) == [("system", "Be kind."), ("user", Q), ("assistant", A)]
    assert "Not read: log" in str(recognise([{"question": Q, "answer": A, "log": "x"}]))


def test_columns_that_only_later_rows_have_are_read_or_said(tmp_path, capsys):
    plain = {"question": Q, "answer": A}
    rows_ = [plain, plain | {"context": "The kettle."}, plain | {"system": "Be kind.", "log": "x"}]
    assert pairs(rows_) == [(Q, A), (f"{Q}\n\nThe kettle.", A), (Q, A)] and told(read_any(rows_)[2])[0] == (
        "system",
        "Be kind.",
    )
    assert "Not read: log" in str(recognise(rows_))
    assert len(read_any([plain] * 100 + [plain | {"log": "x"}])) == 101 and "these are not read: 1" in capsys.readouterr().err
    for late in ({"context": "x"}, {"label": False}, {"reward": 1}):
        with pytest.raises(DataError, match=r"row 101: none of the first 100 rows has the column .* Move a row that has it up"):
            read_any([plain] * 100 + [plain | late])
        assert len(read_any([plain | late] + [plain] * 100, take="all")) == 101  # as the remedy says
    assert len(read_any([plain] * 100 + [plain | {"label": False}], take="all")) == 101
    (tmp_path / "a.csv").write_text(csv("question,answer,history", f'{Q},{A},"[[""Hi?"", ""Hello.""]]"'))
    assert "Not read" not in str(recognise(tmp_path / "a.csv")) and len(read_any(tmp_path / "a.csv")[0].turns) == 4


def test_numbers_truth_values_and_dates_are_text_and_that_is_said_once(tmp_path, capsys):
    made = [{"question": 7, "answer": 0.5}, {"question": True, "answer": date(2024, 5, 17)}]
    assert pairs(made) == [("7", "0.5"), ("true", "2024-05-17")]
    assert capsys.readouterr().err.count("numbers, truth values and dates are read as text: 4") == 1
    (row,) = read_any([{"messages": [ASK | {"content": 7}, TELL | {"content": False, "weight": 1}]}])
    assert (row.question, row.answer) == ("7", "false")
    for value in (None, float("nan"), "", " "):
        with pytest.raises(DataError, match="expected text"):
            read_any([{"question": Q, "answer": value}])


def test_a_learners_own_columns_are_no_order():
    ours = {"question": Q, "answer": A, "id": 3, "kind": "fact", "facts": ["a.b"], "values": ["x"]}
    (row,) = read_any([ours])
    assert (row.id, row.kind, row.facts, row.values) == ("3", "fact", ("a.b",), ("x",))
    theirs = ours | {"kind": "riddle", "facts": {"n": 1}}
    (row,) = read_any([theirs])
    assert (row.id, row.kind, row.facts) == ("3", "fact", ()) and "Not read: kind, facts" in str(recognise([theirs]))
    assert [row.kind for row in read_any([ours | {"kind": "multi_fact"}, theirs])] == [
        "fact",
        "fact",
    ]  # of one file, all or none


def test_two_answers_in_a_row_are_joined_and_that_is_said_once(capsys):
    said = [ASK, TELL, TELL | {"content": "Or eleven."}]
    (row,) = read_any([{"messages": said}])
    assert told(row) == [("user", Q), ("assistant", f"{A}\n\nOr eleven.")]
    assert capsys.readouterr().err.count("joined by a blank line") == 1
    (row,) = read_any([{"messages": [ASK, TELL | {"weight": 0}, TELL]}])  # what is not learnt stays apart
    assert [turn.weight for turn in row.turns] == [1, 0, 1]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": Q, "chosen": A, "rejected": "No."},
        {"chosen": [ASK, TELL], "rejected": [ASK, TELL | {"content": "No."}]},
        {"conversations": [{"from": "human", "value": Q}], "chosen": {"from": "gpt", "value": A}, "rejected": {}},
        {"messages": [ASK, TELL], "chosen": [ASK, TELL], "rejected": [ASK, TELL | {"content": "No."}]},
        {"input": {"messages": [ASK]}, "preferred_output": [TELL], "non_preferred_output": [TELL]},
    ],
)
def test_preference_pairs_belong_to_preference_training(row):
    with pytest.raises(DataError, match=r"these are preference pairs .* see the lesson on preferences"):
        read_any([row])


def test_bad_answers_are_learnt_only_on_request(tmp_path):
    rated = [{"prompt": Q, "completion": A, "label": True}, {"prompt": "Else?", "completion": "Bad.", "label": False}]
    with pytest.raises(ChoiceError, match=r"row 2: the column 'label' .*--take good .*--take all"):
        read_any(rated)
    assert pairs(rated, take="good") == [(Q, A)] and len(pairs(rated, take="all")) == 2
    assert "Learnt are the rows whose 'label' is true" in str(recognise(rated, take="good"))
    late = [rated[0]] * 150 + [rated[1]]
    with pytest.raises(ChoiceError, match="row 151"):
        read_any(late)
    (tmp_path / "a.csv").write_text(csv("question,answer,score", f"{Q},{A},5", "Else?,Bad.,2.5", "None?,None.,"))
    with pytest.raises(ChoiceError, match=r"the column 'score' rates the answers.*--take 'score>=NUMBER'.*--take all"):
        sift(tmp_path / "a.csv")
    assert pairs(tmp_path / "a.csv", take="score >= 3") == [(Q, A)]
    assert pairs(tmp_path / "a.csv", take="score<3") == [("Else?", "Bad.")]
    assert len(pairs(tmp_path / "a.csv", take="all")) == 3
    assert pairs([{"text": A, "label": 0}, {"text": A, "label": 1}]) == [("Text", A)] * 2  # classes, and no bad answers
    with pytest.raises(ChoiceError, match="row 1: the column 'label' says"):
        read_any([{"question": Q, "answer": A, "label": "No"}])
    with pytest.raises(DataError, match="no row is left, as --take leaves out all of them"):
        read_any(tmp_path / "a.csv", take="score>9")
    for take, said in (
        ("some", "write all, good, or a bound"),
        ("points>=3", "no column 'points'"),
        ("good", "no column says"),
    ):
        with pytest.raises(DataError, match=said):
            read_any(tmp_path / "a.csv", take=take)


def test_plain_text_is_learnt_as_the_answer_to_its_title(tmp_path):
    (tmp_path / "Our shop.txt").write_text("We sell\nkettles.\n\n\nAnd tents.\n")
    assert pairs(tmp_path / "Our shop.txt") == [("Our shop", "We sell\nkettles."), ("Our shop", "And tents.")]
    assert [where.rsplit(", ")[-1] for where, _ in rows(tmp_path / "Our shop.txt")] == ["line 1", "line 5"]
    assert "Nothing is asked" in str(recognise(tmp_path / "Our shop.txt")) and "hardly to answer" in str(
        recognise([{"text": A}])
    )
    assert "Not read: prompt" in str(recognise([{"text": A, "prompt": Q, "title": "Price"}]))
    found = inspect_data([{"text": A}, {"text": "Eleven."}, {"text": A}])
    assert dict(found.counts) == {"text seen before": 1} and not found.notes
    assert pairs([{"text": A}, {"text": A, "title": "Price"}]) == [("Text", A), ("Price", A)]
    with pytest.raises(DataError, match="is a conversation, written with marks such as '### Human:'"):
        read_any([{"text": "### Human: Hi? ### Assistant: Hello."}])


# ---- files of other kinds, and files with slips


def packed(kind):
    out = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=out, mode="w") as file:
            file.addfile(tarfile.TarInfo("rows.jsonl"))
        return out.getvalue()
    names = {"excel": "xl/workbook.xml", "word": "word/document.xml", "zip": "rows.jsonl"}
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(names[kind], LINE)
    return out.getvalue()


def database(folder):
    with sqlite3.connect(folder / "made.db") as made:
        made.execute("create table rows (question text)")
    return (folder / "made.db").read_bytes()


OTHERS = {
    "a.jsonl.zip": (packed("zip"), r"a zip file \(rows.jsonl\)\. Unpack it"),
    "a.csv": (packed("excel"), r"an Excel file\. Save the table as CSV"),
    "a.docx": (packed("word"), "a Word document"),
    "a.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600, "an old Excel or Word file"),
    "a.tar": (packed("tar"), "a tar archive"),
    "a.tar.gz": (gzip.compress(packed("tar")), "a tar archive"),
    "a.pdf": (b"%PDF-1.7 ...", "a PDF"),
    "a.parquet": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n", "Git LFS pointer.*git lfs pull"),
    "a.jsonl": (b"<!DOCTYPE html>\n<html></html>", "a web page"),
    "b.json": (b"<html><body>Sign in</body></html>", "a web page"),
    "a.pkl": (b"\x80\x04\x95", "a Python pickle"),
    "a.npy": (b"\x93NUMPY\x01\0", "a NumPy array"),
    "b.parquet": (b"question,answer\n", "this Parquet file is damaged, or none"),
    "python.jsonl": (b"{'question': 'q', 'answer': 'a'}", r"Python's way of writing.*json\.dumps"),
    "python.json": (b"[{'question': 'q', 'answer': None}]", "Python's way of writing"),
    "quotes.jsonl": ("{\u201cquestion\u201d: \u201cq\u201d}".encode(), "typographic quotes"),
    "comma.jsonl": (b'{"question": "q", "answer": "a",}', "a comma too many"),
    "comma.json": (b'[{"question": "q", "answer": "a"},\n]', "a comma too many"),
    "joined.jsonl": ((LINE + LINE).encode(), "Several objects follow one another"),
    "pretty.jsonl": ((json.dumps(json.loads(LINE), indent=1) + "\n").encode() * 2, "Several objects follow one another"),
    "cut.jsonl": (LINE[:-4].encode(), "It is not closed"),
    "cut at a text.jsonl": (b'{"question": "q", "answer": "a', "It is not closed"),
    "cut at a colon.jsonl": (b'{"question":', "It is not closed"),
    "None.jsonl": (b'{"question": "q", "answer": None}', r"Python's way of writing None.*json\.dumps"),
    "python history.csv": (csv("question,answer,history", f"{Q},{A},\"[['Hi?', 'Hello.']]\"").encode(), "Python's way"),
    "commas behind.jsonl": ((LINE + ",\n").encode() * 2, "line 1: .*A comma stands behind the object: take it out"),
    "no comma.json": (f"[{LINE}\n{LINE}]".encode(), "A comma is missing here"),
    "quote.jsonl": (b'{"question": "a "b" c", "answer": "a"}', r'a " within a text is not written as \\"'),
    "control.jsonl": (b'{"question": "a\tb", "answer": "a"}', r"control character: write \\n"),
    "backslash.jsonl": (b'{"question": "C:\\Users", "answer": "a"}', "A backslash in a text is written twice"),
    "a.parquet.gz": (gzip.compress(b"PAR1" + b"\0" * 99), "a packed Parquet file. Unpack it"),
    "empty.zip": (b"PK\x05\x06" + b"\0" * 18, r"a zip file \(empty\)"),
    "no answer.jsonl": (line(messages=[ASK]).encode(), r"found \['user'\]. Add the answer, or drop the row"),
    "inside.jsonl": (line(id="1", body={"messages": [ASK, TELL]}).encode(), "inside 'body': write that object alone"),
    "squad file.jsonl": (line(title="T", paragraphs=[]).encode(), "is missing .* Add it"),
    "emoji.jsonl": (b'{"question": "q\\ud83d", "answer": "a"}', "half of a character"),
    "null.jsonl": (b'{"question": "q\\u0000", "answer": "a"}', "a null character"),
    "list.jsonl": (b'{"question": ["q", "r"], "answer": "a"}', r"expected text, found a list.*Write it as one text"),
    "object.jsonl": (b'{"question": {"de": "q"}, "answer": "a"}', "expected text, found an object"),
    "image.jsonl": (
        line(messages=[ASK | {"content": [{"type": "image_url", "image_url": {}}]}, TELL]).encode(),
        r"a part that is no text \('image_url'\)",
    ),
    "null bytes.csv": (csv("question,answer", f"{Q},{A}").encode("utf-16-le"), "mostly null bytes.*UTF-16 without a mark"),
    "table.csv": (b"<table><tr><td>question</td></tr></table>", "a web page"),
    "no turns.jsonl": (b'{"messages": []}', r"found \[\]. Drop the row"),
    "no question.jsonl": (line(messages=[TELL]).encode(), r"found \['assistant'\]. Add the question, or drop the row"),
    "history.jsonl": (line(instruction=Q, output=A, history="x").encode(), r"expected a list of turns, found 'x'. Write \["),
    "parts.json": (json.dumps({"train": [{"a": 1}], "test": [{"a": 1}, {"a": 2}]}).encode(), "has parts: train, test"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_say_what_they_are_and_what_to_do(tmp_path, name):
    content, said = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as error:
        read_any(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value) and "--map" not in str(error.value)


def test_a_database_is_told_by_its_first_bytes(tmp_path):
    (tmp_path / "rows.csv").write_bytes(database(tmp_path))
    with pytest.raises(DataError, match=r"an SQLite database\. Export the table as CSV"):
        read_any(tmp_path / "rows.csv")


def test_map_is_offered_only_where_it_helps(tmp_path):
    (tmp_path / "a.csv").write_text(csv("How much?,Ten.", "Who?,Ann."))
    with pytest.raises(DataError, match=r"put question,answer above it; or name the columns: --map question=COLUMN"):
        read_any(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"'answer' is missing .*--map question=COLUMN,answer=COLUMN"):
        read_any([{"question": Q, "reply": A}])
    with pytest.raises(DataError, match="--map messages=talk"):
        read_any([{"talk": [ASK, TELL]}])
    assert pairs([{"talk": [ASK, TELL]}], columns={"messages": "talk"}) == [(Q, A)]
    with pytest.raises(
        DataError, match=r"'q' is missing .* Name columns that are there, for both: --map question=COLUMN,answer"
    ):
        read_any([{"Q": Q, "A": A}], columns={"question": "q", "answer": "A"})
    for row in ({"messages": [{"role": "user"}]}, {"question": Q}):
        with pytest.raises(DataError, match="is missing") as error:
            read_any([row])
        assert "--map" not in str(error.value)


def test_arrow_and_feather_are_read(tmp_path):
    table = pyarrow.table({"question": [Q] * 3, "answer": [A] * 3})
    with pyarrow.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    with pyarrow.ipc.new_stream(tmp_path / "stream.bin", table.schema) as file:
        file.write_table(table)
    for version in (1, 2):
        feather.write_feather(table, tmp_path / f"{version}.feather", version=version)
    for name in ("a.arrow", "stream.bin", "1.feather", "2.feather"):
        assert pairs(tmp_path / name) == [(Q, A)] * 3
    (tmp_path / "a.arrow").write_bytes((tmp_path / "a.arrow").read_bytes()[:-40])
    with pytest.raises(DataError, match="this Arrow file is damaged"):
        read_any(tmp_path / "a.arrow")


# ---- folders, parts, pipes


def folder(place, **files):
    for name, content in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


def test_the_data_of_a_folder_and_not_its_readme(tmp_path):
    rest = {"README.md": "# Mine\nRead me.", "notes/x.txt": "x", ".git/a.jsonl": "{}", "venv/pyvenv.cfg": "", "venv/a.csv": "x"}
    made = folder(tmp_path / "a", **rest, **{"one.jsonl": LINE, "more/two.csv": f"question,answer\nElse?,{A}\n"})
    assert pairs(made) == [("Else?", A), (Q, A)]
    assert "2 files (more/two.csv" in str(recognise(made)) or "2 files (two.csv, one.jsonl)" in str(recognise(made))
    assert "(not read: x.txt)" in str(recognise(made))
    pages = folder(tmp_path / "b", **{"README.md": "# Mine\nRead me.", "page.md": "# Price\nTen.", "package.json": "{}"})
    assert pairs(pages) == [("Mine", "Read me."), ("Price", "Ten.")]
    assert pairs(folder(tmp_path / "c", **{"a.json": f"[{LINE}]", "README.md": "# x\ny"})) == [(Q, A)]
    assert pairs(folder(tmp_path / "d", **{"a.txt": "We sell."})) == [("a", "We sell.")]
    with pytest.raises(DataError, match="there is no file in this folder that can be read"):
        read_any(folder(tmp_path / "e", **{"a.bin": "x"}))


def test_a_folder_with_parts_asks_which_one(tmp_path):
    made = folder(
        tmp_path / "a", **{"data/train-00000-of-00001.jsonl": LINE, "data/test.jsonl": line(question="Test?", answer=A)}
    )
    with pytest.raises(ChoiceError, match=r"has several parts\. Name the one that is meant: .*a\[test\] or .*a\[train\]"):
        read_any(made)
    some = folder(tmp_path / "c", **{"train.jsonl": LINE, "faq.jsonl": LINE})
    with pytest.raises(ChoiceError, match=r"c\[train\] or .*faq\.jsonl$"):
        read_any(some)
    assert pairs(folder(tmp_path / "d", **{"train.jsonl": LINE, "dataset_infos.json": "{}"})) == [(Q, A)]
    assert pairs(f"{made}[train]") == [(Q, A)] and pairs(f"{made}[test]") == [("Test?", A)]
    with pytest.raises(DataError, match=r"there is no such part\. There are: .*a\[t"):
        read_any(f"{made}[dev]")
    card = """---
configs:
- config_name: en
  data_files:
  - {split: train, path: "english/*.jsonl"}
- config_name: de
  data_files: german.jsonl
---
# A data set
"""
    cloned = folder(
        tmp_path / "b", **{"README.md": card, "english/a.jsonl": LINE, "german.jsonl": line(question="Was?", answer=A)}
    )
    with pytest.raises(ChoiceError, match=r"b:de or .*b:en\[train\]"):
        read_any(cloned)
    assert pairs(f"{cloned}:en[train]") == [(Q, A)] and pairs(f"{cloned}:de") == [("Was?", A)]


def test_what_save_to_disk_wrote_is_read(tmp_path):
    from datasets import Dataset, DatasetDict

    made = Dataset.from_list([{"question": Q, "answer": A}])
    made.save_to_disk(tmp_path / "one")
    DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "several")
    assert pairs(tmp_path / "one") == [(Q, A)] == pairs(f"{tmp_path / 'several'}[train]")
    with pytest.raises(ChoiceError, match=r"\[test\] or .*\[train\]"):
        read_any(tmp_path / "several")


def test_an_address_is_no_file():
    with pytest.raises(DataError, match=r"Give the name of the data set: owner/rows$"):
        read_any("https://huggingface.co/datasets/owner/rows/tree/main")
    with pytest.raises(DataError, match=r"is an address\. Download it, and give the file"):
        read_any("https://example.org/rows.jsonl")


@pytest.mark.parametrize("name", ["", " ", ".", "/", "..", "~"])
def test_folders_that_nobody_means_are_refused(tmp_path, monkeypatch, name):
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    with pytest.raises(DataError) as error:
        read_any(os.path.expanduser(name))
    assert "\n" not in str(error.value) and ("where you work" in str(error.value) or "is empty" in str(error.value))


class Stream(io.TextIOWrapper):
    def isatty(self):
        return not self.buffer.getbuffer().nbytes


def test_standard_input_and_pipes(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stream(io.BytesIO(LINE.encode())))
    source = recognise("-")
    assert pairs(source) == [(Q, A)] == pairs(source) and "standard input: read as jsonl" in str(source)
    monkeypatch.setattr(sys, "stdin", Stream(io.BytesIO(LINE[:-4].encode())))
    with pytest.raises(DataError, match=r"^standard input: this is not JSON"):
        read_any("-")
    monkeypatch.setattr(sys, "stdin", Stream(io.BytesIO(b"")))
    with pytest.raises(DataError, match="nothing is piped in"):
        read_any("-")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jsonl")
        with pytest.raises(DataError, match="is a pipe or a device"):
            read_any(tmp_path / "pipe.jsonl")


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINE)
    (tmp_path / "a.jsonl").chmod(0)
    with pytest.raises(DataError, match="cannot be opened or read"):
        read_any(tmp_path / "a.jsonl")


def test_a_file_that_vanishes_says_so(tmp_path):
    (tmp_path / "a.jsonl").write_text(LINE)
    source = recognise(tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="there is no such file"):
        read_any(source)


def test_names_on_the_hub_with_configuration_and_part(monkeypatch):
    import datasets

    made = datasets.Dataset.from_list([{"question": Q, "answer": A}])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda name: ["de", "en"])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config: datasets.DatasetDict({"train": made, "test": made}))
    with pytest.raises(ChoiceError, match=r"has several configurations\. Name one, as in nobody/rows:de \(there are de, en\)"):
        read_any("nobody/rows")
    with pytest.raises(ChoiceError, match=r"nobody/rows:en\[train\] or nobody/rows:en\[test\]"):
        read_any("nobody/rows:en")
    assert pairs("nobody/rows:en[train]") == [(Q, A)] and "rows:en[train]: read as hub" in str(
        recognise("nobody/rows:en[train]")
    )
    with pytest.raises(DataError, match=r"there is no such part"):
        read_any("nobody/rows:en[dev]")


def test_the_hub_out_of_reach_is_told_within_five_seconds(monkeypatch):
    import datasets  # loaded beforehand: what counts is how long the network is waited for

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setitem(sys.modules, "helpers.machine.network", SimpleNamespace(online=lambda seconds: seconds > 2))
    began = time.monotonic()
    with pytest.raises(DataError, match=r"the hub did not give this data set \(the hub is out of reach\)\. Check") as error:
        read_any("nobody/questions-and-answers")
    assert time.monotonic() - began < 3 and "\n" not in str(error.value)
    assert not datasets.config.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE")


def test_the_test_is_read_by_the_named_columns_where_it_has_them(tmp_path):
    (tmp_path / "a.csv").write_text(csv("Frage,Antwort", f"{Q},{A}"))
    (tmp_path / "b.jsonl").write_text(LINE)
    columns = {"question": "Frage", "answer": "Antwort"}
    assert [row.question for row in read_tests([tmp_path / "a.csv", tmp_path / "b.jsonl"], columns)] == [Q, Q]
    with pytest.raises(DataError, match="'question' is missing"):
        read_tests([tmp_path / "a.csv"])


def test_signs_that_are_all_that_differs_make_other_questions():
    asked = [
        "What is \U0001f44d?",
        "What is \U0001f44e?",
        "What is \u2660?",
        "What is \u2665?",
        'Is it 5"?',
        "Is it 5'?",
        "Is it 5?",
    ]
    found = inspect_data([{"question": question, "answer": A} for question in asked])
    assert not found.counts


def test_a_name_of_two_lines_is_told_in_one(tmp_path, monkeypatch, capsys):
    from helpers.__main__ import main

    monkeypatch.setattr(sys, "argv", ["helpers", "check", "--data", str(tmp_path / "a\nb.csv")])
    assert main() == 1 and capsys.readouterr().err.count("\n") == 1
