"""Our loop against transformers' Trainer and TRL's SFTTrainer: same model, rows, order and steps, alternating.

    python tests/benchmarks/training.py [--rows passages | questions] [--rounds N] [--steps N] [--full | --lora]

Writes training-ROWS.json, .md and .png into build/benchmarks. Each run has a process of its own. Rates leave out its first
step. All compute in what is fast here, see `pick_dtype`, but for the Trainer's default; the table says which.
`others` is the share of the machine that other programs took meanwhile: above a few percent, a figure means little.
"""

import argparse
import json
import multiprocessing
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import matplotlib.pyplot as plt
import psutil
import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging

from helpers import lora
from helpers.data import limit, read
from helpers.lesson import BLUE, GREY, use_course_style
from helpers.machine.device import pick_device, pick_dtype
from helpers.machine.paths import DATA, build_folder
from helpers.machine.process import PeakMemory
from helpers.models import load_model
from helpers.tokenization import IGNORED, Row, encode_all
from helpers.training import Config, batches_of, train

RATE = 1e-4
NAME = str(pick_dtype(pick_device())).removeprefix("torch.")  # what is fast here
BASELINE, DEFAULT = f"Trainer, {NAME}", "Trainer, default"  # the default is float32 everywhere
BATCH = {"questions": 20, "passages": 8}  # rows a step; either way some 600 tokens


@dataclass
class Run:
    """What one run of one contender took."""

    batch: int  # rows a step
    losses: list[float] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)  # when each step ended
    gib: float = 0.0
    others: float = 0.0

    def seconds(self) -> float:
        """Seconds of all steps but the first."""
        return self.ticks[-1] - self.ticks[0]


class Watch(TrainerCallback):
    """Notes when a Trainer's step ends and what its loss was."""

    def __init__(self, run: Run):
        """Write into this run."""
        self.run = run

    def on_step_end(self, args, state, control, **kwargs):
        """Note the time."""
        self.run.ticks.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Note the loss."""
        if logs and "loss" in logs:
            self.run.losses.append(float(logs["loss"]))


def ours(model, tokenizer, rows: list[Row], run: Run) -> None:
    """Train with the course's loop."""

    def on_step(history) -> None:
        run.ticks.append(time.perf_counter())
        run.losses.append(history.steps[-1]["loss"])

    settings = {"schedule": "constant", "warmup": 0, "max_steps": len(rows) // run.batch, "shuffle": False}
    config = Config(epochs=1, batch_size=run.batch, learning_rate=RATE, **settings)
    train(model, rows, config, on_step=on_step)


def arguments(rows: list[Row], batch: int) -> dict:
    """What the Trainers have in common."""
    return {
        "output_dir": str(build_folder() / "benchmarks" / "trainer"),
        "per_device_train_batch_size": batch,
        "max_steps": len(rows) // batch,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.98,
        "bf16": NAME == "bfloat16",
        "fp16": NAME == "float16",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }


def in_order(kind: type) -> type:
    """Make a Trainer take the rows as they come, and keep quiet."""

    class InOrder(kind):
        def __init__(self, *positional, **named):
            super().__init__(*positional, **named)
            self.remove_callback(PrinterCallback)

        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    return InOrder


def trainer(model, tokenizer, rows: list[Row], run: Run, **options) -> None:
    """Train with transformers' Trainer."""
    dataset = Dataset.from_list([{"input_ids": row.ids, "labels": row.labels} for row in rows])
    settings = TrainingArguments(**{**arguments(rows, run.batch), **options})
    collator = DataCollatorForSeq2Seq(tokenizer)
    in_order(Trainer)(model, settings, train_dataset=dataset, data_collator=collator, callbacks=[Watch(run)]).train()


def trl(model, tokenizer, rows: list[Row], run: Run, peft_config=None, **options) -> None:
    """Train with TRL's SFTTrainer."""
    from trl import SFTConfig, SFTTrainer

    masks = [[int(label != IGNORED) for label in row.labels] for row in rows]
    dataset = Dataset.from_list([{"input_ids": r.ids, "completion_mask": m} for r, m in zip(rows, masks, strict=True)])
    settings = SFTConfig(**arguments(rows, run.batch), completion_only_loss=True, max_length=None, **options)
    in_order(SFTTrainer)(
        model, settings, train_dataset=dataset, processing_class=tokenizer, callbacks=[Watch(run)], peft_config=peft_config
    ).train()


def our_lora(model, tokenizer, rows: list[Row], run: Run) -> None:
    """Train adapters with the course's loop."""
    lora.add(model, rank=16)
    ours(model, tokenizer, rows, run)


def peft_lora(model, tokenizer, rows: list[Row], run: Run, **options) -> None:
    """Train adapters with TRL and PEFT."""
    from peft import LoraConfig

    adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    trl(model, tokenizer, rows, run, peft_config=adapters, **options)


FULL = {
    "course": ours,
    BASELINE: trainer,
    DEFAULT: partial(trainer, bf16=False, fp16=False),
    "TRL, default": trl,
    "TRL, no checkpointing": partial(trl, gradient_checkpointing=False),
    "TRL, padding-free": partial(trl, gradient_checkpointing=False, padding_free=True),
}
if NAME == "float32":
    del FULL[DEFAULT]  # it is the baseline
LORA = {
    "course, LoRA": our_lora,
    "TRL and PEFT, default": peft_lora,
    "TRL and PEFT, no checkpointing": partial(peft_lora, gradient_checkpointing=False),
    "TRL and PEFT, padding-free": partial(peft_lora, gradient_checkpointing=False, padding_free=True),
}


def rows_of(kind: str, steps: int) -> list[Row]:
    """Take the course's questions (20 to 47 tokens), or put a passage of the handbook before every second one (to 216)."""
    examples = limit(read(DATA / "train.jsonl"), 2)
    if kind == "passages":
        texts = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted((DATA / "handbook").glob("*.md")))
        passages, rng = [text for text in texts.split("\n\n") if not text.startswith("#")], random.Random(0)
        for i in range(0, len(examples), 2):
            examples[i] = replace(examples[i], question=f"{rng.choice(passages)}\n\n{examples[i].question}")
    rows = encode_all(load_model()[1], examples)
    batches = batches_of(rows, Config(epochs=1, batch_size=BATCH[kind]))
    return [row for batch in batches for row in batch][: BATCH[kind] * steps]


def measure(name: str, rows: list[Row], batch: int) -> Run:
    """Run one contender on a fresh model, in the process that this is called in."""
    logging.set_verbosity_error()
    run, process = Run(batch), psutil.Process()
    model, tokenizer = load_model()
    torch.manual_seed(0)
    busy, own = psutil.cpu_times(), process.cpu_times()
    began = time.perf_counter()
    with PeakMemory(model.device) as memory:
        {**FULL, **LORA}[name](model, tokenizer, rows, run)
    taken = (time.perf_counter() - began) * psutil.cpu_count()
    now, mine = psutil.cpu_times(), process.cpu_times()
    everyone = sum(getattr(now, part, 0) - getattr(busy, part, 0) for part in ("user", "system", "steal", "nice"))
    run.others = max(0.0, everyone - (mine.user + mine.system - own.user - own.system)) / taken
    run.gib = memory.gib
    return run


def report(runs: dict[str, list[Run]], rows: list[Row], baseline: str) -> list[dict]:
    """Summarise: medians, and the spread of the ratio to the baseline within each round."""
    later = rows[runs[baseline][0].batch :]
    real, supervised = sum(len(row.ids) for row in later), sum(row.supervised for row in later)
    table = []
    for name, of in runs.items():
        ratios = [base.seconds() / run.seconds() for base, run in zip(runs[baseline], of, strict=True)]
        seconds = statistics.median(run.seconds() for run in of)
        table.append(
            {
                "contender": name,
                "computes in": "float32" if name == DEFAULT else NAME,
                "real tokens/s": round(real / seconds),
                "supervised/s": round(supervised / seconds),
                f"ratio to {baseline}": round(statistics.median(ratios), 2),
                "lowest": round(min(ratios), 2),
                "highest": round(max(ratios), 2),
                "peak GiB": round(statistics.median(run.gib for run in of), 2),
                "last loss": round(of[-1].losses[-1], 3),
                "others": f"{max(run.others for run in of):.0%}",
            }
        )
    return table


def main() -> None:
    """Measure, print, save."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", choices=BATCH, default="passages")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=9)
    options.add_argument("--full", action="store_true", help="only the full finetunes")
    options.add_argument("--lora", action="store_true", help="only the adapters")
    args = options.parse_args()
    contenders = LORA if args.lora else FULL if args.full else {**FULL, **LORA}
    rows = rows_of(args.rows, args.steps)
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    apart = {"max_workers": 1, "max_tasks_per_child": 1, "mp_context": multiprocessing.get_context("spawn")}
    with ProcessPoolExecutor(**apart) as one_at_a_time:
        for number in range(args.rounds):
            for name in contenders:
                runs[name].append(one_at_a_time.submit(measure, name, rows, BATCH[args.rows]).result())
                print(f"round {number + 1}  {name:<32} {runs[name][-1].seconds():6.1f} s", flush=True)
    table = report(runs, rows, "TRL and PEFT, no checkpointing" if args.lora else BASELINE)
    head = list(table[0])
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(str(entry[name]) for name in head) + " |" for entry in table]
    print("\n".join(lines))
    folder = build_folder() / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"training-{args.rows}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / f"training-{args.rows}.json").write_text(json.dumps(table, indent=1), encoding="utf-8")
    use_course_style()
    figure, ax = plt.subplots(figsize=(10, 0.6 * len(table) + 1.5))
    names = [entry["contender"] for entry in table][::-1]
    rates = [entry["real tokens/s"] for entry in table][::-1]
    bars = ax.barh(names, rates, color=[BLUE if name.startswith("course") else GREY for name in names])
    ax.bar_label(bars, padding=4)
    ax.set(xlabel="real tokens a second", title="The same finetune, with each tool")
    figure.savefig(folder / f"training-{args.rows}.png", bbox_inches="tight")


if __name__ == "__main__":
    main()
