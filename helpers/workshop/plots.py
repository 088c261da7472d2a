"""Plots: the loss while it falls, and bars with intervals: what only some lessons draw."""

import time
from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import DisplayHandle, Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from helpers.lesson import BLUE, GREEN, GREY, ORANGE, RED, as_image
from helpers.text.outcome import Interval
from helpers.training import History


class LivePlot:
    """The loss curve, redrawn while the model learns. Pass it to `train` as `on_step`."""

    def __init__(self, every: float = 10.0):
        """Redraw every so many seconds."""
        self.every = every
        self.drawn = -np.inf
        self.handle: DisplayHandle | None = None

    def __call__(self, history: History) -> None:
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
    def draw(history: History) -> Image:
        """Draw the training loss of every step, its running mean, and the held-out loss."""
        steps = [step["step"] for step in history.steps]
        losses = np.array([step["loss"] for step in history.steps])
        window = min(10, len(losses))
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        told = f"it goes from {losses[0]:.2f} to {smooth[-1]:.2f} nats a token."
        figure, axes = plt.subplots()
        axes.plot(steps, losses, color=BLUE, alpha=0.25, linewidth=1)
        axes.plot(steps[window - 1 :], smooth, color=BLUE, label=f"training, mean of {window} steps")
        if history.held_out:
            held_steps, held = zip(*((entry["step"], entry["loss"]) for entry in history.held_out), strict=True)
            axes.plot(held_steps, held, "o", markersize=9, color=ORANGE, label="questions never trained on")
            told += f" The loss on questions never trained on is {held[-1]:.2f}."
        axes.set(xlim=(0, history.planned_steps), ylim=(0, None), title="The model learns")
        axes.set(xlabel="optimiser step", ylabel="loss (nats a token)")
        axes.legend(frameon=False)
        return as_image(figure, f"Line plot of the loss over {len(steps)} of {history.planned_steps} steps: {told}")


def _whiskers(shares: Iterable[Interval]) -> np.ndarray:
    """Compute how far intervals reach below and above their means: [2, intervals]."""
    return np.clip([(share.mean - share.low, share.high - share.mean) for share in shares], 0, None).T


def compare_bars(ax: Axes, groups: dict[str, dict[str, Interval]], ylabel: str) -> None:
    """Draw bars with intervals side by side: {"before": {"accuracy": Interval, ...}, "after": {...}}."""
    names = list(next(iter(groups.values())))
    width = 0.8 / len(groups)
    for i, ((label, measured), color) in enumerate(zip(groups.items(), (GREY, BLUE, ORANGE, GREEN, RED), strict=False)):
        at = np.arange(len(names)) + (i - (len(groups) - 1) / 2) * width
        means, high = np.array([[measured[name].mean, measured[name].high] for name in names]).T
        spread = _whiskers(measured[name] for name in names)
        ax.bar(at, means, width * 0.92, color=color, label=label, yerr=spread, capsize=5, ecolor="#222222")
        for x, mean, top in zip(at, means, high, strict=True):
            ax.text(x, top + 0.02, f"{mean:.0%}", ha="center", fontsize=13)
    ax.set_xticks(np.arange(len(names)), names)
    ax.set(ylabel=ylabel, ylim=(0, 1.15))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1.001 else "")
    ax.grid(axis="x", visible=False)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=len(groups))


def line_plot(axes: Axes, x: Sequence[float], series: Mapping[str, Sequence[float]], across: str, up: str) -> str:
    """Draw a line for each series of shares, with the axes' names; return in words where each begins and ends."""
    for (name, values), color in zip(series.items(), (GREY, ORANGE, BLUE, GREEN, RED), strict=False):
        axes.plot(x, values, "o-", color=color, label=name)
    axes.set(xlabel=across, ylabel=up, ylim=(0, 1.03), xticks=list(x))
    axes.legend(frameon=False)
    return ", ".join(f"{name}: from {values[0]:.0%} to {values[-1]:.0%}" for name, values in series.items())


def dot_panels(panels: Mapping[str, Mapping[str, Interval]], marked: str = "tuned") -> tuple[Figure, str]:
    """Draw shares as dots with their intervals: a panel a measure, a row a contender; and say them in words.

    marked: contenders with this in their name are drawn in another colour and shape.
    """
    names = list(next(iter(panels.values())))
    figure, all_axes = plt.subplots(1, len(panels), figsize=(14, 1.4 + 0.45 * len(names)), sharey=True, squeeze=False)
    for axes, (title, values) in zip(all_axes[0], panels.items(), strict=True):
        for place, value in enumerate(values.values()):
            axes.plot([value.low, value.high], [place, place], color=GREY)
            color, shape = (ORANGE, "D") if marked in names[place] else (BLUE, "o")
            axes.plot(value.mean, place, shape, color=color, markersize=10)
        axes.set(title=title, xlim=(-0.05, 1.05), xticks=(0, 0.5, 1), yticks=range(len(names)), yticklabels=names)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    all_axes[0][0].invert_yaxis()
    figure.supxlabel(f"share with its 95% interval; diamond: {marked} in its name", fontsize=13)
    told = [f"{title}, {name} {value.mean:.0%}" for title, part in panels.items() for name, value in part.items()]
    return figure, "; ".join(told)


def cost_plot(cost: Mapping[str, float], right: Mapping[str, Interval], marked: str = "tuned") -> tuple[Figure, str]:
    """Draw what each contender costs, in seconds a request on a logarithmic axis, against its right answers."""
    figure, axes = plt.subplots(figsize=(11, 6))
    for name, seconds in cost.items():
        color, shape = (ORANGE, "D") if marked in name else (BLUE, "o")
        share = right[name]
        reach = _whiskers([share])
        axes.errorbar(seconds, share.mean, yerr=reach, fmt=shape, color=color, markersize=12, capsize=5, elinewidth=1.5)
        close = [other for other in cost if abs(np.log(cost[other] / seconds)) < 0.5]
        near = [other for other in close if abs(right[other].mean - share.mean) < 0.06]
        below = len(near) > 1 and name == near[-1]  # two names beside each other cannot be read
        axes.annotate(name, (seconds, share.mean), xytext=(9, -19 if below else 7), textcoords="offset points", fontsize=13)
    ticks = [digit * 10.0**power for power in range(-4, 3) for digit in (1, 2, 5)]
    ends = min(cost.values()) / 1.5, max(cost.values()) * 2.5
    axes.set_xscale("log")
    axes.set_xticks([tick for tick in ticks if ends[0] <= tick <= ends[1]])
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set(xlim=ends, ylim=(-0.08, 1.05), ylabel="right, all questions", title="Cost and accuracy: up and left is better")
    axes.set_xlabel("seconds a request, many at once (each step is 2 to 2.5 times as long)")
    return figure, "; ".join(f"{name}: {seconds:.3f} seconds, {right[name]} right" for name, seconds in cost.items())
