"""Attention over flat batches: rows end to end, without padding, none of which sees another."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface


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


@contextmanager
def flat_attention(model) -> Iterator[None]:
    """Let the model read flat batches; its own attention comes back afterwards."""
    usual = model.config._attn_implementation
    model.set_attn_implementation("per_row")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
