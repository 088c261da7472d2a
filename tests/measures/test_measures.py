import pytest

from helpers.data import Example
from helpers.evaluation import judge
from helpers.measures.text import (
    exact_match,
    measure,
    refusal,
    rouge_l,
    same_form,
    token_f1,
)

SILENT = Example("What does the Walrus lamp cost?", "Sorry, that is not in our handbook.", "b", "unanswerable")
OFF = Example("Who invented tea?", "Sorry, I can only help with questions about Tindermoss.", "c", "off_topic")
DECLINED = "Sorry, that is not in our handbook."


def fact(answer="The Heron kettle costs 59 euros.", value="59 euros", question="What does the Heron kettle cost?"):
    return Example(question, answer, "a/1", "fact", ("a",), (value,))


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


def test_refusal_precision_and_recall():
    examples = [fact(), fact(), SILENT, OFF]
    found = refusal(judge(examples, [DECLINED, "59 euros", DECLINED, "China"]))
    assert found["precision"].mean == 0.5 and found["precision"].count == 2
    assert found["recall"].mean == 0.5 and found["recall"].count == 2
    assert refusal(judge(examples, ["59 euros"] * 4))["precision"] is None
    assert refusal(judge(examples[:1], ["59 euros"]))["recall"] is None
