"""LoRA: exact, small, and the same files as PEFT."""

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers import lora
from helpers.generation import generate
from helpers.machine.adapted import disabled, remove, trainable_share
from helpers.machine.adapter_files import PLAIN_FIELDS
from helpers.machine.loading import ModelError
from helpers.models import load_model
from helpers.tokenization import Row
from helpers.training import Config, train

ROWS = [Row([5 + i, 7, 9 + i, 11, 13], [-100, -100, 9 + i, 11, 13]) for i in range(8)]
IDS = torch.tensor([[5, 7, 9, 11, 13]])


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def adapted(tiny):
    """A small model with an adapter that has learnt something."""
    model, _ = load_model(tiny, "cpu")
    lora.add(model, rank=4, alpha=8)
    train(model, ROWS, Config(epochs=2, batch_size=4, learning_rate=1e-2, dtype=torch.float32))
    return model


def test_a_new_adapter_changes_nothing_and_only_it_learns(tiny):
    model, _ = load_model(tiny, "cpu")
    before = logits(model)
    lora.add(model, rank=4)
    assert torch.equal(logits(model), before)
    assert len(lora.layers(model)) == 2 * 7
    learns = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learns and all(".lora_A." in name or ".lora_B." in name for name in learns)
    sizes = {name: weight.numel() for name, weight in model.named_parameters()}
    assert trainable_share(model) == sum(sizes[name] for name in learns) / sum(sizes.values())


def test_training_moves_the_adapter_and_leaves_the_base(tiny, adapted):
    base, _ = load_model(tiny, "cpu")
    original = base.state_dict()
    for name, layer in lora.layers(adapted).items():
        assert torch.equal(layer.base.weight, original[name + ".weight"])
        assert layer.lora_B.weight.abs().max() > 0
    with disabled(adapted):
        assert torch.equal(logits(adapted), logits(base))
    assert not torch.allclose(logits(adapted), logits(base), atol=1e-3)


def test_merging_gives_the_same_logits_in_a_plain_model(adapted):
    before = logits(adapted)
    lora.merge(adapted)
    assert not lora.layers(adapted) and all(weight.requires_grad for weight in adapted.parameters())
    torch.testing.assert_close(logits(adapted), before, rtol=1e-4, atol=1e-5)


def test_save_load_and_swap(tiny, adapted, tmp_path):
    lora.save(adapted, tmp_path / "one")
    expected = logits(adapted)
    other, _ = load_model(tiny, "cpu")
    lora.add(other, rank=2, targets=["q_proj"], seed=1)
    lora.load(other, tmp_path / "one")  # in place of the one it has
    assert torch.equal(logits(other), expected)
    assert all(name.split(".")[-2] in ("lora_A", "lora_B") for name, w in other.named_parameters() if w.requires_grad)
    remove(other)
    assert torch.equal(logits(other), logits(load_model(tiny, "cpu")[0]))


def test_peft_loads_ours(tiny, adapted, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    lora.save(adapted, tmp_path / "ours")
    base, _ = load_model(tiny, "cpu")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(adapted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": [1]},
        {"alpha_pattern": {"q_proj": 1, "down_proj": 40}, "use_rslora": True},
        {"rank_pattern": {"mlp.*": 2, "model.layers.0.self_attn.v_proj": 3}, "alpha_pattern": {r".*\.1\..*v_proj": 30}},
        {
            "rank_pattern": {"^model.layers.1.mlp.up_proj": 8, "self_attn.*": 5},
            "alpha_pattern": {"k_proj": 50, "o_proj|k_proj": 2},
        },
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "orthogonal"},
    ],
)
def test_we_load_pefts(tiny, tmp_path, options):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    base, _ = load_model(tiny, "cpu")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False, **options})
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = load_model(tiny, "cpu")
    lora.load(ours, tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)
    lora.save(ours, tmp_path / "ours")  # with the ranks, alphas and layers of its own
    again, _ = load_model(tiny, "cpu")
    lora.load(again, tmp_path / "ours")
    assert torch.equal(logits(again), logits(ours))
    theirs = peft.PeftModel.from_pretrained(load_model(tiny, "cpu")[0], tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(ours), rtol=1e-5, atol=1e-6)
    assert len(lora.layers(ours)) == sum(hasattr(module, "lora_A") for module in theirs.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_beside_a_model_in_half_precision(tiny, adapted, tmp_path, dtype):
    """It loads, answers, swaps, learns and merges, and computes what PEFT computes."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    lora.save(adapted, tmp_path / "one")
    model, tokenizer = load_model(tiny, "cpu")
    model.to(dtype)
    plain = logits(model)
    theirs = peft.PeftModel.from_pretrained(load_model(tiny, "cpu")[0].to(dtype), tmp_path / "one")
    lora.load(model, tmp_path / "one")
    assert {layer.lora_A.weight.dtype for layer in lora.layers(model).values()} == {torch.float32}
    assert logits(model).dtype == dtype and not torch.equal(logits(model), plain)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-5, atol=1e-6)
    assert len(generate(model, tokenizer, ["Hello? " * 70, "Hello? " * 71], max_new_tokens=3)) == 2  # after a shared prefix
    lora.load(model, tmp_path / "one")
    train(model, ROWS, Config(epochs=2, batch_size=4, learning_rate=1e-2, dtype=torch.bfloat16))
    assert not torch.equal(logits(model), logits(theirs)) and len(generate(model, tokenizer, ["Hello?"], max_new_tokens=3)) == 1
    before = logits(model)
    lora.merge(model)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0.05 * before.abs().max().item())


def test_merging_rounds_once(tiny, adapted):
    """In bfloat16 a merged weight is the one next to the exact sum."""
    adapted.to(torch.bfloat16)
    layer = adapted.model.layers[0].mlp.up_proj
    detour = layer.lora_B.weight.double() @ layer.lora_A.weight.double() * layer.scale
    exact = layer.base.weight.double() + detour
    lora.merge(adapted)
    difference = (adapted.model.layers[0].mlp.up_proj.weight.double() - exact).abs()
    assert (difference <= exact.abs() * 2**-8).all()


def test_a_head_that_is_tied_to_the_embeddings_is_not_merged(tiny):
    model, _ = load_model(tiny, "cpu")
    lora.add(model, targets=["lm_head", "q_proj"])
    before = logits(model)
    with pytest.raises(ModelError, match="lm_head shares its weights with another layer"):
        lora.merge(model)
    assert torch.equal(logits(model), before) and len(lora.layers(model)) == 3


def test_every_field_of_a_peft_config_is_heeded_or_refused(tiny, adapted, tmp_path):
    """What PEFT writes by default loads; any field that would change the model, and is not heeded, is named."""
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    lora.save(adapted, tmp_path)
    path = tmp_path / "adapter_config.json"
    usual = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], task_type="CAUSAL_LM").to_dict()
    usual["target_modules"] = list(usual["target_modules"])
    path.write_text(json.dumps(usual))
    lora.load(adapted, tmp_path)
    before, changed = logits(adapted), sorted(set(usual) - PLAIN_FIELDS)
    assert {"use_dora", "lora_bias", "modules_to_save", "trainable_token_indices", "target_parameters"} <= set(changed)
    others = [
        ("bias", "all"),
        ("peft_type", "LOHA"),
        *(("init_lora_weights", way) for way in ("pissa", "loftq")),
    ]
    for name, value in [*others, *((name, [1]) for name in changed), ("of_tomorrow", True)]:
        path.write_text(json.dumps({**usual, name: value}))
        with pytest.raises(ModelError, match=f"adapter_config.json: {name} is .* not a plain LoRA adapter.* merge it there"):
            lora.load(adapted, tmp_path)
    for name, value in (("alpha_pattern", {"(": 1}), ("r", None), ("lora_alpha", "8")):
        path.write_text(json.dumps({**usual, name: value}))
        with pytest.raises(ModelError, match="cannot be read as an adapter"):
            lora.load(adapted, tmp_path)
    path.write_text(json.dumps({**usual, "rank_pattern": {"up_proj": 9}}))
    with pytest.raises(ModelError, match="up_proj has rank 4, and its config says 9"):
        lora.load(adapted, tmp_path)
    assert torch.equal(logits(adapted), before)


def break_config(folder):
    (folder / "adapter_config.json").write_text("{")


def lose_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def cut_weights(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_kind(folder):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "use_dora": True}))


def other_method(folder):
    """As PEFT saves LoHa: the config says so, and no tensor is called as LoRA's are."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LOHA"}))
    save_file({"base_model.model.x.hada_w1_a": torch.zeros(1)}, folder / "adapter_model.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "cannot be read as an adapter"),
        (lose_weights, "cannot be read as an adapter"),
        (cut_weights, "cannot be read as an adapter"),
        (other_kind, "is not a plain LoRA adapter"),
        (other_method, 'peft_type is "LOHA", so it is not a plain LoRA adapter'),
    ],
)
def test_a_broken_adapter_is_refused_and_the_model_stays_as_it_was(adapted, tmp_path, damage, said):
    lora.save(adapted, tmp_path / "one")
    damage(tmp_path / "one")
    before = logits(adapted)
    with pytest.raises(ModelError, match=said):
        lora.load(adapted, tmp_path / "one")
    assert torch.equal(logits(adapted), before)


def test_an_adapter_of_another_model_is_refused(embedded, adapted, tmp_path):
    lora.save(adapted, tmp_path / "one")
    with pytest.raises(ModelError, match="does not fit this model"):
        lora.load(embedded[0], tmp_path / "one")
    assert not lora.layers(embedded[0])


def test_wrong_requests_are_refused(tiny, adapted):
    model, _ = load_model(tiny, "cpu")
    with pytest.raises(ValueError, match=r"No linear layer is called query\. This model has down_proj,"):
        lora.add(model, targets=["query"])
    for rank in (0, 49):  # q_proj maps 48 to 48
        with pytest.raises(
            ValueError, match=rf"rank is {rank}, and the layer .*proj takes one from 1 to \d+\. 8 or 16 is usual"
        ):
            lora.add(model, rank=rank)
    assert not lora.layers(model)
    with pytest.raises(ValueError, match="no adapter to save"):
        lora.save(model, "nowhere")
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(adapted)
