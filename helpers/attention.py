"""Attention of our own: over flat batches, whose rows do not see each other, and after a beginning that rows share."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface


def multiplies_in_float16(x: torch.Tensor) -> bool:
    """Tell whether products of this would be float16, whose largest number is 65504."""
    kind = x.device.type
    return (torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype) == torch.float16


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
    if multiplies_in_float16(query):
        query, scaling = query * scaling, 1.0  # scaled before the product, which could be too large
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


def attention_after_prefix(module, query, key, value, attention_mask, scaling=None, prefix=None, **_):
    """Causal attention of rows that all begin with the same prefix, whose keys and values are kept once.

    query: [B, H, N, D].  key, value: [B, K, W, D] with H a multiple of K.  attention_mask: [B, 1, 1, W], 0 at padding.
    prefix: a cache with keys and values [1, K, P, D] a layer.  Returns ([B, N, H, D], None).
    All rows' queries meet the prefix in one product. Source: Juravsky et al. 2024, Hydragen, https://arxiv.org/abs/2402.05099
    """
    far, far_values = (part[0] for part in (prefix.layers[module.layer_idx].keys, prefix.layers[module.layer_idx].values))
    if multiplies_in_float16(query):
        query, scaling = query * scaling, 1.0  # scaled before the product, which could be too large
    rows, groups, width, dim = key.shape
    new, length = query.shape[2], far.shape[1]
    q = query.reshape(rows, groups, -1, dim)  # the query heads that share a key head stacked
    seen = torch.ones(new, width, dtype=torch.bool, device=q.device).tril(width - new) & attention_mask.bool()
    near_scores = (q @ key.transpose(-1, -2)).view(rows, groups, -1, new, width)
    near_scores = near_scores.masked_fill(~seen[:, :, None], -torch.inf).view(rows, groups, -1, width)
    together = q.transpose(0, 1).reshape(groups, -1, dim)  # the queries of all rows stacked
    far_scores = (together @ far.transpose(-1, -2)).view(groups, rows, -1, length).transpose(0, 1)
    shares = (torch.cat([far_scores, near_scores], dim=-1) * scaling).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    far_shares = shares[..., :length].transpose(0, 1).reshape(groups, -1, length)
    far_out = (far_shares @ far_values).view(groups, rows, -1, dim).transpose(0, 1)
    return (far_out + shares[..., length:] @ value).reshape(query.shape).transpose(1, 2), None


AttentionInterface.register("per_row", attention_per_row)
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


def flat_attention(model) -> AbstractContextManager[None]:
    """Let the model read flat batches; its own attention comes back afterwards."""
    return other_attention(model, "per_row")


def prefix_attention(model) -> AbstractContextManager[None]:
    """Let the model read rows after a prefix that they share; its own attention comes back afterwards."""
    return other_attention(model, "after_prefix")
