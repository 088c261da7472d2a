"""Several processes: the loss curve of two is that of one."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys, torch
from accelerate import PartialState
from helpers import lora
from helpers.machine import checkpoint
from helpers.models import load_model
from helpers.tokenization import Row
from helpers.training import Config, train
torch.set_num_threads(1)
def row(i):
    prompt, answer, learnt = [5 + i] * (i % 5 + 1), [9 + i, 11, 13], i % 3 + 1  # rows differ in length and in labels
    return Row(prompt + answer, [-100] * len(prompt) + answer[:learnt] + [-100] * (3 - learnt))
rows = [row(i) for i in range(21)]
config = Config(epochs=2, batch_size=4, learning_rate=1e-2, dtype=torch.float32, micro_batch_tokens=12, evaluate_every=5)
model, _ = load_model(sys.argv[1], device="cpu")
if "lora" in sys.argv:
    lora.add(model, rank=4)
history = train(model, rows, config, held_out=rows[:5])
weights = checkpoint.learnt_weights(model)
if PartialState().is_main_process:
    figures = {"losses": [s["loss"] for s in history.steps], "held_out": [h["loss"] for h in history.held_out]}
    figures |= {"norms": [s["gradient_norm"] for s in history.steps]}
    total = sum(w.double().abs().sum().item() for w in weights.values())
    figures |= {"processes": PartialState().num_processes, "weights": total}
    json.dump(figures, open(sys.argv[2], "w"))
"""


def run(tmp_path, name, launcher, model, *what):
    program, out = tmp_path / "program.py", tmp_path / f"{name}.json"
    program.write_text(PROGRAM)
    command = [sys.executable, *launcher, program, model, out, *what]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


LAUNCH = [
    "-m",
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--mixed_precision",
    "no",
    "--dynamo_backend",
    "no",
    "--main_process_port",
    "0",
]


@pytest.mark.parametrize("what", [(), ("lora",)])
def test_two_processes_have_the_losses_of_one(tiny, tmp_path, what):
    one = run(tmp_path, "one", [], tiny, *what)
    two = run(tmp_path, "two", LAUNCH, tiny, *what)
    assert (one["processes"], two["processes"]) == (1, 2)
    for figure in ("losses", "held_out", "norms"):
        assert two[figure] == pytest.approx(one[figure], rel=1e-3), figure
    assert two["weights"] == pytest.approx(one["weights"], rel=1e-5)
