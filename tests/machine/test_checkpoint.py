"""Checkpoints: a run that is killed goes on as if nothing had happened, and a bad checkpoint says so."""

import copy
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from helpers import lora
from helpers.machine.checkpoint import CheckpointError
from helpers.models import load_model
from helpers.tokenization import Row
from helpers.training import Config, train

ROWS = [Row([5 + i, 7, 9 + i, 11, 13], [-100, -100, 9 + i, 11, 13]) for i in range(24)]
CONFIG = Config(epochs=4, batch_size=4, learning_rate=1e-2, checkpoint_every=2, dtype=torch.float32, seed=3)
PROGRAM = """
import sys, torch
from helpers.models import load_model, save_model
from helpers.tokenization import Row
from helpers.training import Config, train
torch.set_num_threads(1)
rows = [Row([5 + i, 7, 9 + i, 11, 13], [-100, -100, 9 + i, 11, 13]) for i in range(24)]
config = Config(epochs=12, batch_size=4, learning_rate=1e-2, checkpoint_every=3, dtype=torch.float32)
config.evaluate_every, config.patience = 20, 9
model, tokenizer = load_model(sys.argv[1], device="cpu")
train(model, rows, config, held_out=rows[:3], folder=sys.argv[2], on_step=lambda h: print(len(h.steps), flush=True))
save_model(model, tokenizer, sys.argv[3])
"""


def weights_of(model):
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Stop(Exception):
    """Stands for whatever ends a run from outside."""


def stop_at(step):
    def on_step(history):
        if len(history.steps) == step:
            raise Stop

    return on_step


def interrupted(tiny, folder, step=7, config=CONFIG):
    with pytest.raises(Stop):
        train(load_model(tiny, "cpu")[0], ROWS, config, folder=folder, on_step=stop_at(step))


@pytest.mark.parametrize("upper_layers", [None, 1])
def test_resuming_ends_where_an_uninterrupted_run_ends(tiny, tmp_path, upper_layers):
    config = replace(CONFIG, upper_layers=upper_layers)
    whole, _ = load_model(tiny, "cpu")
    expected = train(whole, ROWS, config)
    interrupted(tiny, tmp_path, config=config)
    model, _ = load_model(tiny, "cpu")
    history = train(model, ROWS, config, folder=tmp_path)
    assert history.resumed_at == 6 and same(weights_of(whole), weights_of(model))
    assert [s["loss"] for s in history.steps] == [s["loss"] for s in expected.steps]
    assert history.tokens == expected.tokens
    again, _ = load_model(tiny, "cpu")  # a run that is complete is loaded, not made again
    assert len(train(again, ROWS, config, folder=tmp_path, on_step=stop_at(0)).steps) == 24
    assert same(weights_of(whole), weights_of(again))


def test_killed_again_and_again_it_ends_with_the_same_bits(tiny, tmp_path):
    def start(folder, out):
        command = [sys.executable, "-c", PROGRAM, str(tiny), str(tmp_path / folder), str(tmp_path / out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole = start("whole", "out-whole")
    _, error = whole.communicate()
    assert whole.returncode == 0, error
    rng, kills, steps_seen = random.Random(0), 0, []
    while True:
        process = start("killed", "out-killed")
        first = process.stdout.readline()
        assert first or process.wait() == 0
        steps_seen.append(int(first or 0))
        for _ in range(rng.randrange(4, 12)):  # steps
            process.stdout.readline()
        if kills == 3:
            _, error = process.communicate()
            assert process.returncode == 0, error
            break
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    assert steps_seen[-1] > 1  # it did not start from the beginning each time
    one, other = (load_model(tmp_path / name, "cpu")[0] for name in ("out-whole", "out-killed"))
    assert same(weights_of(one), weights_of(other))


def test_ctrl_c_saves_and_says_where_it_stopped(tiny, tmp_path):
    def press(history):
        if len(history.steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)

    model, _ = load_model(tiny, "cpu")
    usual = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="step 5"):
        train(model, ROWS, replace(CONFIG, checkpoint_every=1000), folder=tmp_path, on_step=press)
    assert signal.getsignal(signal.SIGINT) is usual
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000005.pt"]
    assert not model.training and all(weight.grad is None for weight in model.parameters())
    assert torch.isfinite(model(torch.tensor([ROWS[0].ids])).logits).all()


def test_two_checkpoints_stay(tiny, tmp_path):
    (tmp_path / ".step-0000003.pt.7.partial").write_bytes(b"half")  # of a process that was killed while it wrote
    train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000022.pt", "step-0000024.pt"]


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_a_truncated_checkpoint_is_named_and_the_older_one_serves(tiny, tmp_path, keep):
    interrupted(tiny, tmp_path)
    newest, content = tmp_path / "step-0000006.pt", (tmp_path / "step-0000006.pt").read_bytes()
    newest.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    model, _ = load_model(tiny, "cpu")
    with pytest.raises(CheckpointError, match=r"step-0000006.pt: cannot be read .* Delete it; .* step-0000004.pt"):
        train(model, ROWS, CONFIG, folder=tmp_path)
    newest.unlink()
    assert train(model, ROWS, CONFIG, folder=tmp_path).resumed_at == 4


def test_a_flipped_byte_is_noticed(tiny, tmp_path):
    interrupted(tiny, tmp_path)
    newest = tmp_path / "step-0000006.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0xFF
    newest.write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path)


def test_a_foreign_file_runs_no_code(tiny, tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "broken-in"),))

    torch.save({"run": {}, "progress": Evil()}, tmp_path / "step-0000001.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path)
    assert not (tmp_path / "broken-in").exists()


@pytest.mark.parametrize(
    ("config", "rows", "held_out", "said"),
    [
        (replace(CONFIG, learning_rate=1e-3), ROWS, (), r"learning_rate was 0.01 \(now 0.001\). Set it back"),
        (replace(CONFIG, seed=4), ROWS, (), r"seed was 3 \(now 4\)"),
        (replace(CONFIG, dtype=torch.bfloat16), ROWS, (), r"dtype was torch.float32 \(now torch.bfloat16\)"),
        (CONFIG, ROWS[1:], (), "the training data was different. Give it that data again"),
        (CONFIG, ROWS, ROWS[:1], "the held-out data was different"),
        (replace(CONFIG, upper_layers=1), ROWS, (), r"upper_layers was None \(now 1\)"),
    ],
)
def test_another_run_is_refused(tiny, tmp_path, config, rows, held_out, said):
    interrupted(tiny, tmp_path)
    model, _ = load_model(tiny, "cpu")
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=said):
        train(model, rows, config, held_out, folder=tmp_path)
    assert same(before, weights_of(model))


def test_another_model_is_refused(tiny, tmp_path):
    config = replace(CONFIG, upper_layers=1)
    interrupted(tiny, tmp_path, config=config)
    model, _ = load_model(tiny, "cpu")
    with torch.no_grad():
        weight = model.model.layers[0].mlp.up_proj.weight
        weight.copy_(weight.flip(0))  # the sum stays
    with pytest.raises(CheckpointError, match=r"the model was different\. Load that model anew"):
        train(model, ROWS, config, folder=tmp_path)


def test_a_finetune_that_began_from_other_weights_is_refused_also_when_it_is_complete(tiny, tmp_path):
    """What all of its weights learn is no reason to take another model for this one."""
    train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path)
    other, _ = load_model(tiny, "cpu")
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.copy_(other.model.layers[1].mlp.up_proj.weight)
    before = weights_of(other)
    with pytest.raises(CheckpointError, match=r"the starting weights were different\. Load that model anew"):
        train(other, ROWS, CONFIG, folder=tmp_path)
    assert same(before, weights_of(other))


@pytest.mark.parametrize("changes", [{"alpha": 16}, {"rank": 2}, {"targets": ["q_proj"]}, {"seed": 1}])
def test_other_adapters_are_refused(tiny, tmp_path, changes):
    usual = {"rank": 4, "alpha": 8, "targets": ["q_proj", "v_proj"], "seed": 0}
    for options, resumed_at in ((usual, 0), (usual, 24), ({**usual, **changes}, None)):
        model, _ = load_model(tiny, "cpu")
        lora.add(model, **options)
        if resumed_at is None:
            with pytest.raises(CheckpointError, match="were different" if "seed" in changes else "the model was different"):
                train(model, ROWS, CONFIG, folder=tmp_path)
        else:
            assert train(model, ROWS, CONFIG, folder=tmp_path).resumed_at == resumed_at


@pytest.mark.parametrize("adapters", [False, True])
def test_the_model_that_ctrl_c_leaves_goes_on_and_one_in_between_does_not(tiny, tmp_path, adapters):
    def press(history):
        if len(history.steps) in (4, 9):
            os.kill(os.getpid(), signal.SIGINT)

    model, _ = load_model(tiny, "cpu")
    if adapters:
        lora.add(model, rank=4)
    whole = copy.deepcopy(model)
    train(whole, ROWS, CONFIG)
    for step in (5, 10):  # the second time, the run goes on from weights that are not those it began with
        with pytest.raises(KeyboardInterrupt, match=f"step {step}"):
            train(model, ROWS, CONFIG, folder=tmp_path, on_step=press)
    with pytest.raises(Stop):
        train(model, ROWS, replace(CONFIG, checkpoint_every=1000), folder=tmp_path, on_step=stop_at(12))
    with pytest.raises(CheckpointError, match=r"the starting weights were different\. Load that model anew"):
        train(model, ROWS, CONFIG, folder=tmp_path)
    model, _ = load_model(tiny, "cpu")
    if adapters:
        lora.add(model, rank=4)
    for resumed_at in (10, 24):  # the second time, the run is complete already
        assert train(model, ROWS, CONFIG, folder=tmp_path).resumed_at == resumed_at
        assert same(weights_of(whole), weights_of(model))


def test_the_best_weights_of_a_complete_run_are_given_again(tiny, tmp_path):
    config = replace(CONFIG, epochs=50, evaluate_every=1, patience=2)
    model, _ = load_model(tiny, "cpu")
    other = [Row([5, 7, 9, 20, 30], [-100, -100, -100, 20, 30])]
    first = train(model, ROWS, config, other, folder=tmp_path)
    best = weights_of(model)
    assert first.best_step < len(first.steps) < first.planned_steps
    again, _ = load_model(tiny, "cpu")
    for learner in (model, again):
        assert train(learner, ROWS, config, other, folder=tmp_path).best_step == first.best_step
        assert same(best, weights_of(learner))


@pytest.mark.parametrize("change", [{"checkpoint_every": 50}, {"micro_batch_tokens": 10}, {"gradient_checkpointing": True}])
def test_what_changes_no_result_may_change(tiny, tmp_path, change):
    """Lower micro_batch_tokens is what a lack of memory asks for."""
    interrupted(tiny, tmp_path)
    model, _ = load_model(tiny, "cpu")
    assert train(model, ROWS, replace(CONFIG, **change), folder=tmp_path).resumed_at == 6


def test_a_full_disk_leaves_the_older_checkpoint(tiny, tmp_path):
    """A limit on the size of files stands for the full disk: the write fails halfway through."""
    interrupted(tiny, tmp_path, step=3)
    (older,) = tmp_path.iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (older.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step-0000004.pt: could not be .* Free some space; .*step-0000002.pt is"):
            train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == [older]
    assert train(load_model(tiny, "cpu")[0], ROWS, CONFIG, folder=tmp_path).resumed_at == 2
