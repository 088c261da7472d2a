"""32 clients at once against one at a time, over a real socket: same text, how many times the tokens, how soon the first?

    python tests/benchmarks/server.py [--clients N] [--questions N] [--rounds N]

Writes build/benchmarks/server.json. Both ask the same questions of the same server; rounds alternate.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import requests
from transformers import AutoTokenizer

from helpers.data import read
from helpers.machine.hub import find_model
from helpers.machine.paths import DATA, build_folder
from helpers.serving.server import Server, serve

NEW_TOKENS = 64


def ask(server: Server, question: str) -> tuple[str, float]:
    """Stream one answer; return it with the seconds until its first piece."""
    sent = {"model": "embedded", "stream": True, "max_tokens": NEW_TOKENS, "messages": [{"role": "user", "content": question}]}
    began, first, text = time.perf_counter(), None, ""
    headers = {"Authorization": f"Bearer {server.key}"}
    with requests.post(server.url + "/v1/chat/completions", json=sent, headers=headers, stream=True) as reply:
        for line in reply.iter_lines():
            if line.startswith(b"data: {") and (piece := json.loads(line[6:])["choices"][0]["delta"].get("content")):
                first = first or time.perf_counter() - began
                text += piece
    return text, first or time.perf_counter() - began


def measure(server: Server, questions: list[str], clients: int, tokenizer) -> dict:
    """Ask all questions, so many at a time."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        texts, firsts = zip(*pool.map(lambda question: ask(server, question), questions), strict=True)
    seconds = time.perf_counter() - began
    tokens = sum(len(tokenizer(text).input_ids) for text in texts)
    return {"texts": texts, "firsts": firsts, "rate": tokens / seconds}


def percentiles(values: list[float]) -> dict[str, float]:
    """Compute the median and the 95th percentile, in seconds."""
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2)}


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--questions", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(find_model("embedded"))
    questions = [example.question for example in read(DATA / "evaluation" / "test" / "facts.jsonl")[: args.questions]]
    ratios, equal, rates, firsts = [], [], {"one": [], "many": []}, {"one": [], "many": []}
    with tempfile.TemporaryDirectory() as folder, serve(folder=folder) as server:
        measure(server, questions[:2], 2, tokenizer)
        for number in range(args.rounds):
            order = [("one", 1), ("many", args.clients)][:: 1 if number % 2 else -1]
            measured = {name: measure(server, questions, clients, tokenizer) for name, clients in order}
            for name, result in measured.items():
                rates[name].append(result["rate"])
                firsts[name] += result["firsts"]
            ratios.append(measured["many"]["rate"] / measured["one"]["rate"])
            equal.append(sum(a == b for a, b in zip(measured["one"]["texts"], measured["many"]["texts"], strict=True)))
            print(f"round {number + 1}: {ratios[-1]:.1f} times the tokens, {equal[-1]} of {len(questions)} equal", flush=True)
    figures = {
        "clients": args.clients,
        "questions": len(questions),
        "tokens a second, one at a time": round(statistics.median(rates["one"]), 1),
        "tokens a second, all at once": round(statistics.median(rates["many"]), 1),
        "times as many": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
        "equal texts": min(equal),
        "seconds to the first token, one at a time": percentiles(firsts["one"]),
        "seconds to the first token, all at once": percentiles(firsts["many"]),
    }
    print(figures)
    folder = build_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
