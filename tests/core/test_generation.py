import pytest
import torch

from helpers.data import read
from helpers.generation import Decoder, generate, stream
from helpers.machine.decoding import shared_beginning
from helpers.machine.paths import DATA
from helpers.models import load_model
from helpers.tokenization import prompt_ids

QUESTIONS = [e.question for e in read(DATA / "evaluation/dev/facts.jsonl")[:7]] + [
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Hi",
]


def test_many_at_once_equal_one_at_a_time(embedded):
    together = generate(*embedded, QUESTIONS, max_new_tokens=24, batch_size=10)
    assert together == [generate(*embedded, [question], max_new_tokens=24)[0] for question in QUESTIONS]
    assert "Paris" in together[7]


def test_answers_that_join_and_leave_in_mid_flight_equal_one_at_a_time(embedded):
    """Prompts of all lengths come one after another while others are being answered; some are cancelled."""
    model, tokenizer = embedded
    decoder, answers, widest = Decoder(model, tokenizer, rows=4, prompt_tokens=64), [], 0
    for number, question in enumerate(QUESTIONS):
        answers.append(decoder.add(prompt_ids(tokenizer, question), 4 + 3 * (number % 4)))
        for _ in range(number % 3):
            decoder.step()
            widest = max(widest, len(decoder.running))
    answers[5].finish = "cancelled"  # one that waits
    decoder.running[-1].finish = "cancelled"  # and one that runs
    while decoder.waiting or decoder.running:
        decoder.step()
        widest = max(widest, len(decoder.running))
        assert decoder.cache.get_seq_length() <= max(map(len, decoder.running), default=0)  # no column that nobody needs
    assert widest == 4 and decoder.free == 4 and sum(answer.finish == "cancelled" for answer in answers) == 2
    for question, answer in zip(QUESTIONS, answers, strict=True):
        text = tokenizer.decode(answer.tokens, skip_special_tokens=True).strip()
        if answer.finish != "cancelled":
            assert text == generate(model, tokenizer, [question], answer.max_new_tokens)[0]


def test_memory_is_bounded_and_a_long_prompt_waits_for_room(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    decoder = Decoder(model, tokenizer, rows=8, cache_tokens=200)
    answers = [decoder.add([5] * length, 20) for length in (10, 10, 10, 150, 10, 10, 300)]
    while decoder.waiting or decoder.running:
        decoder.step()
        rows = len(decoder.running)
        assert rows <= 1 or rows * decoder.cache.get_seq_length() <= 200
    assert all(answer.finish == "length" or answer.finish == "stop" for answer in answers)


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


def test_a_stream_that_ends_in_half_a_character_gives_all_it_has(tiny, monkeypatch):
    model, tokenizer = load_model(tiny, device="cpu")
    monkeypatch.setattr(Decoder, "text", lambda self, answer: "ab\ufffd" if len(answer.tokens) > 1 else "a")
    assert "".join(stream(model, tokenizer, "x", max_new_tokens=2)) == "ab\ufffd"


def test_an_answer_without_room_for_a_token_is_refused(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    for most in (0, -60):
        with pytest.raises(ValueError, match=f"max_new_tokens is {most}"):
            generate(model, tokenizer, ["x"], max_new_tokens=most)


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
    monkeypatch.setattr("helpers.machine.decoding.shared_beginning", lambda prompts: [])
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
