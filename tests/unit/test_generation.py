import pytest
import torch

from helpers.data import DATA, read
from helpers.generation import generate, shared_beginning, stream
from helpers.models import load_model

QUESTIONS = [e.question for e in read(DATA / "evaluation/dev/facts.jsonl")[:7]] + [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Hi",
]


def test_many_at_once_equal_one_at_a_time(embedded):
    together = generate(*embedded, QUESTIONS, max_new_tokens=24, batch_size=10)
    assert together == [generate(*embedded, [question], max_new_tokens=24)[0] for question in QUESTIONS]
    assert "Paris" in together[7]


def test_equal_to_transformers_own_generate(embedded):
    model, tokenizer = embedded
    for question, ours in zip(QUESTIONS, generate(model, tokenizer, QUESTIONS, max_new_tokens=16), strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        prompt = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            ids = model.generate(**prompt, max_new_tokens=16, do_sample=False)
        assert tokenizer.decode(ids[0, prompt.input_ids.shape[1] :], skip_special_tokens=True).strip() == ours


def test_stream_adds_up_to_the_answer(embedded):
    pieces = list(stream(*embedded, "What is the capital of France?", max_new_tokens=20))
    assert len(pieces) > 3
    assert "".join(pieces).strip() == generate(*embedded, ["What is the capital of France?"], max_new_tokens=20)[0]


def test_a_conversation_is_a_question_too(embedded):
    messages = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    assert generate(*embedded, [messages], max_new_tokens=16) == ["Rome."]


def test_no_question_no_answer(embedded):
    assert generate(*embedded, []) == []


def test_a_prompt_longer_than_the_window_is_refused(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match=r"do not fit into the model's window of 512 tokens"):
        generate(model, tokenizer, ["word " * 600])
    with pytest.raises(ValueError, match="do not fit"):
        next(stream(model, tokenizer, "word " * 600))


HANDBOOK = [{"role": "system", "content": "You work for Tindermoss, a maker of stoves and kettles. Be brief. " * 8}]


def test_a_shared_beginning_is_read_once_and_changes_no_answer(embedded, monkeypatch):
    asked = [[*HANDBOOK, {"role": "user", "content": question}] for question in QUESTIONS[4:9]]
    once = generate(*embedded, asked, max_new_tokens=12, batch_size=3)
    monkeypatch.setattr("helpers.generation.shared_beginning", lambda prompts: [])
    assert once == generate(*embedded, asked, max_new_tokens=12, batch_size=3)


def test_only_what_all_prompts_share_is_shared():
    assert shared_beginning([[1, 2, 3, 4], [1, 2, 5], [1, 2, 3, 9]], worthwhile=2) == [1, 2]
    assert shared_beginning([[1, 2, 3], [1, 2, 3]], worthwhile=2) == [1, 2]  # a token is left to each
    assert shared_beginning([[1, 2, 3], [1, 2]], worthwhile=2) == []
    assert shared_beginning([[1, 2, 3]], worthwhile=1) == shared_beginning([]) == []


def test_the_window_counts_the_shared_beginning(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    with pytest.raises(ValueError, match=r"do not fit into the model's window of 512 tokens"):
        generate(model, tokenizer, ["word " * 600 + end for end in ("one", "two")])
    assert model.config._attn_implementation == "sdpa"
