"""Cache: what takes long to make is kept by its content, and made again only when that changes."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from helpers.machine.device import pick_device, pick_dtype
from helpers.machine.files import written_aside
from helpers.machine.paths import cache_folder


def made_folder() -> Path:
    """Name the folder for what was made: embeddings, weights, measurements."""
    return cache_folder() / "made"


def digest(*content: object) -> str:
    """Condense texts, numbers, dataclasses, or lists of them: the same content gives the same few letters."""
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Condense tensors by name, whatever their order: names, kinds, shapes and every byte (1.3 GB a second on a CPU)."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        total.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def weights_digest(model) -> str:
    """Condense a model: another finetune gives other letters."""
    return tensors_digest(model.state_dict())


def remember(make: Callable[[], Any], name: str, *content: object) -> Any:
    """Return `make()`, from its file if it was made of the same content before.

    It returns tensors, numbers, texts, or lists and dicts of them. A damaged file is made again, and so is what was
    computed in another precision.
    """
    path = made_folder() / f"{name}-{digest(content, pick_dtype(pick_device()))}.pt"
    try:
        return torch.load(path, weights_only=True)
    except Exception:  # not there, cut short, or not ours: a damaged file fails in many ways
        made = make()
    with written_aside(path) as partial:
        torch.save(made, partial)
    return made


def clear_cache() -> None:
    """Delete all that `remember` has kept; converted models stay."""
    shutil.rmtree(made_folder(), ignore_errors=True)
