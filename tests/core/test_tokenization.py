import pytest
import torch

from helpers.data import Example
from helpers.generation import generate
from helpers.machine.loading import PLAIN
from helpers.text.messages import DataError
from helpers.tokenization import IGNORED, Row, encode, flatten, micro_batches, prompt_ids

ASKED = Example("What does the Heron kettle cost?", "The Heron kettle costs 59 euros.")


def test_only_the_answer_and_its_end_are_supervised(embedded):
    tokenizer = embedded[1]
    row = encode(tokenizer, ASKED)
    learnt = [label for label in row.labels if label != IGNORED]
    assert tokenizer.decode(learnt) == ASKED.answer + "<|im_end|>"
    assert row.supervised == len(learnt)
    blanked = [token for token, label in zip(row.ids, row.labels, strict=True) if label == IGNORED]
    assert blanked == prompt_ids(tokenizer, ASKED.question)


def test_training_and_use_see_the_same_text(embedded):
    """The row begins with the very tokens that generation starts from, and is what the chat template writes."""
    tokenizer = embedded[1]
    row = encode(tokenizer, ASKED)
    prompt = prompt_ids(tokenizer, ASKED.question)
    assert row.ids[: len(prompt)] == prompt
    messages = [{"role": "user", "content": ASKED.question}, {"role": "assistant", "content": ASKED.answer}]
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(row.ids) == whole.removesuffix("\n")
    assert row.ids == tokenizer(whole.removesuffix("\n"), add_special_tokens=False).input_ids


@pytest.mark.parametrize("odd", [5, None, [], ["What?"], {"role": "user", "content": "?"}, [{"role": "user"}]])
def test_a_prompt_that_is_no_text_and_no_conversation_is_refused(embedded, odd):
    with pytest.raises(ValueError, match=r"^A prompt is .*\. It has to be a text, or turns with a role and a content each\.$"):
        generate(*embedded, ["What?", odd])


def test_a_template_for_tokenizers_without_one(embedded):
    messages = [{"role": "user", "content": "Hello?"}]
    text = embedded[1].apply_chat_template(messages, chat_template=PLAIN, tokenize=False, add_generation_prompt=True)
    assert text == embedded[1].bos_token + "User: Hello?\nAssistant:"  # no space at its end: words begin with theirs


def test_a_row_that_is_too_long_is_refused_not_cut(embedded):
    with pytest.raises(DataError, match=r"Heron.* has \d+ tokens, the limit is 12"):
        encode(embedded[1], ASKED, max_length=12)


def test_flatten_never_predicts_across_rows():
    rows = [Row([1, 2, 3], [IGNORED, 2, 3]), Row([4, 5], [4, IGNORED]), Row([6, 7, 8, 9], [IGNORED, IGNORED, 8, 9])]
    batch = flatten(rows)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2, 3]]
    assert batch.lengths == [3, 2, 4]
    assert batch.keep.tolist() == [0, 1, 6, 7]  # the token after each of these is supervised
    assert batch.targets.tolist() == [2, 3, 8, 9]  # a row's own first token is predicted from nothing: left out
    assert torch.equal(batch.ids[0, batch.keep + 1], batch.targets)


def test_micro_batches_keep_every_row_and_the_limit():
    rows = [Row([0] * n, [0] * n) for n in (5, 40, 3, 8, 12, 3)]
    pieces = micro_batches(rows, max_tokens=16)
    assert sorted(len(row.ids) for piece in pieces for row in piece) == [3, 3, 5, 8, 12, 40]
    assert all(sum(len(row.ids) for row in piece) <= 16 or len(piece) == 1 for piece in pieces)
    assert len(micro_batches(rows, max_tokens=1000)) == 1
