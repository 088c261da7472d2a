"""GPUs without bfloat16 compute in float16, with a scale that keeps small gradients. Tried on the CPU, where it is slow."""

import copy
import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_scale import LAUNCH
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import lora, training
from helpers.attention import reads_flat
from helpers.generation import Decoder
from helpers.hardware import measured
from helpers.hardware.estimate import Plan
from helpers.hardware.measured import measure_finetune, usual_precision
from helpers.machine import checkpoint
from helpers.machine.device import pick_dtype
from helpers.machine.process import processes
from helpers.measures.likelihood import log_likelihoods
from helpers.tokenization import Row
from helpers.training import Config, train

CPU = torch.device("cpu")
ROWS = [Row([5 + i, 7, 9 + i, 11, 13], [-100, -100, 9 + i, 11, 13]) for i in range(24)]
CONFIG = Config(epochs=2, batch_size=4, learning_rate=1e-2, micro_batch_tokens=10, dtype=torch.float16)


def small():
    """A random model without a tokenizer, the same each time."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.1, **sizes)).eval()


@pytest.fixture
def large_scale(monkeypatch):
    """A scale at which gradients are too large for float16 at first."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**40))


@pytest.fixture
def moderate_scale(monkeypatch):
    """A scale at which no gradient of these small batches is too large."""
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**10))


@pytest.fixture
def too_wide():
    """A model whose numbers float16 cannot hold, and float32 can."""
    model = small()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.down_proj.weight *= 1e9
    return model


def answers(model, prefix=()):
    """Greedy answers to two prompts, after a beginning that they share."""
    decoder = Decoder(model, SimpleNamespace(eos_token_id=2, pad_token_id=0), prefix=prefix)
    asked = [decoder.add(row.ids, 3) for row in ROWS[:2]]
    while decoder.waiting or decoder.running:
        decoder.step()
    return [answer.tokens for answer in asked]


def losses_of(history):
    return [step["loss"] for step in history.steps]


@pytest.mark.parametrize(
    ("capability", "usual", "without"),
    [
        ((6, 1), torch.float32, torch.float32),  # GTX 1080
        ((7, 0), torch.float16, torch.float16),  # V100
        ((7, 5), torch.float16, torch.float16),  # T4
        ((8, 0), torch.bfloat16, torch.float16),  # A100
        ((9, 0), torch.bfloat16, torch.float16),  # H100
    ],
)
def test_a_gpu_computes_in_what_it_is_fast_at(monkeypatch, capability, usual, without):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.delenv("FINETUNING_BF16", raising=False)
    assert pick_dtype(torch.device("cuda", 0)) == usual
    monkeypatch.setenv("FINETUNING_BF16", "off")
    assert pick_dtype(torch.device("cuda", 0)) == without


@pytest.mark.usefixtures("moderate_scale")
@pytest.mark.parametrize("what", ["all", "upper", "adapters"])
def test_losses_are_those_of_float32(what):
    found = {}
    for dtype in (torch.float32, torch.float16):
        model = small()
        if what == "adapters":
            lora.add(model, rank=4)
        settings = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "upper_layers": 1 if what == "upper" else None}
        history = train(model, ROWS, Config(**settings, dtype=dtype), held_out=ROWS[:3])
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        assert history.skipped == []
        found[dtype] = [*losses_of(history), history.held_out[0]["loss"]]
    assert found[torch.float16] == pytest.approx(found[torch.float32], rel=3e-3)
    assert found[torch.float16] != found[torch.float32]


def test_small_gradients_survive():
    """In float16 without a scale a part of them would be zero."""
    model = small()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight *= 1e-5
    gone = {}
    for scale in (1.0, 2.0**16):
        model.zero_grad()
        with training.flat_attention(model):
            loss = training.token_losses(model, training.flatten(ROWS[:4]), torch.float16).mean()
        (loss * scale).backward()
        gone[scale] = (model.model.layers[0].mlp.up_proj.weight.grad == 0).float().mean().item()
    assert gone[2.0**16] < 0.1 < gone[1.0]


@pytest.mark.usefixtures("large_scale")
def test_a_step_that_overflows_changes_nothing_and_is_told(capsys):
    model = small()
    start, weights = copy.deepcopy(model.state_dict()), []

    def note(history):
        weights.append(copy.deepcopy(model.state_dict()))

    history = train(model, ROWS, Config(epochs=10, batch_size=4, learning_rate=1e-2, dtype=torch.float16), on_step=note)
    count = len(history.skipped)
    assert history.skipped == list(range(1, count + 1)) and 3 < count < 30
    assert all(not math.isfinite(step["gradient_norm"]) for step in history.steps[:count])
    assert all(math.isfinite(step["gradient_norm"]) for step in history.steps[count:])
    assert all(torch.equal(weights[count - 1][name], start[name]) for name in start)
    assert any(not torch.equal(weights[count][name], start[name]) for name in start)
    assert history.steps[-1]["loss"] < 0.9 * history.steps[0]["loss"]
    assert f"{count} steps skipped" in capsys.readouterr().err


@pytest.mark.usefixtures("large_scale")
def test_going_on_from_a_checkpoint_keeps_the_scale(tmp_path):
    config = Config(epochs=8, batch_size=4, learning_rate=1e-2, checkpoint_every=6, dtype=torch.float16)
    whole = small()
    expected = train(whole, ROWS, config)
    assert 6 < len(expected.skipped) < 40

    class Stop(Exception):
        pass

    def stop(history):
        if len(history.steps) == 8:
            raise Stop

    with pytest.raises(Stop):
        train(small(), ROWS, config, folder=tmp_path, on_step=stop)
    model = small()
    history = train(model, ROWS, config, folder=tmp_path)
    assert history.resumed_at == 6
    assert losses_of(history) == losses_of(expected) and history.skipped == expected.skipped
    assert all(torch.equal(weight, whole.state_dict()[name]) for name, weight in model.state_dict().items())


PROGRAM = """
import json, sys, torch
from functools import partial
from accelerate import PartialState
from helpers.tokenization import Row
from helpers.training import Config, train
from test_float16 import small
torch.set_num_threads(1)
torch.amp.GradScaler = partial(torch.amp.GradScaler, init_scale=2.0**34)
rows = [Row([5 + i, 7, 9 + i, 11, 13], [-100, -100, 9 + i, 11, 13][: 3 + i % 3] + [-100] * (2 - i % 3)) for i in range(24)]
config = Config(epochs=6, batch_size=4, learning_rate=1e-2, schedule="constant", micro_batch_tokens=5, dtype=torch.float16)
history = train(small(), rows, config)
if PartialState().is_main_process:
    figures = {"losses": [s["loss"] for s in history.steps], "skipped": history.skipped}
    json.dump({**figures, "processes": PartialState().num_processes}, open(sys.argv[1], "w"))
"""


def test_processes_skip_the_same_steps(tmp_path):
    """One of them overflowing is enough: gradients are averaged, and what is no number stays none."""
    found, program = {}, tmp_path / "program.py"
    program.write_text(PROGRAM)
    for name, launcher in (("one", []), ("two", LAUNCH)):
        command = [sys.executable, *launcher, program, tmp_path / name]
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=here)
        assert done.returncode == 0, done.stderr[-3000:]
        found[name] = json.loads((tmp_path / name).read_text())
    assert (found["one"]["processes"], found["two"]["processes"]) == (1, 2)
    assert len(found["one"]["skipped"]) > 1 and abs(len(found["one"]["skipped"]) - len(found["two"]["skipped"])) <= 2
    assert found["two"]["losses"][0] == pytest.approx(found["one"]["losses"][0], rel=1e-3)
    assert found["two"]["losses"][-1] < 0.9 * found["two"]["losses"][0]


def test_a_model_that_float16_cannot_hold_is_trained_in_float32(too_wide, monkeypatch, capsys):
    monkeypatch.setattr(training, "pick_dtype", lambda device: torch.float16)
    config = Config(max_steps=2, learning_rate=1e-5)
    wide = copy.deepcopy(too_wide)
    found = losses_of(train(too_wide, ROWS, config))
    assert capsys.readouterr().out.startswith("float16 cannot hold this model's numbers; it is trained in float32")
    assert found == losses_of(train(wide, ROWS, Config(max_steps=2, learning_rate=1e-5, dtype=torch.float32)))
    with pytest.raises(FloatingPointError, match=r"nan at step 1.* does not fit into float16: set dtype=torch.float32"):
        train(wide, ROWS, Config(dtype=torch.float16))


def test_a_model_that_fits_is_trained_in_it(monkeypatch, capsys):
    monkeypatch.setattr(training, "pick_dtype", lambda device: torch.float16)
    model = small()
    assert reads_flat(model)  # tried in float32, as any model is
    model.register_forward_hook(lambda module, inputs, output: kinds.add(output.logits.dtype))
    kinds = set()
    train(model, ROWS, Config(max_steps=1))
    assert kinds == {torch.float16} and capsys.readouterr().out == ""


def test_answers_that_float16_cannot_hold_are_refused(too_wide):
    answers(too_wide)
    with pytest.raises(FloatingPointError, match=r"held in float16, use model.float\(\)"):
        answers(copy.deepcopy(too_wide).to(torch.float16))
    with pytest.raises(FloatingPointError, match=r"in float16, use dtype=torch.float32"):
        log_likelihoods(too_wide, ROWS[:2], torch.float16)


def test_scores_beyond_float16_are_scaled_first():
    """The products of queries and keys are large before they are scaled; their shares are not."""
    model = small()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 900
            layer.self_attn.k_proj.weight *= 900
            layer.self_attn.scaling = 1e-6
    exact = log_likelihoods(model, ROWS, torch.float32)
    assert log_likelihoods(model, ROWS, torch.float16) == pytest.approx(exact, rel=5e-3)
    half = copy.deepcopy(model).to(torch.float16)
    assert log_likelihoods(half, ROWS, torch.float32) == pytest.approx(exact, rel=5e-3)
    assert answers(half, prefix=[5, 6, 7] * 5) == answers(model, prefix=[5, 6, 7] * 5)


def test_a_launcher_leaves_float16_to_the_loop(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match=r'mixed_precision is fp16; .* Put "no" into its configuration'):
        processes(CPU)


def test_the_estimate_counts_16_bits_of_either_kind(monkeypatch):
    monkeypatch.setattr(measured, "pick_dtype", lambda device: torch.float16)
    assert usual_precision(CPU) == "mixed"
    with pytest.raises(ValueError, match=r"bfloat16, which is not fast here. Measure precision='mixed'"):
        measure_finetune("embedded", Plan(precision="bfloat16"))


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    train(small(), ROWS, CONFIG, folder=tmp_path)
    other = Config(epochs=2, batch_size=4, learning_rate=1e-2, dtype=torch.float32)
    with pytest.raises(checkpoint.CheckpointError, match=r"dtype was torch.float16 \(now torch.float32\)"):
        train(small(), ROWS, other, folder=tmp_path)
