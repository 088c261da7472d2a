"""Lesson: what the notebooks show: checks and claims with their evidence, pictures with a text alternative, measured prose."""

import io
from collections.abc import Mapping
from dataclasses import asdict

import matplotlib.pyplot as plt
from IPython.display import Image, display
from matplotlib.figure import Figure

from helpers.machine.records import NOT_MEASURED, Registration, came_to, registration, save_record
from helpers.text.boxes import box
from helpers.text.outcome import Interval, Outcome

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"
# What a box shows, by what it came to: colour, mark and words.
VERDICTS = {
    "checked": (GREEN, "✓", "checked"),
    "broken": (RED, "✗", "broken"),
    "holds": (GREEN, "☑", "holds in this run"),
    "does not hold": (RED, "☐", "does not hold in this run"),
    "cannot tell": (GREY, "?", "this run cannot tell"),
    NOT_MEASURED: (GREY, "·", "not measured here"),
}


def use_course_style() -> None:
    """Make matplotlib's pictures readable from the back row."""
    plt.rcParams.update({"figure.figsize": (9, 4.5), "figure.dpi": 100, "font.size": 14, "axes.titlesize": 16})
    plt.rcParams.update({"axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False})
    plt.rcParams.update({"axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "lines.linewidth": 2.5})


def as_image(figure: Figure, alt: str) -> Image:
    """Draw a figure as a PNG image that carries a text alternative."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return Image(data=buffer.getvalue(), format="png", alt=alt, metadata={"alt": alt})


def show(figure: Figure, alt: str) -> None:
    """Show a figure. `alt` says in words what it shows, with the numbers that matter."""
    display(as_image(figure, alt))


def say(template: str, **values: object) -> None:
    """Show Markdown prose; every number in it comes from a measured value, as in `{accuracy}`."""
    display({"text/markdown": template.format(**values), "text/plain": template.format(**values)}, raw=True)


def check(id: str, holds: bool, evidence: Mapping[str, object]) -> None:
    """Show whether an identity holds, as it has to unless the code is wrong, and save it for the conclusion.

    evidence: name → measurement (an Interval, a number or a text).
    Raises ValueError where data/claims.yaml has no check of this id, or the evidence is empty.
    """
    if isinstance(holds, Outcome):
        raise ValueError(f"{id}: a check holds or is broken, for sure. Pass True or False instead of an outcome.")
    _tell(registration(id, "check"), bool(holds), evidence)


def claim(id: str, outcome: Outcome | bool, evidence: Mapping[str, object]) -> None:
    """Show whether a claim about the world held in this run, did not, or cannot be told, and save it for the conclusion.

    outcome: what the measurement says, as `difference(...).above(0)` does; True or False where nothing was drawn. Where it
    knows the smallest difference that its numbers would show, the box tells that too.
    Raises ValueError where data/claims.yaml has no claim of this id, or the evidence is empty; see `check`.
    """
    entry = registration(id, "claim")
    outcome = outcome if isinstance(outcome, Outcome) else Outcome(bool(outcome))
    if evidence and outcome.needed:
        enough = f"about {outcome.needed:,} instead of so few (unit: {entry.unit})"
        evidence = {**evidence, "would tell, if it is as it looks": enough}
    elif evidence and outcome.holds is None:
        evidence = {**evidence, "cannot tell": f"so few leave room for yes and no (unit: {entry.unit})"}
    if evidence and outcome.power:
        evidence = {**evidence, "these numbers would show": outcome.power}
    _tell(entry, outcome.holds, evidence)


def not_measured(id: str, why: str) -> None:
    """Show that a claim was not measured in this run, and save that for the conclusion: nothing is open that could be run.

    why: what is missing, such as "the larger model is not installed: make larger".
    Raises ValueError where data/claims.yaml has no claim of this id.
    """
    _tell(registration(id, "claim"), None, {NOT_MEASURED: why})


def _tell(entry: Registration, holds: bool | None, evidence: Mapping[str, object]) -> None:
    """Save what a check or a claim came to, and show its box."""
    if not evidence:
        raise ValueError(f"{entry.id}: a {entry.kind} needs evidence. Pass what was measured, as evidence={{name: value}}.")
    saved = {name: asdict(value) if isinstance(value, Interval) else value for name, value in evidence.items()}
    shown = {name: f"{value:,.3g}" if isinstance(value, float) else str(value) for name, value in evidence.items()}
    save_record(entry, {"holds": holds, "shown": shown, "evidence": saved})
    color, mark, verdict = VERDICTS[came_to({"kind": entry.kind, "holds": holds, "shown": shown})]
    display(box(color, f"{mark} {entry.kind.title()} {entry.id}: {verdict}.", entry.sentence, shown), raw=True)
