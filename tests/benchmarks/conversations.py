"""Conversations, with every answer learnt against the last one only: how many first answers are known afterwards?

    python tests/benchmarks/conversations.py [--epochs N]

Writes build/benchmarks/conversations.json, which also has the seconds that a model is tried before it is first trained, and
before it first answers. Both finetunes take the same rows, order and steps.
"""

import argparse
import json
import os
import random
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from helpers.attention import reads_flat
from helpers.data import ANSWERS, Example
from helpers.generation import generate
from helpers.machine.decoding import can_share, way_to_answer
from helpers.machine.paths import build_folder
from helpers.models import load_model
from helpers.text.judging import contains_values
from helpers.text.messages import Message
from helpers.tokenization import encode_all
from helpers.training import Config, train

FIRST = ("Ada", "Boris", "Clara", "Dinesh", "Elif", "Farid")
LAST = ("Harlow", "Ibsen", "Jaffrey", "Kowalski", "Lindqvist")
FLOORS = ("first", "second", "third", "fourth", "fifth", "sixth")


def conversations() -> list[Example]:
    """Make up 30 conversations: first somebody's locker, whose number is the value; then the floor that it is on."""
    rng, made = random.Random(0), []
    for name in (f"{first} {last}" for first in FIRST for last in LAST):
        number, floor = str(rng.randrange(1000, 10000)), rng.choice(FLOORS)
        history = (Message("user", f"Which locker is {name}'s?"), Message("assistant", f"{name} has locker {number}."))
        made.append(Example("And on which floor is it?", f"On the {floor} floor.", values=(number,), history=history))
    return made


def seconds_of(look, *inputs) -> float:
    """Take the time of one call, in seconds."""
    began = time.perf_counter()
    look(*inputs)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--epochs", type=int, default=20)
    args = options.parse_args()
    made, figures = conversations(), {}
    questions = [example.history[0].content for example in made]
    for answers in ANSWERS:
        model, tokenizer = load_model()
        trials = {"train": seconds_of(reads_flat, model), "answer": seconds_of(way_to_answer, model)}
        trials["share a beginning"] = seconds_of(can_share, model, 100)
        rows = encode_all(tokenizer, made, answers=answers)
        history = train(model, rows, Config(epochs=args.epochs, batch_size=10))
        said = generate(model, tokenizer, questions, 24)
        right = sum(contains_values(answer, example.values) for answer, example in zip(said, made, strict=True))
        figures[answers] = {
            "right first answers": right,
            "of": len(made),
            "steps": len(history.steps),
            "supervised tokens": history.supervised_tokens,
            "last loss": round(history.steps[-1]["loss"], 4),
            "seconds": round(history.seconds, 1),
            "seconds to try the model": trials,
        }
        print(f"answers={answers}: {right} of {len(made)} right. {figures[answers]}. Such as: {said[0]!r}", flush=True)
    folder = build_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "conversations.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
