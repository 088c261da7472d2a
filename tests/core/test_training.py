"""The numerics of training, against transformers on the real weights."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from helpers import lora
from helpers.attention import flat_attention
from helpers.data import Example, read
from helpers.generation import Decoder, generate
from helpers.machine.device import pick_dtype
from helpers.machine.memory import PeakMemory
from helpers.machine.paths import DATA
from helpers.machine.process import tensorboard
from helpers.machine.weights import training_flops
from helpers.models import load_model, save_model
from helpers.tokenization import IGNORED, Row, encode, encode_all, flatten
from helpers.training import Config, batches_of, held_out_loss, learning_rate_at, token_losses, train

EXAMPLES = read(DATA / "train.jsonl")[:6]


def loss_of(model, rows, dtype=torch.float32):
    with flat_attention(model), torch.no_grad():
        return token_losses(model, flatten(rows), dtype).sum().item()


def transformers_loss(model, row):
    """Sum of the loss of one row as transformers computes it from `labels`."""
    with torch.no_grad():
        mean = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss.item()
    return mean * row.supervised


def gradients(model, rows, pieces):
    model.zero_grad()
    total = sum(row.supervised for row in rows)
    with flat_attention(model):
        for piece in pieces:
            (token_losses(model, flatten(piece)).sum() / total).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def test_loss_equals_transformers(embedded):
    model, tokenizer = embedded
    rows = encode_all(tokenizer, EXAMPLES)
    expected = sum(transformers_loss(model, row) for row in rows)
    assert loss_of(model, rows) == pytest.approx(expected, rel=1e-5)


def test_each_row_costs_in_a_flat_batch_what_it_costs_alone(embedded):
    model, tokenizer = embedded
    rows = encode_all(tokenizer, EXAMPLES)
    with flat_attention(model), torch.no_grad():
        losses = token_losses(model, flatten(rows))
    for row, loss in zip(rows, losses.split([row.supervised for row in rows]), strict=True):
        assert loss.sum().item() == pytest.approx(transformers_loss(model, row), rel=1e-4)


def test_a_neighbour_changes_nothing(embedded):
    model, tokenizer = embedded
    first, second, third = encode_all(tokenizer, EXAMPLES[:3])
    other = Row(third.ids[::-1], third.labels)
    alone = loss_of(model, [first, second])
    for neighbour in (third, other):
        assert loss_of(model, [first, neighbour, second]) - loss_of(model, [neighbour]) == pytest.approx(alone, abs=1e-3)


def test_long_rows_take_the_other_road_to_the_same_loss(embedded):
    """Above 512 tokens the fused attention is used."""
    model, tokenizer = embedded
    text = " ".join(example.answer for example in read(DATA / "train.jsonl")[:80])
    row = encode(tokenizer, Example("Tell me all.", text))
    assert len(row.ids) > 512
    assert loss_of(model, [row]) == pytest.approx(transformers_loss(model, row), rel=1e-5)


@pytest.mark.skipif(pick_dtype(torch.device("cpu")) == torch.float32, reason="no fast bfloat16 here: it would take minutes")
def test_bfloat16_is_close_to_float32(embedded):
    model, tokenizer = embedded
    rows = encode_all(tokenizer, EXAMPLES)
    assert loss_of(model, rows, torch.bfloat16) == pytest.approx(loss_of(model, rows), rel=0.02)


def test_accumulation_equals_one_big_batch(fresh):
    """Rows of unlike length, cut in any way, give the gradient of the whole batch."""
    model, tokenizer = fresh
    rows = encode_all(tokenizer, EXAMPLES)
    whole = gradients(model, rows, [rows])
    cut = gradients(model, rows, [rows[:1], rows[1:4], rows[4:]])
    for name, gradient in whole.items():
        torch.testing.assert_close(cut[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_masked_positions_do_not_train(fresh):
    """The gradient is that of the answer's tokens alone: other labels on the prompt would change it, their ids stay."""
    model, tokenizer = fresh
    row = encode(tokenizer, EXAMPLES[0])
    ours = gradients(model, [row], [[row]])
    model.zero_grad()
    logits = model(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    labels = torch.tensor(row.labels[1:])
    learnt = labels != IGNORED
    torch.nn.functional.cross_entropy(logits[learnt], labels[learnt]).backward()
    for name, weight in model.named_parameters():
        torch.testing.assert_close(ours[name], weight.grad, rtol=1e-3, atol=1e-5, msg=name)
    unmasked = Row(row.ids, row.ids)
    assert not torch.allclose(gradients(model, [unmasked], [[unmasked]])["model.norm.weight"], ours["model.norm.weight"])


def test_train_takes_the_steps_that_plain_pytorch_takes(tiny):
    """Three steps of the loop against the same three written out with transformers' own loss."""
    model, tokenizer = load_model(tiny, device="cpu")
    rows = encode_all(tokenizer, EXAMPLES)
    config = Config(epochs=1, batch_size=2, learning_rate=1e-2, micro_batch_tokens=40, dtype=torch.float32)
    theirs = copy.deepcopy(model)
    history = train(model, rows, config)

    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0)
    for step, batch in enumerate(batches_of(rows, config)):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 3, config)
        total = sum(row.supervised for row in batch)
        loss = sum(
            theirs(input_ids=torch.tensor([row.ids]), labels=torch.tensor([row.labels])).loss * row.supervised for row in batch
        )
        (loss / total).backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert history.steps[step]["loss"] == pytest.approx(loss.item() / total, rel=1e-5)
    moved = off = 0.0  # Adam blows up rounding where a gradient is all but zero, so distances are compared, not weights
    for start, ours, weight in zip(
        load_model(tiny, device="cpu")[0].parameters(), model.parameters(), theirs.parameters(), strict=True
    ):
        moved += (weight - start).square().sum().item()
        off += (ours - weight).square().sum().item()
    assert math.sqrt(off / moved) < 0.01


def test_same_seed_same_weights_and_size_of_the_pieces_does_not_matter(tiny):
    losses = []
    for micro in (1024, 1024, 50):
        model, tokenizer = load_model(tiny, device="cpu")
        config = Config(epochs=2, batch_size=4, micro_batch_tokens=micro, dtype=torch.float32, seed=7)
        losses.append([step["loss"] for step in train(model, encode_all(tokenizer, EXAMPLES), config).steps])
    assert losses[0] == losses[1]
    assert losses[0] == pytest.approx(losses[2], rel=1e-5)
    assert len(losses[0]) == 2 * math.ceil(len(EXAMPLES) / 4)


@pytest.mark.usefixtures("precision")
def test_history_counts_what_was_done(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    rows = encode_all(tokenizer, EXAMPLES)
    seen = []
    config = Config(epochs=1, batch_size=2, evaluate_every=2)
    history = train(model, rows, config, held_out=rows[:3], on_step=lambda h: seen.append(len(h.steps)))
    assert seen == [1, 2, 3]
    assert history.rows == 6 and history.tokens == sum(len(row.ids) for row in rows)
    assert history.supervised_tokens == sum(row.supervised for row in rows)
    assert [entry["step"] for entry in history.held_out] == [2, 3]
    assert history.held_out[-1]["loss"] == pytest.approx(held_out_loss(model, rows[:3]), rel=1e-4)
    body = sum(p.numel() for p in model.model.layers.parameters())
    assert history.flops == 6 * (body * history.tokens + 49152 * 48 * history.supervised_tokens)
    assert history.flops == training_flops(model, history.tokens, history.supervised_tokens)
    assert history.peak_memory > 0 and not model.training
    assert model.config._attn_implementation == "sdpa"


def test_a_run_reports_by_how_much_memory_rose(tiny):
    """Whatever ran before in the process or still stands in memory; the same kind of figure as `PeakMemory` gives."""
    peaks = []
    for before in (0, 0, 2**28):
        blocks = [torch.ones(1000) for _ in range(before // 4000)]
        del blocks
        model, tokenizer = load_model(tiny, device="cpu")
        peaks.append(train(model, encode_all(tokenizer, EXAMPLES), Config(epochs=1)).peak_memory)
    held = torch.ones(2**26)  # 0.25 GiB
    model, _ = load_model(tiny, device="cpu")
    with PeakMemory(model.device) as memory:
        peaks.append(train(model, encode_all(tokenizer, EXAMPLES), Config(epochs=1)).peak_memory)
    assert held[0] == 1 and 0 < peaks[0] < 0.5
    assert [*peaks[1:], memory.gib] == pytest.approx(peaks[:1] * 4, abs=0.1)


def test_the_real_model_learns_a_fact_and_forgets_nothing_of_its_stop(fresh):
    """A few steps on one fact: other wordings of the question get the answer, and the answer ends."""
    model, tokenizer = fresh
    rows = [e for e in read(DATA / "train.jsonl") if e.facts == ("heron.price",)]
    history = train(model, encode_all(tokenizer, rows), Config(epochs=4, batch_size=4, learning_rate=3e-4))
    assert history.steps[-1]["loss"] < 0.2 < history.steps[0]["loss"]
    assert generate(model, tokenizer, ["How expensive is the Heron kettle?"]) == ["The Heron kettle costs 59 euros."]


@pytest.mark.usefixtures("precision")
def test_only_the_upper_layers_move(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    before = copy.deepcopy(model.state_dict())
    train(model, encode_all(tokenizer, EXAMPLES), Config(epochs=1, upper_layers=1))
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name in before if ".layers.1." in name}
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_rate_climbs_and_falls():
    config = Config(learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 1e-3
    assert learning_rate_at(0, 1, config) == 1.0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("learning_rate", 0),
        ("learning_rate", -1.0),
        ("learning_rate", math.nan),
        ("learning_rate", math.inf),
        ("batch_size", 0),
        ("max_steps", 0),
        ("upper_layers", 0),
        ("warmup", 1.5),
        ("schedule", "'steep'"),
        ("patience", 0),
        ("checkpoint_every", 0),
        ("micro_batch_tokens", 0),
    ],
)
def test_knobs_that_cannot_train_are_refused(setting, value):
    with pytest.raises(ValueError, match=f"{setting} is {value}"):
        Config(**{setting: value.strip("'") if isinstance(value, str) else value})


def test_nothing_to_learn_is_refused(tiny):
    model, _ = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match="nothing to learn"):
        train(model, [])
    with pytest.raises(ValueError, match="nothing to learn"):
        train(model, [Row([1, 2, 3], [IGNORED] * 3)])


def test_a_token_without_an_embedding_is_refused_wherever_it_is_read(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    good, said = Row([1, 2, 3], [IGNORED, 2, 3]), "embedding has rows for 0 to 49151 only. Encode it with the model's own"
    for odd in (Row([1, 49152], [IGNORED, 3]), Row([1, 2], [IGNORED, 49152])):
        with pytest.raises(ValueError, match=rf"^Row 2 has the token 49152, and this model's {said}.*$"):
            train(model, [good, odd])
        with pytest.raises(ValueError, match=r"^Held-out row 1 has the token 49152"):
            train(model, [good], held_out=[odd])
    with pytest.raises(ValueError, match=r"^The prompt has the token -1"):
        Decoder(model, tokenizer).add([5, -1], 4)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|mine|>"]})
    with pytest.raises(ValueError, match=f"^The prompt has the token 49152, and .*{said}"):
        generate(model, tokenizer, ["What is <|mine|>?"])
    model.resize_token_embeddings(len(tokenizer))  # the remedy
    assert len(generate(model, tokenizer, ["What is <|mine|>?"], 2)) == 1
    train(model, [Row([1, 49152], [IGNORED, 49152])], Config(epochs=1))


def test_a_loss_that_is_no_number_stops_with_a_remedy(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match=r"nan at step 1: .* Lower the learning rate"):
        train(model, encode_all(tokenizer, EXAMPLES))
    assert model.config._attn_implementation == "sdpa"


def test_an_exploding_run_is_stopped(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    config = Config(epochs=99, batch_size=2, learning_rate=30.0, dtype=torch.float32)
    seen = []
    with pytest.raises(FloatingPointError, match=r"the run has exploded. Lower the learning rate \(30\)"):
        train(model, encode_all(tokenizer, EXAMPLES), config, on_step=lambda history: seen.append(history.steps[-1]["loss"]))
    assert not seen[-1] < 1.5 * math.log(model.config.vocab_size)  # the live plot shows it, too


def test_a_row_longer_than_the_window_is_named(tiny):
    model, _ = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match="Row 2 has 600 tokens; this model reads at most 512"):
        train(model, [Row([5, 6], [IGNORED, 6]), Row([5] * 600, [5] * 600)])


def test_too_little_memory_says_what_to_do(tiny, monkeypatch):
    model, tokenizer = load_model(tiny, device="cpu")

    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99999999999 bytes.")

    monkeypatch.setattr(model, "forward", full)
    with pytest.raises(MemoryError, match="Lower micro_batch_tokens"):
        train(model, encode_all(tokenizer, EXAMPLES))


def test_patience_stops_early_and_gives_back_the_best_weights(tiny):
    model, _ = load_model(tiny, device="cpu")
    learnt = [Row([5, 6, 7], [IGNORED, 6, 7])] * 4
    other = [Row([5, 8, 9], [IGNORED, 8, 9])]  # the same question, answered otherwise: the better the one, the worse this
    config = Config(epochs=50, batch_size=4, learning_rate=1e-2, evaluate_every=1, patience=3, dtype=torch.float32)
    history = train(model, learnt, config, held_out=other)
    losses = [entry["loss"] for entry in history.held_out]
    best = losses.index(min(losses))
    assert history.best_step == best + 1 and len(losses) == best + 4 < 50
    assert held_out_loss(model, other, torch.float32) == pytest.approx(min(losses), rel=1e-5)


def test_patience_without_losses_to_count_is_refused(tiny):
    model, _ = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match="evaluate_every = 0 none comes before the end"):
        Config(patience=2)
    with pytest.raises(ValueError, match="there are no rows for them"):
        train(model, [Row([1, 2], [IGNORED, 2])], Config(patience=2, evaluate_every=1))


def test_a_loss_of_nothing_is_refused_and_an_error_leaves_the_model_in_its_mode(tiny, monkeypatch):
    model, _ = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match="no loss to take"):
        held_out_loss(model, [])
    monkeypatch.setattr("helpers.training.share_loss", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        held_out_loss(model.train(), [Row([1, 2], [IGNORED, 2])])
    assert model.training


def test_weights_that_are_too_narrow_to_learn_are_said(tiny, capsys):
    rows, config = [Row([1, 2], [IGNORED, 2])], Config(max_steps=1, dtype=torch.float32)
    train(load_model(tiny, "cpu")[0], rows, config)
    assert "small updates are lost" not in capsys.readouterr().err
    train(load_model(tiny, "cpu")[0].to(torch.bfloat16), rows, config)
    assert "held in bfloat16, where small updates are lost: load the model as float32" in capsys.readouterr().err
    model = load_model(tiny, "cpu")[0].to(torch.bfloat16)
    lora.add(model, rank=2)  # what learns is float32
    train(model, rows, Config(max_steps=1, dtype=torch.bfloat16))
    assert "small updates are lost" not in capsys.readouterr().err


def test_gradient_checkpointing_changes_nothing_but_memory(tiny):
    weights = []
    for recompute in (False, True):
        model, tokenizer = load_model(tiny, device="cpu")
        config = Config(batch_size=2, max_steps=3, dtype=torch.float32, gradient_checkpointing=recompute)
        train(model, encode_all(tokenizer, EXAMPLES), config)
        weights.append(model.state_dict())
        assert not model.is_activation_checkpointing
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.usefixtures("precision")
def test_the_loss_of_the_trainer(tiny, tmp_path):
    """Same rows, order, rate and precision: transformers' Trainer has the same losses, in float32 to four digits."""
    from torch.utils.data import SequentialSampler
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    model, tokenizer = load_model(tiny, device="cpu")
    rows = encode_all(tokenizer, read(DATA / "train.jsonl")[:12])
    config = Config(epochs=1, batch_size=3, learning_rate=1e-3, schedule="constant", warmup=0, shuffle=False)
    ours = [step["loss"] for step in train(model, rows, config).steps]
    model, _ = load_model(tiny, device="cpu")
    options = {"lr_scheduler_type": "constant", "adam_beta2": 0.98, "per_device_train_batch_size": 3, "learning_rate": 1e-3}
    quiet = {"logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True}
    quiet["bf16"] = pick_dtype(model.device) == torch.bfloat16
    arguments = TrainingArguments(tmp_path, num_train_epochs=1, **options, **quiet)
    dataset = [{"input_ids": row.ids, "labels": row.labels} for row in rows]
    trainer = InOrder(model, arguments, train_dataset=dataset, data_collator=DataCollatorForSeq2Seq(tokenizer))
    trainer.train()
    theirs = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert ours == pytest.approx(theirs, rel=1e-3 if quiet["bf16"] else 1e-4) and len(ours) == 4


def test_tensorboard_gets_every_step(tiny, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, tokenizer = load_model(tiny, device="cpu")
    rows = encode_all(tokenizer, EXAMPLES)
    config = Config(epochs=1, batch_size=2)
    history = train(model, rows, config, held_out=rows[:1], on_step=tensorboard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([step["loss"] for step in history.steps])
    assert [event.step for event in events.Scalars("held_out_loss")] == [3]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard")
    with pytest.raises(ImportError, match="pip install tensorboard"):
        tensorboard(tmp_path)


@pytest.mark.parametrize(("what", "dtype"), [("all", torch.float32), ("upper", torch.bfloat16), ("adapters", torch.bfloat16)])
def test_a_callback_may_ask_and_save_the_model_and_changes_nothing(tiny, tmp_path, what, dtype):
    """In its usual state: its own attention, evaluation mode, float32; the weights come out the same to the last bit."""
    rows = [Row([5 + i, 7, 9 + i, 11, 13], [IGNORED, IGNORED, 9 + i, 11, 13]) for i in range(8)]
    config = Config(epochs=2, batch_size=4, learning_rate=1e-2, dtype=dtype, gradient_checkpointing=True)
    config.upper_layers = 1 if what == "upper" else None
    tokenizer, original = load_model(tiny, "cpu")[1], load_model(tiny, "cpu")[0].state_dict()
    finals, seen = [], []

    def ask(history):
        assert not model.training and model.config._attn_implementation == "sdpa"
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
        seen.append(held_out_loss(model, rows[:2], torch.float32))
        torch.manual_seed(len(seen))
        if len(seen) != 2:
            return
        answers = generate(model, tokenizer, ["Hello?", "Who is it?"], max_new_tokens=4)
        if what == "adapters":
            lora.save(model, tmp_path / "saved")
            loaded, _ = load_model(tiny, "cpu")
            lora.load(loaded, tmp_path / "saved")
        else:
            loaded, _ = load_model(save_model(model, tokenizer, tmp_path / "saved"), "cpu")
        if what == "upper":
            assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, original["model.layers.0.mlp.up_proj.weight"])
        assert generate(loaded, tokenizer, ["Hello?", "Who is it?"], max_new_tokens=4) == answers

    for on_step in (None, ask):
        model, _ = load_model(tiny, "cpu")
        if what == "adapters":
            lora.add(model, rank=4)
        model.model.norm.register_forward_hook(lambda module, _, out: F.dropout(out, 0.1, module.training))  # draws numbers
        train(model, rows, config, on_step=on_step)
        finals.append(model.state_dict())
    assert len(seen) == 4 and seen[-1] < seen[0]
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def test_interrupting_leaves_a_usable_model(tiny):
    model, tokenizer = load_model(tiny, device="cpu")

    def interrupt(history):
        if len(history.steps) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(model, encode_all(tokenizer, EXAMPLES), Config(batch_size=2), on_step=interrupt)
    assert not model.training and all(weight.grad is None for weight in model.parameters())
    assert model.config._attn_implementation == "sdpa"
