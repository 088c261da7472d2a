"""Layouts: how a record says question and answer, or a whole conversation; recognised, and said in one line."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time
from decimal import Decimal
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from helpers.own_data.containers import record_stream
from helpers.own_data.names import (
    ALL_LAYOUTS,
    BESIDE,
    CHATS,
    FORMATS,
    LABELS,
    LAYOUTS,
    OTHER_LAYOUTS,
    PREFERENCES,
    SCORES,
    ChoiceError,
)
from helpers.own_data.places import Place, located
from helpers.own_data.selection import Selection, selection_of
from helpers.text.jsonl import OWN, no_object, parse_json, row_fields
from helpers.text.messages import ROLES, SAID, SPEAKER, DataError, Message, is_text, listed, messages, text_field, text_parts

SAMPLE = 100  # rows that are looked at to find one with a question and an answer
RENDERED = re.compile(r"<\|im_start\|>|\[INST\]|### ?(?:Human|Instruction|Assistant|Response):|<start_of_turn>|<\|user\|>")
MAP = "--map question=COLUMN,answer=COLUMN"
JOINED = "answers that follow one another are joined by a blank line"

# A path, a name on the hub, a `datasets.Dataset`, a list of dicts, or what `recognise` has made of one of these.
Readable: TypeAlias = "str | Path | DataSource | Iterable[dict]"


def _blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _is_parts(value: object) -> bool:
    """Tell whether a value is one text in parts, as [{"type": "text", "text": ...}], which nobody speaks."""
    parts = value if isinstance(value, list) else []
    return bool(parts) and all(isinstance(p, dict) and "text" in p and p.keys().isdisjoint(SPEAKER) for p in parts)


def _empty_system(turn: Mapping) -> bool:
    """Tell whether a turn is a system's that says nothing."""
    role = next((turn[name] for name in SPEAKER if name in turn), "")
    said = next((turn[name] for name in SAID if name in turn), None)
    return isinstance(role, str) and ROLES.get(role.strip().lower()) == "system" and _blank(said)


def _joined(said: tuple[Message, ...], notes: Counter) -> tuple[Message, ...]:
    """Join answers that follow one another: templates expect speakers to take turns. Calls of tools stay apart."""
    turns: list[Message] = []
    for turn in said:
        last = turns[-1] if turns else turn
        alike = turns and last.role == turn.role == "assistant" and last.weight == turn.weight
        if alike and not last.tool_calls and not turn.tool_calls:
            turns[-1] = Message(turn.role, f"{last.content}\n\n{turn.content}", turn.weight)
            notes[JOINED] += 1
        else:
            turns.append(turn)
    return tuple(turns)


def _conversation(said: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    """Take a conversation up to its last answer that is to be learnt: what comes after it, nothing would be made of."""
    roles = [turn.role for turn in said]
    if "user" not in roles or roles[-1] != "assistant":
        remedy = "Drop what follows the answer" if roles else "Drop the row"
        if roles and not {"user", "assistant"} <= set(roles):
            remedy = f"Add the {'answer' if 'user' in roles else 'question'}, or drop the row"
        raise DataError(f"{where}: expected a question and at last an answer, found {roles}. {remedy}.")
    learnt = [number for number, turn in enumerate(said) if turn.role == "assistant" and turn.weight]
    if not learnt or "user" not in roles[: learnt[-1]]:
        raise DataError(f"{where}: no answer to a question is to be learnt. Give one the weight 1, or drop the row.")
    if said[learnt[-1]].tool_calls:
        raise DataError(
            f"{where}, turn {learnt[-1] + 1}: calls a tool, and no answer follows. Add result and answer, or drop the row."
        )
    return said[: learnt[-1] + 1]


@dataclass(frozen=True)
class DataSource:
    """Rows whose format has been recognised. `str()` of it says how it will be read.

    columns: the fields of the layout, by the names that the file has for them.  own: columns that mean what they mean in the
    course's own rows.  selection: which rows are learnt.  notes: what is done to the rows without being asked, counted.
    """

    place: Place
    layout: str = "question_answer"
    columns: Mapping[str, str] = field(default_factory=dict)
    own: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    mapped: bool = False
    selection: Selection = field(default_factory=Selection)
    notes: Counter = field(default_factory=Counter, compare=False)

    @property
    def name(self) -> str:
        """What is read, as it was named."""
        return self.place.name

    def __str__(self) -> str:
        """Say in one line what was recognised, and which columns are left out."""
        container = self.place.container or "several kinds of files"
        said = f"{self.name}: read as {container}, " + (f"{self.place.said}, " if self.place.said else "")
        if container == "markdown":
            said = said.replace("read as markdown", "read as markdown (*.md)")
            return f"{said}a row a section: its headings are the question, its text the answer."
        if self.layout == "text":
            teaches = "which teaches words and manner, and hardly to answer: for that, make questions from it"
            unread = f" Not read: {listed(self.unread)}." if self.unread else ""
            return f"{said}plain text. Nothing is asked: each piece is learnt as the answer to its title, {teaches}.{unread}"
        read = {part: name for part, name in self.columns.items() if part in ALL_LAYOUTS[self.layout]} | dict(self.columns)
        shown = ", ".join(name if part == name else f"{part} = {name!r}" for part, name in read.items())
        unread = f" Not read: {listed(self.unread)}." if self.unread else ""
        return f"{said}{self.layout} ({shown}).{unread}{self.selection}"

    @cached_property
    def _known(self) -> frozenset[str]:
        title = ("title",) if self.layout == "text" else ()
        return frozenset((*self.columns.values(), *self.own, *self.unread, *title))

    def _note_late(self, names: Iterable[str], where: str) -> None:
        """Note columns that no row had from which the columns were found out. Raises DataError where one has a meaning."""
        told = () if self.mapped or self.layout == "text" else {name for names in BESIDE.values() for name in names}
        told = (*told, *(() if self.selection.settled or self.layout == "text" else (*LABELS, *SCORES)))
        for name in names:
            if str(name).strip().casefold() in told:
                raise DataError(f"{where}: none of the first {SAMPLE} rows has the column {name!r}. Move a row that has it up.")
        self.notes[f"rows have columns that none of the first {SAMPLE} has, and these are not read"] += 1

    def records(self) -> Iterator[tuple[str, object]]:
        """Yield where each record stands, and the record, or the DataError that says why there is none."""
        known = "" if self.place.container == "hub" else self.place.container
        return record_stream(self.name, self.place.content, known, self.notes)

    def _text(self, record: Mapping, name: str, where: str) -> str:
        """Take the text of a column; numbers, truth values and dates are written as text."""
        value = record.get(name)
        if isinstance(value, (bool, int, float, Decimal, date, time)) and not (isinstance(value, float) and math.isnan(value)):
            self.notes["numbers, truth values and dates are read as text"] += 1
            return str(value).lower() if isinstance(value, bool) else str(value)
        if _is_parts(value):
            return text_field({name: text_parts(value, f"{where}, field {name!r}")}, name, where)
        if name not in record and self.layout not in CHATS:
            raise DataError(f"{where}: the field {name!r} is missing (found: {listed(record)}). {self._remedy(record)}")
        return text_field(record, name, where)

    def _remedy(self, record: Mapping) -> str:
        """Say what to do where a field is missing: name the columns, where that helps."""
        if self.mapped:
            return f"Name columns that are there, for both: {MAP}"
        for column, value in record.items():
            if isinstance(value, list) and value and isinstance(value[0], dict) and not value[0].keys().isdisjoint(SPEAKER):
                return f"If {column!r} holds the turns of a conversation, name it: --map messages={column}"
            if isinstance(value, dict) and any(value.keys() >= set(fields) for fields in ALL_LAYOUTS.values()):
                return f"What is said is inside {column!r}: write that object alone, one a line."
        if sum(isinstance(value, (str, int, float)) for value in record.values()) < 2:
            return "Add it."
        known = {name for fields in ALL_LAYOUTS.values() for name in fields}
        if self.place.container in ("csv", "tsv") and known.isdisjoint(_spelt(record)):
            return f"If the first line holds no names, put question,answer above it; or name the columns: {MAP}"
        return f"Add it, or name the column that holds it: {MAP}"

    def _said(self, record: Mapping, name: str, role: str, where: str) -> tuple[Message, ...]:
        """Take what a column says: the text of one turn, or a list of turns, as such, around "messages", or as JSON."""
        value, place = record.get(name), f"{where}, field {name!r}"
        if isinstance(value, str) and value.lstrip().startswith(("[{", "{")) and re.search(r"['\"](role|from)['\"]\s?:", value):
            value = parse_json(value, place)
        if isinstance(value, dict) and isinstance(value.get("messages"), list):
            value = value["messages"]
        if isinstance(value, dict) and "role" in value:
            value = [value]
        if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value) and not _is_parts(value):
            return self._messages(value, place)
        return (Message(role, self._text(record, name, where)),)

    def _messages(self, value: object, where: str) -> tuple[Message, ...]:
        """Take a list of turns, written as JSON or not; numbers in them become text."""
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = parse_json(value, where)
        if isinstance(value, list) and all(isinstance(turn, dict) for turn in value):
            value = [self._plain(turn, where) for turn in value if not _empty_system(turn)]
        return _joined(messages(value, where), self.notes)

    def _plain(self, turn: dict, where: str) -> dict:
        """Make the numbers of a turn text, but for its weight."""
        numbers = {key for key, said in turn.items() if isinstance(said, (int, float)) and key != "weight"}
        return {key: self._text(turn, key, where) if key in numbers else said for key, said in turn.items()}

    def _before(self, record: Mapping, where: str) -> tuple[Message, ...]:
        """Take what comes before the question: a system's text, and earlier questions with their answers."""
        said: tuple[Message, ...] = ()
        name = self.columns.get("system", "")
        if isinstance(value := record.get(name), dict):  # Gemini's systemInstruction
            said = messages([value | {"role": "system"}], f"{where}, field {name!r}")
        elif value is not None and not _blank(value):
            said = (Message("system", self._text(record, name, where)),)
        name = self.columns.get("history", "")
        if not (earlier := record.get(name)) or "history" in self.own:
            return said
        place = f"{where}, field {name!r}"
        if isinstance(earlier, str) and earlier.lstrip().startswith("["):
            earlier = parse_json(earlier, place)
        if isinstance(earlier, list) and all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in earlier):
            turns = []
            for asked, told in earlier:
                turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
            return said + messages(turns, place)
        return said + messages(earlier, place)

    def turns(self, record: object, where: str) -> tuple[Message, ...]:
        """Take a conversation from a record: a question and its answer, or all that was said up to the last answer."""
        if not isinstance(record, dict):
            raise DataError(no_object(record, where))
        if late := record.keys() - self._known:
            self._note_late(late, where)
        names = [self.columns[part] for part in ALL_LAYOUTS[self.layout]]
        before = self._before(record, where)
        if self.layout in CHATS:
            place = f"{where}, field {names[0]!r}"
            said = self._messages(record.get(names[0]), place)
            return _conversation(before + said if said[:1] != before[:1] else said, place)
        if self.layout == "text":
            return self._text_turns(record, names[0], where)
        asked, told = self._said(record, names[0], "user", where), self._answer(record, names[1], where)
        for part in ("input", "context"):
            given = record.get(self.columns.get(part, "")) if part not in ALL_LAYOUTS[self.layout] else None
            if given is not None and not _blank(given):
                added = self._text(record, self.columns[part], where)
                asked = (*asked[:-1], Message("user", f"{asked[-1].content}\n\n{added}"))
        return _conversation(_joined((*before, *asked, *told), self.notes), where)

    def _answer(self, record: Mapping, name: str, where: str) -> tuple[Message, ...]:
        """Take the answer; of several, as SQuAD has them, the first."""
        value = record.get(name)
        if self.layout == "squad" and isinstance(value, dict) and isinstance(value.get("text"), list):
            record = {**record, name: next(iter(value["text"]), "")}
        elif self.layout == "squad" and isinstance(value, list):
            record = {**record, name: next(iter(value), "")}
        return self._said(record, name, "assistant", where)

    def _text_turns(self, record: Mapping, name: str, where: str) -> tuple[Message, ...]:
        """Take a piece of plain text as the answer to its title."""
        text = self._text(record, name, where)
        if found := RENDERED.search(text):
            remedy = "Split it into turns: messages with role and content"
            raise DataError(f"{where}, field {name!r}: is a conversation, written with marks such as {found[0]!r}. {remedy}.")
        title = str(record.get("title") or "").strip()
        return Message("user", title if title and is_text(title) else "Text"), Message("assistant", text)


def _spelt(record: Mapping) -> dict[str, str]:
    """Find the columns by their names without regard to case and spaces around them."""
    return {str(column).strip().casefold(): column for column in record}


def _layout(record: Mapping, where: str, format: str | None) -> str:
    """Find out how a row says question and answer. Raises ChoiceError where several ways fit."""
    spelt = _spelt(record)
    if format in ALL_LAYOUTS:
        return str(format)
    found: list[str] = []
    for layouts in (LAYOUTS, OTHER_LAYOUTS):
        found = found or [layout for layout, fields in layouts.items() if spelt.keys() >= set(fields)]
    if "alpaca" in found and "input_output" in found:  # its "input" belongs to the instruction
        found.remove("input_output")
    if len(found) > 1 and "text" in found:  # beside question and answer, the same written as one
        found.remove("text")
    if len(found) > 1:
        raise ChoiceError(f"{where}: could be {' or '.join(found)}. Name one: --format {found[0]}")
    for pair in PREFERENCES:
        if set(found) <= set(CHATS) and spelt.keys() >= set(pair):  # a chat beside them may be the prompt, or the better one
            raise DataError(
                f"{where}: these are preference pairs ({' and '.join(pair)}), which preference training learns from, not this: "
                "see the lesson on preferences. To learn the better answers alone, write a file of question and answer."
            )
    likely = [name for name, fields in LAYOUTS.items() if not spelt.keys().isdisjoint(fields)]
    return (found or likely or ["question_answer"])[0]


def _columns(record: Mapping, where: str, layout: str, mapped: Mapping[str, str]) -> dict[str, str]:
    """Find the names that a file has for the fields of a layout, and for what stands beside them."""
    if mapped:
        fields = ("messages",) if "messages" in mapped else ("question", "answer")
        return {part: part for part in fields} | dict(mapped)
    spelt, named = _spelt(record), {}
    for part in ALL_LAYOUTS[layout]:
        named[part] = spelt.get(part, part)
        if len(same := [column for column in record if str(column).strip().casefold() == part]) > 1:
            raise DataError(f"{where}: {' and '.join(map(repr, same))} may both be the {part}. Rename one.")
    for part, names in BESIDE.items():
        column = next((spelt[name] for name in names if name in spelt), None)
        fits = {"input": layout == "alpaca", "context": layout not in CHATS and layout != "text"}.get(part, layout != "text")
        if column is not None and column not in named.values() and fits:
            named[part] = column
    return named | ({"input": "input"} if layout == "alpaca" and "input" not in named else {})


def _own(record: Mapping, where: str) -> set[str]:
    """Find the columns that hold what they hold in the course's own rows; others of such names are a learner's own."""
    found = set()
    for name in OWN:
        if name in record:
            value = str(record[name]) if name == "id" and isinstance(record[name], int) else record[name]
            try:
                row_fields({"question": "q", "answer": "a", name: value}, where)
                found.add(name)
            except DataError:
                continue
    return found


def _map(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Check what was named as columns."""
    mapped = dict(columns or {})
    if strange := set(mapped) - {"question", "answer", "id", "context", "system", "history", "messages"}:
        raise DataError(f"{min(strange)!r} cannot be mapped. Write it as question=COLUMN,answer=COLUMN")
    if "messages" in mapped and {"question", "answer"} & set(mapped):
        raise DataError("Messages hold question and answer. Map either: messages=COLUMN, or question=COLUMN,answer=COLUMN")
    return mapped


def _source(place: Place, record: Mapping, where: str, format: str | None, mapped: Mapping[str, str]) -> DataSource:
    """Make a source of what its first rows look like."""
    layout = ("messages" if "messages" in mapped else "question_answer") if mapped else _layout(record, where, format)
    columns = _columns(record, where, layout, mapped)
    own = OWN if layout == "question_answer" and not mapped else ()  # until a row shows that one of them is something else
    read = {*columns.values(), *own, *(("title",) if layout == "text" else ())}
    unread = tuple(str(column) for column in record if column not in read)
    return DataSource(place, layout, columns, own, unread, bool(mapped))


def _narrowed(source: DataSource, record: Mapping, where: str) -> DataSource:
    """Leave out those of the course's own columns that hold something else in this row: they are a learner's own."""
    lost = tuple(name for name in source.own if name in record and name not in _own(record, where))
    unread = tuple(name for name in lost if name not in source.columns.values())
    return replace(source, own=tuple(name for name in source.own if name not in lost), unread=source.unread + unread)


def _widened(source: DataSource, names: Mapping[str, object], where: str) -> DataSource:
    """Add the columns that only other rows have: what stands beside question and answer, and what is not read."""
    columns = source.columns if source.mapped else _columns(names, where, source.layout, {})
    known = {*columns.values(), *source.own, *source.unread, *(("title",) if source.layout == "text" else ())}
    unread = (*source.unread, *(str(name) for name in names if name not in known))
    return replace(source, columns=columns, unread=unread)


def recognise(
    source: Readable, format: str | None = None, columns: Mapping[str, str] | None = None, take: str | None = None
) -> DataSource:
    """Find out how a file, a folder, a data set or a name on the hub is to be read.

    `format` names one of FORMATS where that is not clear: how the rows are stored, or how they say question and answer.
    `columns` names the columns: {"question": "Frage", "answer": "Antwort"}, and "id", "context", "system" or "history" if they
    are to be read, or {"messages": "Dialog"}. No other column is read then.
    `take` says which rows are learnt where a column rates the answers: "all", "good" (the label is true), or a bound such as
    "score>=4". Raises ChoiceError where such a column is there and nothing was said, and where several formats fit.
    """
    if isinstance(source, DataSource):
        return source
    mapped = _map(columns)
    if format not in (None, *FORMATS):
        raise DataError(f"{format!r} is no known format. Use one of {', '.join(FORMATS)}.")
    place = located(source, format)
    first: tuple[DataSource, Any, str] | None = None
    complete: DataSource | None = None
    at = ""
    refused: DataError | None = None
    seen: dict[str, list] = {}
    for where, record in islice(DataSource(place).records(), SAMPLE):
        if not isinstance(record, dict):
            refused = refused or (record if isinstance(record, DataError) else DataError(no_object(record, where)))
            continue
        for name in record:
            ratings = seen.setdefault(name, [])
            if str(name).strip().casefold() in (*LABELS, *SCORES):  # the others may be long
                ratings.append((where, record[name]))
        if complete is None:
            found = _source(place, record, where, format, mapped)
            first = first or (found, record, where)
            if all(found.columns[part] in record for part in ALL_LAYOUTS[found.layout]):
                complete, at = found, where
        complete = complete and _narrowed(complete, record, where)
    if complete is not None:
        complete = _widened(complete, seen, at)
        rated = {} if complete.layout == "text" and take is None else seen  # a label beside plain text is its class
        return replace(complete, selection=selection_of(place.name, rated, take), notes=Counter())
    if first:
        first[0].turns(*first[1:])  # says which field is missing
    raise refused or DataError(f"{place.name}: the file holds no rows. Each line needs a question and an answer.")
