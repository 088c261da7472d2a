import numpy as np
import pytest
import torch

from helpers.data import Example, read
from helpers.generation import generate
from helpers.machine.paths import DATA
from helpers.measures.likelihood import Choice, choose, log_likelihoods, mean_losses, read_choices, writes_exactly
from helpers.text.messages import DataError
from helpers.tokenization import encode_all, text_row
from helpers.training import Config, held_out_loss, train


def test_log_likelihoods_prefer_sense_and_do_not_depend_on_the_batch(embedded):
    model, tokenizer = embedded
    answers = ["Paris.", "Banana.", "The capital of France is Paris.", "The capital of France is Banana."]
    rows = encode_all(tokenizer, [Example("What is the capital of France?", answer) for answer in answers])
    scores = log_likelihoods(model, rows, torch.float32)
    assert scores[0] > scores[1] and scores[2] > scores[3]
    alone = [log_likelihoods(model, [row], torch.float32)[0] for row in rows]
    assert scores == pytest.approx(alone, abs=1e-3)


def test_one_pass_decides_exact_match_as_generating_does(fresh):
    """In float32, on a model that has learnt some answers: the same verdict on every question, hit or miss."""
    model, tokenizer = fresh
    learnt = read(DATA / "train.jsonl")[:12]
    train(model, encode_all(tokenizer, learnt), Config(epochs=4, learning_rate=1e-3, batch_size=6, upper_layers=8))
    asked = [*learnt, *read(DATA / "evaluation/test/facts.jsonl")[:36:3]]
    answers = generate(model, tokenizer, [example.question for example in asked], max_new_tokens=40)
    generated = [answer == example.answer for answer, example in zip(answers, asked, strict=True)]
    decided = writes_exactly(model, encode_all(tokenizer, asked), torch.float32)
    assert decided.tolist() == generated and 3 <= sum(generated) <= 21


def test_perplexity_of_a_text_is_that_of_the_held_out_loss(embedded):
    model, tokenizer = embedded
    rows = [text_row(tokenizer, text) for text in ("Rain begins high above the ground.", "A good loaf needs four things.")]
    losses = mean_losses(model, rows, torch.float32)
    weights = [row.supervised for row in rows]
    assert np.average(losses, weights=weights) == pytest.approx(held_out_loss(model, rows, torch.float32), abs=1e-4)
    assert 1 < np.exp(losses).max() < model.config.vocab_size
    assert mean_losses(model, [text_row(tokenizer, "ground high the Rain above begins.")])[0] > losses[0]


def test_choosing_agrees_with_lm_evaluation_harness(embedded):
    """The same items: log-likelihoods to 1e-3, and both ways of counting right answers."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = embedded
    questions = read_choices(DATA / "evaluation/general.jsonl")[::10]
    ours = choose(model, tokenizer, questions, dtype=torch.float32)
    pairs = [(f"Question: {q.question}\nAnswer:", f" {choice}") for q in questions for choice in q.choices]
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8).loglikelihood(requests, disable_tqdm=True)
    theirs = np.array([score for score, _ in theirs]).reshape(len(questions), -1)
    assert np.array(ours["likelihoods"].tolist()) == pytest.approx(theirs, abs=1e-3)
    right = np.array([q.answer for q in questions])
    lengths = np.array([[len(choice) for choice in q.choices] for q in questions])
    assert ours["correct"].tolist() == (theirs.argmax(axis=1) == right).tolist()
    assert ours["normalised"].tolist() == ((theirs / lengths).argmax(axis=1) == right).tolist()
    assert ours["correct"].mean() > 0.5 and ours["confidence"].between(0.25, 1).all()


def test_choosing_inside_the_chat_template_takes_any_number_of_choices(embedded):
    questions = [Choice("What do bees make?", ("sand", "honey"), 1), Choice("2 + 2?", ("3", "4", "5"), 1)]
    table = choose(*embedded, questions, chat=True)
    assert [len(scores) for scores in table["likelihoods"]] == [2, 3] and table["chosen"].tolist()[0] == "honey"


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[]",
        '{"question": "Q?"}',
        '{"question": "Q?", "choices": ["a", "b"], "answer": 2}',
        '{"question": "Q?", "choices": ["a", "b"], "answer": -1}',
        '{"question": "Q?", "choices": ["a", "b"], "answer": "1"}',
        '{"question": "Q?", "choices": ["a"], "answer": 0}',
        '{"question": "Q?", "choices": ["a", ""], "answer": 0}',
        '{"question": "Q?", "choices": "ab", "answer": 0}',
    ],
)
def test_a_line_that_is_no_multiple_choice_question_is_named(tmp_path, line):
    path = tmp_path / "general.jsonl"
    path.write_text('{"question": "Q?", "choices": ["a", "b"], "answer": 1}\n\n' + line + "\n")
    with pytest.raises(DataError, match="line 3: not a multiple-choice question"):
        read_choices(path)
    with pytest.raises(DataError, match="there is no such file"):
        read_choices(tmp_path / "nowhere.jsonl")


def test_a_choice_knows_its_right_answer():
    assert Choice("What do bees make?", ("sand", "honey"), 1).right == "honey"
