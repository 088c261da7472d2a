"""Tokenization: chat template, response mask, and batches without padding."""

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate

import torch

from helpers.data import ANSWERS, DataError, Example

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


@dataclass(frozen=True)
class Dress:
    """What a model's chat template puts around an answer.

    header: what the model writes before it, such as the name of a channel; empty in most templates.
    end: the token that ends the turn, as text; empty where the template has none.
    """

    header: str
    end: str


@cache
def say_once(text: str) -> None:
    """Tell the user something that changes what the model reads; the same thing is told but once."""
    print(text, file=sys.stderr)


def _left_out(messages: Sequence[dict], text: str) -> int | None:
    """Return the number of the first message that a rendered text leaves out, in whole or in part."""
    for number, message in enumerate(messages, 1):
        content = message["content"].split("</think>")[-1].strip()  # thoughts of earlier answers may go
        calls = [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
        if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            return number
        if not all(call in text for call in calls):
            return number
    return None


def render(tokenizer, messages: Sequence[dict], asking: bool = True) -> str:
    """Write a conversation as the model's chat template has it; `asking`: up to where its answer begins.

    A system's text that the template refuses or leaves out goes before the first question, as the makers of such models
    advise. Raises DataError when the template cannot write the conversation, or leaves out something of it.
    """
    reason = ""
    try:  # without thoughts: our answers have none. A template that knows no thoughts does not ask for the setting
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asking, enable_thinking=False
        )
        lost = _left_out(messages if asking or messages[-1].get("tool_calls") else messages[:-1], text)
        if lost is None:
            return text
        reason = f"it leaves out turn {lost}, which is the {messages[lost - 1]['role']}'s"
    except Exception as error:  # a template that refuses a conversation raises what it likes
        reason = f"{error}".splitlines()[0][:160] if f"{error}" else type(error).__name__
    roles = [message["role"] for message in messages]
    if roles[:2] == ["system", "user"]:
        say_once("This model's chat template has no place for a system's text: it is put before the first question.")
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return render(tokenizer, [{**messages[1], "content": joined}, *messages[2:]], asking)
    shown = ", ".join(roles[:6]) + (", ..." if roles[6:] else "")
    raise DataError(f"this model's chat template cannot write a conversation of {shown} ({reason}). Change or drop it.")


def _ids(tokenizer, text: str) -> list[int]:
    """Turn a rendered text into tokens; the template has written all special ones itself."""
    return tokenizer(text, add_special_tokens=False).input_ids


def prompt_ids(tokenizer, question: str | Sequence[dict]) -> list[int]:
    """Turn a question, or a conversation of role/content messages, into what the model reads before it answers."""
    messages = [{"role": "user", "content": question}] if isinstance(question, str) else question
    return _ids(tokenizer, render(tokenizer, messages))


def _added(tokenizer, text: str) -> list[str]:
    """List the tokens in a text that are no pieces of words, but marks such as <|im_end|>, in their order."""
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return [tokenizer.convert_ids_to_tokens(id) for id in _ids(tokenizer, text) if id in added]


def dress(tokenizer) -> Dress:
    """Find out what the model's chat template puts around an answer, by writing one."""
    if not getattr(tokenizer, "chat_template", None):  # nothing but plain tokens will be asked
        return Dress("", "")
    asked, probe = [{"role": "user", "content": "Is it so?"}], "Verily"
    prompt, whole = render(tokenizer, asked), render(tokenizer, [*asked, {"role": "assistant", "content": probe}], asking=False)
    header, found, rest = whole.removeprefix(prompt).partition(probe)
    if not found:  # a template that writes nothing but the question
        return Dress("", "")
    return Dress(header if whole.startswith(prompt) else "", next(iter(_added(tokenizer, rest)), ""))


def end_ids(tokenizer, configured: int | Sequence[int] | None = None) -> list[int]:
    """List the tokens that end an answer: the model's configured ones, the tokenizer's, and the chat template's."""
    end = dress(tokenizer).end
    ids = [*(configured if isinstance(configured, Sequence) else [configured]), tokenizer.eos_token_id]
    ids.append(tokenizer.convert_tokens_to_ids(end) if end else None)
    return list(dict.fromkeys(id for id in ids if id is not None))


def _answer_ids(tokenizer, messages: Sequence[dict], around: Dress) -> tuple[list[int], list[int]]:
    """Encode a conversation that ends in an answer: what the model reads before it, and what it has to write."""
    prompt, whole = render(tokenizer, messages[:-1]), render(tokenizer, messages, asking=False)
    content, tail, end = messages[-1]["content"], whole.removeprefix(prompt), around.end
    if messages[-1].get("tool_calls"):
        if not whole.startswith(prompt):
            raise DataError("this model's chat template cannot be asked for the call of a tool that it writes. Drop the row.")
        end = end if end in tail else next(reversed(_added(tokenizer, tail)), "")  # a call may end in a mark of its own
        told = tail[: tail.rindex(end)] if end else tail.rstrip()
    elif not whole.startswith(prompt):
        told = content
        say_once(
            "This model's chat template asks for an answer otherwise than it writes one down. "
            "Trained is what will be asked: the answer right after the request for it."
        )
    elif end and end in tail:
        told = tail[: tail.rindex(end)]
    else:
        told = around.header + content
    before, both = _ids(tokenizer, prompt), _ids(tokenizer, prompt + told + end)  # the border is as in running text
    answer = both[len(before) :] if both[: len(before)] == before else _ids(tokenizer, told + end)
    return before, answer if end else [*answer, tokenizer.eos_token_id]


def _rows(tokenizer, example: Example, max_length: int | None, answers: str, around: Dress) -> list[Row]:
    """Encode a conversation: one row, or one an answer where the template writes earlier answers otherwise than new ones."""
    if answers not in ANSWERS:
        raise ValueError(f"answers is {answers!r}; it has to be one of {', '.join(ANSWERS)}.")
    turns, messages, rows = example.turns, example.messages, []
    asked = next(number for number, turn in enumerate(turns) if turn.role == "user")
    learnt = [n for n, turn in enumerate(turns) if n > asked and turn.role == "assistant" and turn.weight]
    for number in learnt if answers == "all" else learnt[-1:]:
        try:
            prompt, answer = _answer_ids(tokenizer, messages[: number + 1], around)
        except DataError as error:
            raise DataError(f"{example.name}: {error}") from None
        ids, labels = (rows[-1].ids, rows[-1].labels) if rows else ([], [])
        if rows and prompt[: len(ids)] == ids:
            rows.pop()
        else:
            ids, labels = [], []
        rows.append(Row(prompt + answer, labels + [IGNORED] * (len(prompt) - len(ids)) + answer))
    for row in rows:
        if max_length and len(row.ids) > max_length:
            remedy = "Shorten it or drop the row."
            raise DataError(f"{example.name} has {len(row.ids)} tokens, the limit is {max_length}. {remedy}")
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
    around, rows = dress(tokenizer), []
    for example in examples:
        rows += (made := _rows(tokenizer, example, max_length, answers, around))
        if len(made) > 1:
            say_once("This model's chat template writes earlier answers otherwise than new ones: each becomes a row.")
    return rows


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
