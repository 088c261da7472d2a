"""Comparison: is one model better than another, how many questions would tell, results on file, and a report to read."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from helpers.data import DataError
from helpers.evaluation import FEWEST, Interval, difference, interval, units_needed
from helpers.machine.files import written_aside

FORMAT = "evaluation results, version 1"  # how the first line of a results file begins
_COLUMNS = ("id", "kind", "fact", "question", "answer", "expected", "correct")  # what each further line has to hold
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em; color: #222 }}
table {{ border-collapse: collapse; margin: 1em 0 }}
th, td {{ border-bottom: 1px solid #ccc; padding: 0.3em 0.8em; text-align: left; vertical-align: top }}
caption {{ text-align: left; font-weight: bold }}
.wrong {{ background: #fbeee6 }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


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


def save_results(path: str | Path, name: str, table: pd.DataFrame) -> None:
    """Write a judged table as JSON Lines: what it is and whose, then an answer a line. It appears when it is complete."""
    lines = [{"format": FORMAT, "model": name, "answers": len(table)}, *table.to_dict("records")]
    with written_aside(path) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def load_results(path: str | Path) -> tuple[str, pd.DataFrame]:
    """Read back what `save_results` wrote: the model's name and the judged table.

    Raises DataError, with file, line and remedy, for a file that is damaged or something else.
    """
    path, remedy = Path(path), "Save the results again with save_results."
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. {remedy}")
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(f"{path}, line {number}: damaged, or not JSON Lines. {remedy}") from None
        wanted = _COLUMNS if rows else ("format", "model", "answers")
        if not isinstance(row, dict) or not set(wanted) <= set(row) or (not rows and row["format"] != FORMAT):
            raise DataError(f"{path}, line {number}: expected {'an answer' if rows else repr(FORMAT)}. {remedy}")
        rows.append(row)
    if not rows or len(rows) - 1 != rows[0]["answers"]:
        raise DataError(f"{path}: {max(0, len(rows) - 1)} answers, and not as many as it was saved with. {remedy}")
    return str(rows[0]["model"]), pd.DataFrame(rows[1:], columns=list(rows[1]) if rows[1:] else list(_COLUMNS))


def results_table(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Set models side by side: the share right of each kind of question with its interval, and of all of them."""
    columns = {}
    for name, table in tables.items():
        parts = [(kind, part) for kind, part in table.groupby("kind", sort=False)]
        columns[name] = {kind: str(interval(part["correct"], part["fact"])) for kind, part in [*parts, ("all", table)]}
    return pd.DataFrame(columns)


def _html_table(caption: str, header: Sequence[str], rows: Sequence[Sequence], wrong: Sequence[bool] = ()) -> str:
    """Write a table, every text in it escaped."""

    def cells(tag: str, texts: Sequence) -> str:
        return "".join(f"<{tag}>{html.escape(str(text))}</{tag}>" for text in texts)

    marks = [' class="wrong"' if bad else "" for bad in wrong] or [""] * len(rows)
    lines = [f"<tr{mark}>{cells('td', row)}</tr>" for mark, row in zip(marks, rows, strict=True)]
    return f"<table><caption>{html.escape(caption)}</caption><tr>{cells('th', header)}</tr>\n" + "\n".join(lines) + "</table>"


def report(tables: Mapping[str, pd.DataFrame], verdict: Verdict | None = None, title: str = "Evaluation") -> str:
    """Write one self-contained HTML page: shares right with intervals, errors by kind, and every answer.

    tables: name of the model → judged table of the same questions, with a column `error` as from `error_kinds`.
    """
    first = next(iter(tables.values()))
    summary, names = results_table(tables), list(tables)
    body = [f"<p><strong>{html.escape(str(verdict))}</strong></p>"] if verdict else []
    body.append(
        _html_table("Right answers, with 95% intervals", ["questions", *names], summary.reset_index().to_numpy().tolist())
    )
    kinds = pd.DataFrame({name: table["error"].value_counts() for name, table in tables.items()}).fillna(0).astype(int)
    body.append(_html_table("Errors by kind", ["kind", *names], kinds.reset_index().to_numpy().tolist()))
    header, columns = ["question", "expected"], [first["question"], first["expected"]]
    for name, table in tables.items():
        header += [name, f"{name}: kind"]
        columns += [table["answer"], table["error"]]
    wrong = pd.concat([~table["correct"].astype(bool) for table in tables.values()], axis=1).any(axis=1)
    body.append(_html_table("All answers", header, list(zip(*columns, strict=True)), wrong))
    return _PAGE.format(title=html.escape(title), body="\n".join(body))
