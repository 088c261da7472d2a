"""Progress: one bar, a widget in a kernel and text in a terminal, of which nothing is saved."""

import subprocess
import sys

import nbformat
import pytest

from helpers.machine.paths import ROOT
from helpers.machine.progress import Bar, bar_if_long
from helpers.workshop.notebooks import METADATA, WIDGET, drop_progress, execute

CELLS = (
    "from helpers.machine.progress import Bar\nimport ipywidgets, sys",
    "for i in Bar(range(3), desc='counting'):\n    print(i)",
    "bar = Bar(total=2, desc='broken off')\nbar.update()\nbar.close()",
    "from tqdm.std import tqdm\nfor i in tqdm(range(3), desc='as text'):\n    pass\nprint('a warning', file=sys.stderr)",
    "import threading\ndone = []\n"
    "thread = threading.Thread(target=lambda: done.extend(Bar(range(3))))\nthread.start(); thread.join(); print(done)",
    "ipywidgets.IntSlider()",
)


def test_an_executed_notebook_keeps_no_bar(tmp_path):
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    path = tmp_path / "bars.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), path)
    notebook, report = execute(path, tmp_path / "out")
    assert not report.failure
    assert [[output.get("text") for output in cell.outputs] for cell in notebook.cells] == [
        *([], ["0\n1\n2\n"], [], ["a warning\n"], ["[0, 1, 2]\n"], [])
    ]
    assert notebook == nbformat.read(tmp_path / "out" / path.name, as_version=4)
    page = (tmp_path / "out" / "bars.html").read_text(encoding="utf-8")
    assert "counting:" not in page and "as text:" not in page and WIDGET not in page


def test_a_bar_takes_itself_away_as_whoever_saves_from_jupyterlab_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.workshop.notebooks.drop_progress", lambda notebook: None)
    path = tmp_path / "bars.ipynb"
    breaks_off = "for i in Bar(range(3), desc='breaks off'):\n    1 / 0"
    cells = [nbformat.v4.new_code_cell(source) for source in (*CELLS[:3], breaks_off)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), path)
    notebook, _ = execute(path, tmp_path / "out")
    assert [output.get("data") for cell in notebook.cells for output in cell.outputs] == [{}, None, {}, {}, None]
    assert "widgets" not in notebook.metadata


def test_bars_of_other_libraries_and_saved_widgets_go_too():
    notebook = nbformat.v4.new_notebook(metadata={"widgets": {"state": {}}})
    text = "Loading: 0it [00:00, ?it/s]\rLoading: 7it [00:01, 5.0it/s]\nmap:  50%|#####     | 1/2 [00:00<00:00, 9it/s]\n"
    outputs = [
        nbformat.v4.new_output("display_data", {WIDGET: {"model_id": "1"}, "text/plain": "  0%|"}),
        nbformat.v4.new_output("display_data", {}),
        nbformat.v4.new_output("stream", name="stderr", text=text),
        nbformat.v4.new_output("stream", text="loss 100%|\n"),
    ]
    notebook.cells = [nbformat.v4.new_markdown_cell("no outputs"), nbformat.v4.new_code_cell("run()", outputs=outputs)]
    drop_progress(notebook)
    assert notebook.cells[1].outputs == outputs[3:]
    assert "widgets" not in notebook.metadata


def test_a_terminal_gets_text(capsys):
    with Bar(total=2, desc="counting", unit="row") as bar:
        bar.update(2)
    assert "counting: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("seconds, shown", [(0.0, False), (4.0, True)])
def test_short_work_needs_no_bar(capsys, monkeypatch, seconds, shown):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    for _ in bar_if_long(range(4), 1, "reading", "row"):
        now[0] += seconds
    assert ("reading:" in capsys.readouterr().err) == shown


def test_no_second_bar_beside_one_that_stands_and_none_for_work_in_one_go():
    with Bar(total=1), bar_if_long(range(4), 1, "inside", "row") as inside:
        assert inside.disable
    with bar_if_long(range(4), 1, "alone", "row") as alone:
        assert not alone.disable
    with bar_if_long(range(4), 4, "in one go", "row") as one:
        assert one.disable


def test_a_kernel_without_widgets_gets_text_without_a_complaint():
    code = (
        "import sys; sys.modules['ipywidgets'] = None; import ipykernel.zmqshell;"
        "import helpers, accelerate; from helpers.machine.progress import Bar; list(Bar(range(3), desc='counting'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "counting: 100%" in ran.stderr and "Warning" not in ran.stderr
