"""Tokenization: chat template, response mask, and batches without padding."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch

from helpers.data import DataError, Example

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


def prompt_ids(tokenizer, question: str | Sequence[dict]) -> list[int]:
    """Turn a question, or a conversation of role/content messages, into what the model reads before it answers."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False).input_ids


def encode(tokenizer, example: Example, max_length: int | None = None) -> Row:
    """Encode one example: prompt, answer, end of turn; only the last two are supervised.

    The end-of-turn token is in the labels, so that the model learns to stop.
    Raises DataError when the row is longer than `max_length` tokens: cutting it would lose the answer's end.
    """
    prompt = prompt_ids(tokenizer, example.question)
    answer = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    length = len(prompt) + len(answer)
    if max_length and length > max_length:
        shown = example.id or example.question[:60]
        raise DataError(f"{shown!r} has {length} tokens, the limit is {max_length}. Shorten it or drop the row.")
    return Row(prompt + answer, [IGNORED] * len(prompt) + answer)


def encode_all(tokenizer, examples: Iterable[Example], max_length: int | None = None) -> list[Row]:
    """Encode every example; see `encode`."""
    return [encode(tokenizer, example, max_length) for example in examples]


def flatten(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Lay rows end to end in one batch. Position i predicts token i + 1, never across the end of a row."""
    lengths = [len(row.ids) for row in rows]
    starts = [0, *accumulate(lengths)]
    keep = [start + i for row, start in zip(rows, starts, strict=False) for i, t in enumerate(row.labels[1:]) if t != IGNORED]
    targets = [token for row in rows for token in row.labels[1:] if token != IGNORED]

    def tensor(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

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
