"""Cost: what a finetune takes in arithmetic."""

import torch


def layers_of(model) -> torch.nn.ModuleList:
    """Find the stack of transformer layers."""
    return max((module for module in model.modules() if isinstance(module, torch.nn.ModuleList)), key=len)


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
