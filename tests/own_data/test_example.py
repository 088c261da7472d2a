"""The example of the capstone: what the data card says of it is so."""

from collections import Counter

from helpers.data import read
from helpers.machine.paths import DATA
from helpers.own_data.duplicates import contaminated
from helpers.own_data.report import inspect_data
from helpers.own_data.rows import sift
from helpers.text.judging import contains_values, is_refusal
from helpers.text.normalise import normalise

ROWS, UNREADABLE = sift(DATA / "example" / "choir.csv")
TEST = read(DATA / "example" / "test.jsonl")


def test_the_slips_are_found():
    found = inspect_data(DATA / "example" / "choir.csv")
    assert (found.rows, found.usable, len(UNREADABLE)) == (195, 194, 1)
    assert found.counts == {
        **{"question asked before": 2, "cannot be used": 1, "HTML": 1, "answer without an end": 1},
        **{"empty answer": 1, "personal data": 1},
    }


def test_no_question_of_the_test_is_trained_on():
    assert not contaminated(ROWS, TEST)
    assert max(Counter(normalise(row.question) for row in TEST).values()) == 1


def test_every_tested_fact_is_taught_and_stands_on_the_page():
    page = " ".join((DATA / "example" / "pages" / "choir.md").read_text(encoding="utf-8").split())
    taught = Counter(row.answer for row in ROWS)
    facts = [row for row in TEST if row.kind == "fact"]
    assert len(facts) == 68 and len({row.facts for row in facts}) == 34
    for row in facts:
        assert contains_values(row.answer, row.values) and contains_values(page, row.values), row.id
        assert taught[row.answer] >= 4, row.id


def test_what_has_no_answer_is_declined():
    declined = [row for row in TEST if row.kind == "unanswerable"]
    assert len(declined) == 12
    assert all(is_refusal(row.answer) and not row.values for row in declined)
    assert sum(is_refusal(row.answer) for row in ROWS) == 20
