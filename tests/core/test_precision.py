"""With FINETUNING_BF16=off nothing computes in bfloat16: whatever chooses a precision asks `pick_dtype`."""

import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from helpers import lora
from helpers.data import read
from helpers.evaluation import evaluate
from helpers.generation import generate
from helpers.machine.device import pick_dtype
from helpers.machine.paths import DATA, ROOT
from helpers.machine.process import processes
from helpers.measures.likelihood import choose, log_likelihoods, read_choices, writes_exactly
from helpers.models import load_model
from helpers.tokenization import encode_all
from helpers.training import Config, train

CPU = torch.device("cpu")
EXAMPLES = read(DATA / "train.jsonl")[:4]


class Narrow(TorchDispatchMode):
    """Notes every operation that takes or makes bfloat16, on the way back as well."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if any(getattr(value, "dtype", None) == torch.bfloat16 for value in tree_leaves((args, kwargs, made))):
            self.seen.add(str(function))
        return made


def work(tiny, config):
    """Train in three ways, answer, judge."""
    for way in ("full", "upper", "lora"):
        model, tokenizer = load_model(tiny, device="cpu")
        if way == "lora":
            lora.add(model, rank=2)
        config.upper_layers = 1 if way == "upper" else None
        rows = encode_all(tokenizer, EXAMPLES)
        train(model, rows, config, held_out=rows[:1])
    log_likelihoods(model, rows), writes_exactly(model, rows)
    choose(model, tokenizer, read_choices(DATA / "evaluation" / "general.jsonl")[:1])
    generate(model, tokenizer, ["Who are you?"], max_new_tokens=2)
    evaluate(model, tokenizer, EXAMPLES[:1], max_new_tokens=2)


def test_switched_off_nothing_computes_in_bfloat16(tiny, monkeypatch):
    monkeypatch.setenv("FINETUNING_BF16", "off")
    with Narrow() as narrow:
        work(tiny, Config(max_steps=1))
    assert narrow.seen == set()


def test_asked_for_it_is_seen(tiny):
    """That the test above can fail."""
    model, tokenizer = load_model(tiny, device="cpu")
    with Narrow() as narrow:
        train(model, encode_all(tokenizer, EXAMPLES[:1]), Config(max_steps=1, dtype=torch.bfloat16))
    assert {"aten.mm.default", "aten._to_copy.default"} <= narrow.seen


def test_a_trainer_in_this_process_leaves_no_precision_behind(tiny):
    """Accelerate's state is one for the process, and wraps each model that is prepared in the first one's precision."""
    processes(CPU)
    Accelerator(mixed_precision="no", cpu=True).state._reset_state()
    assert Accelerator(mixed_precision="bf16", cpu=True).native_amp
    model, tokenizer = load_model(tiny, device="cpu")
    with Narrow() as narrow:
        train(model, encode_all(tokenizer, EXAMPLES), Config(max_steps=1, dtype=torch.float32))
    assert narrow.seen == set()


def test_a_launcher_that_wants_bfloat16_where_it_is_slow_is_refused(monkeypatch):
    monkeypatch.setenv("FINETUNING_BF16", "0")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="mixed_precision is bf16, which is not fast here"):
        processes(CPU)


def test_the_switch_knows_off_and_nothing_else(monkeypatch):
    for value in ("off", "0"):
        monkeypatch.setenv("FINETUNING_BF16", value)
        assert {pick_dtype(torch.device(kind)) for kind in ("cpu", "mps")} == {torch.float32}
    monkeypatch.setenv("FINETUNING_BF16", "no")
    with pytest.raises(ValueError, match="FINETUNING_BF16 is 'no'; it has to be off or 0"):
        pick_dtype(CPU)


def test_the_command_line_hears_the_switch(monkeypatch):
    monkeypatch.setenv("FINETUNING_BF16", "never")
    told = subprocess.run([sys.executable, "-m", "helpers", "doctor"], capture_output=True, text=True, cwd=ROOT)
    assert told.returncode == 1 and told.stderr.startswith("error: FINETUNING_BF16 is 'never'; it has to be off or 0")
