"""LoRA: small matrices beside frozen ones. Add, merge, save, load and swap; files as PEFT writes and reads them.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from helpers.machine.adapted import choose_layers, is_transposed, left_out, linear_sizes, refuse_shared, remove
from helpers.machine.adapter_files import read_adapter, write_adapter
from helpers.machine.limits import check_rank

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable detour: y = W x + (alpha / rank) B A x.

    A is [rank, in], drawn at random; B is [out, rank], zero at first, so that nothing changes until it learns.
    Both are float32 beside a base of any kind; the result is of the kind that the base gives.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float):
        """Wrap `base`, one of `linear_layers`, whose own weights stay as they are. `scale` is alpha / rank."""
        super().__init__()
        self.base, self.scale, self.enabled = base.requires_grad_(False), scale, True
        (inside, outside), device = linear_sizes(base), base.get_parameter("weight").device
        self.lora_A = nn.Linear(inside, rank, bias=False, device=device, dtype=torch.float32)
        self.lora_B = nn.Linear(rank, outside, bias=False, device=device, dtype=torch.float32)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [..., in] to [..., out]."""
        y = self.base(x)
        if not self.enabled:
            return y
        if not torch.is_autocast_enabled(x.device.type):  # which casts by itself
            x = x.to(self.lora_A.weight.dtype)
        return (y + self.lora_B(self.lora_A(x) * self.scale)).to(y.dtype)

    def extra_repr(self) -> str:
        """Show the scale, too, where the model is printed."""
        return f"scale={self.scale:g}"


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """List the layers that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def add(
    model: "PreTrainedModel", rank: int = 16, alpha: float | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Freeze the model and give each linear layer whose name ends in one of `targets` an adapter of its own.

    alpha: what an adapter adds is times alpha / rank; left out, twice the rank, so that the factor is 2.
    targets: left out, every linear layer but the head gets one. What then goes without is said in a line.
    Raises ValueError when nothing matches or the model has adapters already.
    """
    if layers(model):
        raise ValueError("This model has adapters already. Call merge or remove first.")
    chosen = choose_layers(model, targets)
    name, size = max(((name, min(linear_sizes(layer))) for name, layer in chosen.items()), key=lambda of: of[1])
    check_rank(rank, name, size)  # smaller layers, such as a gate of one number, take a part of it
    torch.manual_seed(seed)
    model.requires_grad_(False)
    for name, layer in chosen.items():
        model.set_submodule(name, LoRALinear(layer, rank, 2.0 if alpha is None else alpha / rank))
    if targets is None and (without := left_out(model, chosen)):
        print(f"Without an adapter: {without}.")


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add each detour to the matrix beside it, W + (alpha / rank) B A: the same answers, at no cost when it runs.

    Every weight learns again afterwards. Raises ModelError when a matrix serves elsewhere, too, as a head that is tied to
    the embeddings does.
    """
    refuse_shared(model, layers(model))
    for layer in layers(model).values():
        weight = layer.base.get_parameter("weight")
        detour = layer.lora_B.weight.float() @ layer.lora_A.weight.float() * layer.scale
        weight.copy_(weight.float() + (detour.T if is_transposed(layer.base) else detour))  # rounded once
    remove(model)


def save(model: "PreTrainedModel", folder: str | Path) -> Path:
    """Save the adapter alone, as PEFT does: a few megabytes that `load` here and `peft` read. ValueError when there is none."""
    return write_adapter(model, layers(model), folder)


@torch.no_grad()
def load(model: "PreTrainedModel", folder: str | Path) -> None:
    """Put a saved adapter on a model, in place of the one it has. Swapping takes milliseconds.

    Raises ModelError when it cannot be read or belongs to another model; the model is then as it was.
    """
    detours = read_adapter(model, folder)
    remove(model)
    model.requires_grad_(False)
    for name, (base, a, b, scale) in detours.items():
        layer = LoRALinear(base, len(a), scale)
        layer.lora_A.weight.copy_(a)
        layer.lora_B.weight.copy_(b)
        model.set_submodule(name, layer)
