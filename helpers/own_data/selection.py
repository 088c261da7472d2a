"""Choices: which rows are learnt where a column says that some answers are bad, or how good each is."""

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from helpers.own_data.names import LABELS, SCORES, ChoiceError
from helpers.text.messages import DataError, listed

SIGNS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt, "=": operator.eq}
TRUTH: dict[object, bool] = {True: True, False: False} | dict.fromkeys(("true", "yes", "good", "1"), True)
TRUTH |= dict.fromkeys(("false", "no", "bad", "0"), False)


def _truth(value: Any) -> bool | None:
    """Read a label that is either true or false, or say that it is neither."""
    value = value.strip().lower() if isinstance(value, str) else value
    return TRUTH.get(value) if isinstance(value, (str, bool, int, float)) else None


def _number(value: Any) -> float | None:
    """Read a number, which tables have as text."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Selection:
    """Which rows are learnt: those whose column is true, or holds a number within a bound; all, without a column."""

    column: str = ""
    sign: str = ""
    bound: float = 0.0
    undecided: bool = False  # nothing was said, and so far every label is true
    settled: bool = False  # its owner said that every row is learnt

    def __str__(self) -> str:
        """Say it after what was recognised."""
        if not self.column or self.undecided:
            return ""
        return f" Learnt are the rows whose {self.column!r} is {f'{self.sign} {self.bound:g}' if self.sign else 'true'}."

    def takes(self, record: object, where: str) -> bool:
        """Tell whether a row is learnt. Raises ChoiceError for a bad answer where nothing was said about such."""
        if not self.column or not isinstance(record, dict):
            return True
        value = record.get(self.column)
        if self.sign:
            number = _number(value)
            return number is not None and SIGNS[self.sign](number, self.bound)
        if self.undecided and _truth(value) is False:
            raise ChoiceError(_asks_for_label(where, self.column))
        return self.undecided or bool(_truth(value))


def _asks_for_label(where: str, column: str) -> str:
    return (
        f"{where}: the column {column!r} says that this answer is not good. Say what is learnt: "
        "--take good leaves such rows out, --take all learns every answer."
    )


def selection_of(name: str, seen: Mapping[str, Sequence[tuple[str, Any]]], take: str | None) -> Selection:
    """Find out which rows are learnt. seen: where and what, of each column's first rows. take: as in `recognise`."""
    spelt = {str(column).strip().casefold(): column for column in seen}
    if take == "all":
        return Selection(settled=True)
    if take not in (None, "good"):
        match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|>|<|=)\s*(-?\d+(?:\.\d+)?)\s*", take or "")
        if not match:
            raise DataError(f"--take {take}: write all, good, or a bound on a column of numbers, as in --take 'score>=4'.")
        column, sign, bound = match.groups()
        if column not in seen:
            raise DataError(f"{name}: there is no column {column!r} to take rows by. There are: {listed(seen)}.")
        return Selection(column, sign, float(bound))
    for label in filter(spelt.__contains__, LABELS):
        column = spelt[label]
        if any(_truth(value) is None for _, value in seen[column] if value is not None):
            continue
        if take == "good":
            return Selection(column)
        bad = next((where for where, value in seen[column] if _truth(value) is False), None)
        if bad is not None:
            raise ChoiceError(_asks_for_label(bad, column))
        return Selection(column, undecided=True)
    if take == "good":
        raise DataError(f"{name}: no column says which rows are good ({', '.join(LABELS)}). Leave --take out, or name a bound.")
    for score in filter(spelt.__contains__, SCORES):
        column = spelt[score]
        if any(_number(value) is not None for _, value in seen[column]):
            raise ChoiceError(
                f"{name}: the column {column!r} rates the answers. Say what is learnt: --take '{column}>=NUMBER' takes the "
                "better ones, --take all learns every answer."
            )
    return Selection()
