"""Attention of our own, over flat batches and after a shared beginning, and what to do with models that it does not fit."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import signature
from itertools import accumulate, groupby

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from helpers.tokenization import Batch, flatten
from helpers.trial import agree, once, tell, trial_rows

# What models hand over besides and changes nothing: what to return, and what the keys and the mask know already.
HARMLESS = {"position_ids", "use_cache", "layer_past", "output_attentions", "output_hidden_states", "output_router_logits"}


def multiplies_in_float16(x: torch.Tensor) -> bool:
    """Tell whether products of this would be float16, whose largest number is 65504."""
    kind = x.device.type
    return (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype) == torch.float16


def scaled(query: torch.Tensor, scaling: float | None) -> tuple[torch.Tensor, float]:
    """Return the queries and what their products are to be multiplied with; in float16 they are scaled before the product."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return (query * scale, 1.0) if multiplies_in_float16(query) else (query, scale)


def check_known(others: dict) -> None:
    """Refuse what a model hands over to its attention and ours does not know: it could change the result."""
    if odd := sorted(name for name, value in others.items() if value is not None and name not in HARMLESS):
        raise NotImplementedError(f"its attention takes {', '.join(odd)}, which ours does not know")


def shares_of(scores, scale: float, hidden, softcap: float | None = None, sinks=None) -> torch.Tensor:
    """Turn scores [B, K, G, N, W] into each token's shares of attention.

    hidden: -inf where a token may not look, else 0.  softcap: bounds the scores smoothly.
    sinks: [K * G], scores that take their share and give nothing.
    """
    scores = scores * scale
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores + hidden
    if sinks is None:
        return scores.softmax(dim=-1)
    sinks = sinks.to(scores.dtype).view(1, *scores.shape[1:3], 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def attention_per_row(
    module,
    query,
    key,
    value,
    attention_mask,
    lengths=None,
    scaling=None,
    dropout=0.0,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **others,
):
    """Causal attention inside each row of a flat batch; no row sees another.

    query: [1, H, N, D].  key, value: [1, K, N, D], [1, K, N, E] with H a multiple of K.  lengths: tokens of each row, sum N.
    attention_mask: [1, 1, N, N], what a token may see, or None: all before it; see `row_mask`.
    softcap, s_aux: see `shares_of`.  Returns ([1, N, H, E], None).

    Neighbours of like length are padded on the right and computed together; padding comes after all real tokens, so
    causality hides it. Up to 512 tokens on a CPU, plain matrix products are some four times as fast as PyTorch's fused
    attention, which serves all other cases but soft caps and sinks.
    """
    check_known(others)
    if lengths is None:
        raise NotImplementedError("its attention does not hear where rows end")
    if attention_mask is None and sliding_window and sliding_window < max(lengths):
        raise NotImplementedError("its mask does not show its window")
    query, scale = scaled(query, scaling)
    outputs, start = [], 0
    for _, alike in groupby(lengths, key=int.bit_length):  # lengths between the same two powers of two
        sizes = list(alike)
        stop, longest = start + sum(sizes), max(sizes)
        pieces = (x[0, :, start:stop].transpose(0, 1).split(sizes) for x in (query, key, value))
        q, k, v = (pad_sequence(rows, batch_first=True).transpose(1, 2) for rows in pieces)  # [rows, heads, longest, D]
        seen = None if attention_mask is None else squares(attention_mask[0, 0, start:stop, start:stop], sizes)
        if (query.is_cuda or longest > 512) and not softcap and s_aux is None:
            options = {"dropout_p": dropout, "scale": scale, "enable_gqa": True}
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, **options)
        else:  # the query heads that share a key head are stacked, so that one product serves them all
            count, groups = k.shape[:2]
            scores = (q.reshape(count, groups, -1, q.shape[-1]) @ k.transpose(-1, -2)).view(count, groups, -1, longest, longest)
            hidden = torch.full((longest, longest), -torch.inf, dtype=q.dtype, device=q.device)
            hidden = hidden.triu(1) if seen is None else hidden.masked_fill(seen[:, :, None], 0)
            shares = F.dropout(shares_of(scores, scale, hidden, softcap, s_aux), dropout)
            out = (shares.view(count, groups, -1, longest) @ v).view(*q.shape[:3], -1)
        outputs += [row[:, :size] for row, size in zip(out, sizes, strict=True)]
        start = stop
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def squares(mask: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Cut each row's own square out of a mask [N, N] of bool: [rows, 1, longest, longest].

    Padding sees itself: where nothing is seen, a softmax is not a number.
    """
    parts = [mask[end - size : end, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    padded = [F.pad(part, (0, max(sizes) - len(part)) * 2) for part in parts]
    return torch.stack(padded)[:, None] | torch.eye(max(sizes), dtype=torch.bool, device=mask.device)


def row_mask(q_length: int, local_size: int | None = None, use_vmap: bool = False, **others) -> torch.Tensor | None:
    """Say what each token of a flat batch may see, as transformers asks: None for all before it, else [1, 1, N, N].

    local_size: the tokens of the model's window or chunk.  use_vmap: the model has rules of its own.
    """
    if not use_vmap and (local_size is None or local_size >= q_length):
        return None
    return sdpa_mask(q_length=q_length, local_size=local_size, use_vmap=use_vmap, **others | {"allow_is_causal_skip": False})


def attention_after_prefix(
    module,
    query,
    key,
    value,
    attention_mask,
    prefix,
    scaling=None,
    dropout=0.0,
    sliding_window=None,
    softcap=None,
    s_aux=None,
    **others,
):
    """Causal attention of rows that all begin with the same prefix, whose keys and values are kept once.

    query: [B, H, N, D].  key, value: [B, K, W, D], [B, K, W, E] with H a multiple of K.  attention_mask: [B, 1, 1, W], 0 at
    padding.  prefix: a cache with keys and values [1, K, P, D] a layer.  softcap, s_aux: see `shares_of`.  dropout: has no
    part in answering.  Returns ([B, N, H, E], None).
    All rows' queries meet the prefix in one product. Source: Juravsky et al. 2024, Hydragen, https://arxiv.org/abs/2402.05099
    """
    check_known(others)
    far, far_values = (part[0] for part in (prefix.layers[module.layer_idx].keys, prefix.layers[module.layer_idx].values))
    query, scale = scaled(query, scaling)
    rows, groups, width, dim = key.shape
    new, length = query.shape[2], far.shape[1]
    if sliding_window and sliding_window < length + width:
        raise NotImplementedError("its window does not reach back to the beginning that the rows share")
    q = query.reshape(rows, groups, -1, dim)  # the query heads that share a key head stacked
    near_scores = q @ key.transpose(-1, -2)
    together = q.transpose(0, 1).reshape(groups, -1, dim)  # the queries of all rows stacked
    far_scores = (together @ far.transpose(-1, -2)).view(groups, rows, -1, length).transpose(0, 1)
    scores = torch.cat([far_scores, near_scores], dim=-1).view(rows, groups, -1, new, length + width)
    seen = torch.ones(new, width, dtype=torch.bool, device=q.device).tril(width - new) & attention_mask.bool()
    hidden = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill(~seen, -torch.inf)
    hidden = F.pad(hidden, (length, 0))[:, :, None]  # the whole prefix is seen
    shares = shares_of(scores, scale, hidden, softcap, s_aux).view(rows, groups, -1, length + width)
    far_shares = shares[..., :length].transpose(0, 1).reshape(groups, -1, length)
    far_out = (far_shares @ far_values).view(groups, rows, -1, value.shape[-1]).transpose(0, 1)
    out = far_out + shares[..., length:] @ value
    return out.reshape(*query.shape[:3], -1).transpose(1, 2), None


AttentionInterface.register("per_row", attention_per_row)
AttentionMaskInterface.register("per_row", row_mask)
AttentionInterface.register("after_prefix", attention_after_prefix)


@contextmanager
def other_attention(model, name: str) -> Iterator[None]:
    """Let the model use the attention of this name for a while."""
    usual = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def is_flat(model) -> bool:
    """Tell whether the model, be it wrapped for several processes, reads flat batches just now."""
    return getattr(model, "module", model).config._attn_implementation == "per_row"


def batch_logits(model, batch: Batch) -> torch.Tensor:
    """Compute what the model expects where a token is supervised, each row by itself: logits [S, vocabulary].

    Inside `flat_attention` the batch is read as it is, if the model can; else padded on the right, by its own attention.
    """
    if is_flat(model):
        how = {"position_ids": batch.position_ids, "lengths": batch.lengths, "logits_to_keep": batch.keep}
        return model(input_ids=batch.ids, use_cache=False, **how).logits[0]
    ids = batch.ids[0].split(batch.lengths)
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    rows = torch.repeat_interleave(torch.tensor(batch.lengths, device=batch.keep.device))[batch.keep]
    columns = batch.position_ids[0, batch.keep]
    wanted, places = columns.unique(return_inverse=True)
    known = signature(getattr(model, "module", model).forward).parameters
    how = {"logits_to_keep": wanted} if "logits_to_keep" in known else {}
    logits = model(input_ids=pad_sequence(ids, batch_first=True), attention_mask=mask, use_cache=False, **how).logits
    return logits[rows, places if how else columns]


def reads_flat(model) -> bool:
    """Find out whether the model computes the same for rows laid end to end as for each alone. If not, it is said.

    Nothing else is as sure: models differ in what they hand over to attention, some mix positions into it in their own
    way (ALiBi), and in others a state runs on from token to token, whatever attention does.
    Raises ValueError when padded rows do not come out right either.
    """

    def find() -> bool:
        rows = trial_rows(model)
        alone = [model(input_ids=torch.tensor([row.ids], device=model.device), use_cache=False).logits[0, :-1] for row in rows]
        batch, truth = flatten(rows, model.device), torch.cat(alone)
        name, usual = type(model).__name__, model.config._attn_implementation

        def trouble(attention: str) -> str:
            """Say what is wrong with this attention, if anything is."""
            try:
                with other_attention(model, attention):
                    return "" if agree(batch_logits(model, batch), truth) else "its layers do not keep rows apart"
            except Exception as error:  # whatever stands in the way, the other way may be free
                return f"{error}".split("\n")[0][:100]

        why = trouble("per_row") if model._can_set_attn_implementation() else "its attention cannot be replaced"
        if why and (worse := trouble(usual)):
            raise ValueError(f"{name} cannot be used here: a batch does not give what each row gives alone ({worse}).")
        if why:
            tell(f"{name} cannot read rows laid end to end ({why}); they are padded: slower, with the same result.")
        return not why

    return once(model, "flat", find)


def flat_attention(model) -> AbstractContextManager[None]:
    """Let the model read flat batches, if it can; its own attention comes back afterwards. See `reads_flat`."""
    return other_attention(model, "per_row") if is_flat(model) or reads_flat(model) else nullcontext()


def prefix_attention(model) -> AbstractContextManager[None]:
    """Let the model read rows after a prefix that they share; its own attention comes back afterwards."""
    return other_attention(model, "after_prefix")
