"""Adapter files: a LoRA adapter in a folder, as PEFT writes and reads it; checked before it touches a model."""

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.machine.adapted import Adapted, adapted_layers, choose_layers, is_transposed, linear_layers, linear_sizes
from helpers.machine.files import replace_folder
from helpers.machine.hub import find_model
from helpers.machine.loading import ModelError
from helpers.machine.packaged import EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERTS = {"gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}  # names that PEFT takes for experts' own
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
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


class Detour(NamedTuple):
    """What a file adds to a layer: y = W x + scale · B A x."""

    base: nn.Module  # the layer, W
    a: torch.Tensor  # [rank, in]
    b: torch.Tensor  # [out, rank]
    scale: float  # alpha / rank


@dataclass(frozen=True)
class AdapterFolder:
    """A folder with an adapter in it. `name` is what the user called it."""

    name: str
    folder: Path

    @cached_property
    def config(self) -> dict:
        """Read the adapter's config; ModelError when it cannot be read."""
        try:
            config = json.loads((self.folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            for key in (*(config.get("rank_pattern") or {}), *(config.get("alpha_pattern") or {})):
                re.compile(key)
            if not (config["r"] > 0 and math.isfinite(config["lora_alpha"])):
                raise ValueError("its r and lora_alpha have to be numbers")
            return config
        except (OSError, ValueError, TypeError, AttributeError, KeyError, re.error) as error:
            raise self.unreadable(error) from error

    @property
    def base(self) -> str:
        """Name the model that the adapter was trained on."""
        return str(self.config.get("base_model_name_or_path") or EMBEDDED)

    def unreadable(self, error: Exception) -> ModelError:
        """Say that the files cannot be read."""
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        return ModelError(f"{self.folder}: cannot be read as an adapter ({reason}). Save or download it again.")

    @contextmanager
    def loading_base(self) -> Iterator[None]:
        """Say, where the base cannot be loaded in a `with` block, where its name stands."""
        try:
            yield
        except ModelError as error:
            place = self.folder / ADAPTER_CONFIG
            raise ModelError(
                f"{self.name}: its base cannot be loaded ({error}) If it was moved, write its place into {place}."
            ) from error

    def tensors(self) -> dict[str, torch.Tensor]:
        """Read the weights by PEFT's names. Raises ModelError when they cannot be read, or are not those of a plain LoRA."""
        if not (self.folder / ADAPTER_WEIGHTS).is_file() and (self.folder / "adapter_model.bin").is_file():
            raise ModelError(
                f"{self.folder}: has its weights as adapter_model.bin only, which can carry code. Load it with peft and save "
                "it there: PeftModel.save_pretrained writes safetensors."
            )
        try:
            tensors = load_file(self.folder / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError) as error:
            raise self.unreadable(error) from error
        odd = [name for name in tensors if not name.startswith(PREFIX) or name.split(".")[-2] not in ("lora_A", "lora_B")]
        if odd or not tensors:
            held = odd[0] if odd else "no tensors"
            raise ModelError(f"{self.folder}: holds {held}, which LoRA does not have. Save it again.")
        return tensors

    def check_plain(self) -> None:
        """Raise ModelError, with the field, when the config says what a plain LoRA adapter does not have."""
        plain = {"peft_type": ("LORA",), "bias": (None, "none"), "init_lora_weights": (None, *PLAIN_STARTS)}
        odd = [name for name, allowed in plain.items() if self.config.get(name) not in allowed]
        odd += [name for name, value in self.config.items() if value and name not in PLAIN_FIELDS]
        if odd:
            found = json.dumps(self.config.get(odd[0]))[:80]
            raise ModelError(
                f"{self.folder / ADAPTER_CONFIG}: {odd[0]} is {found}, so it is not a plain LoRA adapter. "
                "Load it with peft, merge it there, and save the model."
            )

    def check_same(self, model: "PreTrainedModel", rank: int, alpha: float | None, targets: Sequence[str] | None) -> None:
        """Raise ModelError when somebody asks for another adapter than this one, which is on the model.

        rank, alpha, targets: what was asked for; 0 and None: nothing.
        """
        its_rank, its_alpha, has = self.config["r"], self.config["lora_alpha"], adapted_layers(model).keys()
        wanted = has if targets is None else choose_layers(model, targets).keys()
        if rank in (0, its_rank) and alpha in (None, its_alpha) and wanted == has:
            return
        its = f"an adapter of rank {its_rank} and alpha {its_alpha:g} on {', '.join(layer_ends(model, has))}"
        raise ModelError(
            f"{self.name}: is {its}, and learns on as it is. Leave out --lora-rank, --lora-alpha and --lora-targets; or merge "
            f"it and begin another: python -m helpers merge --model {self.name} --output {self.name.rstrip('/')}-merged"
        )


def adapter_folder(name: str | Path) -> AdapterFolder | None:
    """Find an adapter by its name, which may be one on the hub; None when that is something else."""
    path = Path(name)
    on_hub = str(name) != EMBEDDED and not path.exists() and str(name).count("/") == 1 and not str(name).startswith((".", "~"))
    folder = find_model(name) if on_hub else path
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return AdapterFolder(str(name), folder)
    return None


def lineage(name: str | Path) -> tuple[str, list[AdapterFolder]]:
    """Follow an adapter down to the model it was trained on, by way of others: that model's name, the adapters, lowest first.

    The name of a model has no adapters. Raises ModelError.
    """
    base, adapters, adapter = str(name), list[AdapterFolder](), adapter_folder(name)
    while adapter is not None:
        adapters.insert(0, adapter)
        base = adapter.base
        if base in (above.name for above in adapters):
            place = adapter.folder / ADAPTER_CONFIG
            raise ModelError(f"{place}: its base_model_name_or_path leads back to itself. Write the model's place there.")
        with adapter.loading_base():
            adapter = adapter_folder(base)
    return base, adapters


def _of_layer(pattern: Mapping[str, float] | None, name: str, usual: float) -> float:
    """Look up a layer's own rank or alpha as PEFT does: by the end of its name, a regular expression; the first one counts."""
    return next((value for key, value in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", name)), usual)


def read_adapter(model: "PreTrainedModel", folder: str | Path) -> dict[str, Detour]:
    """Read what a saved adapter adds to each layer, by the layer's name.

    Raises ModelError when it cannot be read or belongs to another model, which it leaves as it is.
    """
    adapter = AdapterFolder(str(folder), Path(folder))
    adapter.check_plain()
    config, tensors = adapter.config, adapter.tensors()
    linear = linear_layers(model)
    found: dict[str, Detour] = {}
    for name in sorted({key.removeprefix(PREFIX).rsplit(".", 2)[0] for key in tensors}):
        a, b = (tensors.get(f"{PREFIX}{name}.{part}.weight") for part in ("lora_A", "lora_B"))
        if name not in linear or a is None or b is None or (a.shape[1], b.shape[0]) != linear_sizes(linear[name]):
            raise ModelError(f"{folder}: its {name} does not fit this model. Load the model it was trained on.")
        rank = _of_layer(config.get("rank_pattern"), name, config["r"])
        alpha = _of_layer(config.get("alpha_pattern"), name, config["lora_alpha"])
        if not len(a) == b.shape[1] == rank:
            raise ModelError(f"{folder}: its {name} has rank {len(a)}, and its config says {rank}. Save or download it again.")
        found[name] = Detour(linear[name], a, b, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))
    return found


def layer_ends(model: nn.Module, adapted: Collection[str]) -> list[str]:
    """Name the adapted layers for PEFT: by the last parts of their names if those say it all, else in full."""
    ends = {name.rpartition(".")[2] for name in adapted}
    others = {name.rpartition(".")[2] for name, _ in model.named_modules() if name not in adapted}
    return sorted(adapted if ends & others else ends)


def write_adapter(model: "PreTrainedModel", adapted: Mapping[str, Adapted], folder: str | Path) -> Path:
    """Write what the adapted layers of a model have learnt, as PEFT does; return the folder. ValueError when there are none.

    One exception is said: beside experts in one block, PEFT takes the name of a plain layer for the experts' own.
    """
    if not adapted:
        raise ValueError("This model has no adapter to save. Call add first, or save_model for the whole model.")
    ranks = {name: layer.lora_A.out_features for name, layer in adapted.items()}
    alphas = {name: layer.scale * ranks[name] for name, layer in adapted.items()}
    rank, alpha, linear = next(iter(ranks.values())), next(iter(alphas.values())), linear_layers(model)
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
        "fan_in_fan_out": all(is_transposed(linear[name]) for name in adapted),
        "target_modules": layer_ends(model, adapted),
        "inference_mode": True,
    }
    tensors = {
        f"{PREFIX}{name}.{part}.weight": matrix.weight.detach().cpu().contiguous()
        for name, layer in adapted.items()
        for part, matrix in (("lora_A", layer.lora_A), ("lora_B", layer.lora_B))
    }
    with replace_folder(folder, ADAPTER_CONFIG) as partial:
        (partial / ADAPTER_CONFIG).write_text(json.dumps(config, indent=1), encoding="utf-8")
        save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    in_one_block = any(weight.ndim > 2 and name.split(".")[-2] == "experts" for name, weight in model.named_parameters())
    if in_one_block and EXPERTS & {name.rpartition(".")[2] for name in adapted}:
        print("For this course alone: PEFT would take some of these layers for experts. Merge the adapter to use it elsewhere.")
    return Path(folder)
