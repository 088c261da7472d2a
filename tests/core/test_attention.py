"""Attention of our own, and how a model is found to fit it or not."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Phi3Config

from helpers.attention import attention_per_row, flat_attention, reads_flat
from helpers.machine.decoding import can_share, way_to_answer
from helpers.machine.preparing import check_rows
from helpers.models import load_model
from helpers.tokenization import Row, flatten, micro_batches
from helpers.training import Config, token_losses, train

SIZE = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZE = {**SIZE, "num_key_value_heads": 1, "initializer_range": 0.2, "max_position_embeddings": 64}
ROWS = [Row(list(range(3, 3 + n)), list(range(3, 3 + n))) for n in (9, 4, 12)]


def small(kind=LlamaConfig, **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**{**SIZE, **settings})).eval()


def losses(model, rows=ROWS):
    with torch.no_grad():
        return token_losses(model, flatten(rows))


def heads(length=10):
    return [torch.randn(1, heads, length, 8) for heads in (4, 2, 2)]


def test_a_window_that_no_mask_shows_is_refused():
    attention_per_row(None, *heads(), None, lengths=[5, 5], sliding_window=5)
    with pytest.raises(NotImplementedError, match="does not show its window"):
        attention_per_row(None, *heads(), None, lengths=[6, 4], sliding_window=5)


@pytest.mark.parametrize("length", [10, 520], ids=["products", "fused"])
def test_dropout_takes_shares_at_random_and_keeps_the_mean(length):
    torch.manual_seed(0)
    q, k, v = heads(length)
    still, _ = attention_per_row(None, q, k, v, None, lengths=[length - 4, 4])
    draws = torch.stack([attention_per_row(None, q, k, v, None, [length - 4, 4], dropout=0.3)[0] for _ in range(25)])
    spread = draws.std(dim=0)
    assert (spread[:, 0] > 0).all()
    assert ((draws.mean(dim=0) - still).abs() / (spread / 25**0.5 + 1e-3)).mean() < 1.2  # 0.8 is what chance gives


def test_dropout_is_on_while_training_and_off_else():
    """A model that asks for it in attention alone; the same seed gives the same run."""
    model = small(attention_dropout=0.5)
    with flat_attention(model):
        assert torch.equal(losses(model), losses(model))
        model.train()
        assert not torch.equal(losses(model), losses(model))
    config = Config(epochs=2, batch_size=3, learning_rate=1e-3, dtype=torch.float32)
    first, second = (train(small(attention_dropout=0.5), ROWS, config).steps[-1]["loss"] for _ in range(2))
    assert first == second != train(small(), ROWS, config).steps[-1]["loss"]


def test_a_model_is_tried_once_and_again_when_its_configuration_changes(capsys, monkeypatch):
    model, tried = small(MistralConfig, sliding_window=6), []
    monkeypatch.setattr("helpers.attention.trial_rows", lambda model: tried.append(1) or [row.ids for row in ROWS])
    before = torch.get_rng_state()
    model.train()
    assert reads_flat(model) and reads_flat(model) and len(tried) == 1
    assert torch.equal(torch.get_rng_state(), before) and model.training
    model.config.sliding_window = 7
    assert reads_flat(model) and len(tried) == 2
    assert capsys.readouterr().err == ""


def runs_on(module, inputs, output):
    """A layer with a state, as a recurrent one has: each token adds what came before it in its row of the batch."""
    return output + output.cumsum(dim=1)


def looks_around(module, inputs, output):
    """A layer that mixes the rows of a batch."""
    return output + output.mean(dim=0, keepdim=True)


def test_a_model_with_a_state_is_padded_and_says_so_once(capsys):
    model = small()
    model.model.layers[0].mlp.register_forward_hook(runs_on)
    alone = torch.cat([losses(model, [row]) for row in ROWS])
    with flat_attention(model):
        assert torch.allclose(losses(model), alone, atol=1e-5)
    with flat_attention(model):
        losses(model)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "LlamaForCausalLM cannot read rows laid end to end" in said and "padded" in said
    assert way_to_answer(model) == "anew" and not can_share(model, 20)
    assert "reads all again for each token" in capsys.readouterr().err


def test_a_model_whose_rows_see_each_other_is_refused():
    model = small()
    model.model.layers[0].mlp.register_forward_hook(runs_on)
    model.model.layers[1].mlp.register_forward_hook(looks_around)
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot be used here: a batch does not give what"):
        train(model.train(), ROWS)
    assert model.training


def test_padding_counts_where_rows_are_padded():
    rows = [Row([1] * n, [1] * n) for n in (*[3] * 20, 50, 9, 40, 120)]
    for padded in (False, True):
        pieces = micro_batches(rows, 100, padded)
        sizes = [len(p) * max(len(r.ids) for r in p) if padded else sum(len(r.ids) for r in p) for p in pieces]
        assert sorted(len(row.ids) for piece in pieces for row in piece) == sorted(len(row.ids) for row in rows)
        assert [size for size in sizes if size > 100] == [120] and len(pieces) < 6
        assert all(pieces)


def test_rows_are_apart_outside_of_flat_attention_too(tiny):
    model, _ = load_model(tiny, device="cpu")
    with flat_attention(model):
        flat = losses(model)
    assert torch.allclose(losses(model), flat, atol=1e-5)


def test_the_embedded_model_reads_flat_and_answers_together(fresh):
    model, _ = fresh
    model.__dict__.pop("_known", None)
    assert reads_flat(model) and way_to_answer(model) == "together" and can_share(model, 100)


def broken(module, inputs):
    """A layer that takes no batches, and says nothing."""
    if len(inputs[0]) > 1:
        raise AssertionError


def test_a_model_that_fails_without_a_word_is_not_taken_for_one_that_fits():
    model = small()
    model.model.layers[0].mlp.register_forward_hook(runs_on)
    model.model.layers[1].mlp.register_forward_pre_hook(broken)
    with pytest.raises(ValueError, match=r"cannot be used here: .* alone \(AssertionError\)"):
        reads_flat(model)


def test_rows_longer_than_the_window_are_refused():
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}
    long = small(Phi3Config, rope_parameters=rope, original_max_position_embeddings=10, pad_token_id=0)
    with pytest.raises(ValueError, match="Row 3 has 12 tokens; this model reads at most 10"):
        check_rows(long, ROWS)


@pytest.fixture
def anew():
    """accelerate keeps one precision a process, whoever has set it: here none before and none after."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_model_as_the_trainer_leaves_it_is_tried_without_its_wrapper(anew, tiny, capsys):
    """Wrapped by accelerate it computes in 16 bits, and what it hands out says float32."""
    model = Accelerator(mixed_precision="bf16", cpu=True).prepare_model(load_model(tiny, "cpu")[0])
    wrapped = vars(model)["forward"]
    assert reads_flat(model) and capsys.readouterr().err == "" and vars(model)["forward"] is wrapped
