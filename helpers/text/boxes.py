"""Boxes: how a check or a claim is shown, with its evidence."""

import html
from collections.abc import Mapping


def box(color: str, head: str, sentence: str, evidence: Mapping[str, str]) -> dict[str, str]:
    """Write a box with a coloured edge and head: MIME type → HTML, or plain text. evidence: name → measurement."""
    rows = "".join(f"<li>{html.escape(name)}: <b>{html.escape(value)}</b></li>" for name, value in evidence.items())
    page = (
        f'<div style="border-left: 6px solid {color}; padding: 0.4em 1em; margin: 0.5em 0; font-size: 1.05em">'
        f'<span style="color: {color}; font-weight: bold">{html.escape(head)}</span> '
        f'{html.escape(sentence)}<ul style="margin: 0.3em 0">{rows}</ul></div>'
    )
    plain = f"{head} {sentence}\n" + "\n".join(f"   {name}: {value}" for name, value in evidence.items())
    return {"text/html": page, "text/plain": plain}
