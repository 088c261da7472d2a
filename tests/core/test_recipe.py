"""The recipe: rows become a finetuned folder, the same by every road."""

import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import lora
from helpers.__main__ import main
from helpers.data import Example, write
from helpers.machine.files import OutputError, write_json
from helpers.models import load_model, open_model
from helpers.recipe import finetune
from helpers.serving.jobs import work
from helpers.training import Config

EXAMPLES = [Example(f"What is number {i}?", f"It is {i * 7}.") for i in range(10)]
CONFIG = Config(epochs=2, batch_size=4, learning_rate=1e-3, checkpoint_every=2, dtype=torch.float32)


def run(tiny, folder, rank=0, **options):
    """Finetune a small model on EXAMPLES; return what the run did."""

    def open_learner():
        model, tokenizer = load_model(tiny, "cpu")
        if rank:
            lora.add(model, rank)
        return model, tokenizer

    return finetune(EXAMPLES, open_learner, folder / "model", CONFIG, folder / "checkpoints", **options)


def test_a_model_is_trained_checkpointed_and_saved(tiny, tmp_path):
    kept = []
    history = run(tiny, tmp_path, held_out=0.2, on_step=lambda _: kept.extend((tmp_path / "checkpoints").glob("step-*.pt")))
    assert history.rows == 16 and len(history.steps) == 4 and [entry["step"] for entry in history.held_out] == [4]
    assert kept and [path.name for path in tmp_path.iterdir()] == ["model"]  # the run is complete
    before, after = load_model(tiny, "cpu")[0], load_model(tmp_path / "model", "cpu")[0]
    assert not torch.equal(before.model.norm.weight, after.model.norm.weight)


def test_what_else_lies_beside_the_checkpoints_stays(tiny, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "my-own-weights.pt").write_bytes(b"mine")
    run(tiny, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["my-own-weights.pt"]


def test_an_adapter_is_saved_alone_and_what_is_asked_before_is_what_is_saved(tiny, tmp_path):
    seen = {}
    run(tiny, tmp_path, rank=2, resumable=False, before_saving=lambda model, _: seen.update(model.state_dict()))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for name, tensor in load_file(tmp_path / "model" / "adapter_model.safetensors").items():
        assert torch.equal(tensor, seen[name.removeprefix("base_model.model.")]), name


def test_a_run_that_broke_off_goes_on(tiny, tmp_path):
    whole = run(tiny, tmp_path / "whole")

    def stop(history):
        if len(history.steps) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny, tmp_path / "killed", on_step=stop)
    assert not (tmp_path / "killed" / "model").exists()
    resumed = run(tiny, tmp_path / "killed")
    assert resumed.resumed_at == 2 and [s["loss"] for s in resumed.steps] == [s["loss"] for s in whole.steps]
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(weight, other[name]) for name, weight in one.items())


def test_a_full_disk_is_told_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(OutputError, match=r"the model with its checkpoints takes .* GB, and 0\.0 GB are free"):
        run(tiny, tmp_path, on_step=lambda _: pytest.fail("it trained"))


def test_the_command_line_and_a_job_train_the_same(tiny, tmp_path, monkeypatch):
    """Given the same rows and settings, they write the same adapter, bit for bit."""
    write(tmp_path / "data" / "rows.jsonl", EXAMPLES)
    job = {"job_id": "1", "custom_model_name": None, "base_model_name": "tiny", "base_path": str(tiny), "dataset_id": "rows"}
    asked = {"r_value": 2, "num_train_epochs": 2, "learning_rate": 4e-4}
    folder = tmp_path / "jobs" / "1"
    folder.mkdir(parents=True)
    write_json(folder / "job.json", {**job, "finetune_args": asked})
    work(folder, lambda **changes: None)
    command = ["helpers", "train", "--data", tmp_path / "data" / "rows.jsonl", "--model", tiny, "--output", tmp_path / "mine"]
    command += ["--lora-rank", 2, "--epochs", 2]
    monkeypatch.setattr("sys.argv", [str(part) for part in command])
    assert main() == 0
    one, other = (load_file(place / "adapter_model.safetensors") for place in (folder / "model", tmp_path / "mine"))
    assert one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert len(json.loads((folder / "evaluation.json").read_text())) == 8
    opened, _ = open_model(tmp_path / "mine")
    assert not lora.layers(opened) and opened.config.name_or_path == str(tmp_path / "mine")
