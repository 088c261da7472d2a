"""Names: how files are called, and their columns; and what cannot be decided without their owner."""

from helpers.text.messages import DataError

# How rows are stored, by the usual ends of a file's name. More is told by the first bytes.
CONTAINERS: dict[str, tuple[str, ...]] = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "parquet": (".parquet",),
    "arrow": (".arrow", ".feather"),
    "markdown": (".md", ".markdown"),
    "text": (".txt", ".text", ".rst"),
    "hub": (),
}
# How a row says question and answer: the fields that it has to have, the answer's last.
LAYOUTS: dict[str, tuple[str, ...]] = {
    "question_answer": ("question", "answer"),
    "prompt_completion": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),  # and, where a row has one, "input": it is added to the question
    "instruction_response": ("instruction", "response"),
    "input_output": ("input", "output"),
    "messages": ("messages",),  # OpenAI: [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]
    "sharegpt": ("conversations",),  # [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]
}
# Read when none of those above is there, and not written.
OTHER_LAYOUTS: dict[str, tuple[str, ...]] = {
    "gemini": ("contents",),  # [{"role": "user", "parts": [{"text": ...}]}, {"role": "model", "parts": ...}]
    "squad": ("question", "answers"),  # {"text": ["..."], "answer_start": [...]}: the first is learnt
    "question_response": ("question", "response"),
    "query_response": ("query", "response"),
    "query_answer": ("query", "answer"),
    "prompt_response": ("prompt", "response"),
    "prompt_answer": ("prompt", "answer"),
    "prompt_output": ("prompt", "output"),
    "instruction_completion": ("instruction", "completion"),
    "input_target": ("input", "target"),
    "input_response": ("input", "response"),
    "problem_solution": ("problem", "solution"),
    "user_assistant": ("user", "assistant"),
    "q_a": ("q", "a"),
    "text": ("text",),  # nothing is asked: further pretraining
}
ALL_LAYOUTS = LAYOUTS | OTHER_LAYOUTS
FORMATS = (*CONTAINERS, *(layout for layout in ALL_LAYOUTS if layout not in CONTAINERS))
CHATS = ("messages", "sharegpt", "gemini")
# What may stand beside question and answer, and how files call it.
BESIDE: dict[str, tuple[str, ...]] = {
    "system": ("system", "system_prompt", "systeminstruction", "system_instruction"),
    "context": ("context",),
    "input": ("input",),  # of alpaca only
    "history": ("history",),
}
LABELS = ("label", "accepted", "approved", "is_good", "thumbs_up")  # true, or false: a bad answer
SCORES = ("reward", "score", "rating")  # how good an answer is, as a number
PREFERENCES = (("chosen", "rejected"), ("preferred_output", "non_preferred_output"))
PARTS = {  # of a data set, by the words in its files' names
    "train": "train",
    "training": "train",
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


class ChoiceError(DataError):
    """What its owner has to decide; the message names the options. A command ends with exit code 2."""
