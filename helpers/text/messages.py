"""Messages: the turns of a conversation, and what is wrong with them."""

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from helpers.text.normalise import comparable

ROLES = {"human": "user", "prompter": "user", "function": "tool", "observation": "tool", "developer": "system"}
ROLES |= dict.fromkeys(("gpt", "bot", "chatbot", "model", "ai"), "assistant")
ROLES |= {role: role for role in ("system", "user", "assistant", "tool")}
SPEAKER, SAID = ("role", "from"), ("content", "value", "text", "parts")  # how turns call who speaks, and what
WRITE = 'Write [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'
NO_TEXT = re.compile("[\0\ud800-\udfff]")  # null characters and halves of characters
JSON_TEXT = re.compile(r'("(?:[^"\\]|\\.)*+")(:?)')  # with the colon, if it is the name of a field


class DataError(ValueError):
    """A file, line or field that cannot be used. The message says which one and what to do about it."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    role: system, user, assistant or tool.  weight: 0 for an answer that is read and not learnt, else 1.
    tool_calls: what an assistant asks of tools, OpenAI's list written as JSON.  tool_call_id, name: of a tool's result.
    """

    role: str
    content: str
    weight: int = 1
    tool_calls: str = ""
    tool_call_id: str = ""
    name: str = ""

    @property
    def plain(self) -> dict:
        """The turn as chat templates take it."""
        calls = {"tool_calls": json.loads(self.tool_calls)} if self.tool_calls else {}
        named = {"tool_call_id": self.tool_call_id, "name": self.name}
        return {"role": self.role, "content": self.content, **calls, **{key: value for key, value in named.items() if value}}

    @property
    def row(self) -> dict:
        """The turn as files have it: `read` takes it back unchanged."""
        return self.plain if self.weight else {**self.plain, "weight": 0}

    def with_texts(self, change: Callable[[str], str]) -> "Message":
        """The turn with every text changed, those given to tools too."""

        def changed(literal: re.Match) -> str:
            return literal[0] if literal[2] else json.dumps(change(json.loads(literal[1])), ensure_ascii=False)

        calls = JSON_TEXT.sub(changed, self.tool_calls)
        return replace(self, content=change(self.content), tool_calls=calls)


def is_text(value: object) -> bool:
    """Tell whether a value is text throughout."""
    return isinstance(value, str) and not NO_TEXT.search(value)


def listed(names: Iterable) -> str:
    """List names in one line, the first twenty of them."""
    first = list(islice(names, 21))
    return " ".join(", ".join([*map(str, first[:20]), *(["..."] if first[20:] else [])]).split())


def text_field(record: Mapping, name: str, where: str) -> str:
    """Take the text of a field, or say in one sentence what is wrong with it."""
    if name not in record:
        raise DataError(f"{where}: the field {name!r} is missing (found: {listed(record) or 'none'}). Add it.")
    text = record[name]
    if isinstance(text, (list, tuple, dict)) and text:
        kind = "an object" if isinstance(text, dict) else "a list"
        raise DataError(f"{where}, field {name!r}: expected text, found {kind}: {reprlib.repr(text)}. Write it as one text.")
    if not isinstance(text, str) or not text.strip():
        found = reprlib.repr(text)
        raise DataError(f"{where}, field {name!r}: expected text, found {found}. Fill it in or drop the line.")
    if "\0" in text:
        raise DataError(f"{where}, field {name!r}: holds a null character, as no text does. Take it out, or save as UTF-8.")
    if not is_text(text):
        raise DataError(f"{where}, field {name!r}: holds half of a character, such as of an emoji. Mend it or drop the line.")
    return text


def tool_calls(given: object, where: str) -> str:
    """Write an assistant's calls of tools as JSON, with arguments as objects: that is what chat templates expect."""
    try:
        calls = json.loads(given if isinstance(given, str) else json.dumps(given))
        for call in calls:
            function = call.get("function", call)
            if not is_text(function["name"]):
                raise ValueError
            if isinstance(function.get("arguments"), str):
                function["arguments"] = json.loads(function["arguments"])
        text = json.dumps(calls, ensure_ascii=False)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        expected = '[{"type": "function", "function": {"name": ..., "arguments": {...}}}]'
        raise DataError(f"{where}, field 'tool_calls': expected {expected}, found {reprlib.repr(given)}. Mend it.") from None
    if not is_text(text):
        raise DataError(f"{where}, field 'tool_calls': holds bytes that are no text. Save the file as UTF-8 and try again.")
    return text


def text_parts(given: object, where: str) -> object:
    """Join content that comes in parts, as OpenAI and Gemini write it, where all of them are text."""
    if not isinstance(given, list) or not given:
        return given
    texts = [part.get("text") if isinstance(part, dict) else part for part in given]
    for part, text in zip(given, texts, strict=True):
        if isinstance(part, dict) and not isinstance(text, str):
            kind = part.get("type") or listed(part)
            raise DataError(f"{where}: holds a part that is no text ({reprlib.repr(kind)}). Only text is learnt: drop the row.")
    joined = [text for text in texts if isinstance(text, str)]
    return "".join(joined) if len(joined) == len(texts) else given


def message(turn: Mapping, where: str) -> Message:
    """Read one turn, as OpenAI, ShareGPT or Gemini write it, or say in one sentence what is wrong with it."""
    speaker = next((name for name in SPEAKER if name in turn), SPEAKER[0])
    said = next((name for name in SAID if name in turn), SAID[0])
    given = text_field(turn, speaker, where)
    role = ROLES.get(given.strip().lower(), "")
    if not role:
        raise DataError(f"{where}: {given!r} is no known role. Use system, user, assistant and tool.")
    calls = tool_calls(turn["tool_calls"], where) if role == "assistant" and turn.get("tool_calls") else ""
    weight = 1 if turn.get("weight") is None else turn["weight"]
    if weight not in (0, 1):
        raise DataError(
            f"{where}, field 'weight': expected 0 or 1, found {reprlib.repr(weight)}. Write 0 for what is not learnt."
        )
    content = text_parts(turn.get(said), f"{where}, field {said!r}")
    text = "" if calls and not content else text_field({**turn, said: content} if said in turn else turn, said, where)
    result = {key: turn[key] if is_text(turn.get(key)) and role == "tool" else "" for key in ("tool_call_id", "name")}
    weight = int(weight) if role == "assistant" else 1
    return Message(role, text, weight, calls, result["tool_call_id"], result["name"])


def messages(turns: object, where: str) -> tuple[Message, ...]:
    """Read the turns of a conversation."""
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{where}: expected a list of turns, found {reprlib.repr(turns)}. {WRITE}")
    return tuple(message(turn, f"{where}, turn {number}") for number, turn in enumerate(turns, 1))


def asked_text(turns: Iterable[Message]) -> str:
    """Make turns, but for the system's, one text that is `comparable`."""
    text = "\n".join(turn.content + turn.tool_calls for turn in turns if turn.role != "system")
    return comparable(text)


def asked_keys(turns: Sequence[Message]) -> set[str]:
    """Return what a conversation asks, normalised: each question alone, and after what was said before it.

    The turns end with the answer; all before it are what the last question is asked with, calls of tools too.
    """
    keys = {asked_text(turns[:-1])}
    for number, turn in enumerate(turns):
        if turn.role == "user":
            keys |= {asked_text([turn]), asked_text(turns[: number + 1])}
    return keys
