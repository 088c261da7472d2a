"""Training: the loop. One configuration, one function, a history."""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from helpers.attention import batch_logits, flat_attention, is_flat
from helpers.machine.device import pick_dtype
from helpers.machine.history import History
from helpers.machine.memory import explain_lack_of_memory
from helpers.machine.preparing import Run, check_rows, exploded, prepared, say_if_narrow
from helpers.machine.process import processes
from helpers.machine.weights import training_flops
from helpers.tokenization import Batch, Row, flatten, micro_batches

SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class Config:
    """Every knob of a finetune; AdamW's betas stay at 0.9 and 0.98."""

    epochs: int = 3  # how often each row is seen
    learning_rate: float = 4e-4  # the peak; small models bear more than large ones
    batch_size: int = 16  # rows an optimiser step, over all processes together
    schedule: str = "cosine"  # how the rate falls after its peak: "cosine" or "linear" to zero, or "constant"
    warmup: float = 0.05  # share of the steps in which the rate climbs to its peak
    weight_decay: float = 0.0  # pull of the weights towards zero
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    upper_layers: int | None = None  # train only the last so many layers; None: every weight (with LoRA: every adapter)
    max_steps: int | None = None  # stop after this many steps, whatever the epochs say
    micro_batch_tokens: int = 1024  # tokens a process computes at once: bounds memory, changes no result
    gradient_checkpointing: bool = False  # compute activations twice rather than keep them: less memory, slower
    evaluate_every: int = 0  # steps between held-out losses; 0: only at the end
    patience: int | None = None  # stop when so many held-out losses bring no new best, and take the best weights
    checkpoint_every: int = 100  # steps between checkpoints, if `train` is given a folder for them
    dtype: torch.dtype | None = None  # compute in this; None: in what `pick_dtype` finds fast and the model fits into
    shuffle: bool = True  # take the rows in another order each epoch; False: as they come
    seed: int = 0  # decides that order

    def __post_init__(self):
        """Refuse values that cannot train."""
        for name in ("epochs", "learning_rate", "batch_size", "max_grad_norm", "micro_batch_tokens", "checkpoint_every"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be a number above 0.")
        for name in ("max_steps", "upper_layers", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1, or None.")
        if self.patience and not self.evaluate_every:
            raise ValueError(
                "patience counts held-out losses, and with evaluate_every = 0 none comes before the end. Set both."
            )
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to below 1.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it has to be one of {', '.join(SCHEDULES)}.")


def supervised_logits(model, batch: Batch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Compute what the model expects where a token is supervised: logits [S, vocabulary], see `batch_logits`.

    The matrix products run in `dtype` while the weights that learn stay float32. Logits are made where a token is
    supervised, and, where a model reads padded rows only, beside them.
    """
    with torch.autocast(batch.ids.device.type, dtype=dtype, enabled=dtype != torch.float32):
        return batch_logits(model, batch).float()


def token_losses(model, batch: Batch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Compute the cross-entropy, in nats, of each supervised token of a batch: [S]; see `supervised_logits`."""
    return F.cross_entropy(supervised_logits(model, batch, dtype), batch.targets, reduction="none")


@torch.no_grad()
def held_out_loss(
    model,
    rows: Sequence[Row],
    dtype: torch.dtype | None = None,
    micro_batch_tokens: int = 1024,
    accelerator: Accelerator | None = None,
) -> float:
    """Compute the mean loss a supervised token, in nats, over rows that are not trained on. Processes share the work.

    Raises ValueError when no token is supervised.
    """
    was_training, device = model.training, next(model.parameters()).device
    accelerator = accelerator or processes(device)
    if not (supervised := sum(row.supervised for row in rows)):
        raise ValueError("No token of these rows is supervised, so there is no loss to take. Check that there are any rows.")
    total = torch.zeros((), device=device)
    model.eval()
    try:
        with flat_attention(accelerator.unwrap_model(model)):
            for piece in micro_batches(rows, micro_batch_tokens * accelerator.num_processes, padded=not is_flat(model)):
                total += share_loss(model, piece, dtype or pick_dtype(device), accelerator)
    finally:
        model.train(was_training)
    return accelerator.reduce(total, reduction="sum").item() / supervised


def share_loss(model, piece: Sequence[Row], dtype: torch.dtype, accelerator: Accelerator) -> torch.Tensor:
    """Sum the losses of this process's share of a piece. One without a share computes along, for nothing."""
    share = piece[accelerator.process_index :: accelerator.num_processes]
    loss = token_losses(model, flatten(share or piece[:1], next(model.parameters()).device), dtype).sum()
    return loss if share else 0 * loss


def batches_of(rows: Sequence[Row], config: Config) -> Iterator[list[Row]]:
    """Yield one list of rows an optimiser step, epoch after epoch; the seed decides the order, unless it is to be kept."""
    rng = random.Random(config.seed)
    for _ in range(config.epochs):
        order = rng.sample(range(len(rows)), len(rows)) if config.shuffle else range(len(rows))
        for start in range(0, len(rows), config.batch_size):
            yield [rows[i] for i in order[start : start + config.batch_size]]


def planned_steps(rows: int, config: Config) -> int:
    """Count the steps that a finetune on so many rows takes, unless patience ends it."""
    return min(config.max_steps or 10**9, config.epochs * math.ceil(rows / config.batch_size))


def learning_rate_at(step: int, steps: int, config: Config) -> float:
    """Climb in a straight line to the peak, then fall as the schedule says. `step` counts from 0."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    left = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * left[config.schedule]


def dtype_for(model, rows: Sequence[Row], config: Config, accelerator: Accelerator) -> torch.dtype:
    """Choose what to compute in, see `pick_dtype`: float32, and a line that says so, where float16 is too narrow."""
    dtype = config.dtype or pick_dtype(model.device)
    if config.dtype or dtype != torch.float16:
        return dtype
    row = max(rows, key=lambda row: row.supervised)
    if math.isfinite(held_out_loss(model, [row], dtype, accelerator=accelerator)):
        return dtype
    if accelerator.is_main_process:
        print("float16 cannot hold this model's numbers; it is trained in float32, which takes longer.", flush=True)
    return torch.float32


def accumulate(run: Run, batch: Sequence[Row], config: Config) -> tuple[float, bool]:
    """Take the gradient of a whole batch, piece by piece; return its loss, and whether a process was asked to stop.

    Every token counts alike, however the batch is cut: each piece's losses are divided by the whole batch's tokens.
    """
    world, supervised = run.accelerator.num_processes, sum(row.supervised for row in batch)
    total = torch.zeros(2, device=run.bare.device)  # the loss of this process's share, and whether it was asked to stop
    pieces = micro_batches(batch, config.micro_batch_tokens * world, padded=not is_flat(run.model))
    for number, piece in enumerate(pieces, 1):
        with nullcontext() if number == len(pieces) else run.accelerator.no_sync(run.model):
            loss = share_loss(run.model, piece, run.dtype, run.accelerator) / max(1, supervised)
            run.scaler.scale(loss * world).backward()  # times the processes, because their gradients are averaged
        total[0] += loss.detach()
    total[1] = float(run.stop.is_set())
    mean, stopped = run.accelerator.reduce(total, reduction="sum").tolist()
    return mean, stopped > 0


def train(
    model,
    rows: Sequence[Row],
    config: Config | None = None,
    held_out: Sequence[Row] = (),
    on_step: Callable[[History], None] | None = None,
    folder: str | Path | None = None,
    progress: str | None = "finetuning",
) -> History:
    """Finetune `model`, in place, on `rows`: whatever of it learns, that is every weight, the upper layers, or adapters.

    held_out: rows never trained on; their loss is taken every `config.evaluate_every` steps and at the end.
    on_step: called after each step with the history so far, for a live plot. While it runs, `model` can be asked and saved
        (`generate`, `held_out_loss`, `save_model`, `lora.save`), and the run goes on as if it had not been.
    folder: for checkpoints; when it holds one of this very run, the run goes on from there. The model is the one that the
        run began with, loaded anew, or as Ctrl-C has left it.
    progress: what to call the progress bar; None shows none.
    Under `accelerate launch` several processes share each batch, and the result is that of one. Each calls `on_step`.

    Returns the history. Raises ValueError when there is nothing to learn from, FloatingPointError when the loss explodes,
    MemoryError, CheckpointError. Ctrl-C stops between two steps, after a checkpoint if there is a folder for them, and leaves
    the model usable, with the weights of that step.
    """
    config = config or Config()
    check_rows(model, rows)
    if held_out:
        check_rows(model, held_out, "Held-out row")
    elif config.patience:
        raise ValueError("patience counts held-out losses, and there are no rows for them. Give held_out, or no patience.")
    say_if_narrow(model)
    torch.manual_seed(config.seed)
    accelerator, steps = processes(model.device), planned_steps(len(rows), config)
    dtype, data = dtype_for(model, rows, config, accelerator), (rows, held_out)
    too_high = 1.5 * math.log(model.config.vocab_size)  # an even guess among all tokens costs log(vocabulary) nats
    with (
        explain_lack_of_memory(config.micro_batch_tokens),
        prepared(model, config, dtype, accelerator, flat_attention(model), steps, data, on_step, folder, progress) as run,
    ):
        history = run.history
        for step, batch in islice(enumerate(batches_of(rows, config), 1), len(history.steps), steps):
            if run.finished:
                break
            rate = learning_rate_at(step - 1, steps, config)
            run.set_rate(rate)
            loss, stopped = accumulate(run, batch, config)
            if not loss < too_high:  # also when it is not a number
                history.add(batch, loss, rate, math.nan, False, run.seconds())
                run.tell()
                raise exploded(loss, step, config.learning_rate, dtype)
            norm, skipped = run.update(config.max_grad_norm)
            history.add(batch, loss, rate, norm, skipped, run.seconds())
            if held_out and (step == steps or (config.evaluate_every and step % config.evaluate_every == 0)):
                held = held_out_loss(run.model, held_out, dtype, config.micro_batch_tokens, accelerator)
                since_best = history.add_held_out(held)
                if config.patience and since_best == 0:
                    run.keep_weights()
                run.finished = config.patience is not None and since_best >= config.patience
            if step == steps or stopped or run.finished or step % config.checkpoint_every == 0:
                run.save()
            run.tell()
            if stopped:
                raise KeyboardInterrupt(f"Stopped after step {step}.")
        run.put_best_back()
        history.flops = training_flops(model, history.tokens, history.supervised_tokens)
    return history
