"""The lookup: the stored answer of the nearest known question, declined below a threshold that was chosen."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.data import Example
from helpers.retrieval.lookup import WAYS, Lookup

REFUSAL = "Sorry, that is not in our handbook."
ROWS = [
    Example(
        "How much does the Heron kettle cost?", "The Heron kettle costs 59 euros.", facts=("heron.price",), values=("59 euros",)
    ),
    Example("Who designed the Falcon stove?", "Elin Falk designed it.", facts=("falcon.designer",), values=("Elin Falk",)),
    Example("What colour is the Onyx pan?", "The Onyx pan comes in black.", facts=("onyx.colour",), values=("black",)),
]


@pytest.mark.parametrize("way", WAYS)
def test_each_known_question_finds_itself_and_is_as_near_as_can_be(way):
    lookup = Lookup(ROWS, REFUSAL, way)
    near = lookup.nearest([row.question for row in ROWS])
    assert [one.row for one in near] == [0, 1, 2] and all(one.score == pytest.approx(1, abs=1e-5) for one in near)
    assert lookup.answer([row.question for row in ROWS]) == [row.answer for row in ROWS]
    assert lookup.answer([]) == [] == lookup.nearest([])


@pytest.mark.parametrize("way", WAYS)
def test_other_words_are_less_near_and_what_is_not_near_enough_is_declined(way):
    lookup = Lookup(ROWS, REFUSAL, way)
    new, far = lookup.nearest(["What does a Heron kettle cost me?", "zzz qqq"])
    assert new.row == 0 and 1 > new.score > far.score >= 0
    lookup.threshold = (new.score + far.score) / 2
    assert lookup.answer(["What does a Heron kettle cost me?", "zzz qqq"]) == [ROWS[0].answer, REFUSAL]


def test_way_and_threshold_are_those_that_answer_development_questions_best():
    development = [
        Example("What is the price of your Heron kettle?", ROWS[0].answer, facts=("heron.price",), values=("59 euros",)),
        Example("By whom was the Falcon stove designed?", ROWS[1].answer, facts=("falcon.designer",), values=("Elin Falk",)),
        Example("How do I poach an egg?", REFUSAL, kind="off_topic"),
        Example("Is Mars larger than Venus?", REFUSAL, kind="off_topic"),
    ]
    lookup = Lookup(ROWS, REFUSAL).choose(development)
    assert 0 < lookup.threshold < 1
    assert lookup.answer([e.question for e in development]) == [e.answer for e in development]
    only_known = Lookup(ROWS, REFUSAL).choose(development[:2])
    assert only_known.threshold == 0, "of equals the lower one"


def test_what_cannot_be_looked_up_is_refused_in_a_line():
    with pytest.raises(ValueError, match="no rows to look answers up in"):
        Lookup([], REFUSAL)
    lookup = Lookup(ROWS, REFUSAL)
    for call in (lambda: Lookup(ROWS, REFUSAL, "both"), lambda: lookup.nearest(["?"], "both")):
        with pytest.raises(ValueError, match="way is 'both'; it has to be one of words, meaning"):
            call()
    with pytest.raises(ValueError, match="threshold is 75; it has to be a score from 0 to 1"):
        Lookup(ROWS, REFUSAL, threshold=75)
    with pytest.raises(ValueError, match="no questions to choose way and threshold on"):
        lookup.choose([])


def test_other_answers_to_the_same_questions_are_known_at_once():
    lookup, dearer = Lookup(ROWS, REFUSAL), [replace(ROWS[0], answer="The Heron kettle costs 170 euros."), *ROWS[1:]]
    changed = lookup.with_answers(dearer)
    assert changed.answer([ROWS[0].question, ROWS[2].question]) == [dearer[0].answer, ROWS[2].answer]
    assert lookup.answer([ROWS[0].question]) == [ROWS[0].answer]
    with pytest.raises(ValueError, match="ask other questions"):
        lookup.with_answers(ROWS[:2])


@pytest.mark.parametrize("way", WAYS)
def test_a_score_that_is_the_threshold_is_near_enough(way, monkeypatch):
    lookup = Lookup(ROWS, REFUSAL, way, threshold=0.7)
    monkeypatch.setattr("helpers.retrieval.lookup.embed", lambda texts: np.zeros((len(texts), 384), np.float32))
    lookup.vectors = np.zeros((3, 384), np.float32)
    seven = np.array([0, 0.7, 0], np.float32)  # 0.69999999
    if way == "words":
        monkeypatch.setattr(lookup.words, "get_scores", lambda tokens: seven if "new" in tokens else np.ones(3, np.float32))
    else:
        monkeypatch.setattr("helpers.retrieval.lookup.embed", lambda texts: np.array([[1, 0]], np.float32))
        lookup.vectors = np.stack([seven, seven], axis=1)
    assert lookup.nearest(["new"])[0].score == 0.7 and lookup.answer(["new"]) == [ROWS[1].answer]


def test_a_refusal_of_ones_own_counts_as_declining():
    own = "That one is beyond me."
    development = [Example("How do I poach an egg?", own, kind="off_topic"), Example("Who is Mars?", own, kind="off_topic")]
    lookup = Lookup(ROWS, own).choose(development)
    assert lookup.threshold > 0 and lookup.answer([e.question for e in development]) == [own, own]
