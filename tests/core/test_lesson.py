import json

import matplotlib.pyplot as plt
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from helpers.evaluation import difference, interval
from helpers.lesson import check, claim, not_measured, say, show
from helpers.machine.paths import build_folder
from helpers.machine.records import claims, registered, tally
from helpers.text.outcome import Outcome, every

InteractiveShell.instance()  # what is displayed can only be caught inside IPython


def saved(id):
    return json.loads((build_folder() / "claims" / f"{id}.json").read_text())


def test_a_claim_shows_its_box_and_is_saved():
    with capture_output() as shown:
        claim("C03", Outcome(True), {"<before>": interval([0, 1, 0, 0]), "steps": 3, "loss": 0.12345})
    page, plain = shown.outputs[0].data["text/html"], shown.outputs[0].data["text/plain"]
    assert "Claim C03: holds in this run" in page and "&lt;before&gt;" in page and "25.0% (0.0% to" in page and "0.123" in page
    assert plain.startswith(f"☑ Claim C03: holds in this run. {registered()['C03'].sentence}\n   <before>: 25.0%")
    record = saved("C03")
    assert (record["kind"], record["holds"], record["text"]) == ("claim", True, registered()["C03"].sentence)
    assert record["evidence"]["<before>"]["mean"] == 0.25 and record["evidence"]["loss"] == 0.12345
    assert record["shown"] == {"<before>": str(interval([0, 1, 0, 0])), "steps": "3", "loss": "0.123"}


def test_a_claim_that_fails_says_so_and_the_latest_run_counts():
    for outcome in (True, Outcome(False)):
        with capture_output() as shown:
            claim("C04", outcome, {"difference": 0.1})
    assert "☐ Claim C04: does not hold in this run" in shown.outputs[0].data["text/html"]
    assert saved("C04")["holds"] is False
    assert [path.name for path in (build_folder() / "claims").iterdir()] == ["C04.json"]


@pytest.mark.parametrize(("holds", "words"), [(True, "✓ Check C06: checked."), (False, "✗ Check C06: broken.")])
def test_a_check_is_another_kind_of_box(holds, words):
    with capture_output() as shown:
        check("C06", holds, {"our loop": "2.50000"})
    assert words in shown.outputs[0].data["text/html"] and shown.outputs[0].data["text/plain"].startswith(words)
    assert (saved("C06")["kind"], saved("C06")["holds"]) == ("check", holds)


def test_a_claim_that_cannot_be_told_is_neither_and_says_how_many_would_tell():
    change = difference([0] * 20, [1] * 4 + [0] * 16)
    with capture_output() as shown:
        claim("C02", change.above(), {"difference": change})
    assert "? Claim C02: this run cannot tell" in shown.outputs[0].data["text/html"]
    enough = f"about {change.above().needed} instead of so few (unit: fact, with all its wordings)"
    assert enough in shown.outputs[0].data["text/plain"]
    assert saved("C02")["holds"] is None and saved("C02")["shown"]["would tell, if it is as it looks"] == enough


def test_a_claim_that_looks_wrong_and_cannot_be_told_says_that_nobody_knows_how_many_would():
    change = difference([1] * 4 + [0] * 16, [0] * 20)
    assert change.above() == Outcome(None)
    with capture_output():
        claim("C02", change.above(), {"difference": change})
    assert saved("C02")["shown"]["cannot tell"].startswith("so few leave room for yes and no")


def test_a_claim_says_what_its_numbers_would_show():
    change, steady = difference([0] * 24, [1] * 20 + [0] * 4), interval([2.0, 3.0] * 12, unit="nats")
    for outcome in (change.above(), change.below(), every(change.above(0.7), steady.above(), True)):
        with capture_output() as shown:
            claim("C02", outcome, {"difference": change})
        assert list(saved("C02")["shown"])[-1] == "these numbers would show"
        assert shown.outputs[0].data["text/plain"].endswith(f"these numbers would show: {outcome.power}")
    assert outcome.power == f"{100 * change.shows:.0f} points, {steady.shows:.2g} nats or more in 8 of 10 runs"
    with capture_output():
        claim("C02", True, {"nothing": "was drawn"})
    assert list(saved("C02")["shown"]) == ["nothing"]


def test_what_was_not_measured_is_no_doubt():
    with capture_output() as shown:
        not_measured("C12", "the larger model is not installed: make larger")
    plain = shown.outputs[0].data["text/plain"]
    assert plain.startswith(f"· Claim C12: not measured here. {registered()['C12'].sentence}\n   not measured: the larger")
    assert saved("C12")["holds"] is None and saved("C12")["evidence"] == {"not measured": plain.split("measured: ")[1]}
    assert tally(claims()) == "checks 0 of 0; claims: 0 hold, 0 cannot tell, 0 do not, 1 not measured"  # and is not missing
    with pytest.raises(ValueError, match="C06 is a check"):
        not_measured("C06", "why")


@pytest.mark.parametrize(
    ("tell", "id", "outcome", "evidence", "message"),
    [
        (claim, "C00", True, {"n": 1}, r"C00 is not in data/claims.yaml. Write there first what it measures"),
        (claim, "C06", True, {"n": 1}, r"C06 is a check in data/claims.yaml, not a claim: call check\('C06', ...\)"),
        (check, "C02", True, {"n": 1}, r"C02 is a claim in data/claims.yaml, not a check: call claim\('C02', ...\)"),
        (check, "C06", Outcome(None), {"n": 1}, r"C06: a check holds or is broken, for sure. Pass True or False"),
        (claim, "C09", True, {}, r"C09: a claim needs evidence. Pass what was measured"),
        (claim, "C09", Outcome(None, 30), {}, r"C09: a claim needs evidence. Pass what was measured"),
        (check, "C06", True, {}, r"C06: a check needs evidence"),
    ],
)
def test_what_is_not_written_down_or_not_measured_is_refused(tell, id, outcome, evidence, message):
    with pytest.raises(ValueError, match=message):
        tell(id, outcome, evidence)
    assert not (build_folder() / "claims").exists()


def test_pictures_carry_their_text_alternative():
    figure, _ = plt.subplots()
    with capture_output() as shown:
        show(figure, "Right: 50% before, 100% after.")
    assert shown.outputs[0].metadata["image/png"]["alt"] == "Right: 50% before, 100% after."
    assert not plt.get_fignums()


def test_say_puts_numbers_into_prose():
    with capture_output() as shown:
        say("**{n:,}** rows, {share}", n=1234, share=interval([1, 0]))
    assert shown.outputs[0].data["text/markdown"].startswith("**1,234** rows, 50.0% (")
