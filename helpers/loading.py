"""Loading: what is said when a model cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager


class ModelError(RuntimeError):
    """A model that cannot be loaded. The message is one line and names the remedy."""


@contextmanager
def no_bars() -> Iterator[None]:
    """Hide transformers' own progress bars, which last less than a second here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
