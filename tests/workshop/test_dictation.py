"""Dictation: what is asked and learnt, contenders that keep every word, and measures that can be worked out by hand."""

import numpy as np
import pytest

from helpers.models import load_model
from helpers.tokenization import encode_all, prompt_ids
from helpers.workshop.dictation import Tagger, asked, checked, compare_written, marks_f1, prompt, row, rule, weighed
from helpers.workshop.sentences import Sentence, dictated

WRITTEN = Sentence("By default, Kathy doesn't use the well-known GPU.", "somewhere")
TEXTS = ["by default the tagger learns from the rows", "i think it does but who can say", "is it"]


def test_dictated_words_have_no_marks_and_no_capitals():
    assert WRITTEN.dictated == "by default kathy doesn't use the well-known gpu"
    assert dictated('  "Stop!"  he said;\nthen: nothing? ') == "stop he said then nothing"


def test_a_row_teaches_the_written_sentence_and_asks_as_the_model_is_asked(tiny):
    tokenizer = load_model(tiny, device="cpu")[1]
    example = row(WRITTEN)
    encoded = encode_all(tokenizer, [example])[0]
    assert encoded.ids[: len(prompt_ids(tokenizer, asked(WRITTEN.dictated)))] == prompt_ids(tokenizer, asked(WRITTEN.dictated))
    assert tokenizer.decode([label for label in encoded.labels if label >= 0], skip_special_tokens=True) == WRITTEN.text
    assert WRITTEN.dictated in example.question and "Kathy" not in example.question


def test_a_prompt_shows_its_examples_as_turns_and_ends_with_the_text():
    turns = prompt("what is new", [WRITTEN, WRITTEN])
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2 + ["user"]
    assert turns[1]["content"] == WRITTEN.text and turns[-1]["content"].endswith("what is new")
    assert len(prompt("what is new", [])) == 1


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("the file is read", "The file is read."),
        ("what does the file hold", "What does the file hold?"),
        ("by default the file is read", "By default, the file is read."),
        ("it is slow but i like it", "It is slow, but I like it."),
        ("but it is slow", "But it is slow."),
        ("by default but seldom it is read", "By default, but seldom it is read."),
        ("it is all-but certain however", "It is all-but certain however."),
        ("however", "However."),
        ("", ""),
    ],
)
def test_the_rule(text, written):
    assert rule(text) == written and dictated(written) == text


def test_the_tagger_learns_names_commas_and_ends_and_keeps_every_word():
    names, verbs = ("Paris", "Berlin", "Madrid"), ("is old", "was seen", "lies far away")
    learnt = [Sentence(f"By default, the town of {name} {verb}.", "a") for name in names for verb in verbs]
    learnt += [Sentence(f"Why is the {word} of the town red?", "a") for word in ("gate", "door", "roof", "tower", "wall")]
    tagger = Tagger(learnt)
    assert tagger(["by default the town of madrid is old"]) == ["By default, the town of Madrid is old."]
    assert tagger(["why is the gate of the town red"]) == ["Why is the gate of the town red?"]
    assert [dictated(written) for written in tagger(TEXTS)] == TEXTS
    assert Tagger(learnt)(TEXTS) == tagger(TEXTS) == Tagger(learnt, seed=2**32)(TEXTS), "the largest seeds are taken as well"


def test_texts_without_words_and_words_of_odd_forms_do_not_stop_the_tagger():
    tagger = Tagger([Sentence("We saw NumPy , and it was good.", "a"), WRITTEN])
    assert tagger([]) == [] == checked([], [], tagger) and tagger(["", " "]) == ["", ""]
    assert dictated(tagger(["", "i'm 4th in numpy"])[1]) == "i'm 4th in numpy"


@pytest.mark.parametrize("learnt", [[], [Sentence("", "a")], [Sentence("all small without marks", "a")]])
def test_a_tagger_says_when_there_is_nothing_to_learn(learnt):
    with pytest.raises(ValueError, match="Give more sentences"):
        Tagger(learnt)


def test_answers_are_compared_word_by_word():
    sentence = Sentence("If it rains, we stay.", "a")
    answers = [
        "If it  rains, we stay.",  # white space alone
        "If it rains we stay.",  # a mark missing
        "If it, rains we stay?",  # two at the wrong place or of the wrong kind
        "Sure: If it rains, we stay.",  # a word added
        "If it rains, stay.",  # one left out
        "",
    ]
    table = compare_written([sentence] * len(answers), answers)
    assert table.exact.tolist() == [True, False, False, False, False, False]
    assert table.kept.tolist() == [1, 1, 1, pytest.approx(5 / 6), pytest.approx(4 / 5), 0]
    assert table.right.tolist() == [2, 1, 0, 2, 2, 0]
    assert table.wanted.tolist() == [2] * 6 and table.given.tolist() == [2, 1, 2, 2, 2, 0]
    assert table.harder.all() and compare_written([Sentence("", "a")], [""]).kept.tolist() == [0]


def test_f1_of_the_marks():
    sentence = Sentence("If it rains, we stay.", "a")
    assert marks_f1(compare_written([sentence], [sentence.text])) == 1
    assert marks_f1(compare_written([sentence], ["If it rains we stay."])) == pytest.approx(2 / 3)
    assert marks_f1(compare_written([sentence], ["if it rains we stay"])) == 0


def test_an_answer_that_changed_a_word_is_written_by_the_other():
    heard, answers = ["it works now", "we say so"], ["It works now.", "We said so."]
    assert checked(heard, answers, lambda texts: [text.upper() for text in texts]) == ["It works now.", "WE SAY SO"]


def test_rule_and_finetune_are_weighed_by_the_share_of_harder_sentences():
    hard = np.array([False, False, True, True])
    told = weighed(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 1, 0]), hard)
    assert "leads by **50 points**, on the harder ones the finetune by **50**" in told and "over **50%** are harder" in told
    for alike in (hard[:2], ~hard[:2], hard[:0]):
        assert "nothing to weigh" in weighed(np.ones(len(alike)), np.ones(len(alike)), alike)
