"""The blind vote in a real JupyterLab and a real browser: by mouse, by keyboard, and again after a restart.

    make browser        (pictures go to build/browser)

Not part of `make test`: it needs a browser.
"""

import nbformat
from playwright.sync_api import expect

from helpers.measures.voting import read_votes
from helpers.workshop.notebooks import METADATA

SETUP = """\
from helpers.measures.voting import BlindVote, draw_duels
questions = [f"What does product {i} cost?" for i in range(6)]
answers = {"base": [f"Product {i} is a luxury item. " * 8 for i in range(6)]}
answers["tuned"] = [f"It costs {i} euros." for i in range(6)]
voting = BlindVote(draw_duels(questions, answers), "votes.jsonl")
voting.widget"""
WAIT = 120_000  # milliseconds; a busy machine starts a kernel slowly


def run_cell(page, address):
    """Open the notebook and run its cell; wait for the widget."""
    page.goto(address)
    expect(page.locator(".jp-Notebook .cm-content").first).to_be_visible(timeout=WAIT)
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=WAIT)  # else the cell would not run
    page.locator(".jp-Notebook .cm-content").first.click()
    page.keyboard.press("Shift+Enter")
    expect(page.get_by_role("button", name="1: left is better")).to_be_visible(timeout=WAIT)


def test_votes_by_mouse_and_keyboard_in_jupyterlab(lab, page, pictures, tmp_path):
    votes, address = tmp_path / "votes.jsonl", lab("vote.ipynb")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SETUP)], metadata=METADATA)
    nbformat.write(notebook, tmp_path / "vote.ipynb")
    run_cell(page, address)
    expect(page.get_by_text("1 of 6: What does product")).to_be_visible()
    page.screenshot(path=pictures / "voting-1.png")

    page.get_by_role("button", name="1: left is better").click()  # by mouse
    expect(page.get_by_text("2 of 6: What does product")).to_be_visible(timeout=WAIT)
    page.keyboard.press("Tab")  # from the first button to the second
    page.keyboard.press("Enter")
    expect(page.get_by_text("3 of 6: What does product")).to_be_visible(timeout=WAIT)
    page.keyboard.press("Space")  # the focus has stayed
    expect(page.get_by_text("4 of 6: What does product")).to_be_visible(timeout=WAIT)
    page.get_by_placeholder("1, 2 or 3").click()
    page.keyboard.type("3")  # one key, one vote
    expect(page.get_by_text("5 of 6: What does product")).to_be_visible(timeout=WAIT)
    page.keyboard.type("1")
    expect(page.get_by_text("6 of 6: What does product")).to_be_visible(timeout=WAIT)
    assert [vote.choice for vote in read_votes(votes)] == ["left", "same", "same", "right", "left"]
    page.screenshot(path=pictures / "voting-2.png")

    run_cell(page, address)  # another session goes on where this one was
    expect(page.get_by_text("6 of 6: What does product")).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="2: the same").click()
    expect(page.get_by_text("Thank you.")).to_be_visible(timeout=WAIT)
    assert len(read_votes(votes)) == 6
    page.screenshot(path=pictures / "voting-3.png")
