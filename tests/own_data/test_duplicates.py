import json

import pytest

from helpers.data import Example, read
from helpers.machine.paths import DATA
from helpers.own_data.duplicates import contaminated, deduplicate
from helpers.own_data.rows import sift

RAW = DATA / "raw"
COLUMNS = {
    "export.csv": {"question": "subject", "answer": "reply", "id": "ticket_id"},
    "export.jsonl": {"question": "question", "answer": "answer", "id": "ticket_id"},
}


def test_duplicates_exact_and_near():
    rows = [
        Example("What does the Heron kettle cost?", "The Heron kettle costs 59 euros."),
        Example("what does the  Heron kettle cost", "The Heron kettle costs 59 euros!"),
        Example("What does the Heron ketlte cost?", "The Heron kettle costs 59 euros."),
        Example("What does the Heron kettle cost?", "The Heron kettle costs 95 euros."),  # alike, and not the same
        Example("What does the Robin kettle cost?", "The Robin kettle costs 59 euros."),
        Example("\U0001f600", "\U0001f601"),
        Example("\U0001f602", "\U0001f603"),
    ]
    kept, removed = deduplicate(rows, 1)
    assert removed == [(rows[1], rows[0])] and len(kept) == 6
    kept, removed = deduplicate(rows)
    assert removed == [(rows[1], rows[0]), (rows[2], rows[0])] and kept == [rows[0], *rows[3:]]
    assert deduplicate([]) == ([], [])


def test_contamination_is_found_in_other_words():
    test = [Example("What does the Heron kettle cost?", "59 euros.")]
    train = [
        Example("Hi, what does the HERON kettle cost?", "It is 59 euros."),
        Example("What does the Heron kettle cost?", "Ten."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
    ]
    assert contaminated(train, test) == train[:2]
    assert contaminated(train, test, 1) == train[1:2]
    assert contaminated(train, []) == []


def test_near_copies_of_the_export_are_found_and_nothing_else():
    """Measured on the export's truth: all 80 near copies, and no row that has no fault."""
    with (RAW / "truth.jsonl").open(encoding="utf-8") as file:
        truth = {row["ticket_id"]: set(row["faults"]) for row in map(json.loads, file)}
    rows = [row for name in ("export.csv", "export.jsonl") for row in sift(RAW / name, columns=COLUMNS[name])[0]]
    gone = {copy.id for copy, _ in deduplicate(rows)[1]}
    copies = {row.id for row in rows if truth[row.id] & {"near_duplicate", "exact_duplicate"}}
    assert copies <= gone and not [id for id in gone if not truth[id]]
    leaked = {row.id for row in contaminated(rows, read(DATA / "evaluation/test/facts.jsonl"))}
    assert {frozenset(truth[id]) for id in leaked} == {frozenset({"leaked_test"})} and len(leaked) >= 36


APART = [  # alike in most of their letters, and not the same
    ("Who heads the training department?", "Who leads the training department?"),
    ("Where is the head of the long and winding garden path?", "Where are the heads of the long and winding garden path?"),
    ("How do I reach the training department of your company?", "How do I reach the shipping department of your company?"),
    (
        "What does the Heron kettle with the long spout cost in shops?",
        "What does the Robin kettle with the long spout cost in shops?",
    ),
    ("How much is 7+3?", "How much is 7-3?"),
    ("Is the temperature -5 degrees?", "Is the temperature 5 degrees?"),
    ("How do I sort a list in C++?", "How do I sort a list in C#?"),
    ("How do I sort a list in C?", "How do I sort a list in C++?"),
    ("\U0001f600\U0001f600", "\U0001f622\U0001f622"),
    ('Is the 5" screen in stock?', "Is the 5 \u20ac screen in stock?"),
    ("Is it 1.5 litres?", "Is it 15 litres?"),
    (
        "\u8fd9\u4e2a\u6c34\u58f6\u5728\u5317\u4eac\u7684\u5546\u5e97\u91cc\u5356\u591a\u5c11\u94b1\u5462\uff1f",
        "\u8fd9\u4e2a\u6c34\u58f6\u5728\u5357\u4eac\u7684\u5546\u5e97\u91cc\u5356\u591a\u5c11\u94b1\u5462\uff1f",
    ),
    (
        "\u304f\u3060\u3082\u306e\u306f\u3044\u304f\u3089\u3067\u3059\u304b",
        "\u3051\u3060\u3082\u306e\u306f\u3044\u304f\u3089\u3067\u3059\u304b",
    ),
    ("\u0915\u093f\u0924\u093e\u092c", "\u0915\u0941\u0924\u093e\u092c"),
    ("\u0643\u062a\u0627\u0628", "\u0643\u0627\u062a\u0628"),
]


@pytest.mark.parametrize("pair", APART)
def test_what_differs_in_one_content_word_is_no_copy_and_no_leak(pair):
    one, other = (Example(text, "The answer to that is always the same, and a long one as well.") for text in pair)
    assert deduplicate([one, other], similar=0.5) == ([one, other], [])
    assert contaminated([one], [other], similar=0.5) == []


@pytest.mark.parametrize(
    ("text", "again"),
    [
        ("How much is the kettle?", "Hi, how much is the kettle??"),
        ("How much is the kettle?", "HOW  MUCH is the ketlte?"),
        ("\u8fd9\u4e2a\u6c34\u58f6\u591a\u5c11\u94b1\uff1f", "\u8fd9\u4e2a\u6c34\u58f6\u591a\u5c11\u94b1?"),
    ],
)
def test_what_says_the_same_is_a_copy_and_a_leak(text, again):
    one, other = (Example(question, "Fifty-nine euros, in each of our shops.") for question in (text, again))
    assert deduplicate([one, other], similar=0.6)[1] == [(other, one)] and contaminated([other], [one], 0.5) == [other]


def test_the_same_in_other_words_is_a_leak_and_no_copy():
    one, other = (
        Example(text, "Lena Hollis.") for text in ("Who designed the Heron kettle?", "Tell me who designed the Heron kettle.")
    )
    assert contaminated([other], [one], 0.6) == [other] and deduplicate([one, other], 0.6)[1] == []
