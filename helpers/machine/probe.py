"""Probe: what is known of a model only when it is tried on a few tokens, and how far it reads."""

import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Found = TypeVar("Found")


def reach(model) -> float:
    """Say how many tokens every layer of a model can look back: infinitely many, unless it has windows or chunks."""
    config = model.config.get_text_config()
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((size for size in sizes if size), default=math.inf)


def context_window(model) -> int | None:
    """Say how many tokens the model reads at most; None: as many as one likes.

    Some stretch their positions once a row is long (longrope, dynamic), for every row beside it too: they read so many as
    leave them unstretched.
    """
    config = model.config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or {}
    ropes = [ropes, *(part for part in ropes.values() if isinstance(part, dict))]  # one, or one for each kind of layer
    sizes = [getattr(config, "max_position_embeddings", None)]
    sizes += [r.get("original_max_position_embeddings") for r in ropes if r.get("rope_type") in ("longrope", "dynamic")]
    return min((size for size in sizes if size), default=None)


def check_room(model, length: int, max_new_tokens: int) -> None:
    """Raise ValueError when a prompt of so many tokens leaves no room for its answer in the model's context window."""
    window = context_window(model)
    if window and length + max_new_tokens > window:
        raise ValueError(
            f"A prompt of {length} tokens and an answer of {max_new_tokens} do not fit into the model's window of "
            f"{window} tokens. Shorten the prompt or ask for fewer new tokens."
        )


def check_ids(model, ids: Sequence[int], name: str) -> None:
    """Refuse token ids that the model's embedding has no row for. Raises ValueError, which calls what has them by `name`."""
    size = model.get_input_embeddings().weight.shape[0]
    if odd := [id for id in (min(ids, default=0), max(ids, default=0)) if not 0 <= id < size]:
        raise ValueError(
            f"{name} has the token {odd[-1]}, and this model's embedding has rows for 0 to {size - 1} only. Encode it with the "
            "model's own tokenizer; for tokens that you added to it, call model.resize_token_embeddings(len(tokenizer)) first."
        )


def trial_rows(model) -> list[list[int]]:
    """Draw rows of random tokens to try a model on, without touching the random numbers of others.

    One is longer than the model's window, where that takes but some tenths of a second.
    """
    draw, lengths = torch.Generator().manual_seed(0), [9, 5, 6]
    if reach(model) * sum(weight.numel() for weight in model.parameters()) < 3e9:
        lengths.append(int(reach(model)) + 9)
    size = model.get_input_embeddings().weight.shape[0]
    return [torch.randint(size, (length,), generator=draw).tolist() for length in lengths]


def logits_alone(model, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Read each row as transformers does, alone and without a cache, to hold other ways against: [N, vocabulary] each."""
    return [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]


def once(model, question: str, find: Callable[[], Found]) -> Found:
    """Answer a question about a model once; asked again only when its configuration has changed.

    What accelerate has wrapped around it, as in the Trainer, is off meanwhile: it computes in 16 bits and says float32.
    """
    key = (question, model.config._attn_implementation, model.config.to_json_string(use_diff=False))
    known = model.__dict__.setdefault("_known", {})
    if key not in known:
        was_training, wrapped = model.training, model.__dict__.get("forward") if hasattr(model, "_original_forward") else None
        model.eval()
        try:
            if wrapped:
                del model.forward
            with torch.no_grad():
                known[key] = find()
        finally:
            model.train(was_training)
            if wrapped:
                model.forward = wrapped
    return known[key]


def agree(found: torch.Tensor, truth: torch.Tensor) -> bool:
    """Tell whether two ways to compute logits are one, but for rounding: up to 1/300 of how much logits differ."""
    near, spread = 3e-3 if found.dtype == torch.float32 else 0.2, truth.float().std().item()
    if not math.isfinite(spread):
        return True  # a model whose numbers are none cannot be tried; its loss says so
    return torch.allclose(found.float(), truth.float(), rtol=0, atol=near * spread, equal_nan=True)


def first_line(error: Exception) -> str:
    """Shorten what was raised, whatever it is, to one line that is not empty."""
    return f"{error}".strip().split("\n")[0][:160] or type(error).__name__


def trouble(compute: Callable[[], torch.Tensor], truth: torch.Tensor) -> str:
    """Try a way to compute logits, and say what is wrong with it; nothing if they are the truth, see `agree`."""
    try:
        return "" if agree(compute(), truth) else "its layers do not keep rows apart"
    except Exception as error:  # whatever stands in the way, another way may be free
        return first_line(error)


def tell(line: str) -> None:
    """Say something that the learner should know; one process of several speaks."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
