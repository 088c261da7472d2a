"""Engine: one thread that owns the loaded models and writes everybody's answers together."""

import bisect
import itertools
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from helpers.generation import Answer, Decoder
from helpers.machine.probe import context_window
from helpers.text.messages import DataError
from helpers.tokenization import prompt_ids

MODELS = 3  # kept loaded; the one that rested longest makes room for another
ROWS = 32  # answers that one model writes at once
QUEUE = 512  # prompts that wait or are being answered; more are refused
PROMPT_TOKENS = 2048  # of one prompt; to read it holds everybody up, on a CPU for seconds
NEW_TOKENS, DEFAULT_NEW_TOKENS = 1024, 256  # of one answer: at most, and when nothing is said
SECONDS = 600.0  # from question to answer; what takes longer is cut off


class Refusal(Exception):
    """A request that is not answered: a status code of Lamini's client, and one line that says what to do."""

    def __init__(self, status: int, detail: str):
        """Keep both."""
        super().__init__(detail)
        self.status, self.detail = status, detail


@dataclass(eq=False)
class Question:
    """A prompt on its way through the engine, and what came of it so far."""

    model: str
    prompt: str | Sequence[dict]  # a text, or a conversation of role/content messages
    new_tokens: int | None = None  # at most so many in the answer
    total_tokens: int | None = None  # at most so many in prompt and answer together
    embed: bool = False  # wanted is not an answer but a vector
    streaming: bool = False  # `wake` is called at every token, not only at the end
    wake: Callable[[], None] = lambda: None
    text: str = ""  # the answer so far; halves of characters are held back
    vector: list[float] = field(default_factory=list)
    prompt_length: int = 0  # in tokens
    answer_length: int = 0  # in tokens, so far
    finish: str | None = None  # "stop", "length", "timeout", "cancelled", or "refused", which `error` explains
    error: Refusal | None = None
    seconds: float = SECONDS  # it may take so long
    deadline: float = 0.0  # when they are over
    turn: tuple[int, int] = (0, 0)  # smaller ones come first

    def end(self, finish: str, error: Refusal | None = None) -> None:
        """Note how it ended and tell whoever waits."""
        self.error, self.finish = error, finish
        self.wake()


class Loaded:
    """A loaded model, the decoder that writes its answers, and the questions they belong to."""

    def __init__(self, model, tokenizer):
        """Start with an empty batch."""
        self.model, self.tokenizer, self.decoder = model, tokenizer, Decoder(model, tokenizer, ROWS)
        self.window = context_window(model) or PROMPT_TOKENS + NEW_TOKENS
        self.answers: dict[Question, Answer] = {}  # those on their way, each a row of the batch

    def start(self, question: Question) -> None:
        """Put a question into the batch, or make its vector. One that cannot be read is refused."""
        try:
            ids = self.read(question)
            if question.embed:
                question.vector = self.embed(ids)
                return question.end("stop")
            self.answers[question] = self.decoder.add(ids, self.room(question))
        except Refusal as refusal:
            question.end("refused", refusal)
        except DataError as error:  # the chat template cannot write this conversation
            question.end("refused", Refusal(400, f"The conversation cannot be read: {error}"))
        except Exception:
            traceback.print_exc()
            question.end("refused", Refusal(400, "This model cannot read this. Try a single user message."))

    def read(self, question: Question) -> list[int]:
        """Turn a prompt into tokens. Raises Refusal when it has none, or too many."""
        tokenizer, prompt = self.tokenizer, question.prompt
        ids = tokenizer(prompt).input_ids if question.embed else prompt_ids(tokenizer, prompt)
        question.prompt_length, most = len(ids), min(PROMPT_TOKENS, self.window - 1)
        if not 0 < len(ids) <= most:
            raise Refusal(400, f"The prompt has {len(ids)} tokens; this model reads from 1 to {most}. Change its length.")
        return ids

    def room(self, question: Question) -> int:
        """Compute how many tokens the answer may have. Raises Refusal when there is no room for any."""
        wanted = question.new_tokens or DEFAULT_NEW_TOKENS
        if question.total_tokens and not question.new_tokens:
            wanted = question.total_tokens - question.prompt_length
        if wanted < 1:
            raise Refusal(400, f"max_tokens counts the prompt's {question.prompt_length} too. Raise it or use max_new_tokens.")
        return min(wanted, NEW_TOKENS, self.window - question.prompt_length)

    @torch.inference_mode()
    def embed(self, ids: list[int]) -> list[float]:
        """Embed a text: the mean of the last hidden states, of length 1. The model was not trained for it."""
        states = self.model.base_model(input_ids=torch.tensor([ids], device=self.model.device)).last_hidden_state
        return F.normalize(states[0].float().mean(dim=0), dim=0).tolist()

    def step(self) -> None:
        """Write one more token of every answer and pass the news on."""
        for question, answer in self.answers.items():
            if time.monotonic() > question.deadline:
                question.end("timeout")
            answer.finish = question.finish  # somebody may have cancelled it: its row leaves
        self.decoder.step()
        for question, answer in self.answers.items():
            question.answer_length = len(answer.tokens)
            if question.streaming or answer.finish:
                text = self.decoder.text(answer)
                question.text = question.text if text.endswith("\ufffd") else text
            if answer.finish and not question.finish:
                question.end(answer.finish)
            elif question.streaming:
                question.wake()
        self.answers = {question: answer for question, answer in self.answers.items() if not answer.finish}


class Engine:
    """Takes questions from any thread and answers them in one of its own."""

    def __init__(self, load: Callable[[str], tuple], first: str):
        """`load` makes (model, tokenizer) of a name: of the first one now, of others beside, while answers go on."""
        self.load, self.loader = load, ThreadPoolExecutor(1)
        self.models: OrderedDict[str, Loaded] = OrderedDict({first: Loaded(*load(first))})
        self.loading: dict[str, Future] = {}
        self.waiting: list[Question] = []
        self.started = 0  # questions that are being answered
        self.news, self.lock, self.count, self.closed = threading.Event(), threading.Lock(), itertools.count(), False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def ask(self, questions: Sequence[Question]) -> None:
        """Queue the questions of one request. The n-th lets n later requests pass, so that a long list blocks nobody.

        Raises Refusal when the engine is full or closed.
        """
        turn = next(self.count)
        with self.lock:
            if self.closed:
                raise Refusal(503, "The server is shutting down. Try again when it is back.")
            if self.started + len(self.waiting) + len(questions) > QUEUE:
                raise Refusal(429, f"More than {QUEUE} prompts are waiting. Try again in a moment, or send fewer.")
            for number, question in enumerate(questions):
                question.turn, question.deadline = (turn + number, turn), time.monotonic() + question.seconds
                bisect.insort(self.waiting, question, key=lambda other: other.turn)
        self.news.set()

    def close(self) -> None:
        """End: whatever is not answered yet is refused."""
        self.closed = True
        self.news.set()

    def _run(self) -> None:
        while not self.closed:
            self._receive()
            news = self._start()
            busy = [name for name, loaded in self.models.items() if loaded.answers]
            self.started = sum(len(self.models[name].answers) for name in busy)
            for name in busy:
                try:
                    self.models[name].step()
                except Exception:  # out of memory, for one: nobody else may suffer, and this thread must live
                    traceback.print_exc()
                    self._refuse(self.models.pop(name).answers, 503, "The model failed at this. Ask less at once.")
            if not news and not busy:
                self.news.wait(1.0)
                self.news.clear()
        with self.lock:
            left = self.waiting + [question for loaded in self.models.values() for question in loaded.answers]
        self._refuse(left, 503, "The server is shutting down. Try again when it is back.")

    @staticmethod
    def _refuse(questions: Iterable[Question], status: int, detail: str) -> None:
        for question in questions:
            if not question.finish:
                question.end("refused", Refusal(status, detail))

    def _start(self) -> bool:
        """Start waiting questions whose model is there and has a free row; at most one vector a time, as it takes long."""
        with self.lock:
            waiting = list(self.waiting)
        started = False
        for question in waiting:
            loaded = None if question.finish else self._model(question.model)
            if not question.finish:
                if time.monotonic() > question.deadline:
                    question.end("timeout")
                elif not loaded or not loaded.decoder.free or (started and question.embed):
                    continue
                else:
                    loaded.start(question)
                    started = True
            with self.lock:
                self.waiting.remove(question)
        return started

    def _model(self, name: str) -> Loaded | None:
        """Return a loaded model; or None, and see to it that it is loaded as soon as another one can make room."""
        if name in self.models:
            self.models.move_to_end(name)
            return self.models[name]
        resting = [other for other, loaded in self.models.items() if not loaded.answers]
        full = len(self.models) + len(self.loading) >= MODELS
        if name not in self.loading and (resting or not full):
            if full:
                del self.models[resting[0]]
            self.loading[name] = self.loader.submit(self.load, name)
            self.loading[name].add_done_callback(lambda _: self.news.set())
        return None

    def _receive(self) -> None:
        """Take over the models that have been loaded."""
        for name, future in list(self.loading.items()):
            if not future.done():
                continue
            del self.loading[name]
            try:
                self.models[name] = Loaded(*future.result())
            except Exception:
                traceback.print_exc()
                with self.lock:
                    hopeless = [question for question in self.waiting if question.model == name]
                self._refuse(hopeless, 503, "This model cannot be loaded; the server's log says why. Tell its owner.")
