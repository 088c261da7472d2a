"""data/claims.yaml and the notebooks: what is claimed is written down, and what is written down is claimed, there and so."""

import ast
import datetime
import re

import nbformat

from helpers.machine.paths import DATA
from helpers.machine.records import REGISTER, UNREAD, registered
from helpers.workshop.notebooks import NOTEBOOKS

KINDS = ("check", "claim")
SHOWN_AS = {"check": "check", "claim": "claim", "not_measured": "claim"}  # what a notebook calls, and the kind it is for
CHECKS = {"C06", "C10", "C17", "C20", "C37", "C42", "C44", "C45"}  # identities: they cannot come out otherwise
ENTRIES = registered()


def lesson_of(path):
    """The code of a notebook, cell by cell, and its number."""
    return path.name[:2], [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


LESSONS = dict(map(lesson_of, sorted(NOTEBOOKS.glob("[0-9]*.ipynb"))))
CALLS = [
    (node.args[0].value, lesson, node.func.id)
    for lesson, cells in LESSONS.items()
    for cell in cells
    for node in ast.walk(ast.parse(cell.source))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SHOWN_AS
    if node.args and isinstance(node.args[0], ast.Constant)  # an exercise may have a function of this name
]


def test_each_box_of_a_notebook_is_written_down_with_its_lesson_and_kind_and_each_entry_has_its_box():
    boxes = sorted(call for call in CALLS if call[2] != "not_measured")
    assert boxes == sorted((entry.id, entry.lesson, entry.kind) for entry in ENTRIES.values())
    assert {id for id, _, _ in CALLS} >= {f"C{number:02}" for number in (*range(1, 55), 59)}


def test_what_may_be_left_unmeasured_is_a_claim_of_the_same_notebook_and_said_once():
    left = [(id, lesson, SHOWN_AS[name]) for id, lesson, name in CALLS if name == "not_measured"]
    assert set(left) <= set(CALLS) and len(set(left)) == len(left)


def test_what_decides_is_a_knob_of_the_lesson():
    for entry in ENTRIES.values():
        knobs = "\n".join(cell.source for cell in LESSONS[entry.lesson] if "parameters" in cell.metadata.get("tags", []))
        assert [name for name in entry.settings if not re.search(rf"^{name} = ", knobs, re.M)] == [], entry.id
        assert len(set(entry.settings)) == len(entry.settings) > 0, entry.id


def test_identities_are_checks_and_the_world_is_claimed():
    assert {entry.id for entry in ENTRIES.values() if entry.kind == "check"} == CHECKS
    assert {entry.kind for entry in ENTRIES.values()} == set(KINDS)


def test_a_person_finds_and_reads_an_entry():
    text = REGISTER.read_text(encoding="utf-8")
    ids = re.findall(r"^(\w+):", text, re.M)
    assert ids == sorted(set(ids)) == list(ENTRIES)
    assert all(re.fullmatch(r"C\d\d", id) for id in ids) and max(map(len, text.splitlines())) <= 128
    for entry in ENTRIES.values():
        told = (entry.sentence, entry.measured, entry.unit, entry.rule, *filter(None, [entry.smallest_effect]))
        assert all(isinstance(words, str) and words == words.strip() and len(words) > 3 for words in told), entry.id
        assert "{" not in entry.sentence and entry.rule.endswith("."), entry.id


def test_changes_are_dated_in_their_order_and_say_why():
    for entry in ENTRIES.values():
        dates = [change["date"] for change in entry.changes]
        assert all(isinstance(date, datetime.date) for date in dates) and dates == sorted(dates), entry.id
        assert all(set(change) == {"date", "reason"} and len(change["reason"]) > 20 for change in entry.changes), entry.id
    assert all(ENTRIES[id].changes for id in CHECKS), "each became a check one day"


def test_no_lesson_reads_what_the_hash_of_the_data_leaves_out():
    code = "\n".join(cell.source for cells in LESSONS.values() for cell in cells)
    assert not [name for name in UNREAD if re.search(rf'DATA / "{re.escape(name)}"', code)]
    assert {path.name for path in DATA.iterdir()} - set(UNREAD) >= {"handbook", "evaluation", "train.jsonl", "raw"}
