"""Generation: many greedy answers at once, whenever they are asked for, or one as it is written."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
from transformers import DynamicCache

from helpers.machine import decoding
from helpers.machine.kernels import prefix_attention
from helpers.machine.probe import check_ids, check_room
from helpers.machine.progress import Bar, bar_if_long
from helpers.text.templates import answer_text, dress, end_ids
from helpers.tokenization import prompt_ids


@dataclass(eq=False)
class Answer:
    """One answer on its way."""

    prompt: list[int]
    max_new_tokens: int
    tokens: list[int] = field(default_factory=list)
    finish: str | None = None  # "stop": the model ended it; "length": it is full; "cancelled": set by whoever asked
    cache: object = None  # what the model keeps of it, where answers are written alone

    def __len__(self) -> int:
        """Count the tokens of prompt and answer."""
        return len(self.prompt) + len(self.tokens)


class Decoder:
    """Writes many greedy answers at once, a token a step. Prompts join and answers leave at any step.

    Rows are padded on the left to a common width, so that every row's last token stands at the right edge, where the
    next one is predicted; see `next_logits`. Models whose rows cannot be padded write their answers one by one.
    Known as continuous batching: Yu et al. 2022, Orca, https://www.usenix.org/conference/osdi22
    """

    def __init__(
        self, model, tokenizer, rows: int = 32, prompt_tokens: int = 2048, cache_tokens: int = 32768, prefix: Sequence[int] = ()
    ):
        """Write at most `rows` answers at once.

        prompt_tokens: read in one step at most, for speed.  cache_tokens: rows times width at most, for memory.
        One prompt may join in any case.  prefix: tokens that stand before every prompt; they are read once, at first.
        """
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.prompt_tokens, self.cache_tokens = prompt_tokens, cache_tokens
        self.stop = set(end_ids(tokenizer, model.generation_config.eos_token_id))  # the tokens that end an answer
        self.header = dress(tokenizer).header.strip()  # what the model writes before it
        self.waiting: deque[Answer] = deque()
        self.running: list[Answer] = []  # the rows of the batch
        self.cache = DynamicCache()  # their keys and values: [rows, heads, width, dimension] in each layer
        self.prefix = list(prefix)
        self.prefix_cache: DynamicCache | None = None  # what was read of it: [1, heads, length, dimension] in each layer

    @cached_property
    def way(self) -> str:
        """How the model can write answers, see `way_to_answer`: found out when the first one is wanted."""
        return decoding.way_to_answer(self.model)

    def add(self, prompt: list[int], max_new_tokens: int) -> Answer:
        """Queue a prompt. Raises ValueError when the model has no embedding for a token of it, or no room for the answer."""
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens}; an answer has at least 1.")
        check_ids(self.model, prompt, "The prompt")
        check_room(self.model, len(self.prefix) + len(prompt), max_new_tokens)
        answer = Answer(prompt, max_new_tokens)
        self.waiting.append(answer)
        return answer

    def text(self, answer: Answer) -> str:
        """Write out what an answer says so far, see `answer_text`."""
        return answer_text(self.tokenizer, answer.tokens, self.header, ended=answer.finish is not None)

    @property
    def free(self) -> int:
        """Number of prompts that could still join."""
        return self.rows - len(self.waiting) - len(self.running)

    @torch.inference_mode()
    def step(self) -> None:
        """Let waiting prompts join, and give each running answer one more token."""
        if self.way != "together":
            return self._step_alone()
        if self.prefix and self.prefix_cache is None:
            self.prefix_cache = decoding.read_prefix(self.model, self.prefix)
        with prefix_attention(self.model) if self.prefix else nullcontext():
            self._join()
            self._drop()
            if self.running:
                newest, lengths = [answer.tokens[-1:] for answer in self.running], list(map(len, self.running))
                self._write(self.running, decoding.next_logits(self.model, newest, lengths, self.cache, self.prefix_cache))
                self._drop()

    def _step_alone(self) -> None:
        """Give each answer one more token by itself, for models whose rows cannot be padded."""
        while self.waiting and len(self.running) < self.rows:
            self.running.append(self.waiting.popleft())
        for answer in [answer for answer in self.running if answer.finish is None]:
            keep = self.way == "alone"
            new = answer.tokens[-1:] if keep and answer.tokens else answer.prompt + answer.tokens
            logits, answer.cache = decoding.next_logits_alone(self.model, new, answer.cache, len(answer) - len(new), keep)
            self._write([answer], logits)
        self.running = [answer for answer in self.running if answer.finish is None]

    def _join(self) -> None:
        """Read waiting prompts, write their first tokens, and put them into the batch."""
        new: list[Answer] = []
        while self.waiting and len(self.running) + len(new) < self.rows:
            read, batch = [*new, self.waiting[0]], [*self.running, *new, self.waiting[0]]
            slow = len(new) > 0 and len(read) * max(map(len, read)) > self.prompt_tokens
            width = max(len(answer.prompt) + answer.max_new_tokens for answer in batch)  # what it can come to
            large = len(batch) > 1 and len(batch) * width > self.cache_tokens
            if slow or large:
                break
            answer = self.waiting.popleft()
            if answer.finish is None:
                new.append(answer)
        if not new:
            return
        prompts, lengths, cache = [answer.prompt for answer in new], list(map(len, new)), DynamicCache()
        self._write(new, decoding.next_logits(self.model, prompts, lengths, cache, self.prefix_cache))
        self.running, self.cache = self.running + new, decoding.append_rows(self.cache, cache)

    def _write(self, answers: list[Answer], logits: torch.Tensor) -> None:
        """Append the likeliest next token to each answer, given logits [B, vocabulary], or end it."""
        best = logits.argmax(dim=-1)
        if logits.gather(-1, best[:, None]).isnan().any():  # the likeliest, where there is any
            raise FloatingPointError("What the model expects is no number. If it is held in float16, use model.float().")
        for answer, token in zip(answers, best.tolist(), strict=True):
            if token in self.stop:
                answer.finish = answer.finish or "stop"
                continue
            answer.tokens.append(token)
            if len(answer.tokens) == answer.max_new_tokens:
                answer.finish = answer.finish or "length"

    def _drop(self) -> None:
        """Take the rows out that have ended, and the columns that no other row needs."""
        rows = [row for row, answer in enumerate(self.running) if answer.finish is None]
        if len(rows) == len(self.running):
            return
        self.running = [self.running[row] for row in rows]
        width = max(map(len, self.running), default=1) - 1  # the newest token of a row has not been read yet
        self.cache = decoding.keep_rows(self.cache, rows, width)


def generate(
    model,
    tokenizer,
    questions: Sequence[str | Sequence[dict]],
    max_new_tokens: int = 48,
    batch_size: int = 32,
    progress: str | None = None,
) -> list[str]:
    """Answer all questions with the likeliest token each time, many at once.

    questions: texts, or conversations as lists of role/content messages.
    progress: what to call the progress bar; when left out, there is one only if it takes long.
    Returns the answers in the order of the questions. In float32 they equal those of one question at a time.
    What all prompts begin with, such as a handbook or examples, is read once for all of them.
    """
    prompts = [prompt_ids(tokenizer, question) for question in questions]
    prefix = decoding.prefix_to_share(model, prompts, max_new_tokens)
    prompts, answers = [prompt[len(prefix) :] for prompt in prompts], {}
    decoder = Decoder(model, tokenizer, batch_size, prefix=prefix)
    # those of like length together, as they pad each other little; the longest first, so that one too long is told at once
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    if progress:
        bar = Bar(total=len(prompts), desc=progress, unit="question", mininterval=1.0)
    else:
        bar = bar_if_long(prompts, batch_size, "answers", "question")
    with bar:
        for start in range(0, len(order), batch_size):
            for i in order[start : start + batch_size]:
                answers[i] = decoder.add(prompts[i], max_new_tokens)
            while decoder.free < batch_size:
                decoder.step()
            bar.update(len(answers) - bar.n)
    return [decoder.text(answers[i]).strip() for i in range(len(prompts))]


def stream(model, tokenizer, question: str | Sequence[dict], max_new_tokens: int = 256) -> Iterator[str]:
    """Answer one question piece by piece, as the tokens come; the pieces add up to the answer."""
    decoder, shown = Decoder(model, tokenizer), ""
    answer = decoder.add(prompt_ids(tokenizer, question), max_new_tokens)
    while answer.finish is None:
        decoder.step()
        text = decoder.text(answer)
        if not text.endswith("\ufffd") or answer.finish:  # half of a character: wait for the rest, if there will be any
            yield text[len(shown) :]
            shown = text
