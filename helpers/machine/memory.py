"""Memory: what a long computation takes at its peak, how it reuses what it freed, and what to do when there is too little."""

import ctypes
import gc
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch


def return_freed_memory() -> None:
    """Hand the system back, on Linux, what this process has freed and kept."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let the process reuse large buffers instead of returning each to the system, which clears it page by page.

    That is a tenth of a training step on Linux; elsewhere nothing is done. The numbers are mallopt's (man 3 mallopt):
    blocks up to 1 GiB come from the heap (-3), and the heap does not shrink (-1) until the work is over.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)
        libc.mallopt(-1, 2**31 - 1)
    try:
        yield
    finally:
        return_freed_memory()


class PeakMemory:
    """By how much memory rises while a block runs, above what was in use before: `with PeakMemory(device) as memory`.

    gib: that, in GiB, once the block is over. What was loaded before, such as the model, is not counted.
    On a GPU it is what PyTorch has allocated there, and an inner block starts an outer one's count again. On a CPU it is
    the resident memory of this process, which a thread looks at a hundred times a second: the system's own peak is that
    of the process's whole life, and not every system lets it be forgotten.
    """

    def __init__(self, device: torch.device):
        """Watch the memory of this device."""
        self.device, self.gib = device, 0.0

    def __enter__(self) -> "PeakMemory":
        """Start to watch."""
        return_freed_memory()  # what earlier work has kept would hide what this block takes, or count as its own
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
            return self
        self.process, self.done = psutil.Process(), threading.Event()
        self.before = self.highest = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.01):
            self.highest = max(self.highest, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        """Stop, and leave the result in `gib`."""
        if self.device.type == "cuda":
            self.highest = torch.cuda.max_memory_allocated(self.device)
        else:
            self.done.set()
            self.thread.join()
            self.highest = max(self.highest, self.process.memory_info().rss)
        self.gib = (self.highest - self.before) / 2**30


@contextmanager
def explain_lack_of_memory(micro_batch_tokens: int) -> Iterator[None]:
    """Turn a failed allocation, which says little, into a MemoryError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise MemoryError(
            f"There is not enough memory for {micro_batch_tokens} tokens at once. Lower micro_batch_tokens (results stay "
            "the same), set gradient_checkpointing=True, train adapters or fewer upper_layers, or choose a smaller model."
        ) from error
