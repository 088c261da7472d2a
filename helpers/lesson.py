"""Lesson: what the notebooks show: claims with their evidence, live plots, pictures with a text alternative."""

import html
import io
import json
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML, DisplayHandle, Image, display

from helpers.machine.files import written_aside
from helpers.machine.paths import build_folder
from helpers.text.outcome import Outcome

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#767676"


def use_course_style() -> None:
    """Make matplotlib's pictures readable from the back row."""
    plt.rcParams.update(
        {
            "figure.figsize": (9, 4.5),
            "figure.dpi": 100,
            "font.size": 14,
            "axes.titlesize": 16,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "lines.linewidth": 2.5,
        }
    )


def _image(figure, alt: str) -> Image:
    """Draw a figure as a PNG image that carries a text alternative."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(figure)
    return Image(data=buffer.getvalue(), format="png", alt=alt, metadata={"alt": alt})


def show(figure, alt: str) -> None:
    """Show a figure. `alt` says in words what it shows, with the numbers that matter."""
    display(_image(figure, alt))


class LivePlot:
    """The loss curve, redrawn while the model learns. Pass it to `train` as `on_step`."""

    def __init__(self, every: float = 10.0):
        """Redraw every so many seconds."""
        self.every = every
        self.drawn = -np.inf
        self.handle: DisplayHandle | None = None

    def __call__(self, history) -> None:
        """Take the history after a step; redraw if it is time."""
        last = len(history.steps) == history.planned_steps
        if not last and time.monotonic() - self.drawn < self.every:
            return
        self.drawn = time.monotonic()
        picture = self.draw(history)
        if self.handle is None:
            self.handle = display(picture, display_id=True)
        else:
            self.handle.update(picture)

    @staticmethod
    def draw(history) -> Image:
        """Draw the training loss of every step, its running mean, and the held-out loss."""
        steps = [step["step"] for step in history.steps]
        losses = np.array([step["loss"] for step in history.steps])
        window = min(10, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        figure, axes = plt.subplots()
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(steps[window - 1 :], smooth, color=BLUE, label=f"training, mean of {window} steps")
        if history.held_out:
            held_steps, held = zip(*((entry["step"], entry["loss"]) for entry in history.held_out), strict=True)
            axes.plot(held_steps, held, "o", markersize=9, color=ORANGE, label="questions never trained on")
        axes.set(
            xlim=(0, history.planned_steps),
            ylim=(0, None),
            xlabel="optimiser step",
            ylabel="loss (nats a token)",
            title="The model learns",
        )
        axes.legend(frameon=False)
        held = f" The loss on questions never trained on is {history.held_out[-1]['loss']:.2f}." if history.held_out else ""
        return _image(
            figure,
            f"Line plot of the loss over {len(steps)} of {history.planned_steps} steps: "
            f"it goes from {losses[0]:.2f} to {smooth[-1]:.2f} nats a token.{held}",
        )


def compare_bars(ax, groups: dict[str, dict], ylabel: str) -> None:
    """Draw bars with intervals side by side: {"before": {"accuracy": Interval, ...}, "after": {...}}."""
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for i, ((label, measured), color) in enumerate(zip(groups.items(), (GREY, BLUE, ORANGE, GREEN, RED), strict=False)):
        at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        means = np.array([measured[name].mean for name in names])
        spread = [means - [measured[name].low for name in names], [measured[name].high for name in names] - means]
        spread = np.clip(spread, 0, None)
        ax.bar(at, means, width * 0.92, color=color, label=label, yerr=spread, capsize=5, ecolor="#222222")
        for x, measure in zip(at, (measured[name] for name in names), strict=True):
            ax.text(x, measure.high + 0.02, f"{measure.mean:.0%}", ha="center", fontsize=13)
    ax.set_xticks(np.arange(len(names)), names)
    ax.set(ylabel=ylabel, ylim=(0, 1.15))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1.001 else "")
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(groups))


# What the box of a claim shows, by its outcome: colour, mark and words.
OUTCOMES = {
    True: (GREEN, "☑", "holds in this run"),
    False: (RED, "☐", "does not hold in this run"),
    None: (GREY, "?", "this run cannot tell"),
}


def claim(id: str, text: str, holds: Outcome | bool, evidence: dict) -> None:
    """Show whether a claim held in this run, with what was measured, and save it for the table at the end of the course.

    id: the claim's number, such as "C03".
    holds: what the measurement says, as `difference(...).above(0)` does; True or False for what is sure without a sample.
    evidence: name → measurement (an Interval, a number or a text).
    """
    outcome = holds if isinstance(holds, Outcome) else Outcome(bool(holds))
    if not evidence:
        raise ValueError(f"{id}: a claim needs evidence. Pass what was measured, as evidence={{name: value}}.")
    if outcome.needed:
        evidence = {**evidence, "would tell, if it is as it looks": f"about {outcome.needed:,} instead of so few"}
    saved = {name: asdict(value) if is_dataclass(value) else value for name, value in evidence.items()}
    shown = {name: f"{value:,.3g}" if isinstance(value, float) else str(value) for name, value in evidence.items()}
    record = {"id": id, "text": text, "holds": outcome.holds, "shown": shown, "evidence": saved}
    with written_aside(build_folder() / "claims" / f"{id}.json") as partial:
        partial.write_text(json.dumps(record, indent=1, default=float), encoding="utf-8")
    color, mark, verdict = OUTCOMES[outcome.holds]
    rows = "".join(f"<li>{html.escape(name)}: <b>{html.escape(value)}</b></li>" for name, value in shown.items())
    box = (
        f'<div style="border-left: 6px solid {color}; padding: 0.4em 1em; margin: 0.5em 0; font-size: 1.05em">'
        f'<span style="color: {color}; font-weight: bold">{mark} {html.escape(id)}: {verdict}.</span> '
        f'{html.escape(text)}<ul style="margin: 0.3em 0">{rows}</ul></div>'
    )
    plain = f"{mark} {id}: {verdict}. {text}\n" + "\n".join(f"   {name}: {value}" for name, value in shown.items())
    display({"text/html": HTML(box).data, "text/plain": plain}, raw=True)


def claims(folder: Path | None = None, since: float = 0.0) -> list[dict]:
    """Read back the claims that notebooks have saved after a moment (seconds since 1970), in the order of their numbers."""
    paths = sorted((folder or build_folder() / "claims").glob("C*.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.stat().st_mtime >= since]


def say(template: str, **values) -> None:
    """Show Markdown prose; every number in it comes from a measured value, as in `{accuracy}`."""
    display({"text/markdown": template.format(**values), "text/plain": template.format(**values)}, raw=True)
