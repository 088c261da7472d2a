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

from helpers.machine.files import replace_folder
from helpers.machine.loading import ModelError
from helpers.models import EMBEDDED, find_model, load_model

LINEAR = ("Linear", "Conv1D", "FalconLinear")  # classes that map [..., in] to [..., out] and nothing else, as routers do
# Of layers with these fields: linear ones whose weights are read, or scaled (RWKV), past the layer itself.
BYPASSED = {("A_log", "D"): ("x_proj", "dt_proj", "out_proj"), ("time_mix_key",): ("attention.output", "feed_forward.value")}
EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # names that PEFT takes for experts' own
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # what PEFT puts before the name of a module
# Of a PEFT config: what is heeded here, or says only how the adapter was made. Any other field has to be empty.
PLAIN_FIELDS = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout", "bias", "init_lora_weights"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "eva_config"),
    "fan_in_fan_out",  # whether matrices stand as [in, out], which their class says
    *("megatron_core", "qalora_group_size"),  # details of what other fields switch on
}
PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")  # other ways to draw A and B change the base as well


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable detour: y = W x + (alpha / rank) B A x.

    A is [rank, in], drawn at random; B is [out, rank], zero at first, so that nothing changes until it learns.
    Both are float32 beside a base of any kind; the result is of the kind that the base gives.
    """

    def __init__(self, base: nn.Module, rank: int, scale: float):
        """Wrap `base`, a layer of a class in LINEAR, whose own weights stay as they are. `scale` is alpha / rank."""
        super().__init__()
        self.base, self.scale, self.enabled = base.requires_grad_(False), scale, True
        options = {"bias": False, "device": base.weight.device, "dtype": torch.float32}
        inside, outside = sizes(base)
        self.lora_A = nn.Linear(inside, rank, **options)
        self.lora_B = nn.Linear(rank, outside, **options)
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


def _transposed(base: nn.Module) -> bool:
    """Tell whether a matrix stands as [in, out], as GPT-2's do, and not as [out, in]."""
    return type(base).__name__ == "Conv1D"


def sizes(base: nn.Module) -> tuple[int, int]:
    """Look up what a linear layer maps from and to: (in, out)."""
    first, second = base.weight.shape
    return (first, second) if _transposed(base) else (second, first)


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """List the layers that carry an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def targets_of(model: nn.Module) -> list[str]:
    """Name every layer that an adapter fits: all linear ones but the head, as PEFT's "all-linear" has them."""
    head = model.get_output_embeddings()
    return [name for name, module in _linear(model).items() if module is not head]


def _chosen(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """List the linear layers whose names end in one of `targets`; ValueError when there are none for one of them."""
    linear = _linear(model)
    found = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in targets}
    if unknown := [target for target, names in found.items() if not names]:
        ends = sorted({name.rpartition(".")[2] for name in linear})
        raise ValueError(f"No linear layer is called {', '.join(unknown)}. This model has {', '.join(ends)}.")
    return [name for name in linear if any(name in names for names in found.values())]


def add(model: nn.Module, rank: int = 16, alpha: float = 32.0, targets: Sequence[str] | None = None, seed: int = 0) -> None:
    """Freeze the model and give each linear layer whose name ends in one of `targets` an adapter of its own.

    targets: left out, every linear layer but the head gets one. What then goes without is said in a line.
    Raises ValueError when nothing matches or the model has adapters already.
    """
    if layers(model):
        raise ValueError("This model has adapters already. Call merge or remove first.")
    if rank < 1:
        raise ValueError(f"rank is {rank}; it has to be at least 1.")
    linear, chosen = _linear(model), targets_of(model) if targets is None else _chosen(model, targets)
    if not chosen:
        raise ValueError("No layer of this model fits an adapter, as none is a plain linear one. Train it without: no rank.")
    torch.manual_seed(seed)
    model.requires_grad_(False)
    for name in chosen:
        _replace(model, name, LoRALinear(linear[name], rank, alpha / rank))
    if targets is None and (without := left_out(model)):
        print(f"Without an adapter: {without}.")


def left_out(model: nn.Module) -> str:
    """Say which matrices inside the layers have no adapter, such as experts in one block; "" when all have one."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)} | {id(_head_weight(model))}
    plain = {n: w for n, w in model.named_parameters() if w.ndim > 1 and id(w) not in embeddings}
    adapters = layers(model)
    bare = {n: w for n, w in plain.items() if not any(n.startswith(name + ".") for name in adapters)}
    names = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in bare})
    share = sum(w.numel() for w in bare.values()) / sum(w.numel() for w in model.parameters())
    return f"{', '.join(names)}; {share:.0%} of the weights" if bare else ""


def _head_weight(model: nn.Module) -> torch.Tensor | None:
    head = model.get_output_embeddings()
    return None if head is None else head.weight


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
        weight.copy_(weight.float() + (detour.T if _transposed(layer.base) else detour))  # rounded once
    remove(model)


def _ends(model: nn.Module, adapters: dict[str, LoRALinear]) -> list[str]:
    """Name the adapted layers for PEFT: by the last parts of their names if those say it all, else in full."""
    ends = {name.rpartition(".")[2] for name in adapters}
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in adapters}
    return sorted(adapters if ends & others else ends)


def save(model: nn.Module, folder: str | Path) -> Path:
    """Save the adapter alone, as PEFT does: a few megabytes that `load` here and `peft` read.

    One exception is said: beside experts in one block, PEFT takes the name of a plain layer for the experts' own.
    """
    adapters = layers(model)
    if not adapters:
        raise ValueError("This model has no adapter to save. Call add first, or save_model for the whole model.")
    ranks = {name: layer.lora_A.out_features for name, layer in adapters.items()}
    alphas = {name: layer.scale * ranks[name] for name, layer in adapters.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
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
        "fan_in_fan_out": all(_transposed(layer.base) for layer in adapters.values()),
        "target_modules": _ends(model, adapters),
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().contiguous()
        for name, layer in adapters.items()
        for part in ("lora_A", "lora_B")
    }
    with replace_folder(folder, CONFIG) as partial:
        (partial / CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
    in_one_block = any(w.ndim > 2 and name.split(".")[-2] == "experts" for name, w in model.named_parameters())
    if in_one_block and EXPERTS & {name.rpartition(".")[2] for name in adapters}:
        print("For this course alone: PEFT would take some of these layers for experts. Merge the adapter to use it elsewhere.")
    return Path(folder)


def _linear(model: nn.Module) -> dict[str, nn.Module]:
    """List the model's own linear layers, with or without an adapter, by name, in the model's order."""
    found: dict[str, nn.Module] = {}
    parent: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        parent[name] = module
        above = name.rpartition(".")[0]
        bypassed = any(
            all(hasattr(parent.get(above), field) for field in fields) and f".{name}".endswith(tuple(f".{end}" for end in ends))
            for fields, ends in BYPASSED.items()
        )
        if isinstance(module, LoRALinear):
            found[name] = module.base
        elif type(module).__name__ in LINEAR and not bypassed and not isinstance(parent.get(above), LoRALinear):
            found[name] = module
    return found


def _of_layer(pattern: dict[str, float] | None, name: str, usual: float) -> float:
    """Look up a layer's own rank or alpha as PEFT does: by the end of its name, a regular expression; the first one counts."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), usual)


def _read_config(folder: Path) -> dict:
    """Read an adapter's config, or say that it cannot be read."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        for key in (*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})):
            re.compile(key)
        if not (config["r"] > 0 and math.isfinite(config["lora_alpha"])):
            raise ValueError("its r and lora_alpha have to be numbers")
        return config
    except (OSError, ValueError, TypeError, AttributeError, KeyError, re.error) as error:
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> ModelError:
    reason = f"{type(error).__name__}: {error}".split("\n")[0]
    return ModelError(f"{folder}: cannot be read as an adapter ({reason}). Save or download it again.")


def _read(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Read an adapter's config and tensors, or say what is wrong with it."""
    path, config = folder / CONFIG, _read_config(folder)
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise ModelError(
            f"{folder}: has its weights as adapter_model.bin only, which can carry code. Load it with peft and save it there: "
            "PeftModel.save_pretrained writes safetensors."
        )
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise _unreadable(folder, error) from error
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
        if base is None or a is None or b is None or (a.shape[1], b.shape[0]) != sizes(base):
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


def adapter_folder(name: str | Path) -> Path | None:
    """Find the folder of an adapter by its name, which may be one on the hub; None when that is something else."""
    path = Path(name)
    on_hub = str(name) != EMBEDDED and not path.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "~"))
    folder = find_model(name) if on_hub else path
    return folder if (folder / CONFIG).is_file() and not (folder / "config.json").is_file() else None


def _open_base(name: str | Path, folder: Path, above: tuple[str, ...]) -> tuple:
    """Load the model that an adapter was trained on, or say where its name stands."""
    base = str(_read_config(folder).get("base_model_name_or_path") or EMBEDDED)
    if base in (*above, str(name)):
        raise ModelError(f"{folder / CONFIG}: its base_model_name_or_path leads back to itself. Write the model's place there.")
    try:
        return open_model(base, (*above, str(name)))
    except ModelError as error:
        raise ModelError(
            f"{name}: its base cannot be loaded ({error}) If it was moved, write its place into {folder / CONFIG}."
        ) from error


def open_model(name: str | Path, above: tuple[str, ...] = ()) -> tuple:
    """Load model and tokenizer by name or folder; an adapter's gives its base, which may be an adapter, too, merged with it.

    above: the adapters whose bases led here. Raises ModelError.
    """
    folder = adapter_folder(name)
    if folder is None:
        return load_model(name)
    model, tokenizer = _open_base(name, folder, above)
    load(model, folder)
    merge(model)
    model.config.name_or_path = str(name)  # the base of the next adapter, should one be trained on top
    return model, tokenizer


def open_learner(
    name: str | Path, rank: int = 0, alpha: float | None = None, targets: Sequence[str] | None = None, seed: int = 0
) -> tuple:
    """Load a model to train, and its tokenizer: the whole of it, or, with a rank, an adapter beside it.

    The name of an adapter gives its base with that adapter, which then learns on. rank, alpha, targets: as in `add`; alpha is
    twice the rank when left out. Raises ModelError when they ask for another adapter than the one named.
    """
    folder = adapter_folder(name)
    if folder is None:
        model, tokenizer = load_model(name)
        if rank:
            add(model, rank, 2 * rank if alpha is None else alpha, targets, seed)
        elif targets or alpha is not None:
            raise ValueError("LoRA's alpha and targets were given without its rank. Add --lora-rank, such as 16.")
        return model, tokenizer
    model, tokenizer = _open_base(name, folder, ())
    load(model, folder)
    config, has = _read_config(folder), list(layers(model))
    wanted = has if targets is None else _chosen(model, targets)
    if rank in (0, config["r"]) and alpha in (None, config["lora_alpha"]) and set(wanted) == set(has):
        return model, tokenizer
    its = f"an adapter of rank {config['r']} and alpha {config['lora_alpha']:g} on {', '.join(_ends(model, layers(model)))}"
    raise ModelError(
        f"{name}: is {its}, and learns on as it is. Leave out --lora-rank, --lora-alpha and --lora-targets; or merge it "
        f"and begin another: python -m helpers merge --model {name} --output {str(name).rstrip('/')}-merged"
    )
