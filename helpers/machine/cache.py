"""Cache: what takes long to make is kept by its content, and made again only when that changes."""

import hashlib
import inspect
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from helpers.machine.device import pick_device, pick_dtype
from helpers.machine.files import written_aside
from helpers.machine.paths import cache_folder

LIBRARIES = ("torch", "transformers")  # another version of them may compute other bits


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
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def weights_digest(model) -> str:
    """Condense a model: another finetune gives other letters."""
    return tensors_digest(model.state_dict())


@cache
def code_digest() -> str:
    """Condense all code of `helpers`, and the versions of the libraries that compute."""
    package = Path(__file__).parents[1]
    sources = [(str(path.relative_to(package)), path.read_bytes()) for path in sorted(package.rglob("*.py"))]
    return digest(sources, [version(name) for name in LIBRARIES])


def remember(make: Callable[[], Any], name: str, *content: object) -> Any:
    """Return `make()`, from its file if the same code made it of the same content before; then a line says so.

    make: a function of the lesson or of `helpers`, without arguments. It returns tensors, numbers, texts, or lists and
        dicts of them.
    name: what it makes, for its file and for the line.
    content: all that `make` reads: rows, settings, `weights_digest(model)`.
    What is made again: what was made by other code, that is `make` as it is written or any file of `helpers`; with another
    version of PyTorch or transformers; on another kind of device or in another precision; and a damaged file.
    """
    device = pick_device()
    key = digest(content, inspect.getsource(make), code_digest(), device.type, pick_dtype(device))
    path = made_folder() / f"{name}-{key}.pt"
    with suppress(Exception):  # not there, cut short, or not ours: a damaged file fails in many ways
        made = torch.load(path, weights_only=True)
        day = date.fromtimestamp(path.stat().st_mtime)
        print(f"{name}: kept from an earlier run of {day}, with the same code, data, settings and weights.", flush=True)
        return made
    made = make()
    with written_aside(path) as partial:
        torch.save(made, partial)
    return made


def clear_cache() -> None:
    """Delete all that `remember` has kept; converted models stay."""
    shutil.rmtree(made_folder(), ignore_errors=True)
