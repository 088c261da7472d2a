"""Progress in a real JupyterLab and a real browser: one bar beside the live plot, and nothing of it in the saved file.

    make browser        (pictures go to build/browser)

Not part of `make test`: it needs a browser.
"""

import re
import time

import nbformat
from playwright.sync_api import expect

from helpers.workshop.notebooks import NOTEBOOKS, WIDGET, set_parameters

WAIT = 120_000  # milliseconds; a busy machine starts a kernel slowly
SMALL = {
    **{"wordings": "2", "max_steps": "24", "batch_size": "4", "test_facts": "4", "test_others": "2", "scarce_facts": "2"},
    **{"longest_answer": "12"},
}
BAR, PLOT, RED = ".widget-hprogress", ".jp-RenderedImage img", '[data-mime-type="application/vnd.jupyter.stderr"]'


def lesson_until_the_finetune(path):
    """Write lesson 01 with small parameters, up to the cell that trains."""
    notebook = read(NOTEBOOKS / "01_why_finetune.ipynb")
    last = next(i for i, cell in enumerate(notebook.cells) if "on_step=LivePlot()" in cell.source)
    notebook.cells = notebook.cells[: last + 1]
    set_parameters(notebook, SMALL)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def read(path):
    return nbformat.read(path, as_version=4)


def test_one_bar_beside_the_live_plot_and_none_in_the_saved_file(lab, page, pictures, tmp_path):
    path = tmp_path / "lesson.ipynb"
    lesson_until_the_finetune(path)
    page.goto(lab(path.name))
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    trains = page.locator(".jp-CodeCell").filter(has_text="on_step=LivePlot()")
    bar, told = trains.locator(BAR), trains.locator(".widget-html").last

    expect(trains.locator(PLOT)).to_be_visible(timeout=WAIT)  # in the middle
    expect(told).to_contain_text(re.compile(r"\d+/24.*<.*step.*loss"), timeout=WAIT)
    before = told.inner_text()
    trains.locator(PLOT).scroll_into_view_if_needed()
    page.screenshot(path=pictures / "progress-1.png")
    expect(told).not_to_have_text(before)  # it moves
    expect(bar).to_have_count(1)
    expect(page.locator(RED)).to_have_count(0)
    assert bar.bounding_box()["y"] < trains.locator(PLOT).bounding_box()["y"]

    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT)  # at the end
    expect(page.locator(BAR)).to_have_count(0)
    expect(trains.locator(PLOT)).to_have_count(1)
    expect(page.locator(RED)).to_have_count(0)
    page.screenshot(path=pictures / "progress-2.png")

    page.keyboard.press("Control+s")
    deadline = time.monotonic() + WAIT / 1000
    while read(path).cells[-1].execution_count is None and time.monotonic() < deadline:  # not saved since it ended
        time.sleep(0.5)
    saved = [output for cell in read(path).cells for output in cell.get("outputs", [])]
    assert "image/png" in saved[-1].data
    assert not [output for output in saved if WIDGET in output.get("data", {}) or output.get("name") == "stderr"]
    assert "widgets" not in read(path).metadata

    page.reload()  # whoever opens it later
    trains.scroll_into_view_if_needed()
    expect(trains.locator(PLOT)).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("Error displaying widget")).to_have_count(0)
    page.screenshot(path=pictures / "progress-3.png")
