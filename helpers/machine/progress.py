"""Progress: how far long work has come and how long it still takes, as one bar: a widget in a notebook, text in a terminal."""

from collections.abc import Sequence
from typing import Any

from tqdm.auto import tqdm


class _Widget(tqdm):
    """A bar in a notebook that is gone when the work is: from the page, and from the file that is saved.

    A widget that stayed would be an error message to whoever opens the file later: it needs the kernel that made it.
    """

    container: Any  # what tqdm's own bar for notebooks shows

    def __init__(self, *args, **options):
        """Take tqdm's arguments."""
        self.place: Any = None  # on the page
        super().__init__(*args, **options, display=False)
        if not self.disable and not self.delay:
            self.display()

    def display(self, *args, check_delay: bool = True, **options) -> None:
        """Bring the widget up to date; put it on the page when it is not there yet and it is time to."""
        from IPython import display, get_ipython

        super().display(*args, **options | {"check_delay": False})
        if check_delay and self.place is None and not self.disable:
            self.place = display.display(self.container, display_id=True)
            if self.iterable is not None:  # a loop that breaks off does not tell its bar
                get_ipython().events.register("post_run_cell", self.close)

    def close(self, *cell_result) -> None:
        """Take the widget away, also when the work broke off: the error says where."""
        from IPython import get_ipython

        super().close()
        if self.place is not None:
            self.place.update({}, raw=True)
            self.place = None
            self.container.close()
            if self.iterable is not None:
                get_ipython().events.unregister("post_run_cell", self.close)


# `tqdm`, with all its arguments. Where there are no widgets, as in a terminal, it is tqdm's own text.
Bar = _Widget if any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__) else tqdm


def bar_if_long(work: Sequence, at_once: int, desc: str, unit: str) -> tqdm:
    """Make a bar that comes only after some seconds, for work that is mostly short, done `at_once` pieces at a time.

    It stays away where another bar is at it already: the longer work tells how long it takes.
    """
    another = any(not bar.disable for bar in list(getattr(tqdm, "_instances", ())))
    hidden = another or len(work) <= at_once
    return Bar(work, total=len(work), desc=desc, unit=unit, delay=3.0, mininterval=1.0, disable=hidden)
