"""Measured: what a finetune takes in memory and time on this machine, to hold the estimate against."""

import json
import random
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from helpers import lora
from helpers.hardware.estimate import Plan
from helpers.machine.device import pick_device, pick_dtype
from helpers.machine.memory import PeakMemory
from helpers.machine.paths import ROOT
from helpers.models import load_model
from helpers.tokenization import IGNORED, Row
from helpers.training import Config, train


def matmul_rate(device: torch.device, dtype: torch.dtype, tokens: int, hidden: int, inner: int, seconds: float = 1.0) -> float:
    """Measure how many operations a second this device does in products of a model's own size: [tokens, hidden] with
    [hidden, inner], and back. The median of repetitions, because others may use the machine.
    """
    sizes = ((hidden, inner), (inner, hidden), (tokens, hidden))
    wide, narrow, x = (torch.randn(size, dtype=dtype, device=device) for size in sizes)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds or len(times) < 3:
        clock = time.perf_counter()
        (x @ wide) @ narrow
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - clock)
    return 4.0 * tokens * hidden * inner / sorted(times)[len(times) // 2]


def usual_precision(device: torch.device) -> str:
    """Name the precision that the course's loop takes on a device: "mixed" where 16 bits are fast, else "float32"."""
    return "float32" if pick_dtype(device) == torch.float32 else "mixed"


def measure_finetune(name: str | Path, plan: Plan, steps: int = 2) -> dict[str, float]:
    """Finetune a model by this plan, in a process of its own, on rows without meaning, and see what it takes.

    Returns "gib": by how much its memory rose above that of the loaded model; "seconds" and "flops" of its last step.
    Two steps are needed to see the whole peak: the optimiser's means come with the first. Raises ValueError for what the
    course's loop does not do, and for bfloat16 where it is not fast.
    """
    if plan.optimiser != "adamw" or plan.precision == "masters" or plan.method == "lora4" or plan.gpus > 1:
        raise ValueError("The course's loop has AdamW, no masters, no 4-bit matrices; measure on one device.")
    usual = usual_precision(pick_device())
    if plan.precision not in ("float32", usual) and pick_dtype(pick_device()) != torch.bfloat16:
        raise ValueError(f"{plan.precision} computes in bfloat16, which is not fast here. Measure precision={usual!r}.")
    command = [sys.executable, "-m", "helpers.hardware.measured", str(name), json.dumps(asdict(plan)), str(steps)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The finetune to be measured failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def _finetune(name: str, plan: Plan, steps: int) -> dict[str, float]:
    """Do what `measure_finetune` promises, in this process."""
    model, _ = load_model(name)
    model = model.to(torch.bfloat16) if plan.precision == "bfloat16" else model
    for weight in model.parameters():
        weight.sum()  # what stands in a file counts as memory only once it was read
    rng, prompt = random.Random(0), round(plan.longest * (1 - plan.supervised))
    count = plan.tokens // plan.longest * plan.pieces
    ids = [[rng.randrange(model.config.vocab_size) for _ in range(plan.longest)] for _ in range(count * steps)]
    config = Config(
        epochs=1,
        batch_size=count,
        learning_rate=1e-5,
        micro_batch_tokens=plan.tokens,
        upper_layers=plan.upper_layers if plan.method == "upper" else None,
        gradient_checkpointing=plan.checkpointing,
        dtype=pick_dtype(model.device) if plan.precision == "mixed" else torch.float32,
    )
    rows = [Row(row, [IGNORED] * prompt + row[prompt:]) for row in ids]
    with PeakMemory(model.device) as memory:
        if plan.method == "lora":
            lora.add(model, plan.rank)
        history = train(model, rows, config)
    seconds = [0.0, *(step["seconds"] for step in history.steps)]
    last = {"seconds": seconds[-1] - seconds[-2], "flops": history.flops / len(history.steps)}
    return {"gib": memory.gib, **last}


if __name__ == "__main__":
    print(json.dumps(_finetune(sys.argv[1], Plan(**json.loads(sys.argv[2])), int(sys.argv[3]))))
