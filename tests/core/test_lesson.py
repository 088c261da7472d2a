import json

import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from helpers.evaluation import difference, interval
from helpers.lesson import LivePlot, claim, claims, compare_bars, say, show
from helpers.machine.history import History
from helpers.machine.paths import build_folder

InteractiveShell.instance()  # what is displayed can only be caught inside IPython


def test_a_claim_shows_its_box_and_is_saved():
    with capture_output() as shown:
        claim("C03", "Answers are <more> consistent", True, {"before": interval([0, 1, 0, 0]), "steps": 3, "loss": 0.12345})
    page = shown.outputs[0].data["text/html"]
    assert "C03: holds in this run" in page and "&lt;more&gt;" in page and "25.0% (0.0% to" in page and "0.123" in page
    assert "☑ C03" in shown.outputs[0].data["text/plain"]
    saved = json.loads((build_folder() / "claims" / "C03.json").read_text())
    assert saved["holds"] is True and saved["text"] == "Answers are <more> consistent"
    assert saved["evidence"]["before"]["mean"] == 0.25 and saved["evidence"]["loss"] == 0.12345


def test_a_claim_that_fails_says_so_and_the_latest_run_counts():
    for holds in (True, False):
        with capture_output() as shown:
            claim("C04", "Fewer hallucinations", holds, {"difference": 0.1})
    assert "☐ C04: does not hold in this run" in shown.outputs[0].data["text/html"]
    with capture_output():
        claim("C02", "Learns", True, {"n": 1})
    assert [(saved["id"], saved["holds"]) for saved in claims()] == [("C02", True), ("C04", False)]
    assert claims(since=4e9) == []
    assert not list((build_folder() / "claims").glob("*partial*"))


def test_a_claim_that_cannot_be_told_is_neither_and_says_how_many_would_tell():
    change = difference([0] * 20, [1] * 4 + [0] * 16)
    with capture_output() as shown:
        claim("C05", "Better", change.above(), {"difference": change})
    assert "? C05: this run cannot tell" in shown.outputs[0].data["text/html"]
    needed = f"about {change.above().needed} instead of so few"
    assert needed in shown.outputs[0].data["text/plain"]
    saved = json.loads((build_folder() / "claims" / "C05.json").read_text())
    assert saved["holds"] is None and saved["shown"]["would tell, if it is as it looks"] == needed


def test_a_claim_without_evidence_is_refused():
    with pytest.raises(ValueError, match="C09: a claim needs evidence"):
        claim("C09", "Trust me", True, {})


def test_pictures_carry_their_text_alternative():
    figure, ax = plt.subplots()
    compare_bars(ax, {"before": {"right": interval([0, 1])}, "after": {"right": interval([1, 1])}}, "share")
    with capture_output() as shown:
        show(figure, "Right: 50% before, 100% after.")
    assert shown.outputs[0].metadata["image/png"]["alt"] == "Right: 50% before, 100% after."
    assert not plt.get_fignums()


def test_the_live_plot_draws_the_first_and_the_last_step():
    history = History(planned_steps=30)
    plot = LivePlot(every=1000)
    with capture_output() as shown:
        for step in range(1, 31):
            history.steps.append({"step": step, "loss": 3.0 / step})
            if step == 30:
                history.held_out.append({"step": 30, "loss": 0.2})
            plot(history)
    assert len(shown.outputs) == 2
    alt = shown.outputs[-1].metadata["image/png"]["alt"]
    assert "30 of 30 steps" in alt and "from 3.00 to" in alt and "never trained on is 0.20" in alt


def test_say_puts_numbers_into_prose():
    with capture_output() as shown:
        say("**{n:,}** rows, {share}", n=1234, share=interval([1, 0]))
    assert shown.outputs[0].data["text/markdown"].startswith("**1,234** rows, 50.0% (")
