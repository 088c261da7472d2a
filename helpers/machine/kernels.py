"""Kernels: the arithmetic of attention, and how a model is given another one than its own."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, DynamicCache

# What models hand over besides and changes nothing: what to return, and what the keys and the mask know already.
HARMLESS = {"position_ids", "use_cache", "layer_past", "output_attentions", "output_hidden_states", "output_router_logits"}
SCORES_AT_ONCE = 2**20  # of attention, on a CPU: two megabytes in bfloat16 stay in its cache


def scaled(query: Tensor, scaling: float | None) -> Tensor:
    """Scale the queries, before their products grow too large for float16; so it is not done to each of the many scores."""
    return query * (query.shape[-1] ** -0.5 if scaling is None else scaling)


def check_known(others: dict[str, Any]) -> None:
    """Refuse what a model hands over to its attention and ours does not know: it could change the result."""
    if odd := sorted(name for name, value in others.items() if value is not None and name not in HARMLESS):
        raise NotImplementedError(f"its attention takes {', '.join(odd)}, which ours does not know")


def common_part(keys: Tensor, softcap: float | None, sinks: Tensor | None) -> Tensor | float:
    """Compute the mean of keys [..., W, D]: taken off all keys, each query's scores fall alike, and its shares stay.

    In some models, such as Qwen2, it is so large that products of 16 bits would round away how the keys differ.
    Nothing (0.0) where scores are bounded or stand beside sinks, since there a shift changes the shares.
    Source: Zhang et al. 2024, SageAttention, https://arxiv.org/abs/2410.02367
    """
    return 0.0 if softcap or sinks is not None else keys.mean(dim=-2, keepdim=True)


def capped(scores: Tensor, softcap: float | None) -> Tensor:
    """Bound the scores smoothly, if the model does."""
    return torch.tanh(scores / softcap) * softcap if softcap else scores


def shares_of(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Turn scores [..., W] into each token's shares of attention.

    sinks: one for each head, in the dimensions of the scores, which take their share and give nothing.
    """
    if sinks is None:
        return scores.softmax(dim=-1)
    sinks = sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, sinks], dim=-1).softmax(dim=-1)[..., :-1]


def causal_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """Causal attention of rows of N tokens each: [B, H, N, E].

    query: [B, H, N, D].  key, value: [B, K, N, D], [B, K, N, E] with H a multiple of K.
    seen: [B, 1, N, N] of bool, what a token may see, or None: all before it.  softcap: see `capped`.  s_aux: the sinks of
    `shares_of`.
    Up to 512 tokens on a CPU, plain matrix products are some four times as fast as PyTorch's fused attention, which serves
    all other cases but soft caps and sinks. Raises NotImplementedError at arguments that it does not know.
    """
    check_known(others)
    rows, groups, length = key.shape[:3]
    if (query.is_cuda or length > 512) and not softcap and s_aux is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, dropout_p=dropout, is_causal=seen is None, scale=scaling, enable_gqa=True
        )
    key = key - common_part(key, softcap, s_aux)
    q = scaled(query, scaling).reshape(rows, groups, -1, query.shape[-1])  # the query heads that share a key head stacked
    scores = capped((q @ key.transpose(-1, -2)).view(rows, groups, -1, length, length), softcap)
    hidden = torch.full((length, length), -torch.inf, dtype=q.dtype, device=q.device)
    hidden = hidden.triu(1) if seen is None else hidden.masked_fill(seen[:, :, None], 0)
    sinks = None if s_aux is None else s_aux.view(groups, -1, 1, 1)
    shares = F.dropout(shares_of(scores + hidden, sinks), dropout)
    return (shares.view(rows, groups, -1, length) @ value).view(*query.shape[:3], -1)


def squares(mask: Tensor, sizes: list[int]) -> Tensor:
    """Cut each row's own square out of a mask [N, N] of bool: [rows, 1, longest, longest].

    sizes: tokens of each row, sum N.  Padding sees itself: where nothing is seen, a softmax is not a number.
    """
    parts = [mask[end - size : end, end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]
    padded = [F.pad(part, (0, max(sizes) - len(part)) * 2) for part in parts]
    return torch.stack(padded)[:, None] | torch.eye(max(sizes), dtype=torch.bool, device=mask.device)


def attention_after_prefix(
    module: Any,  # a layer's attention, whose `layer_idx` says which layer
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    prefix: DynamicCache,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of rows that all begin with the same prefix, whose keys and values are kept once.

    query: [B, H, N, D].  key, value: [B, K, W, D], [B, K, W, E] with H a multiple of K.  attention_mask: [B, 1, 1, W], 0 at
    padding.  prefix: a cache with keys and values [1, K, P, D] a layer.  softcap, s_aux: see `causal_attention`.  dropout: has
    no part in answering.  Returns ([B, N, H, E], None). Raises NotImplementedError where it does not fit the model.
    The queries of many rows meet the prefix in one product, of so many that their scores stay in the processor's cache.
    Source: Juravsky et al. 2024, Hydragen, https://arxiv.org/abs/2402.05099
    """
    check_known(others)
    layer: Any = prefix.layers[module.layer_idx]
    far, far_values = layer.keys[0], layer.values[0]
    common = common_part(far, softcap, s_aux)
    far, key = far - common, key - common
    rows, groups, width, dim = key.shape
    new, length = query.shape[2], far.shape[1]
    if sliding_window and sliding_window < length + width:
        raise NotImplementedError("its window does not reach back to the beginning that the rows share")
    seen = torch.ones(new, width, dtype=torch.bool, device=key.device).tril(width - new) & attention_mask.bool()
    hidden = torch.zeros(seen.shape, dtype=key.dtype, device=key.device).masked_fill(~seen, -torch.inf)
    heads = query.shape[1]
    sinks = None if s_aux is None else s_aux.view(groups, 1, -1, 1, 1)
    at_once = rows if query.is_cuda else max(1, SCORES_AT_ONCE // (heads * new * (length + width)))
    pieces, outputs = zip(*(x.split(at_once) for x in (scaled(query, scaling), key, value, hidden)), strict=True), []
    for some, *near, unseen in pieces:
        count = len(some)
        # the query heads that share a key head stacked: [K, rows, G * N, D], and keys and values alike: [K, rows, W, D]
        q, near_keys, near_values = (x.reshape(count, groups, -1, x.shape[-1]).transpose(0, 1) for x in (some, *near))
        shape = groups, count, heads // groups, new
        near_scores = capped((q @ near_keys.transpose(-1, -2)).view(*shape, width), softcap) + unseen
        far_scores = capped((q.reshape(groups, -1, dim) @ far.transpose(-1, -2)).view(*shape, length), softcap)
        shares = shares_of(torch.cat([far_scores, near_scores], dim=-1), sinks).flatten(2, 3)  # the whole prefix is seen
        far_out = (shares[..., :length].flatten(1, 2) @ far_values).view(groups, count, -1, value.shape[-1])
        out = far_out + shares[..., length:] @ near_values
        outputs.append(out.transpose(0, 1).reshape(count, heads, new, -1))
    return torch.cat(outputs).transpose(1, 2), None


AttentionInterface.register("after_prefix", attention_after_prefix)


@contextmanager
def other_attention(model, name: str) -> Iterator[None]:
    """Let the model use the attention of this name for a while. Raises NotImplementedError when it cannot use another."""
    usual = model.config._attn_implementation
    if name != usual and not model._can_set_attn_implementation():
        raise NotImplementedError("its attention cannot be replaced")
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def prefix_attention(model) -> AbstractContextManager[None]:
    """Let the model read rows after a prefix that they share; its own attention comes back afterwards."""
    return other_attention(model, "after_prefix")
