import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from helpers.evaluation import interval
from helpers.training import History
from helpers.workshop.plots import LivePlot, compare_bars, cost_plot, dot_panels, line_plot

InteractiveShell.instance()  # what is displayed can only be caught inside IPython


def test_bars_stand_side_by_side_with_their_means_above_them():
    _, ax = plt.subplots()
    compare_bars(ax, {"before": {"right": interval([0, 1])}, "after": {"right": interval([1, 1])}}, "share")
    assert [patch.get_height() for patch in ax.patches] == [0.5, 1.0]
    assert [text.get_text() for text in ax.texts] == ["50%", "100%"] and ax.get_ylabel() == "share"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["before", "after"]
    plt.close()


def test_the_live_plot_draws_the_first_and_the_last_step():
    history = History(planned_steps=30)
    plot = LivePlot(every=1000)
    with capture_output() as shown:
        for step in range(1, 31):
            history.steps.append({"step": step, "loss": 3.0 / step})
            if step == 30:
                history.held_out.append({"step": 30, "loss": 0.2})
            plot(history)
    assert len(shown.outputs) == 2
    alt = shown.outputs[-1].metadata["image/png"]["alt"]
    assert "30 of 30 steps" in alt and "from 3.00 to" in alt and "never trained on is 0.20" in alt


def test_panels_lines_and_costs_are_drawn_and_told():
    share = interval([1, 1, 0, 1, 0, 1, 1])
    figure, told = dot_panels(
        {"right": {"lookup": share, "finetuned": share}, "off topic": {"lookup": share, "finetuned": share}}
    )
    assert [axes.get_title(loc="left") or axes.get_title() for axes in figure.axes] == ["right", "off topic"]
    assert told.count("finetuned 71%") == 2 and told.startswith("right, lookup 71%")
    cost, right = (
        {"lookup": 0.02, "sheet": 0.2, "stuffed": 0.21},
        {"lookup": share, "sheet": interval([0] * 9), "stuffed": interval([0] * 7)},
    )
    figure, told = cost_plot(cost, right)
    names = {text.get_text(): text.xyann[1] for text in figure.axes[0].texts}
    assert list(names) == list(cost) and names["sheet"] > 0 > names["stuffed"], "names side by side do not cover each other"
    assert told.startswith(f"lookup: 0.020 seconds, {share} right; sheet: 0.200 seconds, 0.0% (")
    assert sum(len(lines.get_segments()) for lines in figure.axes[0].collections) == 3, "an interval each"
    _, axes = plt.subplots()
    told = line_plot(axes, range(1, 4), {"words": [0.2, 0.5, 0.9]}, "passages", "share")
    assert told == "words: from 20% to 90%" and axes.get_xlabel() == "passages"
    plt.close("all")
