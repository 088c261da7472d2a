"""Replication: runs with other seeds leave records that nothing loses, and count only under today's rules."""

import getpass
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from helpers.__main__ import parser
from helpers.machine.device import this_machine
from helpers.machine.files import OutputError
from helpers.machine.limits import SEEDS
from helpers.machine.paths import DATA, ROOT
from helpers.machine.records import registered
from helpers.workshop import notebooks, replication
from helpers.workshop.notebooks import Report, find, knobs
from helpers.workshop.replication import held, record, recorded, replicate, replications, seeded

C02, C03 = (registered()[id] for id in ("C02", "C03"))


@pytest.fixture(autouse=True)
def records(tmp_path, monkeypatch):
    """A file of records of one's own."""
    path = tmp_path / "replications.json"
    path.write_text("[]\n")
    monkeypatch.setattr(replication, "RECORDS", path)
    return path


def box(id="C02", holds=True, **changed):
    entry = registered()[id]
    return {"id": id, "kind": entry.kind, "version": entry.version, "holds": holds, "text": "t", "shown": {"n": "1"}, **changed}


def lesson(folder, *sources, name="97_lesson"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, folder / f"{name}.ipynb")
    return str(folder / f"{name}.ipynb")


def test_each_seed_runs_in_a_folder_of_its_own_and_leaves_a_record(tmp_path):
    claimed = "from helpers.lesson import claim\nclaim('C02', seed != 7, {'seed': seed})\nclaim('C03', True, {'n': 1})"
    path = lesson(tmp_path, "seed = 0  # a knob", claimed)
    assert replicate([path], [3, 7], tmp_path / "out") == 0
    third, seventh = replications()
    assert (third["seed"], third["lessons"], seventh["seed"]) == (3, ["97"], 7) and third["minutes"] >= 0
    assert third["machine"] == this_machine() and len(third["date"]) == 10
    assert [(box["id"], box["holds"], box["shown"]) for box in seventh["boxes"]] == [
        ("C02", False, {"seed": "7"}),
        ("C03", True, {"n": "1"}),
    ]
    assert third["boxes"][0]["version"] == C02.version
    assert {path.name for path in (tmp_path / "out").glob("[!.]*")} == {"seed-3", "seed-7"}
    assert (tmp_path / "out/seed-7/claims/C02.json").is_file()
    assert (held(C02, replications()), held(C03, replications())) == ((1, 2, 2), (2, 2, 2))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_fails_or_is_stopped_keeps_what_was_finished_and_what_was_there(tmp_path, monkeypatch, stopped):
    def execute(path, out, parameters, stopped_now):
        if path.stem == "97_lesson":
            return None, Report(path.stem, 2.0, [box(holds=parameters == {"seed": "1"})])
        if stopped:
            os.kill(os.getpid(), signal.SIGTERM)
        return None, Report(path.stem, 1.0, [box("C03")], "cell 3: it broke")

    monkeypatch.setattr(notebooks, "execute", lambda path, out, parameters, stopped: execute(path, out, parameters, stopped))
    record([Report("96_before", 1.0, [box("C03", holds=False)])])
    paths = [lesson(tmp_path, "seed = 0", name=name) for name in ("97_lesson", "98_broken")]
    assert replicate(paths, [1, 2], tmp_path / "out") == (128 + signal.SIGTERM if stopped else 1)
    runs = replications()
    assert [(run["seed"], run["lessons"], run["minutes"]) for run in runs][:2] == [(0, ["96"], 1.0), (1, ["97"], 2.0)]
    assert len(runs) == (2 if stopped else 3) and held(C03, runs) == (0, 1, 1)
    assert held(C02, runs) == ((1, 1, 1) if stopped else (1, 2, 2))


@pytest.mark.parametrize("update", [False, True])
def test_a_full_run_whose_outputs_are_committed_leaves_a_record_and_another_none(tmp_path, monkeypatch, update):
    monkeypatch.setattr(notebooks, "execute", lambda path, *_, stopped: (None, Report(path.stem, 1.0, [box()])))
    monkeypatch.setattr(notebooks, "commit_outputs", lambda notebook, path: None)
    command = ["run", lesson(tmp_path, "seed = 0"), "--out", str(tmp_path / "out"), *["--update"] * update]
    arguments = parser().parse_args(command)
    assert arguments.function(arguments) == 0
    assert [(run["seed"], run["lessons"]) for run in replications()] == [(0, ["97"])] * update


def test_a_run_of_which_nothing_was_finished_leaves_no_record():
    record([Report("97_lesson", 1.0, [box()], "stopped"), Report("98_other", failure="not begun")])
    assert replications() == []


def test_what_counts_is_measured_under_todays_rule_and_once_a_seed_machine_and_set_of_models():
    for seed, came_to in enumerate((True, False, None)):
        record([Report("01_lesson", 1.0, [box(holds=came_to)])], seed)
    assert held(C02, replications()) == (1, 2, 3)
    record([Report("01_lesson", 1.0, [box(holds=True)])], seed=1)  # the same run, made again
    assert held(C02, replications()) == (2, 2, 3)
    record([Report("01_lesson", 1.0, [box(holds=True, version="older")])], seed=4)
    record([Report("01_lesson", 1.0, [box(holds=None, shown={"not measured": "no larger model"})])], seed=5)
    assert held(C02, replications()) == (2, 2, 3) and held(C03, replications()) == (0, 0, 0)
    other = replications()[0]
    assert held(C02, [*replications(), {**other, "machine": {"cpu": "another"}}]) == (3, 3, 4)
    assert held(C02, [*replications(), {**other, "models": [*other["models"], "huge"]}]) == (3, 3, 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "cannot be read: "),
        ("{}", "record 1: see to date, machine, data, seed, lessons, minutes, models, boxes"),
        ('[{BOXES:[{"id": "C02"}]}]', "record 1: see to its boxes"),
        ("[{BOXES:[1]}]", "record 1: see to its boxes"),
        ('[{BOXES:[{"id": "C02", "version": "v", "holds": true, "shown": null}]}]', "record 1: see to its boxes"),
        ('[{BOXES:[{"id": "C02", "version": "v", "holds": "yes", "shown": {}}]}]', "record 1: see to its boxes"),
    ],
)
def test_a_file_of_records_that_cannot_be_read_is_told_before_anything_runs_and_stays(tmp_path, records, text, said):
    record([Report("01_lesson", 1.0, [box()])])
    text = text.replace("{BOXES:", json.dumps({**replications()[0], "boxes": []})[:-3])
    records.write_text(text)
    for call in (replications, lambda: replicate(["01"], [1], tmp_path / "out")):
        with pytest.raises(ValueError, match=f"{records.name}.*{said}.*git checkout -- data/replications.json"):
            call()
    with pytest.raises(ValueError, match=records.name):
        record([Report("01_lesson", 1.0, [box()])])
    assert records.read_text() == text and not (tmp_path / "out").exists()


def test_two_runs_lose_no_record_wherever_they_build_and_share_no_folder(tmp_path, records):
    write = (
        "import sys; from pathlib import Path; from helpers.workshop import replication as r; from helpers.workshop.notebooks "
    )
    write += "import Report; r.RECORDS = Path(sys.argv[1]); [r.record([Report('97_a', 1.0)], n) for n in range(20)]"
    command = [sys.executable, "-c", write, str(records)]
    two = [subprocess.Popen(command, env={**os.environ, "COURSE_BUILD": str(tmp_path / name)}, cwd=ROOT) for name in "ab"]
    assert [process.wait() for process in two] == [0, 0] and len(replications()) == 40
    with recorded(tmp_path / "out"), pytest.raises(OutputError, match=r"another run writes there\. Wait .* or choose another"):
        replicate([lesson(tmp_path, "seed = 0")], [1], tmp_path / "out")
    with recorded(tmp_path / "out"):  # free again
        assert len(replications()) == 40


@pytest.mark.parametrize("locked", ["", "out"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_runs(tmp_path, monkeypatch, locked):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path / locked)  # root may do everything
    with pytest.raises(OutputError, match=r"nothing can be written in .*change its rights"):
        replicate([lesson(tmp_path, "seed = 0")], [1], tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_every_lesson_with_boxes_can_be_run_with_another_seed_and_none_of_its_seeds_is_anothers(tmp_path):
    lessons = {entry.lesson for entry in registered().values()}
    for path in find([]):
        own, other = seeded(path, 0), seeded(path, 2)
        assert own.keys() == other.keys() and own == {name: knobs(nbformat.read(path, 4))[name] for name in own}, path.stem
        assert path.name[:2] in lessons or path.stem == "10_conclusion"
    assert (own, other) == ({"seed": "0"}, {"seed": "2"})
    assert seeded(find(["05"])[0], 2) == {"seeds": "(2000, 2001, 2002)"}
    with pytest.raises(ValueError, match=r"The seed is \d+000\."):
        seeded(find(["05"])[0], SEEDS[-1])
    for seeds in ("range(3)", "3", "('a',)"):
        with pytest.raises(ValueError, match=r"98_odd: seeds is .*; write numbers, such as \(0, 1, 2\)"):
            seeded(Path(lesson(tmp_path, f"seeds = {seeds}", name="98_odd")), 1)
    with pytest.raises(ValueError, match="98_fixed has no knob seed or seeds"):
        seeded(Path(lesson(tmp_path, "steps = 3", name="98_fixed")), 1)
    with pytest.raises(ValueError, match=r"The seed is -1\."):
        replicate([], [0, -1], tmp_path / "out")


def test_a_machine_is_described_without_any_name_of_it_or_its_user():
    machine = this_machine()
    assert machine["cpu"] and machine["cores"] >= 1 and machine["memory_gib"] >= 1 and machine["torch"].startswith("2.")
    assert machine["computes_in"] in ("float32", "bfloat16", "float16")
    told = json.dumps(machine)
    assert not [name for name in (platform.node(), getpass.getuser()) if f'"{name}"' in told] and str(Path.home()) not in told


def test_the_records_of_the_course_can_be_read(monkeypatch):
    monkeypatch.setattr(replication, "RECORDS", DATA / "replications.json")
    text = (DATA / "replications.json").read_text(encoding="utf-8")
    assert len(replications()) == len(json.loads(text)) and str(ROOT) not in text and f'"{platform.node()}"' not in text
