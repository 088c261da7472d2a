import csv
import gzip
import json

import pytest

from helpers.data import Example, write
from helpers.machine.paths import DATA
from helpers.own_data.layouts import recognise
from helpers.own_data.names import LAYOUTS
from helpers.own_data.rows import read_any, rows, sift, to_dataset, write_as
from helpers.text.messages import DataError

TRICKY = [  # what cells have to bear
    Example('Say "hi", please; twice', "Line one,\nline two\twith a tab."),
    Example("What\u2019s the price in \u20ac?", "84\u00a0\u20ac \U0001f600"),
    Example("<b>Bold?</b>", "'single' \\ and \u2028 separators"),
]


def texts(examples):
    return [(example.question, example.answer) for example in examples]


def line(**fields):
    return json.dumps({"question": "How much?", "answer": "Ten euros.", **fields})


# ---- formats


def table(path, delimiter=",", names=("question", "answer"), encoding="utf-8", newline="\n"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=newline)
        writer.writerows([names, *texts(TRICKY)])


def parquet(path):
    to_dataset(TRICKY).to_parquet(path)


WRITERS = {
    "rows.jsonl": lambda path: write(path, TRICKY),
    "rows.ndjson": lambda path: write(path, TRICKY),
    "rows.csv": table,
    "semicolons.csv": lambda path: table(path, ";"),
    "excel.csv": lambda path: table(path, ";", encoding="utf-8-sig", newline="\r\n"),
    "capitals.csv": lambda path: table(path, names=(" Question", "ANSWER ")),
    "rows.tsv": lambda path: table(path, "\t"),
    "rows.parquet": parquet,
    "a parquet file without an ending": parquet,
    "rows.json": lambda path: path.write_text(json.dumps([{"question": q, "answer": a} for q, a in texts(TRICKY)])),
    "around.json": lambda path: path.write_text(
        json.dumps({"version": 1, "data": [{"question": q, "answer": a} for q, a in texts(TRICKY)]}, indent=2)
    ),
    "lines in spite of its name.json": lambda path: write(path, TRICKY),
}
WRITERS |= {f"{layout}.jsonl": lambda path, layout=layout: write_as(path, TRICKY, layout) for layout in LAYOUTS}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_gives_the_same_rows(tmp_path, name, packed):
    path = tmp_path / name
    WRITERS[name](path)
    if packed and path.read_bytes()[:4] != b"PAR1":
        path = path.with_name(name + ".gz")
        path.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    assert texts(read_any(path)) == texts(TRICKY)
    assert texts(read_any(str(path))) == texts(TRICKY)
    assert name in str(recognise(path))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.csv", "Question;Answer;Note\nq;a;n", "read as csv, question_answer (question = 'Question', answer = 'Answer')."),
        ("x.csv", "prompt,completion,by\nq,a,me", "read as csv, prompt_completion (prompt, completion). Not read: by."),
        ("x.json", '[{"instruction": "q", "output": "a"}]', "read as json, alpaca (instruction, output, input)."),
        ("x.txt", '{"conversations": []}', "read as jsonl, sharegpt (conversations)."),
        ("x.md", "# a\nb", "read as markdown (*.md), a row a section"),
    ],
)
def test_what_was_recognised_is_said(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    assert said in str(recognise(tmp_path / name))


def test_columns_and_formats_can_be_named(tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("nr,Frage,Antwort,answer\n7,q,a,x\n")
    columns = {"question": "Frage", "answer": "Antwort", "id": "nr"}
    assert read_any(path, "csv", columns) == [Example("q", "a", "7")]
    assert read_any(path, "csv", {"question": "Frage"}) == [Example("q", "x")]
    path.write_text(json.dumps({"question": "q", "answer": "a", "prompt": "p", "completion": "c", "kind": 3}) + "\n")
    assert read_any(path, "prompt_completion") == [Example("p", "c")]
    assert read_any(path, columns={"answer": "completion"}) == [Example("q", "c")]
    for format, columns, said in [
        (None, None, "could be question_answer or prompt_completion. Name one: --format question_answer"),
        ("excel", None, "'excel' is no known format. Use one of jsonl, json, csv"),
        (None, {"answr": "a"}, "'answr' cannot be mapped"),
        (None, {"question": "Frage"}, "line 1: the field 'Frage' is missing"),
        (None, {"question": "question", "answer": "answer", "id": "nr"}, "the field 'nr', named as the id, is missing"),
    ]:
        with pytest.raises(DataError) as error:
            read_any(path, format, columns)
        assert said in str(error.value)


def test_alpaca_adds_the_input_to_the_instruction(tmp_path):
    path = tmp_path / "alpaca.json"
    rows = [{"instruction": "Sum up.", "input": "A long text.", "output": "Short."}]
    rows += [{"instruction": "Say hi.", "input": "", "output": "Hi."}, {"instruction": "Bye?", "output": "Bye."}]
    path.write_text(json.dumps(rows))
    assert texts(read_any(path)) == [("Sum up.\n\nA long text.", "Short."), ("Say hi.", "Hi."), ("Bye?", "Bye.")]


def turns(*said, speaker="role", text="content"):
    return {"messages" if speaker == "role" else "conversations": [{speaker: who, text: what} for who, what in said]}


def told(example):
    """The turns of a row as pairs."""
    return [(turn.role, turn.content) for turn in example.turns]


def test_a_conversation_keeps_its_turns_and_roles():
    system, first = ("system", "Be kind."), [("user", "Hi?"), ("assistant", "Hello.")]
    said = [system, *first, ("user", "b?"), ("assistant", "c.")]
    (row,) = read_any([turns(*said)])
    assert told(row) == said and (row.question, row.answer) == ("b?", "c.")
    assert row.asked == [{"role": role, "content": content} for role, content in said[:-1]]
    assert read_any([turns(*first)]) == [Example("Hi?", "Hello.")]  # a question with its answer is the short form
    speakers = {"user": "human", "assistant": "gpt", "system": "system"}
    shared = turns(*((speakers[role], content) for role, content in said), speaker="from", text="value")
    assert read_any([shared]) == [row]


def test_weights_say_what_is_learnt():
    """What comes after the last answer that is learnt would change nothing, and goes."""
    said = turns(("user", "a?"), ("assistant", "a"), ("user", "b?"), ("assistant", "b"), ("user", "c?"), ("assistant", "c"))
    said["messages"][1]["weight"], said["messages"][5]["weight"] = 0, 0.0
    (row,) = read_any([said])
    assert told(row) == [("user", "a?"), ("assistant", "a"), ("user", "b?"), ("assistant", "b")]
    assert [turn.weight for turn in row.turns] == [1, 0, 1, 1]
    said["messages"][3]["weight"] = 0
    with pytest.raises(DataError, match="no answer to a question is to be learnt"):
        read_any([said])
    with pytest.raises(DataError, match=r"turn 2, field 'weight': expected 0 or 1, found 0\.5"):
        read_any([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 0.5}]}])


CALL = {"id": "1", "type": "function", "function": {"name": "price", "arguments": '{"of": "Heron of ann@example.org"}'}}
TOOLS = {
    "messages": [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "Price of "}, {"type": "text", "text": "the Heron?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "59", "tool_call_id": "1"},
        {"role": "assistant", "content": "59 euros."},
    ]
}


def test_tools_keep_their_roles():
    (row,) = read_any([TOOLS])
    assert told(row)[:2] == [("system", "Be short."), ("user", "Price of the Heron?")] and row.answer == "59 euros."
    call, result = row.asked[2:]
    assert call["content"] == "" and call["tool_calls"][0]["function"]["arguments"] == {"of": "Heron of ann@example.org"}
    assert result == {"role": "tool", "content": "59", "tool_call_id": "1"}
    with pytest.raises(DataError, match=r"row 1, field 'messages', turn 3: calls a tool, and no answer follows"):
        read_any([{"messages": TOOLS["messages"][:3]}])
    assert CALL["function"]["arguments"] == '{"of": "Heron of ann@example.org"}'  # what was given stays as it was
    with pytest.raises(DataError, match=r"turn 3, field 'tool_calls': expected .* found 'price'"):
        read_any([{"messages": [*TOOLS["messages"][:2], {"role": "assistant", "tool_calls": "price"}]}])


def test_conversations_come_back_from_every_form(tmp_path):
    said = turns(("system", "s"), ("user", "a?"), ("assistant", "a"), ("user", "b?"), ("assistant", "b"))
    said["messages"][2]["weight"] = 0
    talks = read_any([said, TOOLS, turns(("user", "a?"), ("assistant", "a"))])
    for layout in ("question_answer", "messages", "sharegpt"):
        write_as(tmp_path / "rows.jsonl", talks, layout)
        assert read_any(tmp_path / "rows.jsonl") == talks
    to_dataset(talks).to_parquet(tmp_path / "rows.parquet")
    assert read_any(to_dataset(talks)) == talks == read_any(tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"alpaca holds one question and one answer\. Write it as messages"):
        write_as(tmp_path / "rows.jsonl", talks, "alpaca")
    with pytest.raises(DataError, match=r"row 1, field 'history': expected a list of turns, found 'x'"):
        read_any([{"question": "q", "answer": "a", "history": "x"}])


def test_a_change_of_texts_reaches_every_text():
    (row,) = read_any([TOOLS])
    changed = row.with_texts(str.upper)
    assert told(changed) == [(role, content.upper()) for role, content in told(row)]
    assert changed.steps[0].plain["tool_calls"][0]["function"]["arguments"] == {"of": "HERON OF ANN@EXAMPLE.ORG"}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (turns(("user", "Hi?")), "expected a question and at last an answer, found ['user']"),
        (turns(("user", "Hi?"), ("assistant", "a"), ("user", "b")), "Drop what follows the answer"),
        (turns(("user", "Hi?"), ("judge", "a"), ("assistant", "b")), "turn 2: 'judge' is no known role"),
        (turns(("assistant", "Hi!"), ("user", "a")), "found ['assistant', 'user']"),
        (turns(("assistant", "Hi!"), ("assistant", "a")), "at last an answer, found ['assistant']"),
        (turns(("user", "Hi?"), ("assistant", [["a"]])), "turn 2, field 'content': expected text, found a list: [['a']]"),
        (turns(("user", "Hi?"), ("assistant", None)), "turn 2, field 'content': expected text, found None"),
        ({"messages": "Hi?"}, "field 'messages': expected a list of turns, found 'Hi?'"),
        ({"messages": ["Hi?"]}, "expected a list of turns, found ['Hi?']"),
        ({"messages": [{"role": "user"}]}, "turn 1: the field 'content' is missing (found: role)"),
    ],
)
def test_conversations_that_cannot_be_used_say_why(record, said):
    with pytest.raises(DataError) as error:
        read_any([turns(("user", "q"), ("assistant", "a")), record])
    assert "data set, row 2" in str(error.value) and said in str(error.value)


def test_markdown_sections_answer_to_their_headings(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "a.md").write_text(
        "Before all.\n\n# Kettle #\n\nIt boils.\n\n## Care\n\n### Lid\nWipe.\n```\n# no heading\n```\n## Price\n59 euros.\n"
    )
    (tmp_path / "deep/b.md").write_bytes("\ufeffNo heading, caf\u00e9.".encode())
    (tmp_path / "c.txt").write_text("not read")
    assert texts(read_any(tmp_path)) == [
        ("a", "Before all."),
        ("Kettle", "It boils."),
        ("Kettle: Care: Lid", "Wipe.\n```\n# no heading\n```"),
        ("Kettle: Price", "59 euros."),
        ("b", "No heading, caf\u00e9."),
    ]
    assert [where for where, _ in rows(tmp_path)][1] == f"{tmp_path / 'a.md'}, line 3"
    handbook = " ".join(example.answer for example in read_any(DATA / "handbook"))
    for page in (DATA / "handbook").glob("*.md"):  # every line of text is there
        lines = page.read_text(encoding="utf-8").splitlines()
        assert all(line in handbook for line in lines if line and not line.startswith("#")), page


def test_datasets_come_in_and_go_out():
    examples = [Example("q", "a", "id", "multi_fact", ("x.y", "z"), ("v",)), Example("r", "b")]
    dataset = to_dataset(examples)
    assert read_any(dataset) == examples and dataset.num_rows == 2
    assert read_any(row for row in [{"prompt": "q", "completion": "a"}]) == [Example("q", "a")]
    with pytest.raises(DataError, match=r"has parts\. Give one of them: 'train', 'test'"):
        read_any({"train": dataset, "test": dataset})


def test_a_name_on_the_hub_is_refused_in_one_line_when_offline():
    with pytest.raises(DataError) as error:
        read_any("nobody/questions-and-answers")
    assert "HF_HUB_OFFLINE is set" in str(error.value) and "give its file" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"no such file\. Check the path"):  # a misspelt path is no name on the hub
        read_any("nobody/rows.jsonl")


BAD = {
    "missing.csv": (
        b"question,reply\nq,a\n",
        "line 2: the field 'answer' is missing (found: question, reply). Add it, or name",
    ),
    "twice.csv": (b"question,answer,question\nq,a,r\n", "line 1: the column 'question' stands twice. Rename one."),
    "both.csv": (b"question,Question,answer\nq,r,a\n", "'question' and 'Question' may both be the question. Rename one."),
    "two layouts.csv": (b"question,answer,prompt,completion\n1,2,3,4\n", "could be question_answer or prompt_completion"),
    "empty.csv": (b"", "holds no rows"),
    "heading only.csv": (b"question,answer\n\n", "holds no rows"),
    "latin.csv": ("question,answer\nq,caf\u00e9\n".encode("latin-1"), "line 2: byte 5 is not UTF-8. Save the file as UTF-8"),
    "utf16.csv": ("question,answer\nq,\u00e9\n".encode("utf-16-le"), "mostly null bytes: UTF-16 without a mark"),
    "nulls.csv": (b"question,answer\nq,a\0b\n", "line 2, field 'answer': holds a null character"),
    "nan.csv": (b"question,answer\nq,a\nr,\n", "line 3, field 'answer': expected text, found ''. Fill it in or drop"),
    "ragged.csv": (b'question,answer\n"q\n1",a\nr,b,c\n', "line 4: expected 2 cells, found 3. Put cells that hold a ','"),
    "open quote.csv": (b'question,answer\nq,a\nr,"b\n', "line 3: unexpected end of data. Look for a quote that is not closed"),
    "mac.csv": (b"question,answer\rq,a\r", "line 1: new-line character seen"),
    "cut.jsonl.gz": (gzip.compress(b'{"question": "q", "answer": "a"}\n' * 9999)[:-20], "damaged or cut short"),
    "no gz.jsonl.gz": (b"\x1f\x8b\x08 and no more", "damaged or cut short"),
    "broken.parquet": (b"PAR1 and no more", "this Parquet file is damaged"),
    "excel.xlsx": (b"PK\x03\x04...", "this is an Excel or zip file, damaged or cut short. Fetch it again"),
    "twice.jsonl": (
        b'{"question": "q", "question": "r", "answer": "a"}',
        "line 1: the field 'question' stands twice. Keep one.",
    ),
    "nan.jsonl": (b'{"question": "q", "answer": NaN}', "line 1, field 'answer': expected text, found nan"),
    "nested.jsonl": (
        b'{"question": {"text": "q"}, "answer": "a"}',
        "field 'question': expected text, found an object: {'text': 'q'}. Write it as one text",
    ),
    "half.jsonl": (
        b'{"question": "q\\ud83d", "answer": "a"}',
        "field 'question': holds half of a character",
    ),
    "big number.jsonl": (b'{"question": "q", "answer": ' + b"9" * 5000 + b"}", "line 1: this is not JSON"),
    "empty.json": (b"[]", "holds no rows"),
    "scalar.json": (b"[1, 2]", "row 1: expected an object such as"),
    "object.json": (b'{"version": 1, "by": "me"}', "the field 'question' is missing"),
    "cut.json": (b'[{"question": "q", ', "this is not JSON"),
    "deep.json": (b'[{"question": ' + b"[" * 99_999, "this is not JSON"),
    "latin.json": ('[{"question": "caf\u00e9"}]'.encode("latin-1"), "byte 18 is not UTF-8"),
    "latin.md": ("caf\u00e9".encode("latin-1"), "line 1: byte 3 is not UTF-8"),
    "empty.md": (b"# Only a heading", "holds no rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_get_one_clear_error(tmp_path, name):
    content, said = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_any(tmp_path / name)
    assert said in str(error.value) and str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_file_with_empty_cells_or_damage(tmp_path):
    from datasets import Dataset

    path = tmp_path / "rows.parquet"
    Dataset.from_list([{"question": "q", "answer": "a"}, {"question": "r", "answer": None}]).to_parquet(path)
    with pytest.raises(DataError, match=r"row 2, field 'answer': expected text, found None"):
        read_any(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"rows\.parquet: this Parquet file is damaged"):
        read_any(path)


def test_a_folder_without_markdown_and_too_long_a_line(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"there is no file in this folder that can be read"):
        read_any(tmp_path)
    monkeypatch.setattr("helpers.text.jsonl.LONGEST_LINE", 2**20)
    (tmp_path / "rows.jsonl").write_text(line() + "\n" + "x" * 2**21)
    with pytest.raises(DataError, match=r"line 2: longer than 1 MB\. Write one row a line"):
        read_any(tmp_path / "rows.jsonl")


def test_sift_keeps_both_the_rows_and_the_reasons(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(["{oops}", line(), "[1]", line(answer=""), line(question="Other?")]))
    examples, refused = sift(path)
    assert [example.question for example in examples] == ["How much?", "Other?"]
    assert [str(error).split(":")[0].split(", ", 1)[1] for error in refused] == ["line 1", "line 3", "line 4, field 'answer'"]
    with pytest.raises(DataError, match="line 1: this is not JSON"):
        read_any(path)
