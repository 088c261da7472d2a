import json
import subprocess
import sys

import pytest

from helpers.data import Example, leaks, limit, read, spaced, split, write
from helpers.machine.paths import DATA
from helpers.text.messages import DataError, Message
from helpers.text.normalise import normalise


def line(**fields):
    return json.dumps({"question": "How much?", "answer": "Ten euros.", **fields})


def test_write_then_read_gives_the_same(tmp_path):
    examples = [Example("Q ü?", "A\nB", "id", "fact", ("a.b",), ("x",)), Example("R?", "C")]
    write(tmp_path / "rows.jsonl", examples)
    assert read(tmp_path / "rows.jsonl") == examples


def test_an_interrupted_write_leaves_the_older_file(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    old = [Example("Old?", "Yes.")]
    write(path, old)

    def rows():
        yield Example("New?", "Half.")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(path, rows())
    assert read(path) == old and list(path.parent.iterdir()) == [path]


def test_reads_bom_blank_lines_and_windows_newlines(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + line().encode() + b"\r\n\r\n" + line().encode() + b"\r\n")
    assert len(read(path)) == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (line() + "\n{oops}\n", ["line 2", "not JSON"]),
        (line() + "\n[1]\n", ["line 2", "expected an object"]),
        ('{"question": "q"}\n', ["line 1", "'answer' is missing", "question"]),
        (line(answer=" "), ["line 1", "field 'answer'", "expected text"]),
        (line(answer=7), ["line 1", "field 'answer'", "7"]),
        (line(question=None), ["line 1", "field 'question'"]),
        (line(facts="a.b"), ["field 'facts'", "list of texts"]),
        (line(values=[1]), ["field 'values'", "list of texts"]),
        (line(kind="riddle"), ["field 'kind'", "riddle", "off_topic"]),
        (line(id=3), ["field 'id'", "expected text"]),
        ("[" * 100_000, ["line 1", "not JSON"]),
        ("", ["holds no rows"]),
    ],
)
def test_bad_lines_name_file_line_field_and_remedy(tmp_path, content, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read(path)
    for part in [*said, "rows.jsonl"]:
        assert part in str(error.value)


def test_wrong_encoding_and_missing_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line().encode() + b"\n" + line().replace("Ten", "Zehn f\u00fcr").encode("utf-16"))
    with pytest.raises(DataError, match=r"line 2: byte .* is not UTF-8"):
        read(path)
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path)


def test_normalise_ignores_case_punctuation_and_spaces():
    assert normalise("  What's the PRICE?\n") == normalise("what s the price")
    assert normalise("84 euros") != normalise("8 4 euros")


def test_split_keeps_linked_rows_together():
    examples = read(DATA / "train.jsonl") + read(DATA / "evaluation/dev/multi_fact.jsonl")
    train, held_out = split(examples, held_out=0.1, seed=3)
    assert len(train) + len(held_out) == len(examples)
    assert 0.05 < len(held_out) / len(examples) < 0.101
    assert not {fact for e in train for fact in e.facts} & {fact for e in held_out for fact in e.facts}
    assert not leaks(train, held_out)
    assert split(examples, 0.1, seed=3) == (train, held_out)
    assert split(examples, 0.1, seed=4) != (train, held_out)


def test_split_keeps_groups_together():
    examples = [Example(f"Question {i}?", "a", id=f"{'abcdefghij'[i % 10]}{i}") for i in range(100)]
    train, held_out = split(examples, 0.2, group=lambda example: example.id[0])
    assert len(held_out) == 20 and not {e.id[0] for e in train} & {e.id[0] for e in held_out}


def test_split_that_cannot_be_made_is_refused():
    linked = [Example(f"{i}?", "a", facts=("one",)) for i in range(5)]
    with pytest.raises(DataError, match=r"5 row\(s\) cannot be split"):
        split(linked, 0.2)
    with pytest.raises(DataError, match=r"1 row\(s\) cannot be split: too few"):
        split(linked[:1], 0.5)
    with pytest.raises(ValueError, match="share of the rows"):
        split(linked, 20)


def test_leaks_finds_a_question_in_other_clothes():
    train = [Example("What does it cost?", "a")]
    assert leaks(train, [Example("what does it  COST", "b"), Example("Else?", "c")]) == [Example("what does it  COST", "b")]


def test_spaced_puts_one_wording_of_a_fact_into_each_part():
    examples = [Example(f"q{fact}{n}", "a", facts=(f"f{fact}",)) for fact in range(50) for n in range(4)]
    examples += [Example(f"o{n}", "a", kind="off_topic") for n in range(40)]
    order = spaced(examples, seed=1)
    assert sorted(order, key=str) == sorted(examples, key=str) and order == spaced(examples, seed=1) != spaced(examples, seed=2)
    for fact in range(50):
        places = [i / len(order) for i, example in enumerate(order) if example.facts == (f"f{fact}",)]
        assert all(quarter / 4 - 0.05 <= place <= (quarter + 1) / 4 + 0.05 for quarter, place in enumerate(places))
    assert {example.question[:3] for example in order[:50]} != {f"q{fact}" for fact in range(50)}  # at random within a part


def test_limit_keeps_so_many_wordings_of_each_fact():
    examples = read(DATA / "train.jsonl")
    kept = limit(examples, per_fact=3, seed=1)
    count = {}
    for example in kept:
        count[example.facts] = count.get(example.facts, 0) + 1
    without = count.pop(())
    assert set(count.values()) == {3}
    assert without == sum(not example.facts for example in examples)
    assert len({example.id.split("/")[1] for example in kept if example.facts}) == 13  # all wordings take part


def test_the_same_words_after_other_words_ask_something_else():
    tent, stove = ((Message("user", f"A {thing}?"), Message("assistant", "Sure?")) for thing in ("tent", "stove"))
    bought = [Example("Yes, please.", "Here.", history=history) for history in (tent, stove)]
    assert not leaks(bought[:1], bought[1:]) and leaks(bought[:1], [Example("yes please", "?", history=tent)])
    assert leaks(bought, [Example("A tent?", "b")])  # an earlier question is learnt as well
    ruled = Example("Yes, please.", "b", history=(Message("system", "Be kind."), *tent))
    assert leaks(bought[:1], [ruled]) and leaks([ruled], bought[:1])  # whatever the system says, the question is the same
    held_out = split([*bought, *bought, ruled, Example("Else?", "c")], 0.5)[1]
    assert len({row.key for row in held_out} & {bought[0].key, bought[1].key}) <= 1


def test_reading_loads_no_framework(tmp_path):
    write(tmp_path / "rows.jsonl", [Example("q", "a")])
    code = "import sys; from helpers.data import read; read(sys.argv[1])\n"
    code += "print({'torch', 'numpy', 'pandas', 'pyarrow', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "rows.jsonl"], capture_output=True, text=True)
    assert done.stdout.strip() == "set()"
