"""Training: the loop. One configuration, one function, a history."""

import ctypes
import math
import platform
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby

import psutil
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AttentionInterface

from helpers.models import pick_dtype
from helpers.tokenization import Batch, Row, flatten, micro_batches


@dataclass
class Config:
    """Every knob of a finetune."""

    epochs: int = 3  # how often each row is seen
    learning_rate: float = 4e-4  # the peak; small models bear more than large ones
    batch_size: int = 16  # rows an optimiser step
    warmup: float = 0.05  # share of the steps in which the rate climbs to its peak
    weight_decay: float = 0.0  # pull of the weights towards zero
    max_grad_norm: float = 1.0  # a longer gradient is shortened to this
    upper_layers: int | None = None  # train only the last so many layers; None: every weight
    max_steps: int | None = None  # stop after this many steps, whatever the epochs say
    micro_batch_tokens: int = 1024  # tokens computed at once: bounds memory, changes no result
    evaluate_every: int = 0  # steps between held-out losses; 0: only at the end
    dtype: torch.dtype | None = None  # compute in this; None: bfloat16 where it is fast
    shuffle: bool = True  # take the rows in another order each epoch; False: as they come
    seed: int = 0  # decides that order

    def __post_init__(self):
        """Refuse values that cannot train."""
        for name in ("epochs", "learning_rate", "batch_size", "max_grad_norm", "micro_batch_tokens"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be above 0.")
        if self.max_steps is not None and self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; it has to be at least 1, or None for no limit.")
        if self.upper_layers is not None and self.upper_layers < 1:
            raise ValueError(f"upper_layers is {self.upper_layers}; it has to be at least 1, or None for every weight.")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup}; it is a share of the steps, from 0 to below 1.")


@dataclass
class History:
    """What a finetune did. `steps` has one dict a step: step, tokens, loss, learning_rate, seconds."""

    planned_steps: int
    steps: list[dict] = field(default_factory=list)
    held_out: list[dict] = field(default_factory=list)  # step and held-out loss
    rows: int = 0  # rows trained on, repeats counted
    tokens: int = 0  # tokens read
    supervised_tokens: int = 0  # tokens that the loss was taken of
    flops: float = 0.0  # floating-point operations of the arithmetic, estimated as in `training_flops`
    seconds: float = 0.0
    peak_memory: float = 0.0  # GiB: of the process on a CPU, of the device on a GPU


def attention_per_row(module, query, key, value, attention_mask, scaling=None, lengths=None, softcap=None, **_):
    """Causal attention inside each row of a flat batch; no row sees another.

    query: [1, H, N, D].  key, value: [1, K, N, D] with H a multiple of K.  lengths: tokens of each row, sum N.
    Returns ([1, N, H, D], None). Neighbours of like length are padded on the right and computed together; padding comes
    after all real tokens, so causality hides it. Up to 512 tokens on a CPU, plain matrix products are some four times as
    fast as PyTorch's fused attention, which serves all other cases.
    """
    window = getattr(module, "sliding_window", None)
    if softcap or (window and window < max(lengths)):
        raise NotImplementedError("This model limits its attention (soft cap, sliding window): it cannot be trained flat.")
    outputs, start = [], 0
    for _, alike in groupby(lengths, key=int.bit_length):  # lengths between the same two powers of two
        sizes = list(alike)
        stop = start + sum(sizes)
        pieces = (x[0, :, start:stop].transpose(0, 1).split(sizes) for x in (query, key, value))
        q, k, v = (pad_sequence(rows, batch_first=True).transpose(1, 2) for rows in pieces)  # [rows, heads, longest, D]
        if query.is_cuda or max(sizes) > 512:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        else:  # the query heads that share a key head are stacked, so that one product serves them all
            count, groups, longest, dim = k.shape
            scores = (q.reshape(count, groups, -1, dim) @ k.transpose(-1, -2)).view(count, groups, -1, longest, longest)
            future = torch.full((longest, longest), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
            shares = (scores * scaling + future).softmax(dim=-1)
            out = (shares.view(count, groups, -1, longest) @ v).view(q.shape)
        outputs += [row[:, :size] for row, size in zip(out, sizes, strict=True)]
        start = stop
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


AttentionInterface.register("per_row", attention_per_row)


def keep_freed_memory() -> None:
    """Let the process reuse large buffers instead of returning each to the system, which clears it page by page.

    That is a tenth of a training step on Linux; elsewhere nothing is done. The numbers are mallopt's (man 3 mallopt):
    blocks up to 1 GiB come from the heap (-3), and the heap does not shrink (-1).
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**30)
        libc.mallopt(-1, 2**31 - 1)


@contextmanager
def flat_attention(model) -> Iterator[None]:
    """Let the model read flat batches; its own attention comes back afterwards."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("per_row")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def token_losses(model, batch: Batch, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Compute the cross-entropy, in nats, of each supervised token of a batch: [S], inside `flat_attention`.

    The matrix products run in `dtype` while the weights stay float32. Logits are made only where a token is supervised.
    """
    with torch.autocast(model.device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(
            input_ids=batch.ids,
            position_ids=batch.position_ids,
            lengths=batch.lengths,
            logits_to_keep=batch.keep,
            use_cache=False,
        ).logits
    return F.cross_entropy(logits[0].float(), batch.targets, reduction="none")


@torch.no_grad()
def held_out_loss(model, rows: Sequence[Row], dtype: torch.dtype | None = None, micro_batch_tokens: int = 1024) -> float:
    """Compute the mean loss a supervised token, in nats, over rows that are not trained on."""
    was_training = model.training
    dtype = dtype or pick_dtype(model.device)
    model.eval()
    with flat_attention(model):
        pieces = micro_batches(rows, micro_batch_tokens)
        total = sum(token_losses(model, flatten(piece, model.device), dtype).sum().item() for piece in pieces)
    model.train(was_training)
    return total / sum(row.supervised for row in rows)


def batches_of(rows: Sequence[Row], config: Config) -> Iterator[list[Row]]:
    """Yield one list of rows an optimiser step, epoch after epoch; the seed decides the order, unless it is to be kept."""
    rng = random.Random(config.seed)
    for _ in range(config.epochs):
        order = rng.sample(range(len(rows)), len(rows)) if config.shuffle else range(len(rows))
        for start in range(0, len(rows), config.batch_size):
            yield [rows[i] for i in order[start : start + config.batch_size]]


def learning_rate_at(step: int, steps: int, config: Config) -> float:
    """Climb in a straight line to the peak, then fall along a cosine to zero. `step` counts from 0."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def layers_of(model) -> torch.nn.ModuleList:
    """Find the stack of transformer layers."""
    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)


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


def training_flops(model, tokens: int, supervised: int) -> float:
    """Estimate the arithmetic of training as the model's weights are set to learn now.

    Two operations a weight and token forward, two for the gradient that flows back through it, two for its own
    gradient: 6 in all, fewer where weights are frozen. The matrix between hidden state and vocabulary works only where
    a token is supervised. The products inside attention are left out: short rows make them small.
    """
    head = model.get_output_embeddings().weight
    layers = list(layers_of(model))
    learns = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    lowest = 0 if model.get_input_embeddings().weight.requires_grad else (learns.index(True) if any(learns) else len(layers))
    size = sum(p.numel() for layer in layers for p in layer.parameters())
    flows = sum(p.numel() for layer in layers[lowest:] for p in layer.parameters())
    learnt = sum(p.numel() for layer in layers for p in layer.parameters() if p.requires_grad)
    passes = 3 if head.requires_grad else 2
    return 2.0 * ((size + flows + learnt) * tokens + passes * head.numel() * supervised)


def peak_memory(device: torch.device) -> float:
    """Tell the most memory used so far, in GiB: the device's on a GPU, this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    info = psutil.Process().memory_info()
    if hasattr(info, "peak_wset"):  # Windows
        return info.peak_wset / 2**30
    import resource
    import sys

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def train(
    model,
    rows: Sequence[Row],
    config: Config | None = None,
    held_out: Sequence[Row] = (),
    on_step: Callable[[History], None] | None = None,
) -> History:
    """Finetune `model`, in place, on `rows`: every weight, or those of the upper layers.

    held_out: rows never trained on; their loss is taken every `config.evaluate_every` steps and at the end.
    on_step: called after each step with the history so far, for a live plot.
    Returns the history. Raises ValueError when there is nothing to learn from, FloatingPointError when the loss is
    not a number any more. Ctrl-C stops it between two steps and leaves the model as trained so far.
    """
    config = config or Config()
    if not any(row.supervised for row in rows):
        raise ValueError("No row has a supervised token, so there is nothing to learn. Check the data and its labels.")
    steps = min(config.max_steps or 10**9, config.epochs * math.ceil(len(rows) / config.batch_size))
    history = History(planned_steps=steps)
    dtype = config.dtype or pick_dtype(model.device)
    torch.manual_seed(config.seed)
    keep_freed_memory()
    model.train()
    began = time.perf_counter()
    bar = tqdm(total=steps, desc="finetuning", unit="step", mininterval=1.0)
    with bar, flat_attention(model), only_upper_layers(model, config.upper_layers):
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(
            weights, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True
        )
        try:
            for step, batch in zip(range(steps), batches_of(rows, config), strict=False):
                rate = learning_rate_at(step, steps, config)
                optimizer.param_groups[0]["lr"] = rate
                supervised = sum(row.supervised for row in batch)
                loss = 0.0
                for piece in micro_batches(batch, config.micro_batch_tokens):
                    # divided by the whole batch's tokens, so that every token counts alike however the batch is cut
                    piece_loss = token_losses(model, flatten(piece, model.device), dtype).sum() / max(1, supervised)
                    piece_loss.backward()
                    loss += piece_loss.item()
                if not math.isfinite(loss):
                    raise FloatingPointError(f"The loss is {loss} at step {step + 1}. Lower the learning rate and start again.")
                torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                history.rows += len(batch)
                history.tokens += sum(len(row.ids) for row in batch)
                history.supervised_tokens += supervised
                history.seconds = time.perf_counter() - began
                history.steps.append(
                    {
                        "step": step + 1,
                        "tokens": history.tokens,
                        "loss": loss,
                        "learning_rate": rate,
                        "seconds": history.seconds,
                    }
                )
                last = step + 1 == steps
                if held_out and (last or (config.evaluate_every and (step + 1) % config.evaluate_every == 0)):
                    held = held_out_loss(model, held_out, dtype, config.micro_batch_tokens)
                    history.held_out.append({"step": step + 1, "loss": held})
                bar.set_postfix_str(f"loss {loss:.3f}, {history.tokens / history.seconds:.0f} tokens/s", refresh=False)
                bar.update()
                if on_step:
                    on_step(history)
        finally:
            optimizer.zero_grad()
            model.eval()
            history.flops = training_flops(model, history.tokens, history.supervised_tokens)
            history.seconds = time.perf_counter() - began
            history.peak_memory = peak_memory(model.device)
    return history
