"""A GGUF file is the model: another reader finds the same weights, tokens and template in it."""

import copy

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig

from helpers import lora
from helpers.machine.adapted import remove
from helpers.machine.loading import ModelError
from helpers.models import load_model
from helpers.serving.export import interleave, write_gguf

TEXT = "Arr, it's 1,234 café tables\n\n  <|im_start|>user two  spaces<|im_end|>"


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    model, tokenizer = load_model(tiny, device="cpu")
    return model, tokenizer, write_gguf(model, tokenizer, tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32")


def test_transformers_reads_the_same_model(written):
    model, _, path = written
    back = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    ids = torch.tensor([[1, 500, 40000, 7, 9, 11]])
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, back(ids).logits, atol=1e-5)
    assert back.config.num_key_value_heads == model.config.num_key_value_heads


def test_transformers_reads_the_same_tokenizer(written):
    _, tokenizer, path = written
    back = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    assert back(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert back.chat_template == tokenizer.chat_template
    assert (back.bos_token_id, back.eos_token_id, back.pad_token_id) == (1, 2, 2)


def test_programs_that_read_it_stop_where_the_chat_template_ends_a_turn(written, tmp_path):
    model, tokenizer, _ = written
    for template, end in (
        (tokenizer.chat_template, 2),
        ("{% for m in messages %}{{ m['content'] }}<|im_start|>{% endfor %}", 1),
    ):
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
        path = write_gguf(model, tokenizer, tmp_path / f"{end}.gguf")
        assert gguf.GGUFReader(path).fields["tokenizer.ggml.eot_token_id"].contents() == end


@pytest.mark.parametrize("weights, size", [("BF16", 2), ("F16", 2), ("Q8_0", 34 / 32)])
def test_fewer_bits_make_a_smaller_file(written, tmp_path, weights, size):
    """48 is not a multiple of Q8_0's blocks of 32, so a model of width 64 is written."""
    _, tokenizer, _ = written
    sizes = {"vocab_size": 49152, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config)
    numbers = sum(weight.numel() for weight in model.parameters())
    header = write_gguf(model, tokenizer, tmp_path / "whole.gguf", "F32").stat().st_size - 4 * numbers
    assert write_gguf(model, tokenizer, tmp_path / "small.gguf", weights).stat().st_size == pytest.approx(
        header + size * numbers, rel=0.01
    )


def test_pairs_of_halves_become_neighbours():
    rows = np.arange(8, dtype=np.float32)[:, None]  # two heads of four
    assert interleave(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_what_cannot_be_written_is_refused(written, tmp_path):
    model, tokenizer, _ = written
    with pytest.raises(ModelError, match="gpt2: only Llama-like"):
        write_gguf(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1)), tokenizer, tmp_path / "x.gguf")
    with pytest.raises(ValueError, match="weights is 'Q4'"):
        write_gguf(model, tokenizer, tmp_path / "x.gguf", "Q4")
    lora.add(model, rank=2)
    with pytest.raises(ModelError, match=r"lora\.merge"):
        write_gguf(model, tokenizer, tmp_path / "x.gguf")
    remove(model)
    assert not (tmp_path / "x.gguf").exists()
