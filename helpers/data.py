"""Data: the course's own rows as JSON Lines, drawn, and split without leaks. Other people's files: `own_data.rows`."""

import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from helpers.text.jsonl import json_lines, row_fields, write_lines
from helpers.text.links import linked_groups
from helpers.text.messages import DataError, Message, asked_keys, asked_text

ANSWERS = ("all", "last")  # of a conversation: which are learnt


@dataclass(frozen=True)
class Example:
    """One question with its answer, or a conversation that ends in them.

    `facts` are the ids of the facts that the answer rests on: rows that share one must stay in one split.
    `values` are the strings that a right answer has to contain.
    `history` is what was said before the question: a system's text, earlier questions and their answers.
    `steps` is what came between question and answer, such as calls of tools and their results.
    `where` is the file and line that the row comes from, for messages about it.
    """

    question: str
    answer: str
    id: str = ""
    kind: str = "fact"
    facts: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    history: tuple[Message, ...] = ()
    steps: tuple[Message, ...] = ()
    where: str = field(default="", compare=False, repr=False)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The whole conversation: from the first turn to the answer."""
        return (*self.history, Message("user", self.question), *self.steps, Message("assistant", self.answer))

    @property
    def messages(self) -> list[dict]:
        """The whole conversation as chat templates and OpenAI's clients take it."""
        return [turn.plain for turn in self.turns]

    @property
    def row(self) -> dict:
        """The row as `write` writes it: what came before the question, and between, only where there was anything."""
        row = {name: getattr(self, name) for name in ("question", "answer", "id", "kind", "facts", "values")}
        more = {"history": self.history, "steps": self.steps}
        return row | {name: [turn.row for turn in turns] for name, turns in more.items() if turns}

    @property
    def asked(self) -> list[dict]:
        """What the model reads before it answers: all messages but the answer."""
        return self.messages[:-1]

    @property
    def text(self) -> str:
        """All that is said, a turn a line."""
        return "\n".join(turn.content + turn.tool_calls for turn in self.turns)

    @property
    def key(self) -> str:
        """What is asked, normalised: the question after what was said before, without the system's text.

        Two rows with the same key ask the same; "Yes, please." after two different offers has two keys.
        """
        return asked_text(self.turns[:-1])

    @property
    def name(self) -> str:
        """The row's name in a message: where it stands, its id, or how its question begins."""
        return self.where or repr(self.id or self.question[:60])

    def with_texts(self, change: Callable[[str], str]) -> "Example":
        """The row with every text of the conversation changed, as a repair does; `values` stay."""
        history, steps = (tuple(turn.with_texts(change) for turn in turns) for turns in (self.history, self.steps))
        return replace(self, question=change(self.question), answer=change(self.answer), history=history, steps=steps)


def read(path: str | Path) -> list[Example]:
    """Read rows of the course's own: JSON Lines with question and answer, and id, kind, facts, values, history and steps.

    Blank lines are skipped. Raises DataError, with file, line, field and remedy, at the first line that cannot be used.
    """
    examples = [Example(**row_fields(record, where), where=where) for where, record in json_lines(Path(path))]
    if not examples:
        raise DataError(f"{path}: the file holds no rows. Each line needs a question and an answer.")
    return examples


def write(path: str | Path, examples: Iterable[Example]) -> None:
    """Write rows as `read` reads them back, unchanged. Until all are written, an older file stays as it is."""
    write_lines(path, (example.row for example in examples))


def draw(purpose: str, seed: int = 0) -> random.Random:
    """Make the random numbers for one purpose, such as "tested facts": two purposes never share a draw by accident."""
    return random.Random(f"{purpose}/{seed}")


def leaks(train: Iterable[Example], test: Iterable[Example]) -> list[Example]:
    """Return the test examples that training asks, after normalising both: at any turn of its conversations."""
    seen = {key for example in train for key in asked_keys(example.turns)}
    return [example for example in test if example.key in seen]


def limit(examples: Iterable[Example], per_fact: int, seed: int = 0) -> list[Example]:
    """Keep at most `per_fact` rows of each fact, or set of facts, drawn at random; rows without facts all stay."""
    examples, kept = list(examples), []
    count: Counter = Counter()
    for index in draw("limit", seed).sample(range(len(examples)), len(examples)):
        facts = examples[index].facts
        count[facts] += 1
        if not facts or count[facts] <= per_fact:
            kept.append(index)
    return [examples[index] for index in sorted(kept)]


def spaced(examples: Iterable[Example], seed: int = 0) -> list[Example]:
    """Order rows at random, but with a fact's rows evenly spaced: of four, one falls into each quarter of the list.

    A fact that happens to come early only is half forgotten by the end of the training.
    """
    rng, examples = draw("spaced", seed), list(examples)
    total = Counter(example.facts for example in examples)
    seen: Counter = Counter()

    def place(example: Example) -> float:
        if not example.facts:
            return rng.random()
        seen[example.facts] += 1
        return (seen[example.facts] - rng.random()) / total[example.facts]

    return sorted(rng.sample(examples, len(examples)), key=place)


def split(
    examples: Iterable[Example],
    held_out: float = 0.1,
    seed: int = 0,
    group: Callable[[Example], Hashable] | None = None,
) -> tuple[list[Example], list[Example]]:
    """Split into training and held-out rows, so that no fact and no question stands on both sides.

    Rows are linked when they share a fact, or the same question, or what `group` returns for them, such as the product
    or the customer; linked rows go to one side together. `held_out` is the share of rows wanted on the second side.
    """
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is {held_out}; it is a share of the rows, such as 0.1 for a tenth.")
    examples = list(examples)
    keys = [(*example.facts, "question: " + example.key) for example in examples]
    if group:
        keys = [(*linked, f"group: {group(example)!r}") for linked, example in zip(keys, examples, strict=True)]
    groups = linked_groups(keys)
    wanted = round(held_out * len(examples))
    chosen: set[int] = set()
    for name in draw("split", seed).sample(sorted(groups), len(groups)):
        if len(chosen) + len(groups[name]) <= max(wanted, 1):
            chosen.update(groups[name])
    if not 0 < len(chosen) < len(examples):
        raise DataError(f"{len(examples)} row(s) cannot be split: too few, or all linked. Add others, or hold none out.")
    return [e for i, e in enumerate(examples) if i not in chosen], [examples[i] for i in sorted(chosen)]
