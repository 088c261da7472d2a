"""Reading: how prompts go into a model, many at once or each alone, and which way it can answer."""

from contextlib import nullcontext, suppress
from inspect import signature

import torch
from transformers import DynamicCache

from helpers.attention import prefix_attention
from helpers.machine.probe import agree, once, reach, tell, trial_rows


def read(model, ids: torch.Tensor, lengths: list[int], cache: DynamicCache, prefix: DynamicCache | None = None) -> torch.Tensor:
    """Read the newest tokens of B rows, padded on the left, and put them into the cache: logits [B, vocabulary].

    ids: [B, N].  lengths: tokens of each row, read ones and these.  prefix: the cache of what stands before every row,
    inside `prefix_attention`.
    """
    width = cache.get_seq_length() + ids.shape[1]
    columns = torch.arange(width, device=ids.device) - width + torch.tensor(lengths, device=ids.device)[:, None]
    positions, mask = columns.clamp(min=0)[:, -ids.shape[1] :], (columns >= 0).long()
    before = {}
    if prefix is not None:
        positions, mask, before = positions + prefix.get_seq_length(), mask[:, None, None], {"prefix": prefix}
    how = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache, "use_cache": True, **before}
    return model(input_ids=ids, logits_to_keep=1, **how).logits[:, -1]


def read_alone(model, ids: list[int], cache=None, before: int = 0, keep: bool = True) -> tuple[torch.Tensor, object]:
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


def read_at_once(model, rows: list[list[int]], shared: int = 0) -> torch.Tensor:
    """Read padded rows but for their last token, then that: logits [2, rows, vocabulary], as `Decoder` would."""
    cache, prefix, device = DynamicCache(), None, model.device
    if shared:
        prefix = DynamicCache()
        model(input_ids=torch.tensor([rows[0][:shared]], device=device), past_key_values=prefix, use_cache=True)
    rows = [row[shared:] for row in rows]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows], device=device)
    with prefix_attention(model) if shared else nullcontext():
        first = read(model, ids[:, :-1], [len(row) - 1 for row in rows], cache, prefix)
        return torch.stack([first, read(model, ids[:, -1:], list(map(len, rows)), cache, prefix)])


def read_one_by_one(model, rows: list[list[int]]) -> torch.Tensor:
    """Read each row alone, but for its last token, then that: logits [2, rows, vocabulary]."""
    steps = []
    for row in rows:
        first, cache = read_alone(model, row[:-1])
        steps.append(torch.cat([first, read_alone(model, row[-1:], cache, len(row) - 1)[0]]))
    return torch.stack(steps, dim=1)


def read_plainly(model, rows: list[list[int]]) -> torch.Tensor:
    """Read each row as transformers does, without any cache, for the other ways to be held against."""
    whole = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0, -2:] for row in rows]
    return torch.stack(whole, dim=1)


def way_to_answer(model) -> str:
    """Find out how the model can write answers, so that each comes out as it would alone. If not the usual way, it is said.

    "together": rows padded on the left.  "alone": each with a cache of its own, as states need that padding would disturb.
    "anew": each read from its beginning again for every token.
    """

    def find() -> str:
        rows = [row.ids for row in trial_rows(model)]
        truth, name = read_plainly(model, rows), type(model).__name__
        with suppress(Exception):  # whatever stands in the way, the next way may be free
            if agree(read_at_once(model, rows), truth):
                return "together"
        with suppress(Exception):
            if agree(read_one_by_one(model, rows), truth):
                tell(f"{name} cannot answer many at once; answers are written one by one: slower, but the same.")
                return "alone"
        tell(f"{name} cannot go on from what it has read; it reads all again for each token: slow, but the same.")
        return "anew"

    return once(model, "way", find)


def can_share(model, length: int) -> bool:
    """Tell whether rows of at most so many tokens may be read after a beginning that they share, which is read once."""

    def find() -> bool:
        begin, *ends = [row.ids for row in trial_rows(model)][:3]
        rows = [begin + end for end in ends]
        with suppress(Exception):
            return agree(read_at_once(model, rows, shared=len(begin)), read_plainly(model, rows))
        return False

    able = model._can_set_attn_implementation() and way_to_answer(model) == "together"
    return able and length <= reach(model) and once(model, "share", find)
