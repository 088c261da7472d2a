"""Check and measure the package on an NVIDIA GPU: random weights, no network, nothing installed, eight minutes.

    python tests/gpu/run.py [--out build/gpu] [--minutes 8] [--only PART ...] [--device cpu --small]

Writes gpu.json and gpu.md into --out and prints the table. A part that fails, or has no time left, is told there and does not
end the others. The exit code is 1 when a check of right or wrong failed. `--device cpu --small` tries the script itself.
"""

import argparse
import copy
import gc
import importlib.metadata
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("torch", "transformers", "accelerate", "numpy", "platformdirs", "psutil", "regex", "safetensors", "tqdm")
if missing := [name for name in NEEDED if not find_spec(name)]:
    sys.exit(f"error: {sys.executable} has no {', '.join(missing)}. Run this with a Python that has them: make gpu PYTHON=...")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "core")]

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.utils import logging

from helpers import lora
from helpers.attention import flat_attention
from helpers.generation import Decoder
from helpers.hardware.estimate import Plan, Shape, matmul_rate, memory, training_flops, usual_precision
from helpers.machine.device import pick_dtype
from helpers.machine.process import PeakMemory
from helpers.tokenization import IGNORED, Row, flatten
from helpers.training import Config, batches_of, token_losses, train

TOY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SHAPES = {
    "toy": LlamaConfig(vocab_size=512, tie_word_embeddings=True, **TOY),
    "135M": LlamaConfig(  # SmolLM2-135M
        **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
    ),
    "1.5B": Qwen2Config(  # Qwen2.5-1.5B
        **{"vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28},
        **{"num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
}


@dataclass
class Setting:
    """Where and how large all is done, and until when."""

    device: torch.device
    dtype: torch.dtype  # what the package computes in here
    small: bool  # as little as tries each line once
    end: float  # on the clock of time.monotonic
    folder: Path

    def left(self) -> float:
        """Seconds that are left."""
        return self.end - time.monotonic()

    @property
    def room(self) -> float:
        """GiB of memory that the GPU has; on a CPU it is not asked."""
        return torch.cuda.get_device_properties(self.device).total_memory / 2**30 if self.device.type == "cuda" else math.inf

    @property
    def shape(self) -> str:
        """Name the smaller of the models that are measured."""
        return "toy" if self.small else "135M"


@dataclass
class Line:
    """One line of the table. ok: whether a check held; None where something was only measured."""

    what: str
    value: float | str
    unit: str = ""
    wanted: str = ""
    ok: bool | None = None
    part: str = ""


Part = Callable[[Setting], Iterator[Line]]


@dataclass
class Run:
    """What a few steps of training took."""

    losses: list[float] = field(default_factory=list)
    ticks: list[float] = field(default_factory=list)  # when each step ended
    skipped: int = 0


def build(setting: Setting, name: str):
    """Make a model of this shape with random weights, always the same."""
    torch.manual_seed(0)
    with setting.device:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(SHAPES[name]), dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # random weights would end answers at random
    return model


def forget(setting: Setting) -> None:
    """Free what earlier models have held."""
    gc.collect()
    if setting.device.type == "cuda":
        torch.cuda.empty_cache()


def synchronised(setting: Setting) -> float:
    """Tell the time when the device has done all that it was given."""
    if setting.device.type == "cuda":
        torch.cuda.synchronize(setting.device)
    return time.perf_counter()


def random_rows(vocabulary: int, lengths: list[int], share: float = 0.57) -> list[Row]:
    """Draw rows of random tokens; of each the last part is supervised, as large as in the course's own rows."""
    rng, rows = random.Random(0), []
    for length in lengths:
        ids = [rng.randrange(3, vocabulary) for _ in range(length)]
        prompt = max(1, round(length * (1 - share)))
        rows.append(Row(ids, [IGNORED] * prompt + ids[prompt:]))
    return rows


def short_rows(vocabulary: int, count: int) -> list[Row]:
    """Draw rows as long as questions and answers are: 30 to 198 tokens, 84 on average."""
    rng = random.Random(1)
    return random_rows(vocabulary, [round(min(198, max(30, rng.lognormvariate(4.35, 0.42)))) for _ in range(count)])


def padded(rows: list[Row], device: torch.device) -> dict[str, torch.Tensor]:
    """Pad rows on the right, as a usual loop does."""
    ids, labels = ([torch.tensor(part) for part in parts] for parts in ([r.ids for r in rows], [r.labels for r in rows]))
    batch = {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }
    return {name: tensor.to(device) for name, tensor in batch.items()}


def our_loop(setting: Setting, model, rows: list[Row], config: Config) -> Run:
    """Train with the package."""
    history = train(model, rows, config, progress=None)
    losses, ticks = [step["loss"] for step in history.steps], [step["seconds"] for step in history.steps]
    return Run(losses, ticks, len(history.skipped))


def plain_loop(setting: Setting, model, rows: list[Row], config: Config) -> Run:
    """Train with the loop that one would write: padded batches, the model's own loss, autocast."""
    run, kind = Run(), setting.device.type
    optimizer = torch.optim.AdamW(
        model.train().parameters(), config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True
    )
    scaler = torch.amp.GradScaler(kind, enabled=config.dtype == torch.float16)
    for batch in batches_of(rows, config):
        with torch.autocast(kind, dtype=config.dtype, enabled=config.dtype != torch.float32):
            loss = model(**padded(batch, setting.device), use_cache=False).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        run.losses.append(loss.item())
        run.ticks.append(synchronised(setting))
    return run


def trainer_loop(setting: Setting, model, rows: list[Row], config: Config) -> Run:
    """Train with transformers' Trainer, in the same precision."""
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    run = Run()

    class Watch(TrainerCallback):
        def on_step_end(self, *positional, **named):
            run.ticks.append(synchronised(setting))

        def on_log(self, args, state, control, logs=None, **named):
            if logs and "loss" in logs:
                run.losses.append(float(logs["loss"]))

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    arguments = TrainingArguments(
        **{"output_dir": str(setting.folder / "trainer"), "per_device_train_batch_size": config.batch_size},
        **{"num_train_epochs": 1, "learning_rate": config.learning_rate, "lr_scheduler_type": "constant", "adam_beta2": 0.98},
        **{"bf16": config.dtype == torch.bfloat16, "fp16": config.dtype == torch.float16, "logging_steps": 1},
        **{"save_strategy": "no", "report_to": [], "disable_tqdm": True, "remove_unused_columns": False},
        use_cpu=setting.device.type == "cpu",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # on a machine with several it would take them all
    trainer = InOrder(model, arguments, train_dataset=rows, data_collator=partial(padded, device="cpu"), callbacks=[Watch()])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return run


LOOPS = {"package": our_loop, "plain padded loop": plain_loop, "Trainer": trainer_loop}


def constant(setting: Setting, batch_size: int, **others) -> Config:
    """Make settings in which each loop does the same."""
    same = {"epochs": 1, "learning_rate": 1e-5, "schedule": "constant", "warmup": 0, "shuffle": False}
    return Config(**{**same, "dtype": setting.dtype, "batch_size": batch_size, **others})


def losses_alone(model, rows: list[Row], dtype: torch.dtype) -> list[torch.Tensor]:
    """Compute each row's losses with nothing beside it and the model's own attention."""
    losses = []
    for row in rows:
        batch = padded([row], model.device)
        with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits[0, :-1].float()
        every = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=IGNORED, reduction="none")
        losses.append(every[batch["labels"][0, 1:] != IGNORED])
    return losses


def off_by(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """Compute by how many nats a token the losses of a row differ at most."""
    return max((a.mean() - b.mean()).abs().item() for a, b in zip(one, other, strict=True))


def greedy(model, prompts: list[list[int]], new_tokens: int, at_once: int) -> list[list[int]]:
    """Answer all prompts, so many at once."""
    decoder = Decoder(model, SimpleNamespace(eos_token_id=None, pad_token_id=0), rows=at_once)
    answers = [decoder.add(prompt, new_tokens) for prompt in prompts]
    while decoder.waiting or decoder.running:
        decoder.step()
    return [answer.tokens for answer in answers]


def architectures(setting: Setting) -> Iterator[Line]:
    """Hold every architecture of the test matrix against transformers: losses, three steps, answers."""
    try:
        from zoo import VOCABULARY, ZOO, make
    except ImportError:
        yield Line("tests/core/zoo.py", "is not there, so no architecture was tried")
        return
    names = list(ZOO)[:3] if setting.small else list(ZOO)
    rows = random_rows(VOCABULARY, [7, 12, 5, 12, 30, 9, 21, 6, 11])
    for number, name in enumerate(names):
        if setting.left() < 30:
            yield Line("left out for lack of time", f"{len(names) - number} architectures")
            return
        try:
            yield architecture(setting, name, make(name).to(setting.device), rows)
        except (NotImplementedError, ValueError) as error:
            yield Line(name, f"refused: {error}".split("\n")[0][:100])
        except Exception as error:
            yield Line(name, f"{type(error).__name__}: {error}".split("\n")[0][:100], ok=False)


@torch.no_grad()
def architecture(setting: Setting, name: str, model, rows: list[Row]) -> Line:
    """Try one architecture. In 16 bits the losses may be off by what rounding alone changes in this model."""
    alone, batch = losses_alone(model, rows, torch.float32), flatten(rows, setting.device)
    alone_narrow, sizes = losses_alone(model, rows, setting.dtype), [row.supervised for row in rows]
    with flat_attention(model):
        together = token_losses(model, batch, torch.float32).split(sizes)
        together_narrow = token_losses(model, batch, setting.dtype).split(sizes)
    exact, narrow = off_by(together, alone), off_by(together_narrow, alone_narrow)
    allowed = 0.02 + 3 * off_by(alone_narrow, alone)
    prompts, model.generation_config.eos_token_id = [row.ids for row in rows[:4]], None
    same = sum(a == greedy(model, [p], 8, 1)[0] for a, p in zip(greedy(model, prompts, 8, 4), prompts, strict=True))
    config = constant(setting, batch_size=3, learning_rate=1e-3, dtype=torch.float32)
    with torch.enable_grad():
        theirs = plain_loop(setting, copy.deepcopy(model), rows, config).losses
        ours = our_loop(setting, model, rows, config).losses
    steps = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    text = f"losses off by {exact:.1e} in float32, {narrow:.1e} in 16 bits; steps by {steps:.1e}; {same} of 4 answers the same"
    right = exact < 1e-3 and narrow < allowed and steps < 5e-3 and same >= 3
    return Line(name, text, wanted=f"1e-3, {allowed:.1e}, 5e-3 nats; 3 of 4", ok=right)


def flat_against_padded(setting: Setting) -> Iterator[Line]:
    """Compare one forward and backward pass over rows end to end with one over the same rows padded."""
    model = build(setting, setting.shape).train()
    rows = short_rows(model.config.vocab_size, 8 if setting.small else 32)
    flat, wide = flatten(rows, setting.device), padded(rows, setting.device)

    def end_to_end(dtype: torch.dtype) -> torch.Tensor:
        with flat_attention(model):
            return token_losses(model, flat, dtype).mean()

    def with_padding(dtype: torch.dtype) -> torch.Tensor:
        with torch.autocast(setting.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return model(**wide, use_cache=False).loss

    with torch.no_grad():
        off = abs(end_to_end(torch.float32).item() - with_padding(torch.float32).item())
    yield Line("loss, flat against padded, float32", off, "nats", "below 1e-3", off < 1e-3)
    seconds: dict[Callable, list[float]] = {end_to_end: [], with_padding: []}
    for _ in range(2 if setting.small else 6):
        for way, taken in seconds.items():
            began = synchronised(setting)
            way(setting.dtype).backward()
            taken.append(synchronised(setting) - began)
            model.zero_grad()
    tokens = sum(len(row.ids) for row in rows)
    ours, theirs = (tokens / median(taken[1:]) for taken in seconds.values())
    yield Line("forward and backward, flat", ours, "real tokens/s")
    yield Line("forward and backward, padded", theirs, "real tokens/s")
    yield Line("flat against padded", ours / theirs, "times")


def rates(setting: Setting, name: str, batch_size: int, wanted_share: str) -> Iterator[Line]:
    """Measure the loop against a plain padded one and Trainer, alternating, and the share of the matrix peak."""
    steps, rounds = (2, 1) if setting.small else (8, 2)
    rows = short_rows(SHAPES[name].vocab_size, batch_size * steps)
    config = constant(setting, batch_size, micro_batch_tokens=16384)
    plan = Plan(tokens=batch_size * 198, longest=198, supervised=1.0, pieces=1, gpu=True)  # Trainer's padded batch
    if (needed := sum(memory(Shape.of(SHAPES[name]), plan).values())) > 0.9 * setting.room:
        yield Line(f"{name}, left out", f"Trainer needs about {needed:.0f} GiB, this GPU has {setting.room:.0f}")
        return
    seconds: dict[str, list[float]] = {loop: [] for loop in LOOPS}
    first: dict[str, float] = {}
    took = 0.0
    for loop in [*LOOPS] * rounds:
        if setting.left() < 2 * took:
            break
        began, model = time.monotonic(), build(setting, name)
        run = LOOPS[loop](setting, model, rows, config)
        seconds[loop].append(median(after - before for before, after in pairwise(run.ticks)))
        first[loop] = run.losses[0]
        flops = training_flops(model, sum(len(row.ids) for row in rows), sum(row.supervised for row in rows)) / steps
        del model
        forget(setting)
        took = time.monotonic() - began
    if not all(seconds.values()):
        yield Line(f"{name}, left out", "no time left for each loop")
        return
    tokens = sum(len(row.ids) for row in rows) / steps
    for loop, taken in seconds.items():
        yield Line(f"{name}, {loop}", tokens / median(taken), "real tokens/s")
    ours = median(seconds["package"])
    for loop in list(LOOPS)[1:]:
        yield Line(f"{name}, package against {loop}", median(seconds[loop]) / ours, "times", "above 1")
        off = abs(first["package"] - first[loop])
        yield Line(f"{name}, first loss against {loop}", off, "nats", "below 0.02", off < 0.02)
    side = 256 if setting.small else 8192
    peak = matmul_rate(setting.device, setting.dtype, side, side, side, seconds=0.1 if setting.small else 1.0)
    yield Line(f"products of {side}³, {setting.dtype}".replace("torch.", ""), peak / 1e12, "TFLOP/s")
    yield Line(f"{name}, share of that", flops / ours / peak, "", wanted_share)


def memory_against_estimate(setting: Setting) -> Iterator[Line]:
    """Measure the peak of three finetunes, and hold the estimate against it."""
    plans = {
        "full": Plan(),
        "LoRA": Plan(method="lora"),
        "full, checkpointing": Plan(checkpointing=True),
    }
    tokens, longest = (128, 32) if setting.small else (8192, 128)
    for what, plan in plans.items():
        known = {"tokens": tokens, "longest": longest, "precision": usual_precision(setting.device)}
        plan = replace(plan, gpu=setting.device.type == "cuda", **known)
        count = plan.tokens // plan.longest * plan.pieces
        rows = random_rows(SHAPES[setting.shape].vocab_size, [plan.longest] * count * 2, plan.supervised)
        with PeakMemory(setting.device) as peak:
            model = build(setting, setting.shape)
            if plan.method == "lora":
                lora.add(model, plan.rank)
            others = {"micro_batch_tokens": plan.tokens, "gradient_checkpointing": plan.checkpointing}
            train(model, rows, constant(setting, count, **others), progress=None)
        expected = sum(memory(Shape.of(model.config), plan).values())
        del model
        forget(setting)
        yield Line(f"{setting.shape}, {what}", peak.gib, "GiB", f"estimated: {expected:.3g}")
        yield Line(f"{setting.shape}, {what}, measured against estimated", peak.gib / expected, "times", "0.9 to 1.1")


def generation(setting: Setting) -> Iterator[Line]:
    """Measure how many tokens a second are written, from one answer at a time to many."""
    model = build(setting, setting.shape).to(setting.dtype)
    new_tokens = 4 if setting.small else 64
    for at_once in (1, 2) if setting.small else (1, 8, 32, 128):
        if setting.left() < 20:
            yield Line(f"{at_once} at once, left out", "no time left")
            continue
        prompts = [row.ids for row in short_rows(model.config.vocab_size, at_once)]
        greedy(model, prompts, 2, at_once)  # warm
        began = synchronised(setting)
        greedy(model, prompts, new_tokens, at_once)
        yield Line(f"{setting.shape}, {at_once} at once", at_once * new_tokens / (synchronised(setting) - began), "tokens/s")


def float16(setting: Setting) -> Iterator[Line]:
    """Train with float16 and its scale, as a GPU without bfloat16 does: the losses fall as they do in another precision."""
    rows = short_rows(SHAPES[setting.shape].vocab_size, 4 if setting.small else 32)
    settings = {"epochs": 6 if setting.small else 20, "learning_rate": 3e-3 if setting.small else 3e-4}
    losses = {}
    known = torch.float32 if setting.dtype == torch.float16 else setting.dtype
    for dtype in (known, torch.float16):
        run = our_loop(setting, build(setting, setting.shape), rows, constant(setting, len(rows), dtype=dtype, **settings))
        losses[dtype] = run.losses
        yield Line(f"first and last loss, {dtype}".replace("torch.", ""), f"{run.losses[0]:.3f}, {run.losses[-1]:.3f}", "nats")
    usual, narrow = losses[known], losses[torch.float16]
    off = abs(narrow[-1] / usual[-1] - 1)
    yield Line(
        f"last loss, float16 against {known}".replace("torch.", ""),
        off,
        "",
        "below 0.05",
        off < 0.05 and narrow[-1] < narrow[0],
    )
    yield Line("steps skipped in float16", run.skipped, f"of {len(narrow)}", "few, at the beginning")


def two_processes(setting: Setting) -> Iterator[Line]:
    """Train with two processes, a GPU each: the losses are those of one."""
    if torch.cuda.device_count() < 2:
        yield Line("left out", f"{torch.cuda.device_count()} GPU, two are needed")
        return
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    found = {}
    for count, launcher in ((1, []), (2, launch)):
        path = setting.folder / f"processes-{count}.json"
        command = [sys.executable, *launcher, __file__, "--worker", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(10.0, setting.left()))
        if done.returncode:
            raise RuntimeError(done.stderr.strip().split("\n")[-1])
        found[count] = json.loads(path.read_text())
    off = max(abs(a - b) for a, b in zip(found[1]["losses"], found[2]["losses"], strict=True))
    yield Line("losses of two processes against one", off, "nats", "below 0.02", off < 0.02)
    yield Line("rate of two GPUs against one", found[2]["rate"] / found[1]["rate"], "times", "above 1.8")


def worker(path: str) -> None:
    """Do the work of one process of several."""
    from accelerate import PartialState

    device = PartialState().device
    setting = Setting(device, pick_dtype(device), False, math.inf, Path(path).parent)
    rows = short_rows(SHAPES["135M"].vocab_size, 128 * 6)
    run = our_loop(setting, build(setting, "135M"), rows, constant(setting, 128, micro_batch_tokens=8192))
    tokens = sum(len(row.ids) for row in rows) / 6
    if PartialState().is_main_process:
        rate = tokens / median(after - before for before, after in pairwise(run.ticks))
        Path(path).write_text(json.dumps({"losses": run.losses, "rate": rate}))


def toy_rates(setting: Setting) -> Iterator[Line]:
    """Measure the loops on the smaller model, with as many rows a step as the padded ones have memory for."""
    many = 128 if setting.room > 60 else 64 if setting.room > 30 else 32
    return rates(setting, setting.shape, 4 if setting.small else many, "" if setting.small else "at least 0.20")


def large_rates(setting: Setting) -> Iterator[Line]:
    """Measure the loops on a model of one and a half thousand million weights."""
    if setting.small:
        yield Line("1.5B, left out", "small")
        return
    yield from rates(setting, "1.5B", 32, "at least 0.35")


PARTS: dict[str, tuple[float, Part]] = {  # seconds that have to be left for it to begin
    "flat": (20, flat_against_padded),
    "float16": (20, float16),
    "memory": (20, memory_against_estimate),
    "rates": (40, toy_rates),
    "large": (60, large_rates),
    "generation": (20, generation),
    "processes": (60, two_processes),
    "architectures": (30, architectures),
}


def versions(device: torch.device) -> dict[str, str]:
    """Say what ran, and on what."""
    found = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in NEEDED}}
    found |= {"device": str(device), "cores": str(os.cpu_count()), "CUDA": str(torch.version.cuda)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"device": card.name, "devices": str(torch.cuda.device_count()), "capability": f"{card.major}.{card.minor}"}
        found["memory"] = f"{card.total_memory / 2**30:.0f} GiB"
    return {**found, "computes in": str(pick_dtype(device)).removeprefix("torch.")}


def table(ran: dict[str, str], lines: list[Line]) -> str:
    """Write it all as Markdown."""

    def shown(value: float | str) -> str:
        return value if isinstance(value, str) else f"{value:,.4g}" if value < 1e4 else f"{value:,.0f}"

    verdicts = {None: "", True: "right", False: "WRONG"}
    text = [", ".join(f"{name} {version}" for name, version in ran.items()), ""]
    text += ["| part | what | measured | wanted | |", "|---|---|---|---|---|"]
    for line in lines:
        cells = [line.part, line.what, f"{shown(line.value)} {line.unit}".strip(), line.wanted, verdicts[line.ok]]
        text.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(text) + "\n"


def write(folder: Path, ran: dict[str, str], lines: list[Line], seconds: float) -> str:
    """Put what there is so far into both files; return the table."""
    text = table(ran, lines)
    report = {"versions": ran, "seconds": round(seconds, 1), "lines": [asdict(line) for line in lines]}
    (folder / "gpu.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (folder / "gpu.md").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    """Do all parts, print and write what they gave."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder for gpu.json and gpu.md")
    options.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to do")
    options.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options.add_argument("--small", action="store_true", help="tiny sizes, to try the script")
    options.add_argument("--worker", help=argparse.SUPPRESS)
    args = options.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.worker:
        worker(args.worker)
        return 0
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: no NVIDIA GPU can be reached. --device cpu --small tries the script without one.", file=sys.stderr)
        return 2
    began, device = time.monotonic(), torch.device("cuda", 0) if args.device == "cuda" else torch.device("cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    lines: list[Line] = []
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(device, pick_dtype(device), args.small, began + 60 * args.minutes, Path(folder))
        ran = versions(device)
        for name in args.only:
            needed, part = PARTS[name]
            print(f"{time.monotonic() - began:5.0f} s  {name} ...", file=sys.stderr, flush=True)
            if setting.left() < needed:
                left = f"{max(0.0, setting.left()):.0f} s were left, it takes {needed}"
                lines.append(Line("left out for lack of time", left, part=name))
                continue
            try:
                for line in part(setting):
                    lines.append(replace(line, part=name))
            except Exception as error:
                traceback.print_exc()
                lines.append(Line("failed", f"{type(error).__name__}: {error}".split("\n")[0][:160], ok=False, part=name))
            forget(setting)
            write(args.out, ran, lines, time.monotonic() - began)  # a machine that is taken away leaves what there was
    print(write(args.out, ran, lines, time.monotonic() - began))
    return 1 if any(line.ok is False for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
