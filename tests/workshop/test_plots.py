import matplotlib.pyplot as plt
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from helpers.evaluation import interval
from helpers.training import History
from helpers.workshop.plots import LivePlot, compare_bars

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
