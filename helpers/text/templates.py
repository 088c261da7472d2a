"""Chat templates: how a model writes a conversation, what it puts around an answer, and what of it cannot be written."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from helpers.machine.probe import first_line, tell
from helpers.text.messages import DataError


@dataclass(frozen=True)
class Dress:
    """What a model's chat template puts around an answer.

    header: what the model writes before it, such as the name of a channel; empty in most templates.
    end: the token that ends the turn, as text; empty where the template has none.
    """

    header: str
    end: str


@cache
def say_once(text: str) -> None:
    """Tell the user something that changes what the model reads; the same thing is told but once."""
    tell(text)


def _left_out(messages: Sequence[dict], text: str) -> int | None:
    """Return the number of the first message that a rendered text leaves out, in whole or in part."""
    for number, message in enumerate(messages, 1):
        content = message["content"].split("</think>")[-1].strip()  # thoughts of earlier answers may go
        calls = [call.get("function", call)["name"] for call in message.get("tool_calls", ())]
        if content not in text and json.dumps(content, ensure_ascii=False)[1:-1] not in text:
            return number
        if not all(call in text for call in calls):
            return number
    return None


def render(tokenizer, messages: Sequence[dict], asking: bool = True) -> str:
    """Write a conversation as the model's chat template has it; `asking`: up to where its answer begins.

    A system's text that the template refuses or leaves out goes before the first question, as the makers of such models
    advise. Raises DataError when the template cannot write the conversation, or leaves out something of it.
    """
    try:  # without thoughts: our answers have none. A template that knows no thoughts does not ask for the setting
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asking, enable_thinking=False
        )
        lost = _left_out(messages if asking or messages[-1].get("tool_calls") else messages[:-1], text)
        if lost is None:
            return text
        reason = f"it leaves out turn {lost}, which is the {messages[lost - 1]['role']}'s"
    except Exception as error:  # a template that refuses a conversation raises what it likes
        reason = first_line(error)
    roles = [message["role"] for message in messages]
    if roles[:2] == ["system", "user"]:
        say_once("This model's chat template has no place for a system's text: it is put before the first question.")
        joined = f"{messages[0]['content']}\n\n{messages[1]['content']}"
        return render(tokenizer, [{**messages[1], "content": joined}, *messages[2:]], asking)
    shown = ", ".join(roles[:6]) + (", ..." if roles[6:] else "")
    raise DataError(f"this model's chat template cannot write a conversation of {shown} ({reason}). Change or drop it.")


def token_ids(tokenizer, text: str) -> list[int]:
    """Turn a rendered text into tokens; the template has written all special ones itself."""
    return tokenizer(text, add_special_tokens=False).input_ids


def _marks(tokenizer, text: str) -> list[str]:
    """List the tokens in a text that are no pieces of words, but marks such as <|im_end|>, in their order."""
    added = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return [tokenizer.convert_ids_to_tokens(id) for id in token_ids(tokenizer, text) if id in added]


def dress(tokenizer) -> Dress:
    """Find out what the model's chat template puts around an answer, by writing one."""
    if not getattr(tokenizer, "chat_template", None):  # nothing but plain tokens will be asked
        return Dress("", "")
    asked, probe = [{"role": "user", "content": "Is it so?"}], "Verily"
    prompt, whole = render(tokenizer, asked), render(tokenizer, [*asked, {"role": "assistant", "content": probe}], asking=False)
    header, found, rest = whole.removeprefix(prompt).partition(probe)
    if not found:  # a template that writes nothing but the question
        return Dress("", "")
    return Dress(header if whole.startswith(prompt) else "", next(iter(_marks(tokenizer, rest)), ""))


def end_ids(tokenizer, configured: int | Sequence[int] | None = None) -> list[int]:
    """List the tokens that end an answer: the model's configured ones, the tokenizer's, and the chat template's."""
    end = dress(tokenizer).end
    ids = [*(configured if isinstance(configured, Sequence) else [configured]), tokenizer.eos_token_id]
    ids.append(tokenizer.convert_tokens_to_ids(end) if end else None)
    return list(dict.fromkeys(id for id in ids if id is not None))


def prompt_and_answer(tokenizer, messages: Sequence[dict], around: Dress) -> tuple[list[int], list[int]]:
    """Encode a conversation that ends in an answer: what the model reads before it, and what it has to write, with its end.

    around: see `dress`.  Raises DataError when the template cannot write the conversation, see `render`.
    """
    prompt, whole = render(tokenizer, messages[:-1]), render(tokenizer, messages, asking=False)
    content, rest, end = messages[-1]["content"], whole.removeprefix(prompt), around.end
    if messages[-1].get("tool_calls"):
        if not whole.startswith(prompt):
            raise DataError("this model's chat template cannot be asked for the call of a tool that it writes. Drop the row.")
        end = end if end in rest else next(reversed(_marks(tokenizer, rest)), "")  # a call may end in a mark of its own
        told = rest[: rest.rindex(end)] if end else rest.rstrip()
    elif not whole.startswith(prompt):
        told = content
        say_once(
            "This model's chat template asks for an answer otherwise than it writes one down. "
            "Trained is what will be asked: the answer right after the request for it."
        )
    elif end and end in rest:
        told = rest[: rest.rindex(end)]
    else:
        told = around.header + content
    before, both = token_ids(tokenizer, prompt), token_ids(tokenizer, prompt + told + end)  # the border is as in running text
    answer = both[len(before) :] if both[: len(before)] == before else token_ids(tokenizer, told + end)
    return before, answer if end else [*answer, tokenizer.eos_token_id]


def answer_text(tokenizer, tokens: Sequence[int], header: str, ended: bool) -> str:
    """Write out what a model has written so far as its answer: without marks, and without the template's header before it.

    header: see `Dress`; what the model writes before it, such as thoughts, is no part of its answer, so that there is no
    text before it comes. A model that never writes it is taken at its word, once its answer has `ended`.
    """

    def headed(length: int) -> bool:
        """Tell whether the header stands in the first so many tokens."""
        return header in tokenizer.decode(tokens[:length], skip_special_tokens=False)

    start = bisect_left(range(len(tokens) + 1), True, key=headed) if header else 0
    if start > len(tokens):  # there is no header
        start = 0 if ended else len(tokens)
    text = tokenizer.decode(tokens[start:], skip_special_tokens=True)
    return text.lstrip() if start else text.lstrip(" ")  # the space that words begin with; line breaks are the model's own
