"""Which weights learn, how the others are held meanwhile, and what arithmetic that takes."""

import torch

from helpers.machine.weights import frozen_in, layers_of, only_upper_layers, training_flops
from helpers.models import load_model


def test_frozen_weights_are_held_in_another_precision_and_come_back(fresh):
    model, _ = fresh
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.requires_grad_(False)
    model.model.layers[-1].requires_grad_(True)
    with frozen_in(model, torch.bfloat16) as whole:
        with whole():
            assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        kinds = {name: weight.dtype for name, weight in model.named_parameters()}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert kinds["model.layers.29.mlp.up_proj.weight"] == torch.float32  # it learns
    assert kinds["model.embed_tokens.weight"] == torch.float32  # it is looked up
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_flops_of_frozen_weights(tiny):
    """Forward everywhere; backward only from the lowest layer that learns."""
    model, _ = load_model(tiny, device="cpu")
    layer, head = (sum(p.numel() for p in part.parameters()) for part in (layers_of(model)[0], model.lm_head))
    with only_upper_layers(model, 1):
        assert training_flops(model, tokens=10, supervised=3) == 2 * (4 * layer * 10 + 2 * head * 3)
    assert training_flops(model, tokens=10, supervised=3) == 6 * (2 * layer * 10 + head * 3)
