"""Contract: what Lamini's and OpenAI's clients send and get, and the limits of it. What is not listed here is ignored."""

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from helpers.data import Example
from helpers.serving.engine import NEW_TOKENS, Refusal
from helpers.text.messages import ROLES, DataError, Message, tool_calls

TEXT = 20_000  # characters of a prompt, or of an uploaded question or answer
ROWS = 20_000  # of an upload
PROMPTS = 256  # of a request
KEYS = 16  # of an output_type
MESSAGES = 200  # of a conversation

Text = Annotated[str, StringConstraints(max_length=TEXT)]
Name = Annotated[str, StringConstraints(max_length=200)]
Tokens = Annotated[int, Field(ge=1, le=NEW_TOKENS)] | None
Types = dict[Name, Literal["str", "int", "float", "bool"]]  # an output_type: the keys of an answer and their types
Output = dict[str, str | int | float | bool | None]  # an answer: {"output": text}, or the keys of output_type


class Schema(BaseModel):
    """The base of all below."""

    model_config = ConfigDict(protected_namespaces=())


class Completion(Schema):
    """One prompt or several; Lamini's client sends null for what was left out."""

    model_name: Name | None = None
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=PROMPTS)]
    output_type: Annotated[Types, Field(min_length=1, max_length=KEYS)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10**6)] | None = None  # of prompt and answer together
    max_new_tokens: Tokens = None

    @property
    def prompts(self) -> list[str]:
        """The prompts to ask. For several keys each is asked for on its own."""
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        if not self.output_type or len(self.output_type) == 1:
            return prompts
        return [f"{prompt}\n\nAnswer with the {key} only." for prompt in prompts for key in self.output_type]


class Upload(Schema):
    """Rows to train on: {"input": ..., "output": ...} each."""

    data: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=ROWS)]

    def examples(self) -> list[Example]:
        """Make them examples; numbers count as text. Raises Refusal."""
        made = []
        for number, row in enumerate(self.data, 1):
            question, answer = (self._text(row, name, number) for name in ("input", "output"))
            made.append(Example(question, answer))
        return made

    @staticmethod
    def _text(row: dict[str, Any], name: str, number: int) -> str:
        text = str(row[name]) if isinstance(row.get(name), str | int | float) else ""
        if not text.strip() or len(text) > TEXT:
            raise Refusal(400, f"Row {number}, field {name!r}: expected text of 1 to {TEXT:,} characters. Mend it.")
        return text.encode("utf-8", "replace").decode()  # halves of characters cannot be kept


class Dataset(Schema):
    """A data set by its id."""

    dataset_id: Name


class Settings(Schema):
    """The finetune_args of Lamini that mean something here. Others are refused: they would change nothing."""

    model_config = ConfigDict(extra="forbid")
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None
    max_steps: Annotated[int, Field(ge=1, le=100_000)] | None = None
    num_train_epochs: Annotated[int, Field(ge=1, le=1000)] | None = None
    batch_size: Annotated[int, Field(ge=1, le=256)] | None = None  # in rows; Lamini's is in chunks of 2,048 tokens
    gradient_accumulation_steps: Annotated[int, Field(ge=1, le=256)] | None = None
    r_value: Annotated[int, Field(ge=0, le=512)] | None = None  # rank of the adapter; 0 trains the whole model
    max_finetuning_examples: Annotated[int, Field(ge=1)] | None = None


class Train(Schema):
    """A finetune to start."""

    model_name: Name | None = None
    dataset_id: Name
    finetune_args: Settings | None = None
    custom_model_name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")] | None = None
    train_type: Literal["memory_tuning"] | None = None


class Job(Schema):
    """A finetune, as its owner sees it."""

    job_id: str
    status: str
    start_time: str
    model_name: str | None  # once it is there
    custom_model_name: str | None
    base_model_name: str
    dataset_id: str
    finetune_args: dict[str, int | float]
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    seconds_left: float | None
    reason: str | None  # why it failed
    resume_count: int
    history: str  # as Lamini has it, JSON: a list of objects with step, steps, loss and learning_rate

    @classmethod
    def of(cls, job: dict) -> "Job":
        """Show a job without what concerns the server alone."""
        latest = job["history"][-1] if job["history"] else {}
        return cls(**{**latest, **job, "history": json.dumps(job["history"])})


class Download(Schema):
    """A model to get ready."""

    hf_model_name: Name


class Model(Schema):
    """A model that can be asked."""

    model_name: str
    model_type: str = "transformer"
    status: str = "available"


class Part(Schema):
    """A piece of a chat message; only text is understood."""

    type: Literal["text"]
    text: Text


class Turn(Schema):
    """One turn of a conversation, as it is sent."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | Annotated[list[Part], Field(max_length=100)] | None = None
    tool_calls: Annotated[list[dict[str, Any]], Field(max_length=KEYS)] | None = None
    tool_call_id: Name | None = None
    name: Name | None = None

    def plain(self) -> dict[str, Any]:
        """Make it what chat templates take, by the way of the rows that are trained on. Raises Refusal."""
        text = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""
        role = ROLES[self.role]
        try:
            calls = tool_calls(self.tool_calls, "messages") if self.tool_calls else ""
        except DataError as error:
            raise Refusal(400, str(error)) from None
        if len(calls) > TEXT or (self.content is None and not calls):
            raise Refusal(400, f"A message of the {role} has no content, or more than {TEXT:,} characters. Mend it.")
        if role == "tool":
            return Message(role, text, tool_call_id=self.tool_call_id or "", name=self.name or "").plain
        return Message(role, text, tool_calls=calls).plain


class Chat(Schema):
    """OpenAI's request. Answers are greedy: temperature and the like are ignored."""

    model: Name
    messages: Annotated[list[Turn], Field(min_length=1, max_length=MESSAGES)]
    stream: bool | None = None
    n: Literal[1] | None = None
    max_tokens: Tokens = None  # of the answer alone
    max_completion_tokens: Tokens = None  # its newer name


class Detail(Schema):
    """An error, in one line, for either client."""

    detail: str
    error: dict[str, str]


def cast(text: str, kind: str) -> str | int | float | bool | None:
    """Find a value of a type in an answer: all of it, its first number, its first yes or no. None when there is none."""
    if kind == "str":
        return text
    if kind == "bool":
        found = re.search(r"\b(yes|true|no|false)\b", text.lower())
        return found[1] in ("yes", "true") if found else None
    found = re.search(r"-?\d+(\.\d+)?", re.sub(r"(?<=\d),(?=\d{3}\b)", "", text))  # 1,900 grams
    value = float(found[0]) if found and len(found[0]) <= 15 else None
    if kind == "float" or value is None:
        return value
    return int(value) if value.is_integer() else None


def output(texts: list[str], keys: Types | None) -> Output:
    """Make the answer to one prompt of what the model wrote: one text, or one for each key of its output_type."""
    keys = keys or {"output": "str"}
    return {name: cast(text.strip(), kind) for (name, kind), text in zip(keys.items(), texts, strict=True)}
