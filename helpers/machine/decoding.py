"""Decoding: what a model expects after many prompts at once, or after one, and which of these ways it can go."""

from collections.abc import Sequence
from contextlib import nullcontext
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from transformers import DynamicCache

from helpers.machine.kernels import prefix_attention
from helpers.machine.probe import logits_alone, once, reach, tell, trial_rows, trouble


def next_logits(
    model, newest: Sequence[list[int]], lengths: Sequence[int], cache: DynamicCache, prefix: DynamicCache | None = None
) -> torch.Tensor:
    """Read the newest tokens of B rows at once and put them into the cache: logits [B, vocabulary] of what comes next.

    Rows are padded on the left, so that all end at the right edge; no token sees the padding, and positions count from each
    row's own first token.  lengths: tokens of each row, those in the cache and these.
    prefix: the cache of what stands before every row, inside `prefix_attention`.
    """
    longest, device = max(map(len, newest)), model.device
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in newest], device=device)
    width = cache.get_seq_length() + longest
    columns = torch.arange(width, device=device) - width + torch.tensor(lengths, device=device)[:, None]
    positions, mask = columns.clamp(min=0)[:, -longest:], (columns >= 0).long()
    before = {}
    if prefix is not None:
        positions, mask, before = positions + prefix.get_seq_length(), mask[:, None, None], {"prefix": prefix}
    how = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True, **before}
    return model(input_ids=ids, logits_to_keep=1, **how).logits[:, -1]


def next_logits_alone(
    model, ids: Sequence[int], cache: object = None, before: int = 0, keep: bool = True
) -> tuple[torch.Tensor, object]:
    """Read tokens of one row: logits [1, vocabulary], and the cache, which the model makes as it likes.

    cache: of the tokens before these.  before: how many they are.  keep: make a cache, or None.
    """
    known = signature(model.forward).parameters
    name = "cache_params" if "cache_params" in known else "past_key_values"
    how = {} if cache is None else {name: cache}
    if "position_ids" in known:
        how["position_ids"] = torch.arange(before, before + len(ids), device=model.device)[None]
    output = model(input_ids=torch.tensor([ids], device=model.device), use_cache=keep, **how)
    return output.logits[:, -1], output.get(name) if keep else None


def read_prefix(model, ids: Sequence[int]) -> DynamicCache:
    """Read the tokens that stand before every row: their keys and values, [1, heads, length, dimension] in each layer."""
    cache = DynamicCache()
    model(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache


def append_rows(cache: DynamicCache, new: DynamicCache) -> DynamicCache:
    """Put the rows of two caches into one, padded on the left to the same width. The first may be empty."""
    width = max(cache.get_seq_length(), new.get_seq_length())
    layers: zip[tuple[Any, Any]] = zip(cache.layers, new.layers, strict=False)  # keys, values: [rows, heads, width, dimension]
    for old, layer in layers:
        layer.keys, layer.values = (
            torch.cat([F.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts])
            for parts in ((old.keys, layer.keys), (old.values, layer.values))
        )
    return new


def keep_rows(cache: DynamicCache, rows: list[int], width: int) -> DynamicCache:
    """Take all but these rows out of a cache, and all but the last `width` columns. Without a row there is nothing left."""
    if not rows:
        return DynamicCache()
    layers: list[Any] = cache.layers
    for layer in layers:
        layer.keys, layer.values = layer.keys[rows, :, -width:], layer.values[rows, :, -width:]
    return cache


def _together(model, rows: Sequence[list[int]], shared: int = 0) -> torch.Tensor:
    """Read rows but for their last token, then that: logits [2, rows, vocabulary], as `generation.Decoder` would.

    shared: so many tokens that all rows begin with are read once.
    """
    prefix = read_prefix(model, rows[0][:shared]) if shared else None
    rows, cache = [row[shared:] for row in rows], DynamicCache()
    with prefix_attention(model) if shared else nullcontext():
        first = next_logits(model, [row[:-1] for row in rows], [len(row) - 1 for row in rows], cache, prefix)
        return torch.stack([first, next_logits(model, [row[-1:] for row in rows], list(map(len, rows)), cache, prefix)])


def _one_by_one(model, rows: list[list[int]]) -> torch.Tensor:
    """Read each row with a cache of its own, but for its last token, then that: logits [2, rows, vocabulary]."""
    steps = []
    for row in rows:
        first, cache = next_logits_alone(model, row[:-1])
        steps.append(torch.cat([first, next_logits_alone(model, row[-1:], cache, len(row) - 1)[0]]))
    return torch.stack(steps, dim=1)


def _truth(model, rows: list[list[int]]) -> torch.Tensor:
    """Compute what the two above have to give: logits [2, rows, vocabulary]."""
    return torch.stack([logits[-2:] for logits in logits_alone(model, rows)], dim=1)


def way_to_answer(model) -> str:
    """Find out how the model can write answers, so that each comes out as it would alone. If not the usual way, it is said.

    "together": rows padded on the left.  "alone": each with a cache of its own, as states need that padding would disturb.
    "anew": each read from its beginning again for every token.
    """

    def find() -> str:
        rows, name = trial_rows(model), type(model).__name__
        truth = _truth(model, rows)
        if not trouble(lambda: _together(model, rows), truth):
            return "together"
        if not trouble(lambda: _one_by_one(model, rows), truth):
            tell(f"{name} cannot answer many at once; answers are written one by one: slower, but the same.")
            return "alone"
        tell(f"{name} cannot go on from what it has read; it reads all again for each token: slow, but the same.")
        return "anew"

    return once(model, "way", find)


def can_share(model, length: int) -> bool:
    """Tell whether rows of at most so many tokens may be read after a beginning that they share, which is read once."""

    def find() -> bool:
        begin, *ends = trial_rows(model)[:3]
        rows = [begin + end for end in ends]
        return not trouble(lambda: _together(model, rows, shared=len(begin)), _truth(model, rows))

    return way_to_answer(model) == "together" and length <= reach(model) and once(model, "share", find)


def shared_beginning(prompts: Sequence[list[int]], worthwhile: int = 64) -> list[int]:
    """Find the tokens that all prompts begin with, if they are many; at least one token is left to each prompt."""
    first, last = min(prompts, default=[]), max(prompts, default=[])  # in the order of a dictionary
    length = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    length = min(length, len(first) - 1)
    return first[:length] if len(prompts) > 1 and length >= worthwhile else []


def prefix_to_share(model, prompts: Sequence[list[int]], max_new_tokens: int) -> list[int]:
    """Find the tokens that all prompts begin with, see `shared_beginning`, if the model may read them once for all."""
    prefix = shared_beginning(prompts)
    return prefix if prefix and can_share(model, max(map(len, prompts)) + max_new_tokens) else []
