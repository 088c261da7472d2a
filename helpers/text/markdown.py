"""Markdown: the sections of a page, each with the headings that it stands under."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain


@dataclass(frozen=True)
class Section:
    """The text below a heading, as it is written.

    line: the number of the heading's line, from 1; of the text before all headings, the first line of the page.
    headings: from the page's title down to the section's own.
    """

    line: int
    headings: tuple[str, ...]
    text: str

    @property
    def heading(self) -> str:
        """All headings in one line, as in "The Heron kettle: Into the box"."""
        return ": ".join(self.headings)


def _front_matter(lines: Iterator[tuple[int, str]]) -> tuple[list[str], list[tuple[int, str]]]:
    """Take the front matter off a page, YAML between two lines of three dashes; and give back what was read and is none."""
    taken: list[tuple[int, str]] = []
    for number, line in lines:
        taken.append((number, line))
        if number == 1 and line.rstrip() != "---":
            break
        if number == 2 and not re.match(r"[\w-]+\s*:", line):  # a rule, and then text
            break
        if number > 2 and line.rstrip() in ("---", "..."):
            return [line for _, line in taken], []
    return [], taken


def sections(lines: Iterable[str], title: str) -> Iterator[Section]:
    """Cut a page at its headings; sections without text are left out, and so is front matter.

    What looks like a heading within a fence of ``` or ~~~ is none; a fence that nothing closes goes on to the end
    (CommonMark 0.31, sections 4.2 and 4.5). title: of the page, where neither it nor its front matter has one.
    """
    numbered = ((number, line.rstrip("\r\n")) for number, line in enumerate(lines, 1))
    front, read = _front_matter(numbered)
    for line in front:
        key, _, value = line.partition(":")
        title = value.strip(" \"'") or title if key.strip() == "title" else title
    headings, start, fence = {1: title}, 1, ""
    text: list[str] = []

    def section() -> Iterator[Section]:
        if content := "\n".join(text).strip():
            yield Section(start, tuple(name for _, name in sorted(headings.items()) if name), content)

    for number, line in chain(read, numbered):
        if fence:
            closed = re.fullmatch(r" {0,3}(`{3,}|~{3,})\s*", line)
            fence = "" if closed and closed[1].startswith(fence) else fence
        elif opened := re.match(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})", line):
            fence = opened[1]
        elif heading := re.match(r" {0,3}(#{1,6})(?=\s|$)", line):
            yield from section()
            level, name = len(heading[1]), re.sub(r"(?:^|\s)#+$", "", line[heading.end() :].strip()).strip()
            headings = {above: title for above, title in headings.items() if above < level or (level == 1 and not name)}
            headings |= {level: name} if name else {}
            start, text = number, []
            continue
        text.append(line)
    yield from section()
