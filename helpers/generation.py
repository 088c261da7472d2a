"""Generation: many greedy answers at once, whenever they are asked for, or one as it is written."""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from helpers.attention import prefix_attention
from helpers.progress import Bar, bar_if_long
from helpers.reading import can_share, read, read_alone, way_to_answer
from helpers.tokenization import dress, end_ids, prompt_ids
from helpers.trial import check_ids, context_window


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

    @property
    def most(self) -> int:
        """Number of tokens that prompt and answer can come to."""
        return len(self.prompt) + self.max_new_tokens


class Decoder:
    """Writes many greedy answers at once, a token a step. Prompts join and answers leave at any step.

    Rows are padded on the left to a common width, so that every row's last token stands at the right edge, where the
    next one is predicted. Known as continuous batching: Yu et al. 2022, Orca, https://www.usenix.org/conference/osdi22
    """

    def __init__(
        self,
        model,
        tokenizer,
        rows: int = 32,
        prompt_tokens: int = 2048,
        cache_tokens: int = 32768,
        prefix: Sequence[int] = (),
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
        self.prefix, self.prefix_cache = list(prefix), DynamicCache()  # [1, heads, length, dimension]

    @cached_property
    def way(self) -> str:
        """How the model can write answers, see `way_to_answer`: found out when the first one is wanted."""
        return way_to_answer(self.model)

    def add(self, prompt: list[int], max_new_tokens: int) -> Answer:
        """Queue a prompt. Raises ValueError when the model has no embedding for a token of it, or no room for the answer."""
        check_ids(self.model, prompt, "The prompt")
        window = context_window(self.model)
        answer, length = Answer(prompt, max_new_tokens), len(self.prefix) + len(prompt)
        if window and length + max_new_tokens > window:
            raise ValueError(
                f"A prompt of {length} tokens and an answer of {max_new_tokens} do not fit into the model's window of "
                f"{window} tokens. Shorten the prompt or ask for fewer new tokens."
            )
        self.waiting.append(answer)
        return answer

    def text(self, answer: Answer) -> str:
        """Write out what an answer says so far: without marks, and without the header that the template has before it.

        What a model writes before the header, such as thoughts, is no part of its answer. One that never writes it is taken
        at its word, once it has ended.
        """
        start = 0
        if self.header:
            start = bisect_left(range(len(answer.tokens) + 1), True, key=lambda n: self._headed(answer.tokens[:n]))
            if start > len(answer.tokens):
                start = 0 if answer.finish else len(answer.tokens)
        text = self.tokenizer.decode(answer.tokens[start:], skip_special_tokens=True)
        return text.lstrip() if start else text.lstrip(" ")  # the space that words begin with; line breaks are the model's own

    def _headed(self, tokens: list[int]) -> bool:
        """Tell whether the header stands in what was written."""
        return self.header in self.tokenizer.decode(tokens, skip_special_tokens=False)

    @property
    def free(self) -> int:
        """Number of prompts that could still join."""
        return self.rows - len(self.waiting) - len(self.running)

    @torch.inference_mode()
    def step(self) -> None:
        """Let waiting prompts join, and give each running answer one more token."""
        if self.way != "together":
            return self._step_alone()
        if self.prefix and not self.prefix_cache.get_seq_length():
            ids = torch.tensor([self.prefix], device=self.model.device)
            self.model(input_ids=ids, past_key_values=self.prefix_cache, use_cache=True, logits_to_keep=1)
        with prefix_attention(self.model) if self.prefix else nullcontext():
            self._join()
            self._drop()
            if self.running:
                ids = torch.tensor([[answer.tokens[-1]] for answer in self.running], device=self.model.device)
                self._write(self.running, ids, self.cache)
                self._drop()

    def _step_alone(self) -> None:
        """Give each answer one more token by itself, for models whose rows cannot be padded."""
        while self.waiting and len(self.running) < self.rows:
            self.running.append(self.waiting.popleft())
        for answer in [answer for answer in self.running if answer.finish is None]:
            keep = self.way == "alone"
            new = answer.tokens[-1:] if keep and answer.tokens else answer.prompt + answer.tokens
            logits, answer.cache = read_alone(self.model, new, answer.cache, len(answer) - len(new), keep)
            self._append([answer], logits)
        self.running = [answer for answer in self.running if answer.finish is None]

    def _join(self) -> None:
        """Read waiting prompts, write their first tokens, and put them into the batch."""
        new: list[Answer] = []
        while self.waiting and len(self.running) + len(new) < self.rows:
            read, batch = [*new, self.waiting[0]], [*self.running, *new, self.waiting[0]]
            slow = len(new) > 0 and len(read) * max(map(len, read)) > self.prompt_tokens
            large = len(batch) > 1 and len(batch) * max(answer.most for answer in batch) > self.cache_tokens
            if slow or large:
                break
            answer = self.waiting.popleft()
            if answer.finish is None:
                new.append(answer)
        if not new:
            return
        longest, padding, cache = max(map(len, new)), self.tokenizer.pad_token_id, DynamicCache()
        ids = [[padding] * (longest - len(answer)) + answer.prompt for answer in new]
        self._write(new, torch.tensor(ids, device=self.model.device), cache)
        width = max(longest, self.cache.get_seq_length())
        for old, added in zip(self.cache.layers, cache.layers, strict=False):
            added.keys, added.values = (
                torch.cat([F.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts])
                for parts in ((old.keys, added.keys), (old.values, added.values))
            )
        self.running, self.cache = self.running + new, cache

    def _write(self, answers: list[Answer], ids: torch.Tensor, cache: DynamicCache) -> None:
        """Read `ids` [B, N], the newest tokens of B answers, padded on the left; append the likeliest next token to each."""
        logits = read(self.model, ids, list(map(len, answers)), cache, self.prefix_cache if self.prefix else None)
        self._append(answers, logits)

    def _append(self, answers: list[Answer], logits: torch.Tensor) -> None:
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
        width = max(map(len, self.running), default=0) - 1  # the newest token of a row has not been read yet
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[rows, :, -width:], layer.values[rows, :, -width:]
        if not rows:
            self.cache = DynamicCache()


def shared_beginning(prompts: Sequence[list[int]], worthwhile: int = 64) -> list[int]:
    """Find the tokens that all prompts begin with, if they are many; at least one token is left to each prompt."""
    first, last = min(prompts, default=[]), max(prompts, default=[])  # in the order of a dictionary
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(length, len(first) - 1)
    return first[:length] if len(prompts) > 1 and length >= worthwhile else []


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
    prefix = shared_beginning(prompts)
    if prefix and not can_share(model, max(map(len, prompts)) + max_new_tokens):
        prefix = []
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
        if not text.endswith("\ufffd"):  # half of a character: wait for the rest
            yield text[len(shown) :]
            shown = text
