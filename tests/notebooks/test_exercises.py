"""The exercises of the lessons: empty they run, solved as the lesson solves them they pass, and slips are told apart."""

import re
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
from torch.nn.functional import nll_loss

from helpers.text.outcome import Interval
from helpers.tokenization import IGNORED, Row
from helpers.workshop.notebooks import NOTEBOOKS

LESSON = nbformat.read(NOTEBOOKS / "01_why_finetune.ipynb", as_version=4)
CONTEST = nbformat.read(NOTEBOOKS / "02_prompting_retrieval_or_finetuning.ipynb", as_version=4)


def cell(text, lesson=LESSON):
    """The one cell of code with such a text."""
    [found] = [cell.source for cell in lesson.cells if cell.cell_type == "code" and text in cell.source]
    return found


def solution(name):
    """What the lesson has folded away as its solution of an exercise."""
    texts = [cell.source for cell in LESSON.cells if cell.cell_type == "markdown"]
    [found] = re.findall(rf"<summary>A solution</summary>\n\n```python\n(def {name}\(.*?)\n```\n", "\n".join(texts), re.S)
    return found


def told(name, review, body, names):
    """What the lesson says of an exercise: of the function as it stands there (None), or with this one in its place."""
    said = []
    space = {**names, "say": lambda text, **values: said.append(text.format(**values))}
    exec(cell(f"def {review}("), space)
    written = re.compile(rf"def {name}\(.*?(?=\n\n\nsay\()", re.S)
    source = cell(f"def {name}(")
    assert written.search(source)
    exec(source if body is None else written.sub(lambda _: body, source), space)
    return said[0]


def on_a_row(seed=0):
    """A row of nine tokens, four of them learnt, with what some model expects, and the cells' other names."""
    torch.manual_seed(seed)
    log_probabilities = torch.randn(9, 150).log_softmax(dim=-1)
    row = Row(ids=list(range(20, 29)), labels=[IGNORED] * 5 + [25, 26, 27, 28])
    labels = torch.tensor([row.labels])
    loss = nll_loss(log_probabilities[:-1], labels[0, 1:])
    names = {"torch": torch, "nll_loss": nll_loss, "IGNORED": IGNORED, "row": row, "labels": labels}
    names |= {"outputs": SimpleNamespace(loss=loss), "log_probabilities": log_probabilities, "right_loss": loss.item()}
    verdicts = re.search(r"^verdicts = \{.*?^\}", cell("verdicts = {"), re.S | re.M)
    exec(verdicts[0], names)
    return names


LOSS = "def my_loss(log_probabilities, labels):\n    places = [i for i, label in enumerate(labels) if label != IGNORED]\n    "
PICKED = "[-log_probabilities[i - 1, labels[i]] for i in places]"


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        (None, "nothing is written yet"),
        (solution("my_loss"), "solved"),
        (LOSS + f"return torch.stack({PICKED}).mean()", "solved"),
        (LOSS + f"return (sum({PICKED}) / 4).item()", "solved"),
        (LOSS + f"return -sum({PICKED}) / 4", "wrong sign"),
        (LOSS + f"return sum({PICKED})", "the sum of the charges"),
        (LOSS + f"return sum({PICKED}) / len(labels)", "divided by all tokens"),
        (LOSS + "return sum(-log_probabilities[i, labels[i]] for i in places) / 4", "one place off"),
        (LOSS + f"return {PICKED}", "wrong shape, 4 numbers"),
        (
            LOSS + "return sum(-log_probabilities[i - 1, label] for i, label in enumerate(labels)) / 9",
            "the question are charged",
        ),
        (LOSS + "return sum(-log_probabilities[i - 1, labels[i]].exp() for i in places) / 4", "wrong value"),
        (LOSS + "return float('nan')", "right shape, wrong value"),
        (LOSS + "return sum(log_probabilities[len(labels)]) / 4", "stops with IndexError"),
        (LOSS + "return 'much'", "it stops with"),
    ],
)
def test_a_loss_by_hand_is_told_by_what_is_wrong_with_it(body, verdict):
    assert verdict in told("my_loss", "review_loss", body, on_a_row())


JUDGE = "def is_right(answer, value):\n    return "


@pytest.mark.parametrize(
    ("body", "verdict", "missed"),
    [
        (None, "nothing is written yet", 0),
        (solution("is_right"), "6 of 6 verdicts are right", 0),
        (JUDGE + "value in answer", "3 of 6 verdicts are right", 3),
        (JUDGE + "answer == f'The Heron kettle costs {value}.'", "5 of 6 verdicts are right", 1),
        (JUDGE + "value.split()[0] in answer", "2 of 6 verdicts are right", 4),
        (JUDGE + "True", "2 of 6 verdicts are right", 4),
        (
            JUDGE + "f' {value}' in answer and 'not' not in answer and 'or' not in answer.split() and '59' in answer",
            "59 euros only",
            0,
        ),
        (JUDGE + "'yes'", "wrong kind", 0),
        (JUDGE + "answer.index(value) > 0", "stops with ValueError", 0),
    ],
)
def test_a_judge_is_told_which_answers_it_gets_wrong_and_why(body, verdict, missed):
    said = told("is_right", "review_judge", body, {})
    assert verdict in said and said.count("\n* ") == missed
    if missed == 3:
        assert "159 is another number than 59" in said and "denied" in said and "second value" in said and "59.50" not in said


def test_guesses_are_held_against_what_was_measured_and_none_is_no_guess():
    space = {"pd": pd}
    exec(cell("my_guess = {"), space)
    assert list(space["my_guess"].values()) == [None] * 3
    for name, low, high in (("right", 0.8, 0.95), ("invented", 0.1, 0.4), ("knowledge", 0.4, 0.6)):
        space[name] = {"after": Interval((low + high) / 2, low, high, 30, 30)}
    space["my_guess"] = dict(zip(space["my_guess"], (90, 50, None), strict=True))
    exec(cell("for guess, i in zip"), space)
    assert list(space["table"]["inside the interval"]) == ["yes", "no", ""]
    assert list(space["table"]["your guess"]) == ["90%", "50%", "none"]


@pytest.mark.parametrize("solved", [False, True])
def test_a_prompt_of_ones_own_takes_part_when_it_is_written(solved):
    texts = "\n".join(cell.source for cell in CONTEST.cells if cell.cell_type == "markdown")
    [lines] = re.findall(r"<summary>A solution</summary>\n\n```python\n(    nearest = .*?)```\n", texts, re.S)
    near = SimpleNamespace(
        nearest=lambda asked: [SimpleNamespace(row=1)], rows=[None, SimpleNamespace(answer="It is 59 euros.")]
    )
    space = {"PROMPTS": {"plain prompt": {}}, "lookup": near, "general": None, "served_copy": lambda model: model}
    exec(cell("def chat(", CONTEST), space)
    source, empty = cell("def my_prompt(", CONTEST), "    # your lines here\n"
    assert empty in source
    exec(source.replace(empty, lines) if solved else source, space)
    prompts = space["PROMPTS"]["plain prompt"]
    assert list(prompts) == ["mine"] * solved
    if solved:
        rules, question = prompts["mine"]("How much?")
        assert rules["content"].endswith("\nIt is 59 euros.") and question == {"role": "user", "content": "How much?"}
