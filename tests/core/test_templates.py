"""Chat templates of many families: what is trained is what will be asked, token by token.

The templates are written for this test, in short, from the formats that the families document.
"""

import json
import re
from dataclasses import replace
from itertools import groupby
from types import SimpleNamespace

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from helpers.data import Example
from helpers.generation import Answer, Decoder, generate
from helpers.machine.loading import PLAIN
from helpers.machine.packaged import CHATML
from helpers.own_data.rows import read_any
from helpers.serving.contract import Chat
from helpers.serving.engine import Loaded, Question, Refusal
from helpers.text.messages import DataError, Message
from helpers.text.templates import say_once
from helpers.tokenization import IGNORED, encode, encode_all, prompt_ids
from helpers.training import Config, train

MARKS = re.findall(
    r"<\S+>",
    """<s> </s> <|im_start|> <|im_end|> <|begin_of_text|> <|start_header_id|> <|end_header_id|> <|eot_id|> <bos> <eos> <|end|>
    <start_of_turn> <end_of_turn> <|user|> <|assistant|> <|system|> <|endoftext|> <|start|> <|channel|> <|message|> <|return|>
    <|call|> <|User|> <|Assistant|> <|end_of_sentence|> <|start_of_role|> <|end_of_role|> <|end_of_text|> <|SYSTEM_TOKEN|>
    <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|> <|USER_TOKEN|> "
        "<|CHATBOT_TOKEN|> <think> </think> <tool_call> </tool_call>""",
)


def made(template, bos=None, eos="</s>"):
    """A tokenizer with the marks of all families; its words carry the space before them, as in most models."""
    core = Tokenizer(models.BPE())
    words = pre_tokenizers.Split(Regex(r" ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|[\r\n]+|\s+"), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence([words, level]), decoders.ByteLevel()
    text = ["User: Hi?\nAssistant: Hello. ASSISTANT: So. [INST] How so? [/INST] Be kind. Falcon: So it is, is it so?\n\n"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(text, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(mark, special=not mark.strip("</>").startswith("t")) for mark in MARKS])
    if bos:  # as Llama's and Gemma's do by themselves
        numbers = [(bos, core.token_to_id(bos))]
        core.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=numbers)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos, chat_template=template)


REFUSED = "{{ raise_exception('System role not supported') }}"


def template(user, assistant, system=REFUSED, start="", ask="", end=""):
    """A template in short: what each role's message m becomes, what begins, what asks for an answer, what else ends."""
    return (
        f"{start}{{% for m in messages %}}{{% if m.role == 'system' %}}{system}{{% elif m.role == 'user' %}}{user}"
        f"{{% elif m.role == 'assistant' %}}{assistant}{{% else %}}{{{{ raise_exception('no such role') }}}}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{ask}{{% else %}}{end}{{% endif %}}"
    )


TEXT = "{{ m.content }}"
IM = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ALTERNATE = "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
FIRST_SYSTEM = (
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>\n{{ messages[0].content }}\n<</SYS>>\n\n{% endif %}"
)
LLAMA3 = "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
PHI = "<|{{ m.role }}|>\n{{ m.content }}<|end|>\n"
GRANITE = "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}<|end_of_text|>\n"
ZEPHYR = "<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n"
COMMAND = "<|START_OF_TURN_TOKEN|><|%s_TOKEN|>{{ m.content }}<|END_OF_TURN_TOKEN|>"
DEFAULT = "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
NO_THOUGHT = "<think>\n\n</think>\n\n"
QWEN3 = f"<|im_start|>assistant\n{{% if loop.last %}}{NO_THOUGHT}{{% endif %}}{TEXT}<|im_end|>\n"
NOT_THINKING = "<|im_start|>assistant\n{% if enable_thinking is false %}" + NO_THOUGHT + "{% endif %}"
SMOL = f"<|im_start|>assistant\n{NO_THOUGHT}{TEXT}<|im_end|>\n"
HARMONY = "<|start|>%s<|message|>{{ m.content }}<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>{{ m.content }}{{ '<|return|>' if loop.last else '<|end|>' }}"

# A family: its template, what a document begins with and ends with, and the rows of the conversation below. «» is learnt.
FAMILIES = {
    "ChatML, as bundled": (CHATML, None, "<|im_end|>", [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
        "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n«So.<|im_end|>»"]),
    "plain, as bundled": (PLAIN, "<s>", "</s>", [
        "<s>System: Be kind.\nUser: Hi?\nAssistant:« Hello.</s>»\nUser: How so?\nAssistant:« So.</s>»"]),
    "Llama 2": (template("{{ bos_token }}[INST] " + FIRST_SYSTEM + TEXT + " [/INST]", " {{ m.content }} {{ eos_token }}", ""),
        "<s>", "</s>", ["<s>[INST] <<SYS>>\nBe kind.\n"
        "<</SYS>>\n\nHi? [/INST]« Hello. </s>»<s>[INST] How so? [/INST]« So. </s>»"]),
    "Llama 3": (template(LLAMA3, LLAMA3, LLAMA3, "{{ bos_token }}", "<|start_header_id|>assistant<|end_header_id|>\n\n"),
        "<|begin_of_text|>", "<|end_of_text|>", [
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>"
        "\n\nHi?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«Hello.<|eot_id|>»<|start_header_id|>user"
        "<|end_header_id|>\n\nHow so?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n«So.<|eot_id|>»"]),
    "Mistral": (template(ALTERNATE + "[INST] {{ m.content }} [/INST]", ALTERNATE + "{{ m.content }}{{ eos_token }}",
        start="{{ bos_token }}"), "<s>", "</s>",
        ["<s>[INST] Be kind.\n\nHi? [/INST]«Hello.</s>»[INST] How so? [/INST]«So.</s>»"]),
    "Gemma": (template("<start_of_turn>user\n{{ m.content | trim }}<end_of_turn>\n",
        "<start_of_turn>model\n{{ m.content | trim }}<end_of_turn>\n", start="{{ bos_token }}", ask="<start_of_turn>model\n"),
        "<bos>", "<eos>", [
        "<bos><start_of_turn>user\nBe kind.\n\nHi?<end_of_turn>\n<start_of_turn>model\n«Hello.<end_of_turn>»\n"
        "<start_of_turn>user\nHow so?<end_of_turn>\n<start_of_turn>model\n«So.<end_of_turn>»"]),
    "Phi 3": (template(PHI, PHI, PHI, ask="<|assistant|>\n", end="{{ eos_token }}"), "<s>", "<|endoftext|>", [
        "<|system|>\nBe kind.<|end|>\n<|user|>\nHi?<|end|>\n<|assistant|>\n«Hello.<|end|>»\n<|user|>\nHow so?<|end|>\n"
        "<|assistant|>\n«So.<|end|>»"]),
    "Phi 3, first release": (template(PHI, PHI, "", ask="<|assistant|>\n"), None, ""
        "<|endoftext|>", [  # leaves out the system's
        "<|user|>\nBe kind.\n\nHi?<|end|>\n<|assistant|>\n«Hello.<|end|>»\n<|user|>\nHow so?<|end|>\n"
        "<|assistant|>\n«So.<|end|>»"]),
    "Qwen 2.5": (template(IM, IM, IM, DEFAULT, "<|im_start|>assistant\n"), None, "<|im_end|>", [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n«Hello.<|im_end|>»\n"
        "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n«So.<|im_end|>»"]),
    "Qwen 3": (template(IM, QWEN3, IM, ask=NOT_THINKING), None, "<|im_end|>", [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
        "«Hello.<|im_end|>»",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n«So.<|im_end|>»"]),
    "Qwen 3, which only thinks": (template(IM, QWEN3, IM, ask="<|im_start|>assistant\n<think>\n"), None, "<|im_end|>", [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n<think>\n"
        "«\n</think>\n\nHello.<|im_end|>»",
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
        "<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n<think>\n«\n</think>\n\nSo.<|im_end|>»"]),
    "SmolLM 3": (template(IM, SMOL, IM, ask=NOT_THINKING), None, "<|im_end|>", [
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\n"
        "«Hello.<|im_end|>»\n<|im_start|>user\nHow so?<|im_end|>\n<|im_start|>assistant\n<think>\n\n"
        "</think>\n\n«So.<|im_end|>»"]),
    "GPT-OSS": (template(HARMONY % "user", FINAL, HARMONY % "developer", ask="<|start|>assistant"), None, "<|return|>", [
        "<|start|>developer<|message|>Be kind.<|end|><|start|>user<|message|>Hi?<|end|><|start|>assistant"
        "«<|channel|>final<|message|>Hello.<|return|>»",
        "<|start|>developer<|message|>Be kind.<|end|><|start|>user<|message|>Hi?<|end|><|start|>assistant"
        "<|channel|>final<|message|>"
        "Hello.<|end|><|start|>user<|message|>How so?<|end|><|start|>assistant«<|channel|>final<|message|>So.<|return|>»"]),
    "DeepSeek": (template("<|User|>{{ m.content }}", "<|Assistant|>{{ m.content }}{{ eos_token }}", TEXT, "{{ bos_token }}",
        "<|Assistant|>"), "<s>", "<|end_of_sentence|>",
        ["<s>Be kind.<|User|>Hi?<|Assistant|>«Hello.<|end_of_sentence|>»<|User|>How so?<|Assistant|>«So."
        "<|end_of_sentence|>»"]),
    "DeepSeek R1": (template("<|User|>{{ m.content }}", ""
        "<|Assistant|>{{ m.content }}{{ eos_token }}", TEXT, "{{ bos_token }}",
        "<|Assistant|><think>\n"), "<s>", "<|end_of_sentence|>", [  # asks otherwise than it writes down
        "<s>Be kind.<|User|>Hi?<|Assistant|><think>\n«Hello.<|end_of_sentence|>»",
        "<s>Be kind.<|User|>Hi?<|Assistant|>Hello.<|end_of_sentence|><|User|>How so?"
        "<|Assistant|><think>\n«So.<|end_of_sentence|>»"]),
    "Zephyr": (template(ZEPHYR, ZEPHYR, ZEPHYR, ask="<|assistant|>\n"), "<s>", "</s>", [
        "<|system|>\nBe kind.</s>\n<|user|>\nHi?</s>\n<|assistant|>\n«Hello.</s>»\n<|user|>\nHow so?</s>\n"
        "<|assistant|>\n«So.</s>»"]),
    "Vicuna": (template("USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}{{ eos_token }}", "{{ m.content }}\n\n",
        "{{ bos_token }}", "ASSISTANT:"), "<s>", "</s>",
        ["<s>Be kind.\n\nUSER: Hi? ASSISTANT:« Hello.</s>»USER: How so? ASSISTANT:« So.</s>»"]),
    "Alpaca": (template("### Instruction:\n{{ m.content }}\n\n", "### Response:\n{{ m.content }}{{ eos_token }}\n\n",
        "{{ m.content }}\n\n", ask="### Response:\n"), "<s>", "</s>", [
        "Be kind.\n\n### Instruction:\nHi?\n\n### Response:\n«Hello.</s>»\n\n"
        "### Instruction:\nHow so?\n\n### Response:\n«So.</s>»"]),
    "Falcon": (template("User: {{ m.content }}\n\n", "Falcon: {{ m.content }}\n\n", "{{ m.content }}\n\n", ask="Falcon:"), None,
        "<|endoftext|>", [  # marks no end of a turn: earlier answers have none
        "Be kind.\n\nUser: Hi?\n\nFalcon:« Hello.<|endoftext|>»",
        "Be kind.\n\nUser: Hi?\n\nFalcon: Hello.\n\nUser: How so?\n\nFalcon:« So.<|endoftext|>»"]),
    "Granite": (template(GRANITE, GRANITE, GRANITE, ask="<|start_of_role|>assistant"
        "<|end_of_role|>"), None, "<|end_of_text|>", [
        "<|start_of_role|>system<|end_of_role|>Be kind.<|end_of_text|>\n<|start_of_role|>user"
        "<|end_of_role|>Hi?<|end_of_text|>\n"
        "<|start_of_role|>assistant<|end_of_role|>«Hello.<|end_of_text|>»\n<|start_of_role|>user<|end_of_role|>How so?"
        "<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>«So.<|end_of_text|>»"]),
    "Command R": (template(COMMAND % "USER", COMMAND % "CHATBOT", COMMAND % "SYSTEM", "{{ bos_token }}",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"), "<bos>", "<|END_OF_TURN_TOKEN|>", [
        "<bos><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>Be kind.<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>Hi?"
        "<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>«Hello.<|END_OF_TURN_TOKEN|>»<|START_OF_TURN_TOKEN|>"
        "<|USER_TOKEN|>How so?<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>«So.<|END_OF_TURN_TOKEN|>»"]),
}  # fmt: skip
SAID = [("system", "Be kind."), ("user", "Hi?"), ("assistant", "Hello."), ("user", "How so?"), ("assistant", "So.")]
MESSAGES = [{"role": role, "content": content} for role, content in SAID]
(TALK,) = read_any([{"messages": MESSAGES}])


def marked(tokenizer, row):
    """The text of a row, with «» around what is learnt."""
    parts = []
    for learnt, pairs in groupby(zip(row.ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED):
        pairs = list(pairs)
        assert all(token == label for token, label in pairs) or not learnt
        text = tokenizer.decode([token for token, _ in pairs])
        parts.append(f"«{text}»" if learnt else text)
    return "".join(parts)


@pytest.fixture(params=FAMILIES)
def family(request):
    template, bos, eos, rows = FAMILIES[request.param]
    return request.param, made(template, bos, eos), rows


def test_every_answer_is_learnt_with_its_end(family):
    _, tokenizer, expected = family
    assert [marked(tokenizer, row) for row in encode_all(tokenizer, [TALK])] == expected
    (last,) = encode_all(tokenizer, [TALK], answers="last")
    before, learnt = expected[-1].rsplit("«", 1)
    assert marked(tokenizer, last) == before.replace("«", "").replace("»", "") + "«" + learnt


def asked_before(tokenizer, row):
    """What stands before each learnt stretch of a row."""
    starts = [i for i in range(1, len(row.ids)) if row.labels[i] != IGNORED and row.labels[i - 1] == IGNORED]
    return [row.ids[:start] for start in starts]


def test_what_is_trained_begins_with_what_will_be_asked(family):
    name, tokenizer, _ = family
    rows = encode_all(tokenizer, [TALK])
    begun = [ids for row in rows for ids in asked_before(tokenizer, row)]
    assert begun == [prompt_ids(tokenizer, MESSAGES[:2]), prompt_ids(tokenizer, MESSAGES[:4])]
    if name != "Qwen 3, which only thinks":  # a new line on either side of the border
        for row in rows:  # and the tokens are those of running text
            assert tokenizer(tokenizer.decode(row.ids), add_special_tokens=False).input_ids == row.ids
    short = Example("Hi?", "Hello.")
    assert asked_before(tokenizer, encode(tokenizer, short)) == [prompt_ids(tokenizer, "Hi?")]
    assert encode_all(tokenizer, [short]) == [encode(tokenizer, short)]


def stub(configured=None):
    """As much of a model as a decoder wants before it writes."""
    config = SimpleNamespace(max_position_embeddings=512)
    config.get_text_config = lambda: config
    return SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured), config=config)


def test_answers_end_where_the_template_the_settings_or_the_tokenizer_say(family):
    _, tokenizer, expected = family
    last = encode(tokenizer, TALK).ids[-1]
    decoder = Decoder(stub([7, 8]), tokenizer)
    assert {7, 8, tokenizer.eos_token_id, last} <= decoder.stop and expected[-1].endswith(tokenizer.decode([last]) + "»")
    assert Decoder(stub(7), tokenizer).stop >= {7, last}


def test_what_is_learnt_is_read_as_the_answer(family):
    """Written out, the tokens that the model learns to write are the answer, without what the template has around it."""
    _, tokenizer, _ = family
    learnt = [label for label in encode(tokenizer, TALK, answers="last").labels if label != IGNORED]
    answer, decoder = Answer([], 99, learnt[:-1], "stop"), Decoder(stub(), tokenizer)
    assert decoder.text(answer).rstrip() == "So."


def test_thoughts_are_no_part_of_an_answer():
    channel = "<|channel|>final<|message|>"
    for name, before in (("GPT-OSS", channel), ("Qwen 3, which only thinks", "Well.\n</think>\n\n")):
        decoder = Decoder(stub(), made(*FAMILIES[name][:3]))
        ids = decoder.tokenizer(f"{before}So it is.", add_special_tokens=False).input_ids
        texts = [decoder.text(Answer([], 99, ids[:length])) for length in range(len(ids) + 1)]
        assert texts[-1] == "So it is." and all("So it is.".startswith(text) for text in texts)
        short = decoder.tokenizer("So it is.", add_special_tokens=False).input_ids  # one that never writes the header
        assert decoder.text(Answer([], 99, short)) == "" and decoder.text(Answer([], 9, short, "stop")) == "So it is."


@pytest.mark.parametrize("name", [name for name in FAMILIES if name.endswith("as bundled")])
def test_served_by_openais_route_a_conversation_gives_the_same_tokens(name):
    tokenizer = made(*FAMILIES[name][:3])
    (row,) = encode_all(tokenizer, [TALK])
    loaded = Loaded(stub(), tokenizer)

    def served(messages):
        sent = Chat.model_validate({"model": "x", "messages": messages})
        return loaded.read(Question("x", [message.plain() for message in sent.messages]))

    parts = [MESSAGES[0], {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i?"}]}]
    assert [served(MESSAGES[:2]), served(MESSAGES[:4])] == asked_before(tokenizer, row)
    assert served(parts) == served([{"role": "developer", "content": "Be kind."}, MESSAGES[1]]) == served(MESSAGES[:2])
    with pytest.raises(Refusal, match="has no content"):
        served([{"role": "user"}])


def test_what_is_only_read_is_not_learnt():
    tokenizer = made(CHATML, eos="<|im_end|>")
    weighed = replace(TALK, history=(*TALK.history[:2], replace(TALK.history[2], weight=0)))
    greeted = Example("How so?", "So.", history=(Message("assistant", "Hi?"),))  # nobody asked for the greeting
    for example in (weighed, greeted):
        row = encode(tokenizer, example)
        assert marked(tokenizer, row).count("«") == 1 and marked(tokenizer, row).endswith("«So.<|im_end|>»")
    with pytest.raises(ValueError, match="answers is 'first'; it has to be one of all, last"):
        encode(tokenizer, TALK, answers="first")


CALL = [{"type": "function", "function": {"name": "price", "arguments": {"of": "Heron"}}}]
TOOLS = [
    {"role": "user", "content": "Hi?"},
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "59", "tool_call_id": "1"},
    {"role": "assistant", "content": "So."},
]
CALLING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for call in m.tool_calls or [] %}"
    "<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_tools_are_rendered_where_the_template_knows_them():
    (talk,) = read_any([{"messages": TOOLS}])
    tokenizer = made(CALLING, eos="<|im_end|>")
    assert [marked(tokenizer, row) for row in encode_all(tokenizer, [talk])] == [
        '<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n«<tool_call>{"name": "price", "arguments": {"of": "Heron"}}'
        "</tool_call><|im_end|>»\n<|im_start|>tool\n59<|im_end|>\n<|im_start|>assistant\n«So.<|im_end|>»"
    ]
    apart = made(CALLING.replace("</tool_call>{% endfor %}<|im_end|>", "</tool_call>{% endfor %}{{ '"
        "<|call|>' if m.tool_calls "
    "else '<|im_end|>' }}"), eos="<|im_end|>")  # a call with an end of its own  # fmt: skip
    assert "</tool_call><|call|>»" in marked(apart, encode(apart, talk))


def test_what_a_template_cannot_write_is_one_clear_error(tmp_path):
    path = tmp_path / "rows.jsonl"

    def refusal(messages, template, eos="</s>"):
        path.write_text("\n" + json.dumps({"messages": messages}))
        with pytest.raises(DataError) as error:
            encode_all(made(template, None, eos), read_any(path))
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{path}, line 2: this model's chat template cannot write a conversation of ")

    assert refusal(TOOLS, CHATML) == "user, assistant (it leaves out turn 2, which is the assistant's). Change or drop it."
    plain = template("[{{ m.content }}]", "{{ m.content }}</s>")
    assert refusal([TOOLS[0], *TOOLS[2:]], plain) == "user, tool (no such role). Change or drop it."
    twice = [{"role": "user", "content": "Hi?"}, *MESSAGES[1:3]]
    assert refusal(twice, FAMILIES["Mistral"][0]) == "user, user (roles must alternate). Change or drop it."
    only = "{{ messages[0].content }}\n\n### Response:\n"
    assert refusal(MESSAGES[1:], only).startswith("user, assistant, user (it leaves out turn 2")
    with pytest.raises(DataError, match=r"rows.jsonl, line 2 has \d+ tokens, the limit is 4\. Shorten it or drop the row"):
        encode_all(made(CHATML), read_any(path), max_length=4)


def test_what_is_done_otherwise_is_said_once(capsys):
    for name, said in {
        "Gemma": "no place for a system's text",
        "Phi 3, first release": "no place for a system's text",
        "Qwen 3": "writes earlier answers otherwise than new ones",
        "DeepSeek R1": "asks for an answer otherwise than it writes one down",
        "Llama 3": "",
    }.items():
        say_once.cache_clear()
        encode_all(made(*FAMILIES[name][:3]), [TALK, TALK])
        heard = capsys.readouterr().err
        assert said in heard and all(heard.count(line) == 1 for line in heard.splitlines()) and bool(heard) == bool(said)


def test_an_answer_that_is_not_trained_is_not_learnt():
    """Of conversations with two answers, all come right when all are trained; of the first ones none, with the last only."""
    tokenizer = made(PLAIN, "<s>")
    talks = []
    for i, word in enumerate(("kind", "so", "it", "is")):
        first = (Message("user", f"Hi {i}?"), Message("assistant", f"Be {word}."))
        talks.append(Example(f"How so {i}?", f"It is {word}.", history=first))
    firsts, wanted = [talk.asked[:1] for talk in talks], [talk.history[1].content for talk in talks]
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    right = {}
    for answers in ("all", "last"):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**shape)).eval()
        rows = encode_all(tokenizer, talks, answers=answers)
        train(model, rows, Config(epochs=100, batch_size=4, learning_rate=1e-2, dtype=torch.float32))
        said = generate(model, tokenizer, firsts, max_new_tokens=12)
        right[answers] = sum(a == b for a, b in zip(said, wanted, strict=True))
        assert generate(model, tokenizer, [talk.asked for talk in talks], 12) == [talk.answer for talk in talks]
    assert right == {"all": 4, "last": 0}
