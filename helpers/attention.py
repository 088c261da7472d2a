"""Attention: rows laid end to end in one batch do not see each other; and what to do with models whose rows would."""

from contextlib import AbstractContextManager, nullcontext
from inspect import signature
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from helpers.machine.kernels import causal_attention, other_attention, squares
from helpers.machine.probe import logits_alone, once, tell, trial_rows, trouble
from helpers.tokenization import Batch, Row, flatten


def attention_per_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    lengths: list[int] | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each row of a flat batch; no row sees another.

    query: [1, H, N, D].  key, value: [1, K, N, D], [1, K, N, E] with H a multiple of K.  lengths: tokens of each row, sum N.
    attention_mask: [1, 1, N, N], what a token may see, or None: all before it; see `row_mask`.
    others: see `causal_attention`.  Returns ([1, N, H, E], None).

    Neighbours of like length are padded on the right and computed together; padding comes after all real tokens, so
    causality hides it. Raises NotImplementedError where it does not fit the model.
    """
    if lengths is None:
        raise NotImplementedError("its attention does not hear where rows end")
    if attention_mask is None and sliding_window and sliding_window < max(lengths):
        raise NotImplementedError("its mask does not show its window")
    outputs, start = [], 0
    for _, alike in groupby(lengths, key=int.bit_length):  # lengths between the same two powers of two
        sizes = list(alike)
        stop = start + sum(sizes)
        pieces = (x[0, :, start:stop].transpose(0, 1).split(sizes) for x in (query, key, value))
        q, k, v = (pad_sequence(rows, batch_first=True).transpose(1, 2) for rows in pieces)  # [rows, heads, longest, D]
        seen = None if attention_mask is None else squares(attention_mask[0, 0, start:stop, start:stop], sizes)
        out = causal_attention(q, k, v, seen, **others)
        outputs += [row[:, :size] for row, size in zip(out, sizes, strict=True)]
        start = stop
    return torch.cat(outputs, dim=1).transpose(0, 1)[None], None


def row_mask(q_length: int, local_size: int | None = None, use_vmap: bool = False, **others: Any) -> Tensor | None:
    """Say what each token of a flat batch may see, as transformers asks: None for all before it, else [1, 1, N, N].

    local_size: the tokens of the model's window or chunk.  use_vmap: the model has rules of its own.
    """
    if not use_vmap and (local_size is None or local_size >= q_length):
        return None
    return sdpa_mask(q_length=q_length, local_size=local_size, use_vmap=use_vmap, **others | {"allow_is_causal_skip": False})


AttentionInterface.register("per_row", attention_per_row)
AttentionMaskInterface.register("per_row", row_mask)


def is_flat(model) -> bool:
    """Tell whether the model, be it wrapped for several processes, reads flat batches just now."""
    return getattr(model, "module", model).config._attn_implementation == "per_row"


def batch_logits(model, batch: Batch) -> Tensor:
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
        rows, name = trial_rows(model), type(model).__name__
        batch = flatten([Row(ids, ids) for ids in rows], model.device)
        truth = torch.cat([logits[:-1] for logits in logits_alone(model, rows)])

        def flat() -> Tensor:
            with other_attention(model, "per_row"):
                return batch_logits(model, batch)

        why = trouble(flat, truth)
        if why and (worse := trouble(lambda: batch_logits(model, batch), truth)):
            raise ValueError(f"{name} cannot be used here: a batch does not give what each row gives alone ({worse}).")
        if why:
            tell(f"{name} cannot read rows laid end to end ({why}); they are padded: slower, with the same result.")
        return not why

    return once(model, "flat", find)


def flat_attention(model) -> AbstractContextManager[None]:
    """Let the model read flat batches, if it can; its own attention comes back afterwards. See `reads_flat`."""
    return other_attention(model, "per_row") if is_flat(model) or reads_flat(model) else nullcontext()
