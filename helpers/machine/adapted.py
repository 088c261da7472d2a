"""Adapted: where a model can carry adapters, as PEFT's "all-linear" has it, and where it does."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, TypeGuard

from torch import nn

from helpers.machine.loading import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LINEAR = ("Linear", "Conv1D", "FalconLinear")  # classes that map [..., in] to [..., out] and nothing else, as routers do
# Of layers with these fields: linear ones whose weights are read, or scaled (RWKV), past the layer itself.
BYPASSED = {("A_log", "D"): ("x_proj", "dt_proj", "out_proj"), ("time_mix_key",): ("attention.output", "feed_forward.value")}


class Adapted(Protocol):
    """A linear layer with an adapter, as `lora.LoRALinear` is one."""

    base: nn.Module  # the layer itself
    lora_A: nn.Linear  # its weight is [rank, in]
    lora_B: nn.Linear  # its weight is [out, rank]
    scale: float
    enabled: bool


def is_transposed(layer: nn.Module) -> bool:
    """Tell whether a matrix stands as [in, out], as GPT-2's do, and not as [out, in]."""
    return type(layer).__name__ == "Conv1D"


def linear_sizes(layer: nn.Module) -> tuple[int, int]:
    """Look up what a linear layer maps from and to: (in, out)."""
    first, second = layer.get_parameter("weight").shape
    return (first, second) if is_transposed(layer) else (second, first)


def is_adapted(module: object) -> TypeGuard[Adapted]:
    """Tell whether a module is a linear layer with an adapter."""
    return hasattr(module, "lora_A")


def adapted_layers(model: nn.Module) -> dict[str, Adapted]:
    """List the layers that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if is_adapted(module)}


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off for a while: the model answers as before the finetune."""
    switched = [layer for layer in adapted_layers(model).values() if layer.enabled]
    for layer in switched:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in switched:
            layer.enabled = True


def remove(model: nn.Module) -> None:
    """Take the adapters off; the weights below learn again."""
    for name, layer in adapted_layers(model).items():
        model.set_submodule(name, layer.base)
    model.requires_grad_(True)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List the model's own linear layers, with or without an adapter, by name, in the model's order."""
    found: dict[str, nn.Module] = {}
    modules = dict(model.named_modules())
    for name, module in modules.items():
        parent = modules[name.rpartition(".")[0]]
        if is_adapted(module):
            found[name] = module.base
        elif type(module).__name__ in LINEAR and not is_adapted(parent) and not _is_bypassed(name, parent):
            found[name] = module
    return found


def _is_bypassed(name: str, parent: nn.Module) -> bool:
    """Tell whether a layer's weights work past the layer, so that an adapter on it would not be heard."""
    return any(
        all(hasattr(parent, field) for field in fields) and f".{name}".endswith(tuple(f".{end}" for end in ends))
        for fields, ends in BYPASSED.items()
    )


def choose_layers(model: "PreTrainedModel", targets: Sequence[str] | None) -> dict[str, nn.Module]:
    """List the linear layers whose names end in one of `targets`; None: all of them but the head.

    Raises ValueError when there are none for one of the targets.
    """
    linear = linear_layers(model)
    if targets is None:
        head = model.get_output_embeddings()
        plain = {name: layer for name, layer in linear.items() if layer is not head}
        if not plain:
            raise ValueError("No layer of this model fits an adapter, as none is a plain linear one. Train it without one.")
        return plain
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in found.items() if not names]:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"No linear layer is called {', '.join(unknown)}. This model has {', '.join(ends)}.")
    return {name: layer for name, layer in linear.items() if any(name in names for names in found.values())}


def left_out(model: "PreTrainedModel", adapted: Iterable[str]) -> str:
    """Say which matrices inside the layers have no adapter, such as experts in one block; "" when all have one.

    adapted: the names of the layers that have one.
    """
    head = model.get_output_embeddings()
    apart = [module for module in model.modules() if module is head or isinstance(module, nn.Embedding)]
    tables = {id(module.get_parameter("weight")) for module in apart}
    within = tuple(f"{name}." for name in adapted)
    plain = {name: weight for name, weight in model.named_parameters() if weight.ndim > 1 and id(weight) not in tables}
    bare = {name: weight for name, weight in plain.items() if not name.startswith(within)}
    names = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in bare})
    share = sum(weight.numel() for weight in bare.values()) / sum(weight.numel() for weight in model.parameters())
    return f"{', '.join(names)}; {share:.0%} of the weights" if bare else ""


def refuse_shared(model: nn.Module, names: Collection[str]) -> None:
    """Raise ModelError when the matrix of one of these adapted layers serves elsewhere, too, as that of a tied head does."""
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name in names:
        if uses[id(model.get_parameter(f"{name}.base.weight"))] > 1:
            raise ModelError(f"{name} shares its weights with another layer, which merging would change. Keep the adapter.")


def trainable_share(model: nn.Module) -> float:
    """Compute the share of the weights that learn."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    return sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
