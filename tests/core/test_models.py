import shutil
import subprocess
import sys

import pytest
import torch

from helpers.machine.device import pick_dtype
from helpers.machine.files import OutputError
from helpers.machine.loading import ModelError
from helpers.models import load_model, save_model, served_copy


def test_importing_helpers_is_instant_and_loads_no_framework():
    code = "import sys, time; t = time.perf_counter(); import helpers; print(time.perf_counter() - t, 'torch' in sys.modules)"
    seconds, torch_loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 0.2 and torch_loaded == "False"


def test_the_embedded_model_is_whole(embedded):
    model, tokenizer = embedded
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert not model.training and tokenizer.pad_token is not None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_device_and_precision_can_be_chosen(tiny, monkeypatch):
    monkeypatch.delenv("FINETUNING_BF16", raising=False)
    assert load_model(tiny, device="cpu")[0].device.type == "cpu"
    assert {weight.dtype for weight in load_model(tiny, dtype=torch.bfloat16)[0].parameters()} == {torch.bfloat16}
    assert pick_dtype(torch.device("mps")) == torch.float32
    capable = torch.cpu.get_capabilities()
    fast = any(capable.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    assert pick_dtype(torch.device("cpu")) == (torch.bfloat16 if fast else torch.float32)


def break_config(folder):
    (folder / "config.json").unlink()


def break_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def lose_weights(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def test_a_served_copy_rounds_the_weights_and_not_the_positions(tiny, monkeypatch):
    """`model.to` rounds both, which would show far into a prompt."""
    model, _ = load_model(tiny)
    monkeypatch.setattr("helpers.models.pick_dtype", lambda device: torch.bfloat16)
    served, loaded = served_copy(model), load_model(tiny, dtype=torch.bfloat16)[0]
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert {weight.dtype for weight in served.parameters()} == {torch.bfloat16}
    assert served.lm_head.weight is served.model.embed_tokens.weight
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(model.buffers(), served.buffers(), strict=True))
    ids = torch.arange(100, 200)[None]
    assert torch.equal(served(ids).logits, loaded(ids).logits)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "no config.json"),
        (break_weights, "cannot be read as a model"),
        (lose_weights, "1 weights are missing, such as model.layers.1.mlp.up_proj.weight"),
        (lose_tokenizer, "no tokenizer"),
    ],
)
def test_half_a_model_is_refused_in_one_line(tiny, tmp_path, damage, said):
    folder = tmp_path / "half"
    shutil.copytree(tiny, folder)
    damage(folder)
    with pytest.raises(ModelError, match=said) as error:
        load_model(folder)
    assert "\n" not in str(error.value) and "again" in str(error.value)


def test_save_replaces_a_model_and_nothing_else(tiny, tmp_path):
    model, tokenizer = load_model(tiny, device="cpu")
    folder = save_model(model, tokenizer, tmp_path / "deep" / "mine")
    with torch.no_grad():
        model.model.norm.weight += 1
    save_model(model, tokenizer, folder)
    again, _ = load_model(folder, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    (tmp_path / "thesis.txt").write_text("my only copy")
    with pytest.raises(OutputError, match="holds something that is not a model"):
        save_model(model, tokenizer, tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_an_interrupted_save_leaves_the_older_model(tiny, tmp_path, monkeypatch):
    model, tokenizer = load_model(tiny, device="cpu")
    folder = save_model(model, tokenizer, tmp_path / "mine")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tokenizer), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(model, tokenizer, folder)
    monkeypatch.undo()
    load_model(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
