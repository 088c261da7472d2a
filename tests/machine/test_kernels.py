"""The arithmetic of attention."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from helpers.attention import attention_per_row
from helpers.machine import kernels
from helpers.machine.kernels import attention_after_prefix, causal_attention, shares_of, squares


def heads(length, rows=1, kind=torch.float32):
    """Queries of four heads, keys and values of two."""
    torch.manual_seed(0)
    return [torch.randn(rows, heads, length, 8, dtype=kind) for heads in (4, 2, 2)]


@pytest.mark.parametrize("attention", [attention_per_row, attention_after_prefix])
def test_what_is_not_known_is_refused(attention):
    with pytest.raises(NotImplementedError, match="takes position_bias, which ours does not know"):
        attention(None, *heads(10), None, [10], position_bias=torch.zeros(1))


@pytest.mark.parametrize("scaling", [None, 0.1])
def test_products_are_pytorchs_attention(scaling):
    q, k, v = heads(10, rows=3)
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
    assert torch.allclose(causal_attention(q, k, v, scaling=scaling), fused, atol=1e-6)
    seen = squares(torch.ones(30, 30).tril().triu(-3).bool(), [10, 10, 10])  # a window of four tokens
    fused = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scaling, enable_gqa=True)
    assert torch.allclose(causal_attention(q, k, v, seen, scaling=scaling), fused, atol=1e-6)


@pytest.mark.parametrize("way", ["causal", "after a prefix"])
def test_what_all_keys_share_does_not_cost_16_bits_their_differences(way):
    """Qwen2's keys share a part of some hundreds."""
    q, k, v = heads(12, rows=2)
    k = k + torch.tensor([300.0, -200.0, 90.0, 0, 0, 0, 0, 0])
    truth = F.scaled_dot_product_attention(q, k.bfloat16().float(), v, is_causal=True, enable_gqa=True)
    q, k, v = (part.bfloat16() for part in (q, k, v))
    if way == "causal":
        found = causal_attention(q, k, v)
    else:
        found, whole = after_prefix(q, k, v, length=7)
        truth = F.scaled_dot_product_attention(*(part.float() for part in whole), is_causal=True, enable_gqa=True)[:, :, 7:]
    assert (found.float() - truth).abs().max() < 0.06


def after_prefix(q, k, v, length, **how):
    """Attend in rows that begin with the same tokens, so many, which are kept once."""
    prefix = SimpleNamespace(layers=[SimpleNamespace(keys=k[:1, :, :length], values=v[:1, :, :length])])
    k, v = (torch.cat([part[:1, :, :length].expand(len(q), -1, -1, -1), part[:, :, length:]], dim=2) for part in (k, v))
    mask = torch.ones(len(q), 1, 1, q.shape[2] - length)
    module, rest = SimpleNamespace(layer_idx=0), [part[:, :, length:] for part in (q, k, v)]
    return attention_after_prefix(module, *rest, mask, prefix, **how)[0].transpose(1, 2), (q, k, v)


@pytest.mark.parametrize("how", [{}, {"scaling": 0.1}, {"softcap": 2.0}, {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0])}])
@pytest.mark.parametrize("at_once", [1, 300, 10**9])
def test_after_a_prefix_rows_come_out_alike_however_many_are_taken_at_once(monkeypatch, at_once, how):
    monkeypatch.setattr(kernels, "SCORES_AT_ONCE", at_once)
    found, (q, k, v) = after_prefix(*heads(12, rows=5), length=7, **how)
    assert torch.allclose(found, causal_attention(q, k, v, **how)[:, :, 7:], atol=1e-6)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_shares_have_one_precision_with_sinks_and_without(kind, mixed):
    """A score of minus infinity has no share, so that nothing else changes; one above all others takes it all."""
    torch.manual_seed(0)
    scores, hidden = torch.randn(2, 2, 3, 5, 5, dtype=kind), torch.full((5, 5), -torch.inf, dtype=kind).triu(1)
    none, everything = torch.full((6,), -torch.inf), torch.full((6,), 99.0)
    with torch.autocast("cpu", kind, enabled=mixed and kind != torch.float32):
        ways = [None, none.view(2, 3, 1, 1), everything.view(2, 3, 1, 1)]
        usual, same, left = (shares_of(scores + hidden, sinks) for sinks in ways)
    assert same.dtype == usual.dtype and torch.allclose(same, usual, atol=torch.finfo(same.dtype).eps)
    assert torch.allclose(usual.float().sum(-1), torch.ones(()), atol=0.02) and left.max() < 1e-6


def test_each_row_has_its_own_square_of_a_mask():
    cut = squares(torch.ones(5, 5).tril().bool(), [2, 3])
    assert cut.shape == (2, 1, 3, 3)
    assert cut[0, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]  # padding sees itself
    assert cut[1, 0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
