"""Comparison: is one model better than another, how many questions would tell, and a report to read."""

import html
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from helpers.evaluation import difference, interval
from helpers.text.outcome import FEWEST, Interval, units_needed

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.3em 0.8em; text-align: left; vertical-align: top }}
caption {{ text-align: left; font-weight: bold }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
_WRONG = "\u2717"  # the mark of a wrong answer, beside its colour


@dataclass(frozen=True)
class Verdict:
    """Whether `name` is better than `other` on the same questions, and how sure that is."""

    name: str
    other: str
    change: Interval  # how much higher the share of right answers is
    changed: int  # questions that one of the two gets right and the other does not

    @property
    def word(self) -> str:
        """Say it in a word or two."""
        return "better" if self.change.above() else "worse" if self.change.below() else "cannot tell"

    def __str__(self) -> str:
        """Say it in sentences."""
        asked = f"{self.change.count} questions"
        if self.change.units != self.change.count:
            asked += f" about {self.change.units} things"
        if self.word != "cannot tell":
            return f"{self.name} is {self.word} than {self.other}: {self.change} on {asked}."
        if self.change.units < FEWEST:
            return f"Too few questions to tell {self.name} from {self.other}: {asked}, and at least {FEWEST} are needed."
        said = f"Cannot tell {self.name} from {self.other} with this many questions ({asked}): {self.change}."
        if not self.changed:
            return f"{said} Both get the same questions right."
        if self.change.mean:
            return f"{said} If the difference is as it looks, about {self._needed(self.change.mean):,} would tell."
        return f"{said} A difference of 5 points would show with about {self._needed(0.05):,}."

    def _needed(self, gap: float) -> int:
        """Compute how many questions of this kind tell such a gap."""
        return round(units_needed(gap, self.change.spread) * self.change.count / self.change.units)


def compare(name: str, table: pd.DataFrame, other: str, other_table: pd.DataFrame) -> Verdict:
    """Compare two judged tables of the same questions, in the same order.

    Raises ValueError when the questions differ: then they cannot be paired.
    """
    if table["question"].tolist() != other_table["question"].tolist():
        raise ValueError(f"{name} and {other} answered different questions. Ask both the same ones, in the same order.")
    change = difference(other_table["correct"], table["correct"], table["fact"])
    return Verdict(name, other, change, int((other_table["correct"] != table["correct"]).sum()))


def results_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Set models side by side: the share right of each kind of question with its interval, and of all of them."""
    columns = {}
    for name, table in tables.items():
        parts = [(kind, part) for kind, part in table.groupby("kind", sort=False)]
        columns[name] = {kind: str(interval(part["correct"], part["fact"])) for kind, part in [*parts, ("all", table)]}
    return pd.DataFrame(columns)


def html_report(tables: Mapping[str, pd.DataFrame], verdict: Verdict | None = None, title: str = "Evaluation") -> str:
    """Write one self-contained HTML page: shares right with intervals, errors by kind, and every answer.

    tables: name of the model → judged table of the same questions, with a column `error` as from `error_kinds`.
    """
    first = next(iter(tables.values()))
    counts = {name: table["error"].value_counts() for name, table in tables.items()}
    kinds = pd.DataFrame(counts).fillna(0).astype(int).rename_axis(None)
    columns = {"": first[["question", "expected"]]}
    for name, table in tables.items():
        mark = table["correct"].astype(bool).map({True: "", False: f"{_WRONG} "})
        columns[name] = pd.DataFrame({"answer": table["answer"], "kind": mark + table["error"]})
    body = [
        f"<p><strong>{html.escape(str(verdict))}</strong></p>" if verdict else "",
        _html_table(results_table(tables), "Right answers, with 95% intervals"),
        _html_table(kinds, "Errors by kind"),
        _html_table(pd.concat(columns, axis=1), f"All answers; {_WRONG} marks what is wrong"),
    ]
    return _PAGE.format(title=html.escape(title), body="\n".join(body))


def _html_table(table: pd.DataFrame, caption: str) -> str:
    """Write a table as HTML, every text in it escaped: names and answers may hold anything."""
    style = table.style.format(escape="html").set_caption(caption)
    style = style.format_index(escape="html", axis="index").format_index(escape="html", axis="columns")
    style = style.map(lambda cell: "background: #fbeee6" if str(cell).startswith(_WRONG) else "")
    with pd.option_context("styler.render.max_elements", table.size):  # all of them, however many
        return style.to_html()
