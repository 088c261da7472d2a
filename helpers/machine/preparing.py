"""Preparing: what surrounds the loop of a finetune, from the optimiser to the way back to a model that can be asked."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from helpers.machine import checkpoint
from helpers.machine.history import History, Tokens
from helpers.machine.memory import PeakMemory, keep_freed_memory
from helpers.machine.probe import check_ids, context_window, tell
from helpers.machine.process import stop_between_steps
from helpers.machine.progress import Bar
from helpers.machine.weights import frozen_in, only_upper_layers, recomputing


class Knobs(Protocol):
    """What is read here of `training.Config`, where it is explained."""

    weight_decay: float
    upper_layers: int | None
    gradient_checkpointing: bool


def check_rows(model, rows: Sequence[Tokens], kind: str = "Row") -> None:
    """Refuse rows that cannot be learnt from: none, none with a label, one longer than the model can read, unknown tokens.

    kind: what a message calls a row.  Raises ValueError.
    """
    if not any(row.supervised for row in rows):
        raise ValueError("No row has a supervised token, so there is nothing to learn. Check the data and its labels.")
    window = context_window(model)
    longest = max(range(len(rows)), key=lambda i: len(rows[i].ids))
    if window and len(rows[longest].ids) > window:
        raise ValueError(
            f"{kind} {longest + 1} has {len(rows[longest].ids)} tokens; this model reads at most {window}. "
            "Shorten it or leave it out."
        )
    for number, row in enumerate(rows, 1):
        check_ids(model, row.ids, f"{kind} {number}")
        check_ids(model, [label for label in row.labels if label >= 0], f"{kind} {number}")  # below: no loss is taken of it


def say_if_narrow(model) -> None:
    """Say so when weights that learn are held in 16 bits: most updates are too small to change them."""
    if narrow := {str(weight.dtype) for weight in model.parameters() if weight.requires_grad and weight.dtype.itemsize < 4}:
        held = " and ".join(sorted(narrow)).replace("torch.", "")
        tell(f"The weights are held in {held}, where small updates are lost: load the model as float32 to train it.")


def exploded(loss: float, step: int, learning_rate: float, dtype: torch.dtype) -> FloatingPointError:
    """Make the error that ends a run whose loss is beyond guessing, or no number."""
    narrow = " Or this model does not fit into float16: set dtype=torch.float32." if dtype == torch.float16 else ""
    return FloatingPointError(
        f"The loss is {loss:.3g} at step {step}: the run has exploded. Lower the learning rate ({learning_rate:g}) "
        f"and start from a fresh model; checkpoints saved before this step are good.{narrow}"
    )


@dataclass
class Run:
    """A finetune at work: the model as it learns, what changes it, and what it did so far."""

    bare: Any  # the model
    model: Any  # the same as it is called: wrapped, where several processes share the work
    optimizer: Any  # AdamW, wrapped like the model
    accelerator: Accelerator
    dtype: torch.dtype  # what the matrix products are computed in
    scaler: torch.amp.GradScaler  # at work in float16 alone
    whole: Callable[[], AbstractContextManager[None]]  # gives the model its frozen weights in full precision for a while
    attention: str  # the name of the model's own
    folder: str | Path | None  # for checkpoints
    fingerprint: dict[str, str]  # tells the checkpoints of this run from those of others
    on_step: Callable[[History], None] | None
    history: History
    best: dict[str, torch.Tensor] | None = None  # the weights with the lowest held-out loss, where they are kept
    finished: bool = False  # patience is over
    began: float = field(default_factory=time.perf_counter)  # when no second was spent yet
    bar: tqdm = field(default_factory=lambda: Bar(disable=True))
    stop: Event = field(default_factory=Event)  # set once this process was asked to stop

    def set_rate(self, rate: float) -> None:
        """Let the next update use this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def update(self, max_grad_norm: float) -> tuple[float, bool]:
        """Change the weights by their gradient, shortened to a length of `max_grad_norm`, and forget it.

        Returns its length before, and whether the step was skipped: a gradient can be too large for float16. Then nothing
        changes but the scale, which is halved.
        """
        self.scaler.unscale_(self.optimizer)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return float(norm), self.scaler.get_scale() < scale

    def seconds(self) -> float:
        """Count the seconds that the run has taken, with those before its checkpoint."""
        return time.perf_counter() - self.began

    def tell(self) -> None:
        """Show how far the run is: on its bar, and to `on_step`, which may ask the model."""
        self.bar.set_postfix_str(str(self.history), refresh=False)
        self.bar.update()
        if self.on_step:
            with self.usable():
                self.on_step(self.history)

    @contextmanager
    def usable(self) -> Iterator[None]:
        """Bring the model back to its usual state for a while, so that it can be asked and saved (3 ms).

        The random numbers that training draws afterwards are the same, whatever is drawn meanwhile.
        """
        at_work, device = self.bare.config._attn_implementation, self.bare.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self.whole():
            self.bare.set_attn_implementation(self.attention)
            self.bare.eval()
            try:
                yield
            finally:
                self.bare.train()
                self.bare.set_attn_implementation(at_work)

    def keep_weights(self) -> None:
        """Copy the weights as they are now: none were better so far."""
        self.best = checkpoint.learnt_weights(self.model)

    def put_best_back(self) -> None:
        """Give the model the best weights, if any were kept."""
        if self.best is not None:
            checkpoint.put_weights(self.model, self.best)

    def save(self) -> None:
        """Write a checkpoint, if there is a folder for them. Raises CheckpointError."""
        if self.folder:
            state = {"step": len(self.history.steps), "history": asdict(self.history), "best": self.best}
            state |= {"finished": self.finished, "scaler": self.scaler.state_dict()}
            checkpoint.save_checkpoint(self.folder, self.model, self.optimizer, self.fingerprint, state)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one. Raises CheckpointError."""
        if self.folder and (found := checkpoint.resume(self.folder, self.model, self.optimizer, self.fingerprint)):
            saved, self.fingerprint = found  # which stays that of the weights the run began with
            self.history, self.best, self.finished = History(**saved["history"]), saved["best"], saved["finished"]
            self.history.resumed_at = len(self.history.steps)
            self.scaler.load_state_dict(saved.get("scaler", {}))
        self.began = time.perf_counter() - self.history.seconds


@contextmanager
def prepared(
    model,
    knobs: Knobs,
    dtype: torch.dtype,
    accelerator: Accelerator,
    flat: AbstractContextManager[None],
    steps: int,
    data: tuple[Sequence[object], Sequence[object]],
    on_step: Callable[[History], None] | None,
    folder: str | Path | None,
    progress: str | None,
) -> Iterator[Run]:
    """Make a model ready for so many steps, computing in `dtype`, and bring it back to its usual state afterwards.

    flat: lets it read flat batches.  data: the rows to train on and those held out, by which a checkpoint knows its run.
    The others are those of `train`. Raises CheckpointError.
    """
    device, attention = model.device, model.config._attn_implementation
    with ExitStack() as stack, PeakMemory(device) as memory:
        stack.enter_context(keep_freed_memory())
        stack.enter_context(only_upper_layers(model, knobs.upper_layers))
        fingerprint = checkpoint.fingerprint(model, *data, {**vars(knobs), "dtype": dtype}) if folder else {}
        whole: Callable[[], AbstractContextManager[None]] = nullcontext
        if accelerator.num_processes == 1:  # several may cut the weights into shares, which have to be of one kind
            whole = stack.enter_context(frozen_in(model, dtype))
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        adam = torch.optim.AdamW(learning, betas=(0.9, 0.98), weight_decay=knobs.weight_decay, fused=True)
        wrapped, optimizer = accelerator.prepare(model.train(), adam)
        # float16 knows nothing below 6e-8: the loss is multiplied, so that small gradients survive, and the gradients divided
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        run = Run(
            bare=model,
            model=wrapped,
            optimizer=optimizer,
            accelerator=accelerator,
            dtype=dtype,
            scaler=scaler,
            whole=whole,
            attention=attention,
            folder=folder,
            fingerprint=fingerprint,
            on_step=on_step,
            history=History(steps),
        )
        run.resume()
        stack.enter_context(flat)
        stack.enter_context(recomputing(model, knobs.gradient_checkpointing))
        run.stop = stack.enter_context(stop_between_steps())
        shown = {"desc": progress, "unit": "step", "mininterval": 1.0}
        hidden = not (progress and accelerator.is_main_process)
        run.bar = stack.enter_context(Bar(total=steps, initial=len(run.history.steps), disable=hidden, **shown))
        stack.callback(model.eval)
        stack.callback(optimizer.zero_grad)
        yield run
        run.history.seconds = run.seconds()
    run.history.peak_memory = memory.gib
