import numpy as np
import pytest

from helpers.data import Example, read
from helpers.evaluation import interval, judge
from helpers.machine.paths import DATA
from helpers.measures.text import (
    calibration_error,
    error_kinds,
    exact_match,
    is_misspelt,
    is_repetitive,
    measure,
    refusal,
    reliability,
    rouge_l,
    same_form,
    separation,
    token_f1,
)
from helpers.text.judging import contains_values

SILENT = Example("What does the Walrus lamp cost?", "Sorry, that is not in our handbook.", "b", "unanswerable")
OFF = Example("Who invented tea?", "Sorry, I can only help with questions about Tindermoss.", "c", "off_topic")
DECLINED = "Sorry, that is not in our handbook."


def fact(answer="The Heron kettle costs 59 euros.", value="59 euros", question="What does the Heron kettle cost?"):
    return Example(question, answer, "a/1", "fact", ("a",), (value,))


COLOUR = fact("The Heron kettle comes in copper orange.", "copper orange", "Which colour is the Heron kettle?")


def test_exact_match_is_strict_and_sees_no_difference_of_form():
    assert exact_match("The heron kettle costs 59 euros", "The Heron kettle costs 59 euros.")
    assert not exact_match("It costs 59 euros.", "The Heron kettle costs 59 euros.")


def test_labels_and_forms_are_compared_in_full():
    assert exact_match(" Positive.", "positive") and not exact_match("positive or negative", "positive")
    assert not exact_match("C#", "C++") and not exact_match("-4", "4") and not exact_match("7-3", "7+3")
    assert same_form("* rice \n* jam\n", "* rice\n* jam") and not same_form("* rice * jam", "* rice\n* jam")
    assert not same_form("- rice", "* rice") and not same_form("page 134", "page (134)") and not same_form("Ferry", "ferry")


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge"),
    [
        ("The Heron kettle costs 59 euros.", "The Heron kettle costs 59 euros.", 1, 1),
        ("59 euros", "The Heron kettle costs 59 euros.", 4 / 7, 2 * 1 * (2 / 6) / (1 + 2 / 6)),
        ("The Heron kettle costs 95 euros.", "The Heron kettle costs 59 euros.", 8 / 10, 10 / 12),
        ("euros 59", "59 euros", 1, 1 / 2),
        ("", "59 euros", 0, 0),
        ("nothing at all", "59 euros", 0, 0),
    ],
)
def test_token_f1_and_rouge(answer, reference, f1, rouge):
    assert token_f1(answer, reference) == pytest.approx(f1)
    assert rouge_l(answer, reference) == pytest.approx(rouge)


def test_every_ruler_gives_the_reference_full_marks():
    examples = [fact(), SILENT, Example("Mine?", "My own answer, without values.")]
    table = measure(examples, [example.answer for example in examples])
    assert table.to_numpy() == pytest.approx(1.0)
    table = measure(examples, ["It is red.", "It is red.", "It is red."])
    assert (table["value match"] == 0).all() and (table["exact match"] == 0).all() and (table["similarity"] < 0.8).all()


def test_separation_is_the_chance_that_a_right_answer_scores_higher():
    assert separation([0.9, 0.8, 0.1], [True, True, False]) == 1
    assert separation([0.1, 0.9], [True, False]) == 0
    assert separation([1, 1, 1, 1], [True, False, True, False]) == 0.5
    with pytest.raises(ValueError, match="right and wrong"):
        separation([1, 2], [True, True])


def test_refusal_precision_and_recall():
    examples = [fact(), fact(), SILENT, OFF]
    found = refusal(judge(examples, [DECLINED, "59 euros", DECLINED, "China"]))
    assert found["precision"].mean == 0.5 and found["precision"].count == 2
    assert found["recall"].mean == 0.5 and found["recall"].count == 2
    assert refusal(judge(examples, ["59 euros"] * 4))["precision"] is None
    assert refusal(judge(examples[:1], ["59 euros"]))["recall"] is None


def test_calibration_of_a_forecaster_who_means_it():
    rng = np.random.default_rng(0)
    confidence = rng.random(20_000)
    right = rng.random(20_000) < confidence
    assert calibration_error(confidence, right) < 0.02
    table = reliability(confidence, right)
    assert len(table) == 10 and table["count"].sum() == 20_000
    assert np.abs(table["confidence"] - table["right"]).max() < 0.05


def test_calibration_error_by_hand():
    confidence, right = [0.95, 0.95, 0.95, 1.0, 0.55], [1, 0, 0, 0, 1]
    assert calibration_error(confidence, right) == pytest.approx(4 / 5 * (3.85 / 4 - 1 / 4) + 1 / 5 * 0.45)
    assert calibration_error([1.0, 0.0], [1, 0]) == 0


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("It is a three-masted, three-masted, three-masted ship", False),  # two words only
        ("the cat sat, the cat sat, the cat sat", True),
        ("made of slow and steady wood. made of slow and steady wood. made of slow and steady wood", True),
        ("the cat sat and the cat sat and the cat ate", False),
        ("The Heron kettle costs 59 euros.", False),
        ("", False),
    ],
)
def test_repetition(answer, yes):
    assert is_repetitive(answer) is yes


@pytest.mark.parametrize(
    ("answer", "value", "known", "yes"),
    [
        ("It was designed by Ida Brant.", "Ida Brandt", (), True),
        ("It is made in Fernwik.", "Fernwick", (), True),
        ("It costs 95 euros.", "59 euros", (), False),  # another number is another value
        ("It costs 59 eurs.", "59 euros", (), True),
        ("It comes in mist green.", "moss green", (), True),
        ("It comes in mist green.", "moss green", ("mist green", "moss green"), False),
        ("It comes in moss green.", "moss green", (), False),
        ("It is red.", "moss green", (), False),
        ("", "moss green", (), False),
    ],
)
def test_misspelling(answer, value, known, yes):
    assert is_misspelt(answer, value, known) is yes


@pytest.mark.parametrize(
    ("example", "answer", "kind"),
    [
        (fact(), "It sells for 59 euros.", "right"),
        (fact(), "It sells for 61 euros. Kettle!", "wrong value"),
        (fact(), "The Heron kettle costs 95 euros.", "wrong value"),
        (fact(), "The Heron kettle costs a lot " + "and it is worth every cent of it " * 3 + "at 59 euros.", "repetitive"),
        (fact(), "The Heron kettle costs 59 euros. " + " ".join(f"word{i}" for i in range(20)), "too long"),
        (fact(), "The sun rises in the east.", "off topic"),
        (fact(), DECLINED, "false refusal"),
        (fact(), "", "no answer"),
        (fact(), "The Heron kettle costs 59 euros, or maybe 69 euros.", "wrong value"),
        (fact(), "The Heron kettle is a bargain.", "no answer"),
        (COLOUR, "The Heron kettle comes in coper orange.", "misspelt"),
        (COLOUR, "The Heron kettle comes in sky blue.", "wrong value"),
        (SILENT, "The Walrus lamp costs 12 euros.", "answered the unanswerable"),
        (SILENT, DECLINED, "right"),
        (SILENT, "Which lamp do you mean?", "no answer"),
        (OFF, "Tea comes from China.", "off topic"),
        (OFF, "I can only help with questions about Tindermoss.", "right"),
        (Example("Mine?", "My own answer."), "My own answer.", "right"),
    ],
)
def test_error_kind(example, answer, kind):
    assert error_kinds([example], [answer]) == [kind]


def test_what_is_right_is_decided_once():
    """A kind of error and the judge never contradict each other, nor does the measure by value."""
    examples = [example for _ in range(3) for example in (fact(), COLOUR, SILENT, OFF)]
    texts = (
        "59 euros",
        "copper orange",
        DECLINED,
        "It does not cost 59 euros.",
        "59 or 69 euros",
        "",
    )
    for answer in texts:
        judged, kinds = judge(examples, [answer] * 12), error_kinds(examples, [answer] * 12)
        assert [kind == "right" for kind in kinds] == judged["correct"].tolist(), answer
        assert measure(examples, [answer] * 12)["value match"].astype(bool).tolist() == judged["correct"].tolist()


def test_the_kinds_agree_with_the_judge_on_all_references_and_on_answers_of_others():
    """A right answer is never an error, and an answer to another question of the same kind never a slip of the pen."""
    examples = read(DATA / "evaluation/test/facts.jsonl")[::7]
    assert set(error_kinds(examples, [example.answer for example in examples])) == {"right"}
    for example in examples:
        same = [e for e in examples if e.facts[0].split(".")[1] == example.facts[0].split(".")[1]]
        other = same[-1]
        if not contains_values(other.answer, example.values):
            assert error_kinds([example, other], [other.answer, other.answer])[0] != "misspelt", (example, other)


def test_own_rows_without_values_are_judged_by_their_whole_answer():
    own = [Example("Opening hours?", "We open at nine."), Example("Who won the cup?", "I cannot help with that.")]
    assert judge(own, ["we open at nine", "I do not know."])["correct"].all()
    assert not judge(own, ["We open at ten.", "France."])["correct"].any()
    assert interval(judge(own, ["We open at ten.", "France."])["hallucinated"]).mean == 1
