"""Likelihood: what a model finds likely: whole answers, the right one of several, plain text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from helpers.attention import flat_attention
from helpers.data import Example
from helpers.machine.device import pick_dtype
from helpers.machine.progress import bar_if_long
from helpers.text.jsonl import json_lines
from helpers.text.messages import DataError
from helpers.tokenization import IGNORED, Batch, Row, encode, flatten
from helpers.training import supervised_logits, token_losses

# What choosing is asked in: the frame of lm-evaluation-harness's own tasks.
_QUESTION, _CHOICE = "Question: {}\nAnswer:", " {}"


@torch.no_grad()
def log_likelihoods(model, rows: Sequence[Row], dtype: torch.dtype | None = None) -> np.ndarray:
    """Compute how likely the model finds each row's supervised tokens: the log-probability of the whole answer, in nats.

    Returns an array [rows], in their order. One pass over the text, no generation.
    Raises FloatingPointError when the model's numbers are none, as when they are too large for float16.
    """
    scores = np.zeros(len(rows))
    for chosen, batch in _batches(model, rows):
        losses = token_losses(model, batch, dtype or pick_dtype(model.device))
        scores[chosen] = [-part.sum().item() for part in losses.split([rows[i].supervised for i in chosen])]
    if np.isnan(scores).any():
        raise FloatingPointError("The model's likelihoods are no numbers. If it computes in float16, use dtype=torch.float32.")
    return scores


def mean_losses(model, rows: Sequence[Row], dtype: torch.dtype | None = None) -> np.ndarray:
    """Compute the loss of each row, in nats a supervised token: [rows]. Its exponential is the perplexity.

    A perplexity of 20 says that the model was as unsure as if it had to guess among 20 equally likely tokens.
    """
    return -log_likelihoods(model, rows, dtype) / [row.supervised for row in rows]


@torch.no_grad()
def writes_exactly(model, rows: Sequence[Row], dtype: torch.dtype = torch.float32) -> np.ndarray:
    """Tell for each row whether the model, asked greedily, would write its supervised tokens and stop: [rows] of bool.

    It does when each of them is the likeliest after those before it. So one pass decides what `generate` would need a
    pass a token for.
    """
    exact = np.zeros(len(rows), dtype=bool)
    for chosen, batch in _batches(model, rows):
        hits = supervised_logits(model, batch, dtype).argmax(dim=-1) == batch.targets
        exact[chosen] = [part.all().item() for part in hits.split([rows[i].supervised for i in chosen])]
    return exact


def _batches(model, rows: Sequence[Row], size: int = 32) -> Iterator[tuple[list[int], Batch]]:
    """Yield flat batches of rows of like length, each with the places of its rows."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with flat_attention(model), bar_if_long(rows, size, "reading", "row") as bar:
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            yield chosen, flatten([rows[i] for i in chosen], model.device)
            bar.update(len(chosen))


@dataclass(frozen=True)
class Choice:
    """A question with several answers to choose from; `answer` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int

    @property
    def right(self) -> str:
        """The right answer."""
        return self.choices[self.answer]


def read_choices(path: str | Path) -> list[Choice]:
    """Read multiple-choice questions from JSON Lines with `question`, `choices` and `answer`, an index.

    Raises DataError with file, line and remedy.
    """
    found = []
    for where, row in json_lines(Path(path)):
        match row:
            case {"question": str(question), "choices": [_, _, *_] as choices, "answer": int(answer)} if all(
                isinstance(choice, str) and choice for choice in choices
            ) and answer in range(len(choices)):
                found.append(Choice(question, tuple(choices), answer))
            case _:
                remedy = 'Each line needs {"question": text, "choices": [two texts or more], "answer": index from 0}.'
                raise DataError(f"{where}: not a multiple-choice question. {remedy}")
    return found


def choose(model, tokenizer, questions: Sequence[Choice], chat: bool = False, dtype: torch.dtype | None = None) -> pd.DataFrame:
    """Let the model choose: the answer that it finds the likeliest. A table with one row a question.

    correct: by the likelihood of the whole answer, in which a long one is at a disadvantage.
    normalised: right by likelihood a character, which evens that out. Both as lm-evaluation-harness counts them.
    confidence: the share of the chosen answer when the likelihoods of all are made to add up to 1.
    chat: ask inside the chat template, as a user does, and not as plain text.
    """
    rows, records = [], []
    for asked in questions:
        for choice in asked.choices:
            if chat:
                rows.append(encode(tokenizer, Example(asked.question, choice)))
                continue
            prompt = tokenizer(_QUESTION.format(asked.question), add_special_tokens=False).input_ids
            whole = tokenizer(_QUESTION.format(asked.question) + _CHOICE.format(choice), add_special_tokens=False).input_ids
            rows.append(Row(whole, [IGNORED] * len(prompt) + whole[len(prompt) :]))
    scores = iter(np.split(log_likelihoods(model, rows, dtype), np.cumsum([len(asked.choices) for asked in questions])[:-1]))
    for asked, likelihoods in zip(questions, scores, strict=True):
        a_character = likelihoods / [len(choice) for choice in asked.choices]
        records.append(
            {
                "question": asked.question,
                "chosen": asked.choices[likelihoods.argmax()],
                "correct": likelihoods.argmax() == asked.answer,
                "normalised": a_character.argmax() == asked.answer,
                "confidence": softmax(likelihoods).max(),
                "likelihoods": likelihoods.tolist(),
            }
        )
    return pd.DataFrame(records)
