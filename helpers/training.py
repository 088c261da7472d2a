"""Training: the loop. One configuration, one function, a history."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from helpers.attention import batch_logits, flat_attention, is_flat, other_attention
from helpers.hardware.estimate import layers_of, training_flops
from helpers.machine import checkpoint
from helpers.machine.device import pick_dtype
from helpers.machine.probe import context_window
from helpers.machine.process import PeakMemory, explain_lack_of_memory, keep_freed_memory, processes, stop_between_steps
from helpers.machine.progress import Bar
from helpers.models import frozen_in
from helpers.tokenization import Batch, Row, flatten, micro_batches

SCHEDULES = ("cosine", "linear", "constant")


@dataclass
class Config:
    """Every knob of a finetune."""

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
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be above 0.")
        for name in ("max_steps", "upper_layers", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be at least 1, or None.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to below 1.")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule is {self.schedule!r}; it has to be one of {', '.join(SCHEDULES)}.")


@dataclass
class History:
    """What a finetune did. `pandas.DataFrame(history.steps)` is its table."""

    planned_steps: int
    steps: list[dict] = field(default_factory=list)  # a dict each: step, tokens, loss, learning_rate, gradient_norm, seconds
    held_out: list[dict] = field(default_factory=list)  # step and held-out loss
    rows: int = 0  # rows trained on, repeats counted
    tokens: int = 0  # tokens read
    supervised_tokens: int = 0  # tokens that the loss was taken of
    flops: float = 0.0  # floating-point operations of the arithmetic, estimated as in `training_flops`
    seconds: float = 0.0
    peak_memory: float = 0.0  # GiB: this run's highest point, with what was in memory before: `total` of PeakMemory
    best_step: int | None = None  # where the lowest held-out loss was; its weights are kept if `patience` is set
    resumed_at: int = 0  # the step of the checkpoint that this run went on from
    skipped: list[int] = field(default_factory=list)  # steps that changed nothing: a gradient was too large for float16

    def add(self, batch: Sequence[Row], loss: float, rate: float, norm: float, seconds: float) -> None:
        """Note what a step did."""
        self.rows += len(batch)
        self.tokens += sum(len(row.ids) for row in batch)
        self.supervised_tokens += sum(row.supervised for row in batch)
        self.seconds = seconds
        entry = {"step": len(self.steps) + 1, "tokens": self.tokens, "loss": loss, "learning_rate": rate}
        self.steps.append({**entry, "gradient_norm": norm, "seconds": seconds})


def supervised_logits(model, batch: Batch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Compute what the model expects where a token is supervised: logits [S, vocabulary], see `batch_logits`.

    The matrix products run in `dtype` while the weights stay float32. Logits are made only where a token is supervised.
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
    """Compute the mean loss a supervised token, in nats, over rows that are not trained on. Processes share the work."""
    was_training, device = model.training, next(model.parameters()).device
    accelerator = accelerator or processes(device)
    model.eval()
    total = torch.zeros((), device=device)
    with flat_attention(accelerator.unwrap_model(model)):
        for piece in micro_batches(rows, micro_batch_tokens * accelerator.num_processes, padded=not is_flat(model)):
            total += share_loss(model, piece, dtype or pick_dtype(device), accelerator)
    model.train(was_training)
    return accelerator.reduce(total, reduction="sum").item() / sum(row.supervised for row in rows)


def share_loss(model, piece: Sequence[Row], dtype: torch.dtype, accelerator: Accelerator) -> torch.Tensor:
    """Sum the losses of this process's share of a piece. One without a share computes along, for nothing."""
    share = piece[accelerator.process_index :: accelerator.num_processes]
    losses = token_losses(model, flatten(share or piece[:1], next(model.parameters()).device), dtype)
    return losses.sum() * bool(share)


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


@contextmanager
def only_upper_layers(model, count: int | None) -> Iterator[None]:
    """Freeze embeddings and lower layers, so that only the last `count` layers learn; None freezes nothing.

    Gradients need not flow below the lowest layer that learns, so half the layers cost little more than half the work.
    """
    chosen = {id(p) for p in (model if count is None else layers_of(model)[-count:]).parameters()}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    for weight in frozen:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(True)


@contextmanager
def recomputing(model, wanted: bool) -> Iterator[None]:
    """Switch gradient checkpointing on for a while, if wanted."""
    if wanted:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()


@contextmanager
def usable(model, attention: str, whole: AbstractContextManager[None]) -> Iterator[None]:
    """Bring a model in training back to its usual state for a while, so that it can be asked and saved (3 ms).

    attention: the name of its usual one.  whole: gives it its frozen weights in full precision.
    The random numbers that training draws afterwards are the same, whatever is drawn meanwhile.
    """
    with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []), whole, other_attention(model, attention):
        model.eval()
        try:
            yield
        finally:
            model.train()


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


def take_step(scaler: torch.amp.GradScaler, optimizer) -> bool:
    """Update the weights and the scale; tell whether a gradient was no number, so that only the scale was changed: halved.

    Without a scale, that is unless float16 is at work, each step is taken.
    """
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() < scale


def check_rows(model, rows: Sequence[Row]) -> None:
    """Refuse rows that cannot be learnt from: none, none with a label, or one longer than the model can read."""
    if not any(row.supervised for row in rows):
        raise ValueError("No row has a supervised token, so there is nothing to learn. Check the data and its labels.")
    window = context_window(model)
    longest = max(range(len(rows)), key=lambda i: len(rows[i].ids))
    if window and len(rows[longest].ids) > window:
        raise ValueError(
            f"Row {longest + 1} has {len(rows[longest].ids)} tokens; this model reads at most {window}. "
            "Shorten it or leave it out."
        )


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
    MemoryError, CheckpointError. Ctrl-C stops between two steps, after a checkpoint, and leaves the model usable.
    """
    config = config or Config()
    check_rows(model, rows)
    torch.manual_seed(config.seed)
    accelerator = processes(model.device)
    world = accelerator.num_processes
    dtype, device = dtype_for(model, rows, config, accelerator), model.device
    # float16 knows nothing below 6e-8: the loss is multiplied, so that small gradients survive, and the gradients divided
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    steps = planned_steps(len(rows), config)
    too_high = 1.5 * math.log(model.config.vocab_size)  # an even guess among all tokens costs log(vocabulary) nats
    history, best, finished = History(steps), None, False
    with explain_lack_of_memory(config.micro_batch_tokens):
        flat = flat_attention(model)  # tries it out, the first time, on the weights as they are
    with ExitStack() as stack, PeakMemory(device) as memory:
        stack.enter_context(keep_freed_memory())
        stack.enter_context(only_upper_layers(model, config.upper_layers))
        run = checkpoint.fingerprint(model, rows, held_out, {**asdict(config), "dtype": dtype}) if folder else {}
        # several processes may cut the weights into shares, which have to be of one kind
        whole = stack.enter_context(frozen_in(model, dtype)) if world == 1 else nullcontext
        attention = model.config._attn_implementation
        learning = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(learning, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)
        wrapped, optimizer = accelerator.prepare(model.train(), optimizer)
        if folder and (resumed := checkpoint.resume(folder, wrapped, optimizer, run)):
            saved, run = resumed  # the fingerprint stays that of the weights the run began with
            history, best, finished = History(**saved["history"]), saved["best"], saved["finished"]
            history.resumed_at = len(history.steps)
            scaler.load_state_dict(saved.get("scaler", {}))
        first, began = len(history.steps), time.perf_counter() - history.seconds
        batches = [] if finished else islice(enumerate(batches_of(rows, config)), first, steps)
        stack.enter_context(flat)
        stack.enter_context(recomputing(model, config.gradient_checkpointing))
        stack.enter_context(explain_lack_of_memory(config.micro_batch_tokens))
        stop = stack.enter_context(stop_between_steps())
        hidden = not (progress and accelerator.is_main_process)
        shown = {"desc": progress, "unit": "step", "mininterval": 1.0, "disable": hidden}
        bar = stack.enter_context(Bar(total=steps, initial=first, **shown))
        stack.callback(model.eval)
        stack.callback(optimizer.zero_grad)
        for step, batch in batches:
            rate = learning_rate_at(step, steps, config)
            for group in optimizer.param_groups:
                group["lr"] = rate
            supervised = sum(row.supervised for row in batch)
            total = torch.zeros(2, device=device)  # the loss of this process's share, and whether it was asked to stop
            pieces = micro_batches(batch, config.micro_batch_tokens * world, padded=not is_flat(model))
            for number, piece in enumerate(pieces, 1):
                with nullcontext() if number == len(pieces) else accelerator.no_sync(wrapped):
                    # divided by the whole batch's tokens, so that every token counts alike however the batch is cut;
                    # times the number of processes, because their gradients are averaged
                    loss = share_loss(wrapped, piece, dtype, accelerator) / max(1, supervised)
                    scaler.scale(loss * world).backward()
                total[0] += loss.detach()
            total[1] = float(stop.is_set())
            loss, stopped = accelerator.reduce(total, reduction="sum").tolist()
            if not loss < too_high:  # also when it is not a number
                history.add(batch, loss, rate, math.nan, time.perf_counter() - began)
                if on_step:
                    with usable(model, attention, whole()):
                        on_step(history)
                raise FloatingPointError(
                    f"The loss is {loss:.3g} at step {step + 1}: the run has exploded. Lower the learning rate "
                    f"({config.learning_rate:g}) and start from a fresh model; checkpoints saved before this step are good."
                    + (" Or this model does not fit into float16: set dtype=torch.float32." if dtype == torch.float16 else "")
                )
            scaler.unscale_(optimizer)
            norm = accelerator.clip_grad_norm_(wrapped.parameters(), config.max_grad_norm)
            if take_step(scaler, optimizer):
                history.skipped.append(step + 1)
            optimizer.zero_grad()
            history.add(batch, loss, rate, float(norm), time.perf_counter() - began)
            last = step + 1 == steps
            if held_out and (last or (config.evaluate_every and (step + 1) % config.evaluate_every == 0)):
                held = held_out_loss(wrapped, held_out, dtype, config.micro_batch_tokens, accelerator)
                history.held_out.append({"step": step + 1, "loss": held})
                losses = [entry["loss"] for entry in history.held_out]
                since_best = len(losses) - 1 - losses.index(min(losses))
                history.best_step = history.held_out[-1 - since_best]["step"]
                if config.patience:
                    best = best if since_best else checkpoint.learnt_weights(wrapped)
                    finished = since_best >= config.patience
            if folder and (last or stopped or finished or (step + 1) % config.checkpoint_every == 0):
                saved = {"step": step + 1, "history": asdict(history), "best": best, "finished": finished}
                checkpoint.save(folder, wrapped, optimizer, run, {**saved, "scaler": scaler.state_dict()})
            skipped = f", {len(history.skipped)} steps skipped" if history.skipped else ""
            bar.set_postfix_str(f"loss {loss:.3f}, {history.tokens / history.seconds:.0f} tokens/s{skipped}", refresh=False)
            bar.update()
            if on_step:
                with usable(model, attention, whole()):
                    on_step(history)
            if stopped:
                raise KeyboardInterrupt(f"Stopped after step {step + 1}.")
            if finished:
                break
        if best is not None:
            checkpoint.put_weights(wrapped, best)
        history.flops = training_flops(model, history.tokens, history.supervised_tokens)
        history.seconds = time.perf_counter() - began
    history.peak_memory = memory.total
    return history
