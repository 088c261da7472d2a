"""Cleaning: each repair alone, all of them on the messy export whose truth is known, and reports on files of any size."""

import csv
import gzip
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from helpers.data import Example, read, sift, write
from helpers.machine.paths import DATA
from helpers.own_data import cleaning
from helpers.text.messages import Message

RAW = DATA / "raw"
NAMES = {"question": "subject", "answer": "reply", "id": "ticket_id"}


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("<p>It costs <b>59 euros</b>.</p>", "It costs 59 euros."),
        ("It&nbsp;costs&nbsp;59&#8364; &amp; more", "It costs 59\u20ac & more"),
        ("one<br/>two<!-- <b>no</b> --> three", "one\ntwo three"),
        ("<UL><LI>one</LI>\n<LI>two &lt;3</LI></UL>", "one\ntwo <3"),
        ("a List<String> for <name> and <you@example.org>", "a List<String> for <name> and <you@example.org>"),
        ('<a href="https://example.org?a=1&amp;b=2">here</a>.', "here."),
        ("if 3 < 4 and 5 > 2, R&D said AT&T", "if 3 < 4 and 5 > 2, R&D said AT&T"),
        ("two  spaces\nand a line", "two  spaces\nand a line"),
        ("I <3 it; x <- y", "I <3 it; x <- y"),
    ],
)
def test_html_goes_and_other_signs_stay(dirty, clean):
    assert cleaning.strip_html(dirty) == clean


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "\u201cNo\u00ebl\u201d \u2013 d\u2019accord \u2026", "\u00e0 84 \u20ac", "\U0001f600 \u0153uvre"]
)
@pytest.mark.parametrize("times", [1, 2])
def test_misread_texts_are_read_again(text, times):
    latin = western = text
    for _ in range(times):
        latin = latin.encode().decode("latin-1")
        western = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in western.encode())
    assert cleaning.repair_encoding(latin) == text
    assert cleaning.repair_encoding(western) == text


@pytest.mark.parametrize(
    "text",
    [
        "caf\u00e9, \u201eSpa\u00df\u201c, \u00abvoil\u00e0\u00a0\u00bb, parl\u00e9\u00a0\u00bb, CAF\u00c9\u00a0!",
        "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \U0001f600",
        "\u00c5ngstr\u00f6m, \u00c3o",
        "plain",
    ],
)
def test_texts_that_were_read_rightly_stay(text):
    assert cleaning.repair_encoding(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to ann.lee+shop@mail.example.org.", "Write to [EMAIL]."),
        ("Call +44 7700 900123 or (020) 7946 0999 or 07700-900123!", "Call [PHONE] or [PHONE] or [PHONE]!"),
        ("Card 9990 8585 3006 8109, 9990-8585-3006-8109, 9990858530068109", "Card [CARD], [CARD], [CARD]"),
        ("I am Ann Lee. My name is Jo O'Neill", "I am [NAME]. My name is [NAME]"),
        ("Kind regards, \u00c5sa Berg", "Kind regards, [NAME]"),
        ("Order 4000 1234 5678 9018 of 2024-05-17 10:30, 17/05/2024, room 012", None),
        ("It weighs 1050 grams and costs 59 euros; designed by Priya Naidu @home", None),
    ],
)
def test_personal_data_is_masked_and_other_numbers_stay(text, masked):
    assert cleaning.mask(text) == (masked or text)


def test_known_names_are_masked_as_whole_words():
    assert cleaning.mask("Ann Lee, Ann Leeds and Joanna", ["Ann Lee", "", "Ann"]) == "[NAME], [NAME] Leeds and Joanna"


def test_a_language_is_told_by_its_common_words():
    texts = {
        "en": "How much does the Heron kettle cost?",
        "de": "Wie viel kostet das und wo gibt es das?",
        "fr": "Combien co\u00fbte le mod\u00e8le dans les magasins ?",
        "es": "\u00bfCu\u00e1nto cuesta el modelo en la tienda?",
        "": "Heron kettle",
    }
    assert {code: cleaning.language(text) for code, text in texts.items()} == {code: code for code in texts}
    train = read(DATA / "train.jsonl")
    assert {cleaning.language(f"{example.question} {example.answer}") for example in train} <= {"en", ""}


def test_empty_and_unfinished_answers():
    assert all(map(cleaning.empty, ["", " ", "-", "N/A", "n/a.", "TODO", "..."])) and not cleaning.empty("No.")
    assert not any(map(cleaning.unfinished, ["Yes.", "Who?", 'He said "no."', "(Yes!)", "So \u2026", "Done.  "]))
    assert all(map(cleaning.unfinished, ["It costs", "It costs 59", "It costs 59 eur"]))


def test_cells_that_moved_up_are_put_back():
    patterns = {"date": r"\d{4}-\d\d-\d\d", "mail": ".*@.*"}
    right = {"date": "2024-01-02", "name": "Ann", "mail": "a@b.c", "text": "Hi"}
    lost = dict(zip(right, ["2024-01-02", "a@b.c", "Hi", ""], strict=True))
    assert cleaning.realign(lost, patterns) == {**right, "name": ""}
    assert cleaning.realign(right, patterns) == right
    hopeless = {**right, "mail": "none"}
    assert cleaning.realign(hopeless, patterns) == hopeless


def test_swapped_rows_are_found_by_the_question_mark_or_by_the_others():
    good = [Example("How much?", "Ten."), Example("Tell me how much.", "Ten."), Example("Is it so?", "Who knows?")]
    by_mark, by_others = Example("Ten.", "What price?"), Example("Ten.", "State the price.")
    assert cleaning.swapped([*good, by_mark, by_others]) == [by_mark]  # "Ten." is as often a question as an answer
    assert cleaning.swapped([*good, Example("Another?", "Ten."), by_mark, by_others]) == [by_mark, by_others]


def test_the_newest_answer_holds():
    rows = [Example("Price?", f"{price} euros.", id) for id, price in [("a", 50), ("b", 59), ("c", 59), ("d", 55)]]
    rows.append(Example("Weight?", "9 grams.", "e"))
    dates = {"a": "2019-01-01", "b": "2024-02-01", "c": "2023-01-01", "d": "2021-12-31", "e": "2018-01-01"}
    kept, old = cleaning.newest(rows, dates)
    assert [row.id for row in kept] == ["b", "c", "e"] and [row.id for row in old] == ["a", "d"]
    assert cleaning.newest(rows, dates, key=lambda row: row.id) == (rows, [])


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
    kept, removed = cleaning.deduplicate(rows, 1)
    assert removed == [(rows[1], rows[0])] and len(kept) == 6
    kept, removed = cleaning.deduplicate(rows)
    assert removed == [(rows[1], rows[0]), (rows[2], rows[0])] and kept == [rows[0], *rows[3:]]
    assert cleaning.deduplicate([]) == ([], [])


def test_contamination_is_found_in_other_words():
    test = [Example("What does the Heron kettle cost?", "59 euros.")]
    train = [
        Example("Hi, what does the HERON kettle cost?", "It is 59 euros."),
        Example("What does the Heron kettle cost?", "Ten."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
    ]
    assert cleaning.contaminated(train, test) == train[:2]
    assert cleaning.contaminated(train, test, 1) == train[1:2]
    assert cleaning.contaminated(train, []) == []


# ---- the messy export


@pytest.fixture(scope="module")
def export():
    """The export's rows by ticket, under the names of the CSV's columns, and the truth about each."""
    with (RAW / "export.csv").open(encoding="utf-8", newline="") as file:
        tickets = {row["ticket_id"]: row for row in csv.DictReader(file)}
    with (RAW / "export.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            tickets[row["ticket_id"]] = row | {"subject": row.pop("question"), "reply": row.pop("answer")}
    with (RAW / "truth.jsonl").open(encoding="utf-8") as file:
        return tickets, [json.loads(line) for line in file]


def test_the_export_holds_all_faults(export):
    tickets, truth = export
    assert len(tickets) == len(truth) >= 1500 and [row["ticket_id"] for row in truth] == list(tickets)
    assert all(path.stat().st_size < 1_000_000 for path in RAW.iterdir())
    counts = Counter(fault for row in truth for fault in row["faults"])
    faults = "exact_duplicate near_duplicate empty_answer truncated_answer html encoding contradiction personal_data swapped"
    assert set(counts) == {*faults.split(), "shifted", "language", "too_long", "leaked_test"} and min(counts.values()) >= 10
    source = {example.id: example for example in read(DATA / "train.jsonl") + read(DATA / "evaluation/test/facts.jsonl")}
    for row in truth:
        ticket, clean = tickets[row["ticket_id"]], source[row["source"]]
        if not row["faults"]:
            assert (ticket["subject"], ticket["reply"]) == (row["question"], row["answer"])
            assert row["answer"] == clean.answer and clean.question in row["question"]
        elif row["question"]:
            assert (ticket["subject"], ticket["reply"]) != (row["question"], row["answer"]), row


def test_a_copy_stands_behind_its_original_and_an_old_price_is_older(export):
    tickets, truth = export
    place = {row["source"]: number for number, row in reversed(list(enumerate(truth))) if not row["faults"]}
    for number, row in enumerate(truth):
        if {"exact_duplicate", "near_duplicate"} & set(row["faults"]):
            assert place[row["source"]] < number
        assert (tickets[row["ticket_id"]]["created_at"] < "2023") == ("contradiction" in row["faults"])


def test_invented_cards_pass_luhn_and_addresses_are_examples(export):
    tickets, truth = export
    said = [tickets[row["ticket_id"]]["subject"] for row in truth if "personal_data" in row["faults"]]
    cards = [match[0] for text in said for match in cleaning.CARD.finditer(cleaning.strip_html(text))]
    assert len(cards) >= 5 and all(cleaning.luhn(card) and card.startswith("9990") for card in cards)
    mails = cleaning.EMAIL.findall(" ".join(said)) + [row["email"] for row in tickets.values() if "@" in row["email"]]
    assert all(mail.endswith("@example.org") for mail in mails)


def test_what_was_said_before_is_looked_at_as_well():
    before = (Message("user", "What does the Heron kettle cost?"), Message("assistant", "59 euros. Is it for ann@example.org?"))
    talk = Example("Yes, please.", "Which colour would you like?", history=before)
    assert cleaning.faults(talk) == ["personal data"]  # and the assistant may ask back
    assert "[EMAIL]" in talk.with_texts(cleaning.mask).history[1].content and cleaning.swapped([talk]) == []
    assert cleaning.contaminated([talk], [Example("what does the Heron kettle cost", "59 euros.")]) == [talk]
    other = Example("Yes, please.", "Which colour would you like?", history=(Message("user", "A tent?"), *before[1:]))
    assert cleaning.contaminated([talk], [other]) == [] and cleaning.deduplicate([talk, other])[0] == [talk, other]
    rows = [{"messages": row.messages} for row in (talk, other, talk)]
    found = cleaning.report(rows, test=[Example("What does the Heron kettle cost?", "59 euros.")])
    assert found.counts["question asked before"] == 1 and found.counts["test question"] == 2


def test_repairs_are_scored_against_the_truth(export):
    tickets, truth = export
    before = [Example(row["subject"], row["reply"], id) for id, row in tickets.items()]
    tickets = {id: cleaning.realign(row, {"created_at": r"\d{4}-\d\d-\d\d", "email": ".+@.+"}) for id, row in tickets.items()}
    rows, refused = sift(tickets.values(), columns=NAMES)
    assert len(rows) + len(refused) == len(truth)

    def each(repair):
        return [row.with_texts(repair) for row in rows]

    rows = each(cleaning.repair_encoding)
    rows = each(cleaning.strip_html)
    rows = [row for row in rows if not cleaning.empty(row.answer)]
    wrong = {row.id for row in cleaning.swapped(rows)}
    rows = [replace(row, question=row.answer, answer=row.question) if row.id in wrong else row for row in rows]
    rows = [row for row in rows if not {"answer without an end", "not English", "too long"} & set(cleaning.faults(row))]
    rows = [replace(row, question=cleaning.mask(row.question, [tickets[row.id]["customer"]])) for row in rows]
    dates = {id: row["created_at"] for id, row in tickets.items()}
    rows, old = cleaning.newest(rows, dates)
    assert len(old) == 45  # those that ask in the same words; the others need to know what a row is about

    def price(row):
        product = tickets[row.id]["product"]
        return product if product and "costs" in row.answer else row.id

    rows, old = cleaning.newest(rows, dates, key=price)
    assert len(old) == 15
    leaked = set(cleaning.contaminated(rows, read(DATA / "evaluation/test/facts.jsonl")))
    rows, _ = cleaning.deduplicate([row for row in rows if row not in leaked])
    score = cleaning.score(truth, before, rows)
    share = {fault: counts["found"] / counts.total() for fault, counts in score.items()}
    for fault in ("exact_duplicate", "empty_answer", "contradiction", "language", "too_long", "truncated_answer", "encoding"):
        assert share[fault] == 1, fault
    assert share.pop("none") >= 0.98  # the few that are dropped ask what another row asks, in almost its words
    assert 0.7 < share.pop("personal_data") < 0.95  # a name that nobody introduces is not found: masking is imperfect
    assert share.pop("leaked_test") >= 0.85
    assert min(share.values()) >= 0.95, share
    untouched = cleaning.score(truth, before, before)
    assert untouched["none"] == {"found": score["none"].total()} and set(untouched["html"]) == {"missed"}


# ---- reports


def test_a_report_counts_what_cannot_be_used_and_what_seems_wrong(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [Example("A fine question?", "A fine answer.")] * 2
    rows += [Example("Call?", "<b>Call 07700 900123</b>."), Example("Caf\u00c3\u00a9?", "n/a"), Example("State it.", "Really?")]
    rows += [Example("Wie viel kostet das und wo gibt es das?", "Das ist viel."), Example("Long?", "word " * 2000)]
    write(path, rows)
    path.write_text(path.read_text(encoding="utf-8") + "{oops}\n", encoding="utf-8")
    found = cleaning.report(path, test=[Example("a fine QUESTION", "x")])
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
    found = cleaning.report(DATA / "train.jsonl", test=read(DATA / "evaluation/test/facts.jsonl"))
    assert found.rows == found.usable == len(read(DATA / "train.jsonl")) and not found.counts


def test_a_file_cut_short_is_reported_as_not_read_to_its_end(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((DATA / "train.jsonl").read_bytes())[:-1000])
    found = cleaning.report(path)
    assert 0 < found.usable < 3358 and "cut short" in found.broken_off and "Not read to its end" in str(found)


@pytest.mark.skipif(sys.platform == "win32", reason="the module resource, which tells the peak, is for POSIX systems")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """Ten times the file, the same peak: a process each, since a peak never falls."""
    lines = [line for line in (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines() if '"fact"' in line]
    code = "import resource, sys; from helpers.own_data.cleaning import report; found = report(sys.argv[1])\n"
    code += "print(found.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    peaks = {}
    for size in (3, 30):
        path, number = tmp_path / f"{size}.jsonl", 0
        with path.open("w", encoding="utf-8") as file:
            while file.tell() < size * 1_000_000:
                file.writelines(line.replace('"question": "', f'"question": "Ticket {number}: ') + "\n" for line in lines)
                number += 1
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        rows, peaks[size] = map(int, done.stdout.split())
        assert rows == number * len(lines)
    assert peaks[30] < 1.1 * peaks[3], peaks
