"""Console: what comes in and goes out by the terminal or a pipe, in whatever encoding."""

import io
import sys

NO_TEXT = "holds bytes that are no text in UTF-8. Type it again, or set your terminal to UTF-8."


def keep_all_output() -> None:
    """Write signs that a terminal or pipe has none for as their number rather than stop at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def checked_question(text: str) -> str:
    """Take a question as it was typed, without blanks around it. Raises ValueError when it is blank or no text."""
    if any("\ud800" <= char <= "\udfff" for char in text):  # how Python hands on bytes that it cannot read
        raise ValueError(f"The question {NO_TEXT}")
    if not text.strip():
        raise ValueError("The question is blank. Write one, or leave it out for a chat.")
    return text.strip()


def next_question(prompt: str = "> ") -> str:
    """Ask for a question; "" at a blank line and at the end of the input. Raises ValueError when it is no text."""
    try:
        text = input(prompt)
    except EOFError:
        return ""
    except UnicodeDecodeError:
        raise ValueError(f"The question {NO_TEXT}") from None
    return checked_question(text) if text.strip() else ""
