"""What cannot be written is told before anything slow begins; what is there is not replaced unasked."""

import json
import os
import shutil
from collections import namedtuple

import pytest
import torch

import helpers.__main__ as command_line
from helpers import lora, models
from helpers.machine import hub
from helpers.machine.checkpoint import KEPT, disk_needed
from helpers.machine.files import (
    OutputError,
    check_apart,
    check_disk,
    check_file,
    check_folder,
    check_model_folder,
    replace_folder,
    write_json,
    written_aside,
)
from helpers.models import save_model
from helpers.serving.export import write_gguf
from helpers.tokenization import Row
from helpers.training import Config, train
from helpers.workshop.notebooks import run_notebooks


def call(*arguments):
    args = command_line.parser().parse_args([str(argument) for argument in arguments])
    return args.function(args)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Files and folders in the way, rows to train on, and no model: whoever loads one has come too far."""

    def too_far(*_, **__):
        raise AssertionError("a model was loaded before its output was checked")

    monkeypatch.setattr(models, "load_model", too_far)
    monkeypatch.setattr(hub, "find_model", too_far)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "rows.csv").write_text("question,answer\nWhat?,That.\n")
    for name in ("full/thesis.txt", "model/config.json", "adapter/adapter_config.json", "killed/config.json"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--output", "file"], "there is a file of this name"),
        (["--output", "file/model"], "file is not a folder"),
        (["--output", "full"], "holds other things, and no config.json"),
        (["--output", "full", "--overwrite"], "holds other things, and no config.json"),
        (["--output", "model"], "add --overwrite"),
        (["--output", "adapter", "--lora-rank", 4], "add --overwrite"),
        (["--output", "model", "--lora-rank", 4, "--overwrite"], "no adapter_config.json"),
        (["--output", "adapter", "--overwrite"], "no config.json"),
        (["--output", "new", "--json", "full"], "--json full: is a folder"),
        (["--output", "new", "--json", "file/figures.json"], "file is not a folder"),
        (["--output", "new", "--tensorboard", "file"], "file is not a folder"),
        (["--output", "new", "--tensorboard", "new/logs"], "lies in new, which is replaced"),
        (["--output", "new", "--json", "new"], "lies in new, which is replaced"),
    ],
)
def test_train_checks_its_output_before_it_loads_a_model(places, monkeypatch, arguments, said):
    monkeypatch.chdir(places)
    with pytest.raises(OutputError, match=said):
        call("train", "--data", "rows.csv", *arguments)
    assert (places / "file").read_text() == "mine" and not (places / "new").exists()


@pytest.mark.parametrize("option", ["--json", "--report"])
def test_evaluate_checks_its_output_before_it_loads_a_model(places, option):
    with pytest.raises(OutputError, match="is not a folder"):
        call("evaluate", "--data", places / "rows.csv", option, places / "file" / "out")


def test_run_and_export_check_their_output_before_they_begin(places, embedded):
    with pytest.raises(OutputError, match=r"--out .*file is not a folder"):
        run_notebooks(["01"], places / "file", {}, False)
    with pytest.raises(OutputError, match="is a folder"):
        write_gguf(*embedded, places / "full")


def test_what_may_be_replaced_is_let_through(places):
    check_model_folder(places / "model", "--output", "config.json", overwrite=True)
    check_model_folder(places / "deep" / "new", "--output", "config.json", overwrite=False)
    check_file(places / "file", "--json")
    check_file(None, "--json")
    check_folder(places / "full", "--out")
    check_apart(places / "model", {"--data": "owner/name", "--json": None, "--tensorboard": places / "model-logs"})


def test_a_folder_without_the_right_to_write_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    for check in (check_file, check_folder):
        with pytest.raises(OutputError, match=r"nothing can be written in .*change its rights"):
            check(tmp_path / "new", "--json")


def test_a_full_disk_is_told_before_the_model_is_loaded_and_exactly_before_it_is_trained(tiny, tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("question,answer\nWhat?,That.\n")
    free, usage = {"bytes": 1000}, namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, free["bytes"]))
    real, loaded = models.load_model, []
    monkeypatch.setattr(models, "load_model", lambda *names: loaded.append(names) or real(*names))
    arguments = ("train", "--data", rows, "--model", tiny, "--output", tmp_path / "deep" / "new")
    with pytest.raises(OutputError, match=r"the finetuned model takes .* GB, and 0.0 GB are free"):
        call(*arguments)
    assert not loaded
    model = real(tiny)[0]
    free["bytes"] = disk_needed(model, 3, 100, torch.float32) - 1
    with pytest.raises(OutputError, match="the model with its checkpoints"):
        call(*arguments)
    assert loaded and not (tmp_path / "deep").exists()
    check_disk(tmp_path, free["bytes"], "it")
    assert call(*arguments, "--dtype", "bfloat16") == 0  # in 16 bits there is room


@pytest.mark.parametrize("adapters", [False, True])
def test_the_disk_that_is_asked_for_is_the_disk_that_is_filled(tiny, tmp_path, adapters):
    """A model that came in 16 bits is saved in 16 bits; its checkpoints hold float32, and so does an adapter."""
    save_model(*models.load_model(tiny, "cpu"), tmp_path / "half", torch.bfloat16)
    model, tokenizer = models.load_model(tmp_path / "half", "cpu")
    if adapters:
        lora.add(model, rank=16)
    wanted = {every: disk_needed(model, 3, every, models.saved_precision(model)) for every in (0, 1)}
    train(model, [Row([5, 7, 9], [-100, 7, 9])], Config(epochs=3, checkpoint_every=1), folder=tmp_path / "checkpoints")
    saved = lora.save(model, tmp_path / "saved") if adapters else save_model(model, tokenizer, tmp_path / "saved")
    (size,) = (path.stat().st_size for path in saved.glob("*.safetensors"))
    assert size == pytest.approx(wanted[0], rel=0.05)  # names and shapes take some
    kept = [path.stat().st_size for path in (tmp_path / "checkpoints").iterdir()]
    several = sum(kept) * (KEPT + 1) / KEPT + size
    assert len(kept) == KEPT and several == pytest.approx(wanted[1], rel=0.15 if adapters else 0.05)


def test_an_existing_model_is_replaced_when_asked_and_a_killed_run_goes_on(tiny, tmp_path):
    rows, output = tmp_path / "rows.csv", tmp_path / "mine"
    rows.write_text("question,answer\nWhat?,That.\n")
    arguments = ("train", "--data", rows, "--model", tiny, "--output", output, "--epochs", 1, "--learning-rate", 1e-4)
    assert call(*arguments) == 0
    with pytest.raises(OutputError, match="there is a model already"):
        call(*arguments)
    kept = tmp_path / "mine-checkpoints"
    with pytest.MonkeyPatch.context() as patch:  # as if killed between the saving of the model and the end
        patch.setattr("helpers.recipe.discard_checkpoints", lambda folder: None)
        assert call(*arguments, "--overwrite") == 0
    assert any(kept.iterdir()) and call(*arguments) == 0 and not kept.exists()


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"loss": 1.5})
    with pytest.raises(KeyboardInterrupt), written_aside(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"loss": 1.5} and [file.name for file in path.parent.iterdir()] == ["figures.json"]


def test_of_a_link_the_file_is_replaced_and_a_pipe_is_written_to(tmp_path):
    (tmp_path / "kept").mkdir()
    link, pipe = tmp_path / "link.json", tmp_path / "pipe"
    link.symlink_to(tmp_path / "kept" / "figures.json")
    write_json(link, [1])
    assert link.is_symlink() and (tmp_path / "kept" / "figures.json").read_text() == "[\n 1\n]"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_json(pipe, [1])
    assert os.read(reader, 99) == b"[\n 1\n]" and pipe.is_fifo()
    os.close(reader)


def test_a_folder_is_replaced_as_a_whole_and_others_may_read_it(tmp_path):
    for content in ("old", "new"):
        with replace_folder(tmp_path / "mine", "config.json") as partial:
            assert not any(partial.iterdir())
            (partial / "config.json").write_text(content)
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "mine", "config.json"):
        raise KeyboardInterrupt
    assert (tmp_path / "mine" / "config.json").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "plain").stat().st_mode
