"""Process: how a long computation lives with its machine: memory, company, reports, and the wish to stop it."""

import _thread
import ctypes
import gc
import os
import platform
import re
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from helpers.machine.device import pick_dtype

NETWORK_EVENTS = (  # https://docs.python.org/3/library/audit_events.html
    *("socket.connect", "socket.sendto", "socket.sendmsg"),
    *("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"),
)


def processes(device: torch.device) -> Accelerator:
    """Join the other processes of this run, if `accelerate launch` started some. Models and batches stay where they are.

    Raises ValueError when the launcher wants bfloat16 and it is not fast here, or float16, which the loop sees to.
    """
    launched = "LOCAL_RANK" in os.environ
    if not launched:  # a Trainer that ran in this process leaves its precision behind, and every model would take it
        AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(device_placement=False, cpu=launched and device.type == "cpu")  # it expects GPUs
    if accelerator.mixed_precision == "bf16" and pick_dtype(device) != torch.bfloat16:
        raise ValueError('accelerate: mixed_precision is bf16, which is not fast here. Put "no" into its configuration.')
    if accelerator.mixed_precision == "fp16":
        raise ValueError('accelerate: mixed_precision is fp16; the loop sees to that itself. Put "no" into its configuration.')
    return accelerator


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


@contextmanager
def stop_between_steps() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C (Jupyter's stop button) into an event to look at after each step; the second interrupts."""
    asked = threading.Event()

    def ask(number, frame):
        signal.signal(signal.SIGINT, usual)
        asked.set()

    if threading.current_thread() is not threading.main_thread():  # only the main thread hears signals
        yield asked
        return
    usual = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, usual)


def stop_when_stdin_closes(seconds: float = 60.0) -> None:
    """Interrupt this process, like Ctrl-C, once its standard input closes: its parent wants it so, or has died.

    After so many more seconds it is ended in any case.
    """

    def watch() -> None:
        while os.read(0, 1024):
            pass
        _thread.interrupt_main()
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def refuse_network() -> Iterator[list[str]]:
    """Refuse every connection that leaves this machine, and every look-up of a name, as long as a `with` block takes.

    Yields the list of what was refused. Python tells an audit hook of each socket call, whichever library makes it; code
    that talks to the network without Python's sockets, or in another process, is not seen. This machine's own addresses
    and Unix sockets stay open.
    """
    refused: list[str] = []
    watching = threading.Event()  # a hook cannot be taken off, but it can go blind
    watching.set()

    def hook(event: str, args: tuple) -> None:
        if not watching.is_set() or event not in NETWORK_EVENTS:
            return
        target = args[0] if event.startswith("socket.get") else args[1]
        host = target[0] if isinstance(target, tuple) else target
        unix = not isinstance(target, tuple) and not event.startswith("socket.get")
        host = host.decode(errors="replace") if isinstance(host, bytes) else str(host)
        if unix or host in ("localhost", "::1", "", "None") or re.fullmatch(r"127(\.\d+){3}", host):
            return
        refused.append(host)
        raise ConnectionRefusedError(f"{event} to {host} was refused: nothing may leave this machine here.")

    sys.addaudithook(hook)
    try:
        yield refused
    finally:
        watching.clear()


def online(seconds: float = 5.0) -> bool:
    """Tell within so many seconds whether the hub can be reached; it is not asked where HF_HUB_OFFLINE says so."""
    from huggingface_hub import constants

    reached = threading.Event()

    def knock() -> None:
        try:
            urllib.request.urlopen(constants.ENDPOINT, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # it is there, and said no
        except OSError:
            return
        reached.set()

    if not constants.HF_HUB_OFFLINE:
        thread = threading.Thread(target=knock, daemon=True)  # looking up a name can take longer than any timeout
        thread.start()
        thread.join(seconds)
    return reached.is_set()


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


def tensorboard(folder: str | Path) -> Callable:
    """Make an `on_step` that writes losses and learning rate for TensorBoard. Raises ImportError when it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard is not installed. Run: pip install tensorboard") from error
    writer = SummaryWriter(str(folder))

    def on_step(history) -> None:
        latest = history.steps[-1]
        for name in ("loss", "learning_rate", "gradient_norm"):
            writer.add_scalar(name, latest[name], latest["step"])
        if history.held_out and history.held_out[-1]["step"] == latest["step"]:
            writer.add_scalar("held_out_loss", history.held_out[-1]["loss"], latest["step"])
        writer.flush()

    return on_step


class PeakMemory:
    """The most memory in use while a block runs, in GiB: `with PeakMemory(device) as memory`.

    total: all of it, with what was in memory before.  gib: by how much it rose above what was in use before.
    On a GPU it is what PyTorch has allocated there, and an inner block starts an outer one's count again. On a CPU it is
    the resident memory of this process, which a thread looks at a hundred times a second: the system's own peak is that
    of the process's whole life, and not every system lets it be forgotten.
    """

    def __init__(self, device: torch.device):
        """Watch the memory of this device."""
        self.device, self.total, self.gib = device, 0.0, 0.0

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
        """Stop, and leave the results in `total` and `gib`."""
        if self.device.type == "cuda":
            self.highest = torch.cuda.max_memory_allocated(self.device)
        else:
            self.done.set()
            self.thread.join()
            self.highest = max(self.highest, self.process.memory_info().rss)
        self.total, self.gib = self.highest / 2**30, (self.highest - self.before) / 2**30
