"""Checkpoints: a run that is killed goes on as if nothing had happened, and a bad checkpoint says so."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from helpers.checkpoint import CheckpointError
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
config = Config(epochs=25, batch_size=4, learning_rate=1e-2, checkpoint_every=3, dtype=torch.float32)
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
        time.sleep(rng.uniform(0, 0.25))
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
        (replace(CONFIG, learning_rate=1e-3), ROWS, (), "learning_rate was different"),
        (replace(CONFIG, seed=4), ROWS, (), "seed was different"),
        (CONFIG, ROWS[1:], (), "the training data was different"),
        (CONFIG, ROWS, ROWS[:1], "the held-out data was different"),
        (replace(CONFIG, upper_layers=1), ROWS, (), "upper_layers was different"),
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
        model.model.layers[0].mlp.up_proj.weight += 1
    with pytest.raises(CheckpointError, match="the model was different"):
        train(model, ROWS, config, folder=tmp_path)


def test_how_often_checkpoints_are_written_may_change(tiny, tmp_path):
    interrupted(tiny, tmp_path)
    model, _ = load_model(tiny, "cpu")
    assert train(model, ROWS, replace(CONFIG, checkpoint_every=50), folder=tmp_path).resumed_at == 6


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
