import gzip
import subprocess
import sys
import time

import pytest

from helpers.data import Example, read, write
from helpers.machine.paths import DATA
from helpers.own_data.duplicates import contaminated, deduplicate
from helpers.own_data.names import ChoiceError
from helpers.own_data.repair import mask, swapped
from helpers.own_data.report import faults, inspect_data
from helpers.text.messages import Message


def test_what_was_said_before_is_looked_at_as_well():
    before = (Message("user", "What does the Heron kettle cost?"), Message("assistant", "59 euros. Is it for ann@example.org?"))
    talk = Example("Yes, please.", "Which colour would you like?", history=before)
    assert faults(talk) == ["personal data"]  # and the assistant may ask back
    assert "[EMAIL]" in talk.with_texts(mask).history[1].content and swapped([talk]) == []
    assert contaminated([talk], [Example("what does the Heron kettle cost", "59 euros.")]) == [talk]
    other = Example("Yes, please.", "Which colour would you like?", history=(Message("user", "A tent?"), *before[1:]))
    assert contaminated([talk], [other]) == [] and deduplicate([talk, other])[0] == [talk, other]
    rows = [{"messages": row.messages} for row in (talk, other, talk)]
    found = inspect_data(rows, test=[Example("What does the Heron kettle cost?", "59 euros.")])
    assert found.counts["question asked before"] == 1 and found.counts["test question"] == 2


def test_a_report_counts_what_cannot_be_used_and_what_seems_wrong(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [Example("A fine question?", "A fine answer.")] * 2
    rows += [Example("Call?", "<b>Call 07700 900123</b>."), Example("Caf\u00c3\u00a9?", "n/a"), Example("State it.", "Really?")]
    rows += [Example("Wie viel kostet das und wo gibt es das?", "Das ist viel."), Example("Long?", "word " * 2000)]
    write(path, rows)
    path.write_text(path.read_text(encoding="utf-8") + "{oops}\n", encoding="utf-8")
    found = inspect_data(path, test=[Example("a fine QUESTION", "x")])
    assert (found.rows, found.usable, found.broken_off) == (8, 7, "")
    assert found.counts == {
        "question asked before": 1,
        "test question": 2,
        "HTML": 1,
        "personal data": 1,
        "broken encoding": 1,
        "empty answer": 1,
        "question in the answer": 1,
        "not English": 1,
        "too long": 1,
        "answer without an end": 1,
        "cannot be used": 1,
    }
    assert found.examples["test question"] == ["line 1 ('A fine question?' ... 'A fine answer.')", "line 2"]
    assert "line 8: this is not JSON" in str(found) and "[PHONE]" in str(found) and "07700" not in str(found)
    assert "mine.jsonl: read as jsonl" in str(found) and "8 rows, 7 of them can be used" in str(found)


def test_the_clean_rows_get_a_clean_report():
    found = inspect_data(DATA / "train.jsonl", test=read(DATA / "evaluation/test/facts.jsonl"))
    assert found.rows == found.usable == len(read(DATA / "train.jsonl")) and not found.counts


def test_a_file_cut_short_is_reported_as_not_read_to_its_end(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((DATA / "train.jsonl").read_bytes())[:-1000])
    found = inspect_data(path)
    assert 0 < found.usable < 3358 and "cut short" in found.broken_off and "Not read to its end" in str(found)


@pytest.mark.skipif(sys.platform == "win32", reason="the module resource, which tells the peak, is for POSIX systems")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Ten times the file, the same peak: a process each, since a peak never falls."""
    lines = (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()[:500]
    code = "import resource, sys; from helpers.own_data.report import inspect_data; found = inspect_data(sys.argv[1])\n"
    code += "print(found.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = {}
    for size in (4, 40):  # MB: most of it in a column that nobody reads
        path, number = tmp_path / f"{size}.jsonl", 0
        with path.open("w", encoding="utf-8") as file:
            while file.tell() < size * 1_000_000:
                log = f'"log": "{number}{"x" * 7000}", "question": "Ticket {number}: '
                file.writelines(line.replace('"question": "', log) + "\n" for line in lines)
                number += 1
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        rows, peaks[size] = map(int, done.stdout.split())
        assert rows == number * len(lines)
    assert peaks[40] < 1.1 * peaks[4], peaks


def test_what_most_answers_do_is_no_finding():
    found = inspect_data([{"question": f"Is it {number}?", "answer": "yes" if number else "It costs"} for number in range(9)])
    assert "answer without an end" not in found.counts and "9 answers end without a mark" in str(found)
    few = inspect_data([{"question": f"Is it {n}?", "answer": "Yes." if n else "It costs"} for n in range(9)])
    assert few.counts == {"answer without an end": 1}


def test_what_was_done_without_being_asked_is_said_in_the_report():
    found = inspect_data([{"question": "How much?", "answer": 7}, {"question": "How many?", "answer": 8}] * 3)
    assert "numbers, truth values and dates are read as text: 6" in str(found)
    with pytest.raises(ChoiceError, match="rates the answers"):
        inspect_data([{"question": "How much?", "answer": "Ten.", "reward": 0.5}])


def test_a_thousand_chats_take_well_under_a_second():
    """100,000 of them under a minute on two cores: a thousand in 0.6 s of one core, and here with room for slower ones."""
    turns = [{"role": "user", "content": "What does the Heron kettle cost, and who designed it?"}]
    turns += [{"role": "assistant", "content": "The Heron kettle costs 59 euros. It was designed by Lena Hollis. " * 3}]
    chats = [{"messages": [*turns * 2, {"role": "user", "content": f"Ticket {number}?"}, turns[1]]} for number in range(1000)]
    began = time.process_time()
    assert inspect_data(chats).usable == 1000
    assert time.process_time() - began < 1.5
