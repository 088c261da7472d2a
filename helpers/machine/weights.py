"""Weights: which of a model's learn, how the others are held meanwhile, and what arithmetic that takes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


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


@contextmanager
def frozen_in(model, dtype: torch.dtype) -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold the linear weights that do not learn in `dtype` for a while, so that no step has to cast them again.

    Tied weights stay as they are: as embeddings they are looked up, not multiplied.
    Yields `whole`: inside, `with whole():` has the weights as they were. It casts nothing, so it costs nothing.
    """
    tied = model.get_input_embeddings().weight
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    frozen = [weight for weight in linear if not weight.requires_grad and weight is not tied]
    original = [weight.data for weight in frozen]
    cast = [data.to(dtype) for data in original]

    @contextmanager
    def holding(inside: list[torch.Tensor], afterwards: list[torch.Tensor]) -> Iterator[None]:
        for weight, data in zip(frozen, inside, strict=True):
            weight.data = data
        try:
            yield
        finally:
            for weight, data in zip(frozen, afterwards, strict=True):
                weight.data = data

    with holding(cast, afterwards=original):
        yield lambda: holding(original, afterwards=cast)


@contextmanager
def recomputing(model, wanted: bool) -> Iterator[None]:
    """Switch gradient checkpointing on for a while, if wanted."""
    if wanted:
        model.activation_checkpointing_enable({"use_reentrant": False})
    try:
        yield
    finally:
        if wanted:
            model.activation_checkpointing_disable()


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
