"""What cannot be written is told before anything slow begins; what is there is not replaced unasked."""

import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

import helpers.__main__ as command_line
from helpers import lora, models
from helpers.machine.checkpoint import KEPT, disk_needed
from helpers.machine.files import OutputError, check_apart, check_disk, check_file, check_folder, check_model_folder
from helpers.serving.export import write_gguf
from helpers.workshop.notebooks import run_notebooks


def call(*arguments):
    args = command_line.parser().parse_args([str(argument) for argument in arguments])
    return args.function(args)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Files and folders in the way, rows to train on, and no model: whoever loads one has come too far."""

    def too_far(*_, **__):
        raise AssertionError("a model was loaded before its output was checked")

    for name in ("load_model", "find_model"):
        monkeypatch.setattr(models, name, too_far)
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
    monkeypatch.setattr(lora, "load_model", lambda *names: loaded.append(names) or real(*names))
    arguments = ("train", "--data", rows, "--model", tiny, "--output", tmp_path / "deep" / "new")
    with pytest.raises(OutputError, match=r"the finetuned model takes .* GB, and 0.0 GB are free"):
        call(*arguments)
    assert not loaded
    model = real(tiny)[0]
    weights = sum(weight.numel() for weight in model.parameters())
    assert disk_needed(model, 1000, 100) == 4 * weights * (1 + 3 * (KEPT + 1)) and disk_needed(model, 9, 0) == 4 * weights
    free["bytes"] = disk_needed(model, 3, 100) - 1
    with pytest.raises(OutputError, match="the model with its checkpoints"):
        call(*arguments)
    assert loaded and not (tmp_path / "deep").exists()
    check_disk(tmp_path, free["bytes"], "it")


def test_an_existing_model_is_replaced_when_asked_and_a_killed_run_goes_on(tiny, tmp_path):
    rows, output = tmp_path / "rows.csv", tmp_path / "mine"
    rows.write_text("question,answer\nWhat?,That.\n")
    arguments = ("train", "--data", rows, "--model", tiny, "--output", output, "--epochs", 1, "--learning-rate", 1e-4)
    assert call(*arguments) == 0
    with pytest.raises(OutputError, match="there is a model already"):
        call(*arguments)
    kept, real = tmp_path / "mine-checkpoints", shutil.rmtree
    with pytest.MonkeyPatch.context() as patch:  # as if killed between the saving of the model and the end
        patch.setattr(shutil, "rmtree", lambda path, **options: None if Path(path) == kept else real(path, **options))
        assert call(*arguments, "--overwrite") == 0
    assert any(kept.iterdir()) and call(*arguments) == 0 and not kept.exists()
