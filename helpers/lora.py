"""LoRA: small matrices beside frozen ones. Add, count, save, load, swap, merge; files as PEFT writes and reads them.

Source: Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models, https://arxiv.org/abs/2106.09685
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.loading import ModelError
from helpers.models import EMBEDDED, load_model
from helpers.output import replace_folder

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # all of a Llama-like layer
PREFIX = "base_model.model."  # what PEFT puts before the name of a module
# Of a PEFT config: what is heeded here, or says only how the adapter was made. Any other field has to be empty.
PLAIN_FIELDS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config"),
    *("megatron_core", "qalora_group_size"),  # details of what other fields switch on
}
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # other ways to draw A and B change the base as well


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable detour: y = W x + (alpha / rank) B A x.

    A is [rank, in], drawn at random; B is [out, rank], zero at first, so that nothing changes until it learns.
    Both are float32 beside a base of any kind; the result is of the kind that the base gives.
    """

    def __init__(self, base: nn.Linear, rank: int, scale: float):
        """Wrap `base`, whose own weights stay as they are. `scale` is alpha / rank."""
        super().__init__()
        self.base, self.scale, self.enabled = base.requires_grad_(False), scale, True
        options = {"bias": False, "device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, **options)
        self.lora_B = nn.Linear(rank, base.out_features, **options)
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


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def add(model: nn.Module, rank: int = 16, alpha: float = 32.0, targets: Sequence[str] = LINEAR, seed: int = 0) -> None:
    """Freeze the model and give each linear layer whose name ends in one of `targets` an adapter of its own.

    Raises ValueError when nothing matches or the model has adapters already.
    """
    if layers(model):
        raise ValueError("This model has adapters already. Call merge or remove first.")
    if rank < 1:
        raise ValueError(f"rank is {rank}; it has to be at least 1.")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    chosen = [name for name in linear if any(name == t or name.endswith("." + t) for t in targets)]
    if not chosen:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"No linear layer is called {', '.join(targets)}. This model has {', '.join(ends)}.")
    torch.manual_seed(seed)
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoRALinear(linear[name], rank, alpha / rank))


def trainable_share(model: nn.Module) -> float:
    """Compute the share of the weights that learn."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Switch the adapters off for a while: the model answers as before the finetune."""
    switched = [layer for layer in layers(model).values() if layer.enabled]
    for layer in switched:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in switched:
            layer.enabled = True


def remove(model: nn.Module) -> None:
    """Take the adapters off; the weights below learn again."""
    for name, layer in layers(model).items():
        _replace(model, name, layer.base)
    model.requires_grad_(True)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Add each detour to the matrix beside it, W + (alpha / rank) B A: the same answers, at no cost when it runs.

    Raises ModelError when a matrix serves elsewhere, too, as a head that is tied to the embeddings does.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, layer in layers(model).items():
        if uses[id(layer.base.weight)] > 1:
            raise ModelError(f"{name} shares its weights with another layer, which merging would change. Keep the adapter.")
    for layer in layers(model).values():
        weight = layer.base.weight
        detour = layer.lora_B.weight.float() @ layer.lora_A.weight.float() * layer.scale
        weight.copy_(weight.float() + detour)  # rounded once
    remove(model)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Save the adapter alone, as PEFT does: a few megabytes that `load` here and `peft` read."""
    adapters = layers(model)
    if not adapters:
        raise ValueError("This model has no adapter to save. Call add first, or save_model for the whole model.")
    ranks = {name: layer.lora_A.out_features for name, layer in adapters.items()}
    alphas = {name: layer.scale * ranks[name] for name, layer in adapters.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    plain = {name.rpartition(".")[2] for name in _linear(model) if name not in adapters}
    targets = {name.rpartition(".")[2] for name in adapters}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.config.name_or_path or None,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{re.escape(name)}": other for name, other in ranks.items() if other != rank},
        "alpha_pattern": {f"^{re.escape(name)}": other for name, other in alphas.items() if other != alpha},
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(adapters if targets & plain else targets),  # the last parts of names, if they say it all
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().contiguous()
        for name, layer in adapters.items()
        for part in ("lora_A", "lora_B")
    }
    with replace_folder(folder, "adapter_config.json") as partial:
        (partial / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
    return Path(folder)


def _linear(model: nn.Module) -> dict[str, nn.Linear]:
    """List the model's own linear layers, with or without an adapter, by name."""
    adapters = layers(model)
    inside = {part for layer in adapters.values() for part in layer.children()}
    plain = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and m not in inside}
    return plain | {name: layer.base for name, layer in adapters.items()}


def _of_layer(pattern: dict[str, float] | None, name: str, usual: float) -> float:
    """Look up a layer's own rank or alpha as PEFT does: by the end of its name, a regular expression; the first one counts."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), usual)


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read an adapter's config and tensors, or say what is wrong with it."""
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in (*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})):
            re.compile(key)
        if not (config["r"] > 0 and math.isfinite(config["lora_alpha"])):
            raise ValueError("its r and lora_alpha have to be numbers")
    except (OSError, ValueError, TypeError, AttributeError, KeyError, re.error, SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise ModelError(f"{folder}: cannot be read as an adapter ({reason}). Save or download it again.") from error
    plain = {"peft_type": ("LORA",), "bias": (None, "none"), "init_lora_weights": (None, *PLAIN_STARTS)}
    odd = [name for name, allowed in plain.items() if config.get(name) not in allowed]
    odd += [name for name, value in config.items() if value and name not in PLAIN_FIELDS]
    if odd:
        raise ModelError(
            f"{path}: {odd[0]} is {json.dumps(config.get(odd[0]))[:80]}, so it is not a plain LoRA adapter. "
            "Load it with peft, merge it there, and save the model."
        )
    odd = [name for name in tensors if not name.startswith(PREFIX) or name.split(".")[-2] not in ("lora_A", "lora_B")]
    if odd or not tensors:
        raise ModelError(f"{folder}: holds {odd[0] if odd else 'no tensors'}, which LoRA does not have. Save it again.")
    return config, tensors


@torch.no_grad()
def load(model: nn.Module, folder: str | Path) -> None:
    """Put a saved adapter on a model, in place of the one it has. Swapping takes milliseconds.

    Raises ModelError when it cannot be read or belongs to another model; the model is then as it was.
    """
    folder = Path(folder)
    config, tensors = _read(folder)
    linear = _linear(model)
    made: dict[str, LoRALinear] = {}
    for name in sorted({key.removeprefix(PREFIX).rsplit(".", 2)[0] for key in tensors}):
        a, b = (tensors.get(f"{PREFIX}{name}.{part}.weight") for part in ("lora_A", "lora_B"))
        base = linear.get(name)
        if base is None or a is None or b is None or (a.shape[1], b.shape[0]) != (base.in_features, base.out_features):
            raise ModelError(f"{folder}: its {name} does not fit this model. Load the model it was trained on.")
        rank = _of_layer(config.get("rank_pattern"), name, config["r"])
        alpha = _of_layer(config.get("alpha_pattern"), name, config["lora_alpha"])
        if not len(a) == b.shape[1] == rank:
            raise ModelError(f"{folder}: its {name} has rank {len(a)}, and its config says {rank}. Save or download it again.")
        layer = LoRALinear(base, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
        layer.lora_A.weight.copy_(a)
        layer.lora_B.weight.copy_(b)
        made[name] = layer
    remove(model)
    model.requires_grad_(False)
    for name, layer in made.items():
        _replace(model, name, layer)


def open_model(name: str | Path) -> tuple:
    """Load model and tokenizer by name or folder; the folder of an adapter gives its base with the adapter merged in."""
    config = Path(name) / "adapter_config.json"
    if not config.is_file():
        return load_model(name)
    base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
    model, tokenizer = open_model(base or EMBEDDED)
    load(model, name)
    merge(model)
    model.config.name_or_path = str(name)  # the base of the next adapter, should one be trained on top
    return model, tokenizer
