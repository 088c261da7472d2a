"""LoRA: exact, small, and the same files as PEFT."""

import json

import pytest
import torch

from helpers import lora
from helpers.models import ModelError, load_model
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
    assert lora.trainable_share(model) == sum(sizes[name] for name in learns) / sum(sizes.values())


def test_training_moves_the_adapter_and_leaves_the_base(tiny, adapted):
    base, _ = load_model(tiny, "cpu")
    original = base.state_dict()
    for name, layer in lora.layers(adapted).items():
        assert torch.equal(layer.base.weight, original[name + ".weight"])
        assert layer.lora_B.weight.abs().max() > 0
    with lora.disabled(adapted):
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
    lora.remove(other)
    assert torch.equal(logits(other), logits(load_model(tiny, "cpu")[0]))


def test_peft_loads_ours(tiny, adapted, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    lora.save(adapted, tmp_path / "ours")
    base, _ = load_model(tiny, "cpu")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "ours")
    torch.testing.assert_close(logits(theirs), logits(adapted), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"target_modules": ["q_proj", "down_proj"]}])
def test_we_load_pefts(tiny, tmp_path, options):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install -r tests/requirements.txt")
    base, _ = load_model(tiny, "cpu")
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "init_lora_weights": False, **options})
    theirs = peft.get_peft_model(base, config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, _ = load_model(tiny, "cpu")
    lora.load(ours, tmp_path / "theirs")
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (break_config, "cannot be read as an adapter"),
        (lose_weights, "cannot be read as an adapter"),
        (cut_weights, "cannot be read as an adapter"),
        (other_kind, "is not a plain LoRA adapter"),
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
    with pytest.raises(ValueError, match="rank is 0"):
        lora.add(model, rank=0)
    with pytest.raises(ValueError, match="no adapter to save"):
        lora.save(model, "nowhere")
    with pytest.raises(ValueError, match="has adapters already"):
        lora.add(adapted)
