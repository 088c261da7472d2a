"""Records: what a lesson leaves for others counts only while its rule, its recipe and the data are today's."""

import json
import os
import shutil

import pytest
import yaml

from helpers.machine import records
from helpers.machine.paths import DATA, build_folder
from helpers.machine.records import (
    claims,
    data_hash,
    read_note,
    registered,
    registration,
    save_record,
    tally,
    write_note,
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder of one's own, to change: claims, some rows, and a page of the handbook."""
    folder = tmp_path / "data"
    (folder / "handbook").mkdir(parents=True)
    shutil.copy(DATA / "claims.yaml", folder)
    (folder / "train.jsonl").write_text("rows")
    (folder / "handbook" / "page.md").write_text("page")
    monkeypatch.setattr(records, "DATA", folder)
    monkeypatch.setattr(records, "REGISTER", folder / "claims.yaml")
    return folder


def rewrite(data, id, **changed):
    """Change an entry of the register."""
    entries = yaml.safe_load((data / "claims.yaml").read_text())
    entries[id] |= changed
    (data / "claims.yaml").write_text(yaml.safe_dump(entries))


def leave(*ids):
    """Save a result for each claim or check."""
    for id in ids:
        save_record(registered()[id], {"holds": True, "shown": {"n": "1"}, "evidence": {"n": 1}})


def test_what_was_measured_under_todays_rules_and_data_is_read_back(data, capsys):
    leave("C07", "C02", "C06")
    found = claims()
    assert [(record["id"], record["kind"], record["holds"]) for record in found] == [
        ("C02", "claim", True),
        ("C06", "check", True),
        ("C07", "claim", True),
    ]
    assert found[0]["text"] == registered()["C02"].sentence and len(found[0]["date"]) == 10
    assert claims(since=4e9) == [] and claims(data) == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "changed",
    [
        {"sentence": "It is so"},
        {"kind": "check"},
        {"measured": "something else"},
        {"unit": "wording"},
        {"rule": "It looks so."},
        {"smallest_effect": "a tenth"},
        {"settings": ["seed"]},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_what_was_measured_under_an_older_rule_is_left_out_and_said(data, capsys, changed):
    leave("C07", "C02", "C09")
    rewrite(data, "C07", **changed)
    rewrite(data, "C09", **changed)
    assert [record["id"] for record in claims()] == ["C02"]
    assert capsys.readouterr().out == "Left out: C07, C09: measured under an older rule; run lesson 02 again.\n"


def test_another_number_of_the_lesson_and_a_story_of_changes_make_no_other_rule(data, capsys):
    leave("C07")
    rewrite(data, "C07", lesson="05", changes=[{"date": "2026-12-01", "reason": "moved"}])
    assert [record["id"] for record in claims()] == ["C07"] and capsys.readouterr().out == ""


def test_what_was_measured_on_other_data_or_is_no_longer_registered_is_left_out_and_said(data, capsys):
    leave("C07")
    (data / "handbook" / "page.md").write_text("another page")
    leave("C33")
    (build_folder() / "claims" / "C00.json").write_text(json.dumps({"id": "C00", "holds": True}))
    assert [record["id"] for record in claims()] == ["C33"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "C00: no longer in claims.yaml" in said
    assert "C07: measured on other data; run lesson 02 again" in said


def test_a_result_from_before_there_were_rules_is_left_out(data, capsys):
    leave("C07")
    path = build_folder() / "claims" / "C07.json"
    old = json.loads(path.read_text())
    path.write_text(json.dumps({key: old[key] for key in ("id", "text", "holds", "shown", "evidence")}))
    assert claims() == [] and "C07: measured under an older rule; run lesson 02 again" in capsys.readouterr().out
    os.utime(path, (1, 1))
    assert claims(since=2) == [] and capsys.readouterr().out == ""  # not of this run, so nobody misses it


def test_the_hash_of_the_data_sees_what_lessons_read_and_nothing_else(data):
    before = data_hash()
    (data / "README.md").write_text("described")
    (data / ".hidden").write_text("an editor's")
    (data / "claims.yaml").write_text("{}")
    assert data_hash() == before
    (data / "train.jsonl").write_text("other rows")
    changed = data_hash()
    (data / "train.jsonl").rename(data / "rows.jsonl")
    assert len({before, changed, data_hash()}) == 3


@pytest.mark.parametrize(("field", "value"), [("rules", "x"), ("unit", None)])
def test_a_register_with_a_field_too_many_or_too_few_is_refused(data, field, value):
    entries = yaml.safe_load((data / "claims.yaml").read_text())
    entries["C07"] |= {field: value}
    if value is None:
        del entries["C07"][field]
    (data / "claims.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(ValueError, match=rf"claims\.yaml, C07: see to {field}\. Fields are changes, kind, lesson"):
        registration("C02", "claim")


def test_checks_and_claims_are_counted_apart():
    came_to = [("check", True)] * 2 + [("check", False)] + [("claim", True)] + [("claim", None)] * 3 + [("claim", False)] * 2
    counted = [{"kind": kind, "holds": holds, "shown": {"n": "1"}} for kind, holds in came_to]
    assert tally(counted) == "checks 2 of 3; claims: 1 holds, 3 cannot tell, 2 do not"
    assert tally(counted[:3]) == "checks 2 of 3; claims: 0 hold, 0 cannot tell, 0 do not"
    unmeasured = [{"kind": "claim", "holds": None, "shown": {"not measured": "no larger model"}}] * 2
    assert tally(counted + unmeasured) == "checks 2 of 3; claims: 1 holds, 3 cannot tell, 2 do not, 2 not measured"
    assert tally(counted[-1:]) == "checks 0 of 0; claims: 0 hold, 0 cannot tell, 1 does not"


def test_a_model_made_otherwise_is_not_used_and_that_is_said(tmp_path, capsys):
    folder = tmp_path / "models" / "small"
    assert not read_note(folder, layers=4)  # there is none
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert capsys.readouterr().out == ""
    assert not read_note(folder, layers=4)
    assert capsys.readouterr().out == "The model in models/small is not used: nothing in it says how it was made.\n"
    write_note(folder, layers=4, max_steps=None, rows="abc")
    assert read_note(folder, layers=4, max_steps=None)["rows"] == "abc" and read_note(folder, rows="abc")
    assert not read_note(folder, layers=5, max_steps=3, rows="abc")
    assert capsys.readouterr().out == "The model in models/small is not used: it was made by other layers, max steps.\n"
