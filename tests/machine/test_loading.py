"""What cannot be finetuned is refused in one line, with a remedy; what can be is saved in the precision it came in."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from helpers import lora
from helpers.__main__ import main, open_learner
from helpers.machine.loading import ModelError
from helpers.models import load_model, open_model, save_model

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
USUAL = {"vocab_size": 64, **SIZES, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]


def tokenizer_of(words=WORDS, **special):
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=made, **{k: v for k, v in named.items() if v})


def make(folder, kind="llama", model_class=AutoModelForCausalLM, tokenizer=None, dtype=torch.float32, **more):
    """Save a small random model of transformers' own class, and a tokenizer, as plain transformers do."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**USUAL, **more})
    build = model_class.from_config if hasattr(model_class, "from_config") else model_class
    build(config).to(dtype).save_pretrained(folder)
    (tokenizer or tokenizer_of()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "good")


@pytest.fixture
def folder(good, tmp_path):
    """A whole model, to be spoilt."""
    return shutil.copytree(good, tmp_path / "mine")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(name):
    """Load what cannot be loaded; return the one line that says why."""
    with pytest.raises(ModelError) as error:
        load_model(name, "cpu")
    said = str(error.value)
    assert "\n" not in said and said.startswith(f"{name}: ")
    return said


def test_a_good_one_loads_and_is_quiet(good, capfd):
    model, tokenizer = load_model(good, "cpu")
    assert model.dtype == torch.float32 == model.stored_dtype and tokenizer.eos_token == "</s>"
    assert capfd.readouterr() == ("", "")


BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
T5 = {"d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4, "d_kv": 8}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28}


@pytest.mark.parametrize(
    ("kind", "model_class", "more", "said"),
    [
        ("bert", transformers.BertForMaskedLM, {}, "bert is an encoder"),
        ("roberta", transformers.AutoModelForMaskedLM, {}, "roberta is an encoder"),
        ("t5", transformers.AutoModelForSeq2SeqLM, T5, "t5 is an encoder with a decoder"),
        ("bart", transformers.AutoModelForSeq2SeqLM, BART, "bart is an encoder with a decoder"),
        ("vit", transformers.AutoModelForImageClassification, VISION, "vit is not a model that writes text"),
        ("llama", transformers.AutoModelForSequenceClassification, {}, "LlamaForSequenceClassification has another head"),
        ("gpt2", transformers.GPT2ForTokenClassification, {"n_embd": 32, "n_layer": 1, "n_head": 4}, "has another head"),
        ("llama", transformers.AutoModel, {}, "1 weights are missing, such as lm_head.weight"),
    ],
)
def test_models_of_another_kind(tmp_path, kind, model_class, more, said):
    assert said in refused(make(tmp_path / "mine", kind, model_class, **more))


def test_a_decoder_made_of_an_encoder_is_one(tmp_path):
    load_model(make(tmp_path / "mine", "bert", transformers.BertLMHeadModel, is_decoder=True), "cpu")


def test_a_model_that_sees_is_refused_where_its_text_part_is_not_one_of_its_own(tmp_path):
    text = {**USUAL, "head_dim": 8}
    vision = {**VISION, "patch_size": 14}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    transformers.Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "mine")
    tokenizer_of().save_pretrained(tmp_path / "mine")
    assert "gemma3 works with pictures or sound" in refused(tmp_path / "mine")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        *(
            ("quantization_config", {"quant_method": how}, rf"is quantised \({how}\)")
            for how in ("gptq", "awq", "fp8", "newest")
        ),
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}, r"is quantised \(bitsandbytes\)"),
        ("compression_config", {"quant_method": "compressed-tensors"}, r"is quantised \(compressed-tensors\)"),
        ("quantization", {"bits": 4, "group_size": 64}, "is quantised .*Take the model that it was made of"),
        ("model_type", "llama9", r"transformers [\d.]+ does not know llama9"),
        ("model_type", None, "names no model_type"),
        ("vocab_size", 60, r"weights have other shapes than config.json says, such as .*: \[64, 32\] and not \[60, 32\]"),
    ],
)
def test_what_config_json_says(folder, field, value, said):
    edit(folder / "config.json", **{field: value})
    assert re.search(said, refused(folder))


def test_code_of_its_own_is_not_run(folder):
    """Neither where transformers does not know the model, nor where its code would replace a model that it knows."""
    (folder / "theirs.py").write_text("raise SystemExit('it was run')")
    edit(folder / "config.json", auto_map={"AutoModelForCausalLM": "theirs.Mine"}, architectures=["Mine"])
    assert "code of its own" in refused(folder)
    edit(folder / "config.json", architectures=["LlamaForCausalLM"])  # transformers has the very class
    load_model(folder, "cpu")
    edit(folder / "config.json", model_type="theirs")
    assert "theirs comes with code of its own" in refused(folder)


def write(folder, name, content=b"x"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())


def shards(folder):
    tensors = load_file(folder / "model.safetensors")
    first = next(iter(tensors))
    save_file(tensors, folder / "model-00001-of-00002.safetensors", metadata={"format": "pt"})
    weight_map = {name: f"model-0000{2 if name == first else 1}-of-00002.safetensors" for name in tensors}
    write(folder, "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors").unlink()


def several(folder):
    files = list(folder.iterdir())
    for name in ("checkpoint-1", "checkpoint-2"):
        (folder / name).mkdir()
        for path in files:
            shutil.copy(path, folder / name)
    (folder / "config.json").unlink()


def spoil(folder, value):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def rename(folder, old, new):
    (folder / old).rename(folder / new)


SPOILT = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \*.safetensors in it"),
    "GGUF only": (lambda f: rename(f, "model.safetensors", "model.gguf"), "GGUF, which is for answering"),
    "other names": (lambda f: rename(f, "model.safetensors", "consolidated.safetensors"), "but neither model.safetensors nor"),
    "a shard missing": (shards, "1 of 2 files of weights are missing: model-00002-of-00002.safetensors"),
    "pointers": (
        lambda f: write(f, "model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "model.safetensors is only Git LFS's pointer to that file. Fetch it: git -C .* lfs pull",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer \(tokenizer.json\)"),
    "an adapter beside it": (lambda f: write(f, "adapter_config.json", {}), "holds a model and an adapter"),
    "several": (several, "2 of the folders in it may be. Name one, such as .*checkpoint-2"),
    "pictures": (lambda f: write(f, "model_index.json", {}), "makes pictures"),
    "broken config": (lambda f: write(f, "config.json", b"{"), "names no model_type"),
    "not a number": (lambda f: spoil(f, float("nan")), "model.layers.1.mlp.up_proj.weight holds what is not a number"),
    "infinite": (lambda f: spoil(f, float("-inf")), "holds what is not a number"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_in_the_folder(folder, name):
    damage, said = SPOILT[name]
    damage(folder)
    assert re.search(said, refused(folder))


def test_files_in_place_of_folders(folder):
    (folder / "small.gguf").write_bytes(b"GGUF")
    assert "is a file, and a model is a folder" in refused(folder / "small.gguf")
    assert "Name its folder" in refused(folder / "model.safetensors")


def test_a_tokenizer_without_an_end(folder):
    tokenizer_of(eos_token=None).save_pretrained(folder)
    said = refused(folder)
    assert 'Write "eos_token": "</s>" into' in said
    edit(folder / "tokenizer_config.json", eos_token="</s>")  # as it says
    assert load_model(folder, "cpu")[1].eos_token_id == 2


def test_a_tokenizer_that_needs_more_than_is_here(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"of sentencepiece")
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")
    assert "pip install sentencepiece tiktoken" in refused(folder)
    edit(folder / "tokenizer_config.json", tokenizer_class="Theirs", auto_map={"AutoTokenizer": ["theirs.Theirs", None]})
    assert "code of its own" in refused(folder)


def test_padding_that_has_no_row_is_not_used(folder):
    tokenizer_of(pad_token="<more>").save_pretrained(folder)
    assert load_model(folder, "cpu")[1].pad_token == "</s>"


def test_a_tokenizer_larger_than_the_embedding(folder):
    """Refused where its tokens are in use; the remedy works. A token that no text has, as Gemma's for pictures, may stay."""
    larger = tokenizer_of()
    larger.add_special_tokens({"additional_special_tokens": ["<picture>"]})
    larger.save_pretrained(folder)
    load_model(folder, "cpu")
    tokenizer_of([*WORDS, "one", "more"]).save_pretrained(folder)
    assert "has 66 tokens, and its embedding only 64 rows" in refused(folder)
    larger.chat_template = "{% for m in messages %}<picture>{{ m['content'] }}{% endfor %}"
    larger.save_pretrained(folder)
    model, tokenizer = load_model(mended(refused(folder)), "cpu")
    assert model.get_input_embeddings().weight.shape[0] == 65 == len(tokenizer)


def mended(said):
    """Do what the line says, as a user would; return the new folder that it names."""
    command, _, new = said[said.index("python -c") :].rpartition(" and then --model ")
    python, option, code = shlex.split(command)
    assert (python, option) == ("python", "-c")
    exec(code, {})
    return new


def test_weights_that_may_carry_code_are_converted(folder):
    before = load_file(folder / "model.safetensors")
    torch.save(before, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    said = refused(folder)
    assert "has its weights as *.bin only" in said
    model, _ = load_model(mended(said), "cpu")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_weights_left_out_are_told(folder, capsys):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "value_head.weight": torch.ones(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    load_model(folder, "cpu")
    assert "left out 1 weights that its model does not have, such as value_head.weight" in capsys.readouterr().err


def test_the_text_part_of_a_model_that_sees(tmp_path, capsys):
    text = {**USUAL, "head_dim": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "num_hidden_layers": 4}
    vision = {**VISION, "patch_size": 14, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    config = transformers.Llama4Config(text_config=text, vision_config=vision)
    whole = transformers.Llama4ForConditionalGeneration(config)
    whole.save_pretrained(tmp_path / "mine")
    tokenizer_of().save_pretrained(tmp_path / "mine")
    model, tokenizer = load_model(tmp_path / "mine", "cpu")
    assert "only the part that reads text is loaded" in capsys.readouterr().err
    weights = whole.language_model.state_dict()
    assert model.config.model_type == "llama4_text" and set(model.state_dict()) == set(weights)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    save_model(model, tokenizer, tmp_path / "saved")
    again, _ = load_model(tmp_path / "saved", "cpu")
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())


# Precision


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_saved_in_the_precision_they_came_in(tmp_path, dtype, tied):
    folder = make(tmp_path / "mine", dtype=dtype, tie_word_embeddings=tied)
    model, tokenizer = load_model(folder, "cpu")
    assert model.dtype == torch.float32 and model.stored_dtype == dtype
    model.model.norm.weight.data += 1e-4  # less than a step of bfloat16 and float16 at 1
    model.model.norm.weight.data[0] += 0.5
    kept = {name: weight.clone() for name, weight in model.state_dict().items()}
    save_model(model, tokenizer, tmp_path / "saved")
    there, came = (load_file(place / "model.safetensors") for place in (tmp_path / "saved", folder))
    assert set(there) == set(came) and {value.dtype for value in there.values()} == {dtype}
    assert all(torch.equal(there[name], kept[name].to(dtype)) for name in there)
    assert json.loads((tmp_path / "saved/config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())  # the model goes on as it was
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert plain.dtype == dtype and plain.config.tie_word_embeddings == tied
    save_model(model, tokenizer, tmp_path / "saved", torch.float32)
    assert all(torch.equal(value, kept[name]) for name, value in load_file(tmp_path / "saved/model.safetensors").items())


# Adapters, where a model is wanted


@pytest.fixture
def adapter(good, tmp_path):
    """An adapter that has learnt something."""
    model, _ = load_model(good, "cpu")
    lora.add(model, rank=2, alpha=6, targets=["q_proj", "up_proj"])
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight)
    return lora.save(model, tmp_path / "adapter")


def test_an_adapter_where_a_model_is_wanted(adapter):
    assert f"Merge it into its base: python -m helpers merge --model {adapter} --output {adapter}-merged" in refused(adapter)


def run(monkeypatch, capsys, *arguments):
    """Type a command; return its exit code, what it said and its line on standard error."""
    monkeypatch.setattr(sys, "argv", ["helpers", *map(str, arguments)])
    code = main()
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def train(monkeypatch, capsys, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"w{i} w5", "answer": f"w{i + 1} w7"}) + "\n" for i in range(8)))
    usual = ("--data", rows, "--max-steps", 2, "--checkpoint-every", 0)
    return lambda *arguments: run(monkeypatch, capsys, "train", *usual, *arguments)


def test_an_adapter_learns_on(good, adapter, tmp_path, train):
    further = tmp_path / "further"
    for options in ([], ["--lora-rank", 2, "--lora-alpha", 6, "--lora-targets", "up_proj,q_proj"]):
        code, _, said = train("--model", adapter, "--output", further, "--overwrite", *options)
        assert code == 0, said
        then, now = (load_file(place / "adapter_model.safetensors") for place in (adapter, further))
        assert set(then) == set(now) and all(not torch.equal(then[name], now[name]) for name in then)
        config = json.loads((further / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (2, 6, str(good))


def test_another_adapter_than_the_one_named_is_refused_and_the_remedy_works(adapter, tmp_path, train, monkeypatch, capsys):
    for options in (["--lora-rank", 4], ["--lora-targets", "q_proj"], ["--lora-rank", 2, "--lora-alpha", 4]):
        code, _, said = train("--model", adapter, "--output", tmp_path / "new", *options)
        assert code == 1 and said.count("error:") == 1
        assert "is an adapter of rank 2 and alpha 6 on q_proj, up_proj, and learns on as it is" in said
    command = said[said.index("merge --model") :].split()
    assert run(monkeypatch, capsys, *command)[0] == 0
    merged, _ = load_model(command[-1], "cpu")
    opened, _ = open_model(adapter)
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in merged.state_dict().items())
    assert train("--model", command[-1], "--output", tmp_path / "new", "--lora-rank", 4)[0] == 0
    config = json.loads((tmp_path / "new/adapter_config.json").read_text())
    assert config["r"] == 4 and config["lora_alpha"] == 8 and len(config["target_modules"]) == 7
    code, _, said = run(monkeypatch, capsys, "merge", "--model", command[-1], "--output", tmp_path / "again")
    assert code == 1 and "is not an adapter, so there is nothing to merge" in said


def test_targets_on_the_command_line(good, tmp_path, train):
    assert train("--model", good, "--output", tmp_path / "new", "--lora-rank", 3, "--lora-targets", "q_proj, v_proj")[0] == 0
    config = json.loads((tmp_path / "new/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["r"] == 3 and config["lora_alpha"] == 6
    code, _, said = train("--model", good, "--output", tmp_path / "two", "--lora-rank", 3, "--lora-targets", "query")
    assert code == 1 and "No linear layer is called query. This model has down_proj" in said
    code, _, said = train("--model", good, "--output", tmp_path / "two", "--lora-targets", "q_proj")
    assert code == 1 and "Add --lora-rank" in said


def test_the_base_of_an_adapter(good, adapter, tmp_path):
    base = shutil.copytree(good, tmp_path / "base")
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    open_model(adapter)
    base.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"its base cannot be loaded \(.*there is no such folder.*write its place into"):
        open_model(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "moved"))  # as it says
    open_model(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    with pytest.raises(ModelError, match="leads back to itself"):
        open_learner(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as an adapter"):
        open_model(adapter)


def test_an_adapter_on_an_adapter(adapter, tmp_path):
    """The upper one's base is the lower one, merged: it learns on, and answers, on top of what that has learnt."""
    model, _ = open_model(adapter)
    lora.add(model, rank=1, targets=["down_proj"])
    torch.nn.init.normal_(lora.layers(model)["model.layers.0.mlp.down_proj"].lora_B.weight)
    upper = lora.save(model, tmp_path / "upper")
    learner, _ = open_learner(upper)
    assert all(torch.equal(value, learner.state_dict()[name]) for name, value in model.state_dict().items())
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(upper))
    with pytest.raises(ModelError, match="leads back to itself"):
        open_model(upper)


def test_a_merged_model_is_as_large_as_its_base(tmp_path):
    model, _ = load_model(make(tmp_path / "mine", dtype=torch.bfloat16), "cpu")
    lora.add(model, rank=2)
    lora.save(model, tmp_path / "adapter")
    opened, tokenizer = open_model(tmp_path / "adapter")
    save_model(opened, tokenizer, tmp_path / "merged")
    assert load_model(tmp_path / "merged", "cpu")[0].stored_dtype == torch.bfloat16


def test_what_a_user_sees(tmp_path):
    """Every command: exit code 1, one line, nothing else."""
    folder = make(tmp_path / "mine", "bert", transformers.BertForMaskedLM)
    (tmp_path / "rows.jsonl").write_text('{"question": "w1", "answer": "w2"}\n')
    for command in (["ask", "w1"], ["evaluate", "--data", tmp_path / "rows.jsonl"]):
        done = subprocess.run(
            [sys.executable, "-m", "helpers", *map(str, command), "--model", folder], capture_output=True, text=True
        )
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith(f"error: {folder}: bert is an encoder") and done.stderr.count("\n") == 1


def test_a_tokenizer_of_bytes_needs_no_file(tmp_path):
    """As that of lesson 4's small model, which is saved, and read again by lesson 5."""
    letters = transformers.ByT5Tokenizer()
    folder = make(tmp_path / "letters", tokenizer=letters, vocab_size=len(letters))
    assert not (folder / "tokenizer.json").exists()
    _, tokenizer = load_model(folder, device="cpu")
    assert tokenizer("ab", add_special_tokens=False).input_ids == letters("ab", add_special_tokens=False).input_ids
