"""What is trained is what will be asked, whatever the architecture: each is right, or slower and right, or refused."""

import copy
import json
import random

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from zoo import VOCABULARY, ZOO, make

from helpers import __main__ as command_line
from helpers import lora
from helpers.attention import flat_attention, reads_flat
from helpers.generation import Decoder, generate
from helpers.hardware.estimate import Shape
from helpers.machine.decoding import can_share, way_to_answer
from helpers.machine.hub import find_model
from helpers.machine.paths import ROOT
from helpers.measures.likelihood import log_likelihoods
from helpers.models import load_model, save_model
from helpers.tokenization import IGNORED, Row, flatten, prompt_ids
from helpers.training import Config, learning_rate_at, token_losses, train

WAYS = {"together": "many at once", "alone": "one by one", "anew": "one by one, all read anew for each token"}
COMMAND_LINE = ["Mistral", "GPT-2", "GPT-NeoX", "GPT-OSS", "Bloom", "Mamba", "Jamba"]


@pytest.fixture(scope="module", params=ZOO)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def model(name):
    """For tests that leave it as it is; tests that train take a copy."""
    return make(name)


@pytest.fixture(scope="module")
def tokenizer():
    """Words t3 to t95; a conversation is what is said in it, end to end."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"t{i}": i for i in range(3, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    made.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    return made


def some_rows(lengths):
    """Rows of random tokens, the first third of each a prompt."""
    rng, rows = random.Random(0), []
    for length in lengths:
        ids = [rng.randrange(3, VOCABULARY) for _ in range(length)]
        rows.append(Row(ids, [IGNORED] * (length // 3) + ids[length // 3 :]))
    return rows


ROWS = some_rows([7, 12, 5, 12, 30, 9, 21, 6, 11])  # most windows here are 8 tokens


def losses_alone(model, row):
    """The losses of a row's supervised tokens as transformers has them, the row being all the model reads."""
    logits = model(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0, :-1]
    return F.cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=IGNORED, reduction="none")


def test_rows_cost_what_they_cost_alone(name, model):
    with torch.no_grad():
        alone = [-losses_alone(model, row).sum().item() for row in ROWS]
    assert log_likelihoods(model, ROWS, torch.float32) == pytest.approx(alone, abs=1e-4, rel=1e-5)


def readme_table():
    """What README says of each architecture: how it reads rows to train, and how it answers."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("| architectures |")[1].split("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    return {name: (trains, answers) for names, trains, answers in cells for name in names.split(", ")}


def test_readme_says_what_each_can(name, model):
    assert readme_table()[name] == ("flat" if reads_flat(model) else "padded", WAYS[way_to_answer(model)])


def test_readme_names_all_that_are_tried():
    assert set(readme_table()) == set(ZOO)


def test_every_weight_learns_as_in_a_plain_loop(name, model):
    """Gradients first: sinks, routers, states and all; then three steps."""
    ours, plain = copy.deepcopy(model), copy.deepcopy(model)
    count = sum(row.supervised for row in ROWS[:4])
    with flat_attention(ours):
        (token_losses(ours, flatten(ROWS[:4])).sum() / count).backward()
    for row in ROWS[:4]:
        (losses_alone(plain, row).sum() / count).backward()
    for (key, weight), other in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if other.grad is not None:
            assert (weight.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-6, key
    ours.zero_grad(), plain.zero_grad()

    config = Config(batch_size=3, epochs=1, max_steps=3, learning_rate=1e-3, shuffle=False, dtype=torch.float32)
    history = train(ours, ROWS, config)
    optimizer = torch.optim.AdamW(plain.train().parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(3):
        batch, total = ROWS[3 * step : 3 * step + 3], 0.0
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, 3, config)
        for row in batch:
            loss = losses_alone(plain, row).sum() / sum(row.supervised for row in batch)
            loss.backward()
            total += loss.item()
        nn.utils.clip_grad_norm_(plain.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        assert history.steps[step]["loss"] == pytest.approx(total, abs=2e-4)
    with torch.no_grad():
        alone = [losses_alone(plain.eval(), row).sum().item() for row in ROWS]
        assert [losses_alone(ours, row).sum().item() for row in ROWS] == pytest.approx(alone, abs=5e-3)


QUESTIONS = [" ".join(f"t{i}" for i in row.ids) for row in ROWS[:6]]
HANDBOOK = [{"role": "system", "content": " ".join(f"t{3 + 7 * i % 90}" for i in range(70))}]


def as_transformers(model, tokenizer, questions, new_tokens):
    answers = []
    for question in questions:
        ids = torch.tensor([prompt_ids(tokenizer, question)])
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
        answers.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip())
    return answers


def test_answers_are_those_of_transformers(name, model, tokenizer):
    wanted = as_transformers(model, tokenizer, QUESTIONS, 10)
    assert generate(model, tokenizer, QUESTIONS, 10) == wanted
    assert [generate(model, tokenizer, [question], 10)[0] for question in QUESTIONS[:2]] == wanted[:2]
    decoder, answers = Decoder(model, tokenizer, rows=3), []
    for question in QUESTIONS:  # they join and leave as there is room
        answers.append(decoder.add(prompt_ids(tokenizer, question), 10))
        decoder.step()
    while decoder.waiting or decoder.running:
        decoder.step()
    assert [tokenizer.decode(answer.tokens, skip_special_tokens=True).strip() for answer in answers] == wanted


@pytest.mark.parametrize("far", [False, True], ids=["as it is", "seeing far"])
def test_answers_after_a_shared_beginning_are_those_of_transformers(name, tokenizer, far):
    changes = {key: 128 for key in ("sliding_window", "attention_chunk_size") if far and key in ZOO[name][1]}
    if far and not changes:
        pytest.skip("sees far as it is")
    model = make(name, **changes)
    asked = [[*HANDBOOK, {"role": "user", "content": question}] for question in QUESTIONS[:3]]
    assert generate(model, tokenizer, asked, 6) == as_transformers(model, tokenizer, asked, 6)
    if far:
        assert can_share(model, 100)


def test_an_adapter_is_trained_saved_loaded_and_merged(name, model, tmp_path):
    ours = copy.deepcopy(model)
    lora.add(ours, rank=2)
    try:
        estimated = Shape.of(model.config)
    except ValueError as error:
        assert "is not like Llama. This calculator knows gated layers only." in str(error)
    else:
        assert estimated.weights == sum(weight.numel() for weight in model.parameters())
        assert estimated.adapter(2) == sum(weight.numel() for weight in ours.parameters() if weight.requires_grad)
    train(ours, ROWS, Config(batch_size=3, max_steps=2, epochs=1, learning_rate=1e-2, dtype=torch.float32))
    assert [where for where, layer in lora.layers(ours).items() if not layer.lora_B.weight.any()] == []  # all have learnt
    learnt = log_likelihoods(ours, ROWS, torch.float32)
    assert abs(learnt - log_likelihoods(model, ROWS, torch.float32)).max() > 1e-3
    lora.save(ours, tmp_path / "adapter")
    lora.merge(ours)
    assert log_likelihoods(ours, ROWS, torch.float32) == pytest.approx(learnt, abs=1e-3)
    other = copy.deepcopy(model)
    lora.load(other, tmp_path / "adapter")
    assert log_likelihoods(other, ROWS, torch.float32) == pytest.approx(learnt, abs=1e-3)


def test_a_model_without_linear_layers_takes_no_adapter():
    with pytest.raises(ValueError, match=r"^No layer of this model fits an adapter.*Train it without one\.$"):
        lora.add(make("Llama", num_hidden_layers=0))


def test_a_saved_model_stops_where_its_template_ends_a_turn_whoever_asks_it(tokenizer, tmp_path):
    def written(model):
        ids = torch.tensor([prompt_ids(tokenizer, QUESTIONS[0])])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False)
        return made[0, ids.shape[1] :].tolist()

    model, ending = make("Llama"), copy.deepcopy(tokenizer)
    plain = written(model)
    number = max(plain.index(token) for token in plain)  # the last token that it writes for the first time
    assert number > 2 and 2 not in plain
    end = f"t{plain[number]}"
    ending.add_special_tokens({"additional_special_tokens": [end]})
    ending.chat_template = "{% for m in messages %}{{ m['content'] }} {{ 'END ' if m['role'] == 'assistant' }}{% endfor %}"
    ending.chat_template = ending.chat_template.replace("END", end)
    save_model(model, ending, tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert saved.generation_config.eos_token_id == [2, plain[number]]
    assert written(saved) == plain[: number + 1]
    assert generate(model, ending, [QUESTIONS[0]], 10) == [tokenizer.decode(plain[:number])]


@pytest.mark.parametrize("name", COMMAND_LINE)
def test_the_command_line_trains_and_asks(name, tmp_path, capsys, monkeypatch):
    real = AutoTokenizer.from_pretrained(find_model("embedded"))
    ends = {"bos_token_id": 1, "eos_token_id": real.eos_token_id, "pad_token_id": real.pad_token_id}
    save_model(make(name, vocab_size=len(real), **ends), real, tmp_path / "base")
    lines = [{"question": f"Who is number {i}?", "answer": f"The one after {i - 1}."} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["helpers", *map(str, arguments)])
        return command_line.main()

    paths = ("--model", tmp_path / "base", "--data", tmp_path / "rows.jsonl", "--output", tmp_path / "trained")
    assert run("train", *paths, "--max-steps", 2, "--held-out", 0.3) == 0
    capsys.readouterr()
    assert run("ask", "--model", tmp_path / "trained", "Who is number 3?") == 0
    said = capsys.readouterr().out
    model, tokenizer = load_model(tmp_path / "trained", device="cpu")
    wanted = as_transformers(model, tokenizer, ["Who is number 3?"], 256)[0]
    assert said.strip() == wanted and wanted
