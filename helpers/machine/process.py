"""Process: how a long computation hears of others: of its fellow processes, of who wants it to stop, of who reads its log."""

import _thread
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from helpers.machine.device import pick_dtype


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
