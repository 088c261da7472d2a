"""Tokenization: where a conversation becomes tokens, which of them are learnt, and batches without padding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from helpers.data import ANSWERS, Example
from helpers.text.messages import DataError
from helpers.text.templates import Dress, dress, prompt_and_answer, render, say_once, token_ids

IGNORED = -100  # the label of a position that no loss is taken of: PyTorch's convention


@dataclass(frozen=True)
class Row:
    """One example as tokens. `labels` repeats `ids`, with IGNORED wherever nothing is to be learnt."""

    ids: list[int]
    labels: list[int]

    @property
    def supervised(self) -> int:
        """Number of tokens that the loss is taken of."""
        return sum(label != IGNORED for label in self.labels)


@dataclass(frozen=True)
class Batch:
    """Rows end to end, N tokens in all, without padding.

    ids: [1, N] token ids.  position_ids: [1, N], from 0 again in each row.  lengths: tokens of each row, sum N.
    keep: [S] positions whose next token is supervised.  targets: [S] those next tokens.
    """

    ids: torch.Tensor
    position_ids: torch.Tensor
    lengths: list[int]
    keep: torch.Tensor
    targets: torch.Tensor


def check_prompt(prompt: Any, owner: str = "") -> None:
    """Raise ValueError for a prompt that is neither a text nor turns with a role and a content each. owner: whose it is."""
    turns = prompt if isinstance(prompt, list | tuple) else []
    told = [isinstance(turn, Mapping) and "role" in turn and ("content" in turn or "tool_calls" in turn) for turn in turns]
    if not isinstance(prompt, str) and not (told and all(told)):
        raise ValueError(f"{owner}A prompt is {prompt!r:.60}. It has to be a text, or turns with a role and a content each.")


def prompt_ids(tokenizer, question: str | Sequence[dict]) -> list[int]:
    """Turn a question, or a conversation of role/content messages, into what the model reads before it answers."""
    check_prompt(question)
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    return token_ids(tokenizer, render(tokenizer, messages))


def _rows(tokenizer, example: Example, max_length: int | None, answers: str, around: Dress) -> list[Row]:
    """Encode a conversation: one row, or one an answer where the template writes earlier answers otherwise than new ones."""
    if answers not in ANSWERS:
        raise ValueError(f"answers is {answers!r}; it has to be one of {', '.join(ANSWERS)}.")
    turns, messages = example.turns, example.messages
    rows: list[Row] = []
    asked = next(number for number, turn in enumerate(turns) if turn.role == "user")
    learnt = [n for n, turn in enumerate(turns) if n > asked and turn.role == "assistant" and turn.weight]
    for number in learnt if answers == "all" else learnt[-1:]:
        try:
            prompt, answer = prompt_and_answer(tokenizer, messages[: number + 1], around)
        except DataError as error:
            raise DataError(f"{example.name}: {error}") from None
        goes_on = rows and prompt[: len(rows[-1].ids)] == rows[-1].ids
        if rows and not goes_on:
            say_once("This model's chat template writes earlier answers otherwise than new ones: each becomes a row.")
        labels = rows.pop().labels if goes_on else []
        rows.append(Row(prompt + answer, labels + [IGNORED] * (len(prompt) - len(labels)) + answer))
    if max_length and (longest := max(len(row.ids) for row in rows)) > max_length:
        raise DataError(f"{example.name} has {longest} tokens, the limit is {max_length}. Shorten it or drop the row.")
    return rows


def encode(tokenizer, example: Example, max_length: int | None = None, answers: str = "all") -> Row:
    """Encode one example: what the model reads, its answer, the end of its turn; only the last two are supervised.

    The end of the turn is in the labels, so that the model learns to stop. Of a conversation every answer is supervised,
    or with answers="last" the last. Where that takes several rows (see `encode_all`), it is the row of the last answer.
    Raises DataError when the template cannot write the conversation, or when the row is longer than `max_length` tokens:
    cutting it would lose the answer's end.
    """
    return _rows(tokenizer, example, max_length, answers, dress(tokenizer))[-1]


def encode_all(tokenizer, examples: Iterable[Example], max_length: int | None = None, answers: str = "all") -> list[Row]:
    """Encode every example, see `encode`: what is trained begins with the very tokens that `prompt_ids` will ask with.

    A question with its answer is one row, and so is a conversation, unless the template writes an earlier answer otherwise
    than a new one, as those do that drop thoughts: then each of its answers is a row, after what will be asked.
    """
    around = dress(tokenizer)
    return [row for example in examples for row in _rows(tokenizer, example, max_length, answers, around)]


def flatten(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Lay rows end to end in one batch. Position i predicts token i + 1, never across the end of a row."""
    lengths = [len(row.ids) for row in rows]
    starts = [0, *accumulate(lengths)]
    keep = [start + i for row, start in zip(rows, starts, strict=False) for i, t in enumerate(row.labels[1:]) if t != IGNORED]
    targets = [token for row in rows for token in row.labels[1:] if token != IGNORED]
    tensor = partial(torch.tensor, dtype=torch.long, device=device)
    ids = tensor([token for row in rows for token in row.ids])[None]
    position_ids = tensor([i for length in lengths for i in range(length)])[None]
    return Batch(ids, position_ids, lengths, tensor(keep), tensor(targets))


def micro_batches(rows: Sequence[Row], max_tokens: int, padded: bool = False) -> list[list[Row]]:
    """Cut one optimiser batch into pieces of at most `max_tokens` tokens, rows of like length together.

    The pieces' gradients add up to the batch's, so this bounds memory and changes nothing else.
    A single longer row gets a piece of its own.  padded: count each row as long as the longest of its piece.
    """
    pieces: list[list[Row]] = []
    size = 0
    for row in sorted(rows, key=lambda row: len(row.ids)):
        size = (len(pieces[-1]) + 1) * len(row.ids) if padded and pieces else size + len(row.ids)
        if not pieces or size > max_tokens:
            pieces.append([])
            size = len(row.ids)
        pieces[-1].append(row)
    return pieces


def text_row(tokenizer, text: str) -> Row:
    """Encode plain text, each token but the first to be predicted from those before it."""
    ids = token_ids(tokenizer, text)
    return Row(ids, [IGNORED, *ids[1:]])
