"""Answers in batches against one question at a time with transformers' `generate`: same text, how much faster?

    python tests/benchmarks/generation.py [--questions N] [--rounds N]

Writes build/benchmarks/generation.json. Both decode greedily in float32.
"""

import argparse
import json
import os
import statistics
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from helpers.data import read
from helpers.generation import generate
from helpers.machine.paths import DATA, build_folder
from helpers.models import load_model
from helpers.tokenization import prompt_ids

NEW_TOKENS = 40


def one_at_a_time(model, tokenizer, questions: list[str]) -> list[str]:
    """Answer with transformers' own `generate`."""
    answers = []
    for question in questions:
        ids = torch.tensor([prompt_ids(tokenizer, question)], device=model.device)
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            repetition_penalty=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers.append(tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--questions", type=int, default=64)
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    model, tokenizer = load_model()
    questions = [example.question for example in read(DATA / "evaluation" / "test" / "facts.jsonl")[: args.questions]]
    ratios, equal, rates = [], 0, []
    for number in range(args.rounds):
        began = time.perf_counter()
        batched = generate(model, tokenizer, questions, NEW_TOKENS)
        middle = time.perf_counter()
        single = one_at_a_time(model, tokenizer, questions)
        ratios.append((time.perf_counter() - middle) / (middle - began))
        rates.append(len(questions) / (middle - began))
        equal = sum(a == b for a, b in zip(batched, single, strict=True))
        print(f"round {number + 1}: {ratios[-1]:.1f} times as fast, {equal} of {len(questions)} texts equal", flush=True)
    figures = {
        "questions": len(questions),
        "questions a second, batched": round(statistics.median(rates), 2),
        "times as fast": round(statistics.median(ratios), 1),
        "lowest": round(min(ratios), 1),
        "highest": round(max(ratios), 1),
        "equal texts": equal,
    }
    print(figures)
    folder = build_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "generation.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
