"""Every notebook: its committed outputs belong to its code, and it runs from a fresh kernel with small parameters."""

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import nbformat
import psutil
import pytest

from helpers.machine.packaged import PACKAGED, file_sha256
from helpers.machine.paths import ROOT, cache_folder
from helpers.workshop.notebooks import (
    METADATA,
    NOTEBOOKS,
    KernelManager,
    commit_outputs,
    drop_progress,
    execute,
    find,
    run_notebooks,
    set_parameters,
    source_hash,
)

SMALL = {
    "01_why_finetune": {
        **{"wordings": "1", "max_steps": "3", "scarce_facts": "2", "test_facts": "3", "test_others": "6"},
        **{"general_asked": "8", "longest_answer": "12"},
    },
    "02_prompting_retrieval_or_finetuning": {
        **{"wordings": "1", "max_steps": "3", "asked_facts": "6", "compared_facts": "4", "far_facts": "2"},
        **{"several_asked": "2", "compared_others": "2", "development_facts": "2", "development_others": "1"},
        **{"stuffed_tokens": "700", "inside_facts": "2", "reading_rows": "4", "position_facts": "3"},
        **{"corrected_facts": "2", "neighbours_asked": "4", "correcting_steps": "2", "canaries": "4"},
        **{"general_asked": "4", "timed_requests": "2", "dictated_timed": "2", "dictated_rows": "20", "dictated_asked": "6"},
        **{"tickets_taught": "20", "tickets_asked": "6"},
    },
    "03_where_finetuning_fits_in": {
        **{"hidden_size": "32", "layers": "2", "pretraining_steps": "16", "samples_written": "2", "general_asked": "4"},
        **{"facts_used": "2", "style_rows": "8", "texts_read": "2"},
    },
    "04_instruction_finetuning": {
        **{"rows_used": "16", "epochs": "1", "asked_per_task": "1", "general_asked": "4", "passages_read": "3"},
        **{"small_steps": "2"},
    },
    "05_data_preparation": {
        **{"seeds": "(0,)", "products_taught": "1", "wordings": "4", "steps": "1", "batch_size": "4", "copies": "2"},
        **{"asked_wordings": "1", "passages_read": "3", "longest_answer": "4"},
    },
    "06_training_process": {
        **{"facts_used": "4", "wordings": "4", "epochs": "1", "sweep_steps": "2", "overfit_epochs": "2"},
        **{"compared_steps": "2", "lora_rank": "2", "killed_steps": "3", "off_topic_asked": "3"},
    },
    "07_evaluation_and_iteration": {
        **{"facts_asked": "2", "others_asked": "2", "dev_facts": "2", "general_asked": "8", "harness_asked": "4"},
        **{"votes_wanted": "4", "mending_rows": "9", "mending_steps": "1", "hotfix_steps": "1"},
        **{"wordings": "1", "max_steps": "2", "larger_models": "()"},
    },
    "09_getting_started_now": {
        **{"asked_per_task": "1", "combined_rows": "2", "measured_tokens": "128", "customer_rows": "4"},
        **{"customer_epochs": "1", "lora_rank": "2", "swaps": "2", "llama_cpp": "False", "process_steps": "1"},
    },
    "10_conclusion": {"epochs": "1", "asked": "4", "recompute": "False"},
}
LARGER = ("02_prompting_retrieval_or_finetuning",)  # these run as where the optional larger model is installed
WHOLE = ("04_instruction_finetuning", "05_data_preparation")  # their model has to write rows of its own
# These run as on a machine without fast bfloat16; all of them in full run in what is fast.
FLOAT32 = ("06_training_process", "09_getting_started_now")
ALL = find([])
MOST_CELLS = {"01": 60, "02": 80}  # so that they are read in one sitting; the others: 120


def read(path):
    return nbformat.read(path, as_version=4)


def test_every_notebook_has_small_parameters():
    assert [path.stem for path in ALL] == sorted(SMALL)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_committed_outputs_belong_to_the_code(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert notebook.metadata.get("source_hash") == source_hash(notebook), "run `make update` and commit the outputs"
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    assert {key: notebook.metadata[key] for key in METADATA} == METADATA
    bare = copy.deepcopy(notebook)
    drop_progress(bare)
    assert bare == notebook, "bars and widgets stand in the outputs"
    assert path.stat().st_size < 1_000_000
    assert not [text for text in ("/home/", "/root/", "/tmp/", "C:\\\\Users") if text in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_notebooks_keep_the_house_style(path):
    notebook = read(path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.tags
    assert all("#" in line for line in code[0].source.splitlines()), "every knob has a comment"
    assert max(len(cell.source.splitlines()) for cell in code) <= 16
    long = [line for cell in code for line in cell.source.splitlines() if len(line) > 99]
    assert not long, "a projector cuts these lines off"
    assert len(notebook.cells) <= MOST_CELLS.get(path.stem[:2], 120)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_pictures_have_a_text_alternative(path):
    code = [cell for cell in read(path).cells if cell.cell_type == "code"]
    images = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert images and all(len(output.metadata["image/png"]["alt"]) > 20 for output in images)


def stand_in_for_larger(folder, cache):
    """Put a small model into a cache, as the larger one that was converted there; what is kept already stays in use."""
    there = PACKAGED["larger"].folder.name
    shutil.copytree(folder, cache / there)
    sums = {path.name: file_sha256(path) for path in (cache / there).iterdir()}
    (cache / there / "sha256.json").write_text(json.dumps(sums))
    for kept in cache_folder().glob("*"):
        if kept.is_dir() and kept.name != there:
            (cache / kept.name).symlink_to(kept)


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_notebook_runs_with_small_parameters(path, tmp_path, shallow, monkeypatch):
    if path.stem in FLOAT32:
        monkeypatch.setenv("FINETUNING_BF16", "off")
    if path.stem in LARGER:
        stand_in_for_larger(shallow, tmp_path / "cache")
        monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))
    model = {} if path.stem in WHOLE else {"model_name": str(shallow)}
    _, report = execute(path, tmp_path, SMALL[path.stem] | model)
    assert not report.failure
    assert (tmp_path / path.name).exists() and "<html" in (tmp_path / f"{path.stem}.html").read_text(encoding="utf-8")
    told = {number for cell in read(path).cells for number in re.findall(r'\b(?:claim|check)\(\s*"(C\d\d)"', cell.source)}
    assert {claim["id"] for claim in report.claims} >= told
    assert told or path.stem == "10_conclusion", "a lesson tests claims; the last one gathers them"
    assert all(claim["shown"] for claim in report.claims)
    assert not [claim["id"] for claim in report.claims if path.stem in LARGER and "not measured" in claim["shown"]]
    if path.stem == "06_training_process":
        shown = next(claim["shown"] for claim in report.claims if claim["id"] == "C40")
        assert shown["both compute in"] == "float32"


def small(tmp_path, *sources, name="99_small"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.cells[0].metadata["tags"] = ["parameters"]
    path = tmp_path / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def test_parameters_are_set_and_unknown_ones_refused(tmp_path):
    notebook = read(small(tmp_path, "steps = 3\nname = 'x'", "print(steps, name)"))
    set_parameters(notebook, {"steps": "1_000", "name": "some/model"})
    assert notebook.cells[1].source == "steps = 1000\nname = 'some/model'".replace("1000", "1_000")
    with pytest.raises(ValueError, match=r"no parameter 'step'. It has: name, steps"):
        set_parameters(notebook, {"step": "1"})


def test_a_failing_notebook_is_reported_and_kept(tmp_path):
    path = small(tmp_path, "a = 1", "print('so far')", "1 / 0", "print('never')")
    report = execute(path, tmp_path / "out")[1]
    assert report.failure == "cell 3: ZeroDivisionError: division by zero"
    assert read(tmp_path / "out" / path.name).cells[1].outputs[0].text == "so far\n"
    command = [sys.executable, "-m", "helpers", "run", str(path), "--out", str(tmp_path / "again")]
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 1 and b"cell 3: ZeroDivisionError" in done.stdout


def test_a_kernel_that_dies_is_reported(tmp_path):
    path = small(tmp_path, "a = 1", "import os; os._exit(9)")
    report = execute(path, tmp_path / "out")[1]
    assert report.failure.startswith("cell 2: the kernel died")


FAMILY = """import os, subprocess, sys, time
print("so far", flush=True)
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
children = [subprocess.Popen(sleeper, start_new_session=apart).pid for apart in (False, True)]
try:
    open("pids", "w").write(" ".join(map(str, [os.getpid(), *children])))
    time.sleep(600)
finally:
    print("cleaned up")"""
STOPPED = (("a", "97_done"), (FAMILY, "98_stopped"), ("a", "99_left"))


def is_running(pid):
    """An ended process may still be listed until the system has collected it."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_with_its_table_and_leaves_no_process(tmp_path, sent):
    first, second, third = (small(tmp_path, "a = 1", source, name=name) for source, name in STOPPED)
    command = [sys.executable, "-m", "helpers", "run", *map(str, (first, second, third)), "--out", str(tmp_path / "out")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    runner = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
    while not (tmp_path / "pids").exists() and runner.poll() is None:
        time.sleep(0.1)
    os.killpg(runner.pid, sent) if sent == signal.SIGINT else runner.send_signal(sent)  # a terminal tells the whole group
    said, errors = runner.communicate(timeout=60)
    assert runner.returncode == 128 + sent and "Traceback" not in errors, errors
    results = [re.split(r"  +", line)[3] for line in said.splitlines() if line.startswith("9")]
    assert results == ["done", "stopped in cell 2", "not begun"] and "memory" not in said
    assert read(tmp_path / "out" / second.name).cells[1].outputs[0].text == "so far\ncleaned up\n"
    assert not [pid for pid in map(int, (tmp_path / "pids").read_text().split()) if is_running(pid)]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such sockets")
@pytest.mark.parametrize("made", [True, False])
def test_a_long_folder_for_temporary_files_and_one_that_is_not_there_will_do(tmp_path, monkeypatch, made):
    long = tmp_path / ("x" * 150)
    if made:
        long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert not execute(small(tmp_path, "a = 1"), tmp_path / "out")[1].failure
    monkeypatch.setattr(tempfile, "TemporaryDirectory", lambda **_: (_ for _ in ()).throw(OSError("nowhere")))
    manager = KernelManager(kernel_name="python3")
    assert (manager.transport, manager.ip) == ("tcp", "127.0.0.1")


@pytest.mark.parametrize("seconds", [0, 0.3])
def test_a_run_that_is_stopped_while_its_kernel_starts_leaves_nothing(tmp_path, seconds):
    began = time.time()
    report = execute(small(tmp_path, "a = 1"), tmp_path / "out", stopped=lambda: time.time() - began >= seconds)[1]
    assert report.failure == "stopped" and time.time() - began < 30
    assert not [child for child in psutil.Process().children() if "ipykernel_launcher" in child.cmdline()]


def test_a_parameter_that_the_last_notebook_lacks_is_told_before_the_first_runs(tmp_path):
    paths = [small(tmp_path, "a = 1", name="98_first"), small(tmp_path, "b = 1", name="99_last")]
    with pytest.raises(ValueError, match="no parameter 'a'"):
        run_notebooks([str(path) for path in paths], tmp_path / "out", {"a": "2"}, False)
    assert not (tmp_path / "out").exists()


def test_only_this_runs_claims_are_counted(tmp_path):
    (tmp_path / "claims").mkdir()
    old = tmp_path / "claims" / "C98.json"
    old.write_text(json.dumps({"id": "C98", "holds": False, "text": "old"}))
    os.utime(old, (1, 1))
    path = small(tmp_path, "a = 1", "from helpers.lesson import claim\nclaim('C02', a == 1, {'a': a})")
    report = execute(path, tmp_path)[1]
    assert [(claim["id"], claim["holds"]) for claim in report.claims] == [("C02", True)]


def test_committing_outputs_is_the_same_everywhere(tmp_path):
    path = small(tmp_path, "a = 1", "a")
    notebook, _ = execute(path, tmp_path / "out")
    commit_outputs(notebook, path)
    assert read(path).metadata["source_hash"] == source_hash(notebook)
    assert [dict(cell.metadata) for cell in read(path).cells] == [{"tags": ["parameters"]}, {}]


def test_update_refuses_other_parameters():
    with pytest.raises(ValueError, match="leave out -p"):
        run_notebooks(["01"], ROOT / "build", {"epochs": "9"}, update=True)
    assert NOTEBOOKS.is_dir()


def test_a_widget_that_catches_output_runs_without_a_page(tmp_path):
    """As the calculator of lesson 9 does; what it shows needs its kernel, and is not kept."""
    sources = ("a = 1", "import ipywidgets\nbox = ipywidgets.Output()\ndisplay(box)\nwith box:\n    print('caught', a)", "a")
    notebook, report = execute(small(tmp_path, *sources), tmp_path / "out")
    assert not report.failure
    assert not notebook.cells[1].outputs and "widgets" not in notebook.metadata
