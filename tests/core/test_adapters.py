"""LoRA on every architecture: the same layers as PEFT's "all-linear", the same files, the same answers."""

import peft
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from helpers import lora
from helpers.machine.adapter_files import PREFIX
from helpers.machine.loading import ModelError

IDS = torch.tensor([[5, 7, 9, 11, 13, 6, 8]])
USUAL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}
MANY = {
    "llama": {},
    "llama_untied": {"tie_word_embeddings": False},
    "phi3": {},
    "qwen3": {"head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": {"num_key_value_heads": None},
    "falcon": {"num_key_value_heads": None, "new_decoder_architecture": False},
    "bloom": {"n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 16},
    "qwen3_moe": EXPERTS,
}


def tiny_model(kind, **more):
    """Make a small model at random; the same one each time."""
    torch.manual_seed(0)
    name = kind.removesuffix("_untied")
    config = transformers.AutoConfig.for_model(name, **{**USUAL, **MANY.get(kind, {}), **more})
    return AutoModelForCausalLM.from_config(config).eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def learnt(model):
    """Give each adapter an effect, as training would."""
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.05)
    return model


@pytest.mark.parametrize("kind", MANY)
def test_as_peft_has_it(kind, tmp_path, capsys):
    ours = tiny_model(kind)
    plain = logits(ours)
    lora.add(ours, rank=3, alpha=7)
    assert ("experts.down_proj, experts.gate_up_proj, mlp.gate" in capsys.readouterr().out) == (kind == "qwen3_moe")
    assert torch.equal(logits(ours), plain)
    usual = {"r": 3, "lora_alpha": 7, "task_type": "CAUSAL_LM"}
    theirs = peft.get_peft_model(tiny_model(kind), peft.LoraConfig(**usual, target_modules="all-linear"))
    found = {n.removeprefix(PREFIX) for n, module in theirs.named_modules() if hasattr(module, "lora_A")}
    block = {name for name in found if ".experts" in name or name.endswith("mlp.gate")}  # no linear layers
    assert bool(block) == (kind == "qwen3_moe") and set(lora.layers(ours)) == found - block
    if block:
        attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
        theirs = peft.get_peft_model(tiny_model(kind), peft.LoraConfig(**usual, target_modules=attention))

    lora.save(learnt(ours), tmp_path / "ours")
    read = peft.PeftModel.from_pretrained(tiny_model(kind), tmp_path / "ours")
    torch.testing.assert_close(logits(read), logits(ours), rtol=1e-5, atol=1e-6)
    learnt(theirs).save_pretrained(tmp_path / "theirs")
    again = tiny_model(kind)
    lora.load(again, tmp_path / "theirs")
    assert not torch.allclose(logits(again), plain, atol=1e-3)
    torch.testing.assert_close(logits(again), logits(theirs), rtol=1e-5, atol=1e-6)
    before = logits(again)
    lora.merge(again)
    assert set(again.state_dict()) == set(tiny_model(kind).state_dict())
    torch.testing.assert_close(logits(again), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MANY)
def test_every_adapter_learns(kind):
    """A gradient reaches each: none is read past, and every one is on the way to the loss."""
    model = tiny_model(kind)
    lora.add(model, rank=2)
    ids = torch.randint(3, 64, (4, 32))
    model(ids, labels=ids).loss.backward()
    assert [name for name, layer in lora.layers(model).items() if not layer.lora_B.weight.grad.abs().max() > 0] == []


def test_a_state_space_layer_gets_adapters_where_they_are_called(capsys):
    model = tiny_model("mamba", state_size=4, num_hidden_layers=2, expand=2)
    lora.add(model, rank=2)
    assert {name.rpartition(".")[2] for name in lora.layers(model)} == {"in_proj"}
    said = capsys.readouterr().out
    assert all(name in said for name in ("mixer.A_log", "mixer.conv1d", "mixer.dt_proj", "mixer.out_proj", "mixer.x_proj"))
    model(IDS, labels=IDS).loss.backward()
    assert all(layer.lora_B.weight.grad.abs().max() > 0 for layer in lora.layers(model).values())
    with pytest.raises(ValueError, match=r"No linear layer is called out_proj\. This model has"):
        lora.add(tiny_model("mamba", state_size=4), targets=["out_proj"])


def test_a_layer_that_answers_two_things_gets_none(capsys):
    """Llama 4's router is a linear layer that returns scores and logits."""
    text = {"num_local_experts": 2, "intermediate_size_mlp": 48, "head_dim": 8, "interleave_moe_layer_step": 1}
    model = tiny_model("llama4_text", **text)
    plain = logits(model)
    lora.add(model, rank=2)
    assert torch.equal(logits(model), plain)
    ends = {name.split("layers.0.")[1] for name in lora.layers(model) if "layers.0." in name}
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    assert ends == attention | {f"feed_forward.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
    assert "feed_forward.router" in capsys.readouterr().out


def test_named_targets_are_taken_and_an_unknown_one_is_told(capsys):
    model = tiny_model("phi3")
    with pytest.raises(
        ValueError, match=r"No linear layer is called q_proj\. This model has down_proj, gate_up_proj, lm_head, o_"
    ):
        lora.add(model, targets=["o_proj", "q_proj"])  # the three are one
    lora.add(model, targets=["qkv_proj", "o_proj"])
    assert len(lora.layers(model)) == 4 and capsys.readouterr().out == ""


def test_experts_that_are_modules_get_adapters():
    """A layer whose experts stand one by one, each an nn.Linear in a list."""
    model = tiny_model("llama")
    experts = torch.nn.ModuleList(torch.nn.Linear(32, 32) for _ in range(3))
    model.model.layers[0].mlp.experts = experts
    lora.add(model)
    assert {f"model.layers.0.mlp.experts.{i}" for i in range(3)} <= set(lora.layers(model))


def test_a_plain_layer_among_experts_is_kept_and_said_to_be_ours_alone(tmp_path, capsys):
    """PEFT takes down_proj for the experts' wherever one has that name."""
    ours = tiny_model("qwen3_moe", mlp_only_layers=[1])
    lora.add(ours, rank=3)
    assert "model.layers.1.mlp.down_proj" in lora.layers(ours)
    lora.save(learnt(ours), tmp_path / "ours")
    assert "For this course alone" in capsys.readouterr().out
    again = tiny_model("qwen3_moe", mlp_only_layers=[1])
    lora.load(again, tmp_path / "ours")
    assert torch.equal(logits(again), logits(ours))


def test_a_transposed_matrix_of_another_size_is_refused(tmp_path):
    lora.add(adapted := tiny_model("gpt2"), targets=["c_fc"])
    lora.save(adapted, tmp_path / "one")
    with pytest.raises(ModelError, match="does not fit this model"):
        lora.load(tiny_model("gpt2", n_inner=64), tmp_path / "one")
