"""Models: a name becomes a model and its tokenizer, ready to train or to answer, and both become a folder again."""

import copy
from contextlib import nullcontext
from pathlib import Path

import torch

from helpers import lora
from helpers.machine.adapter_files import lineage
from helpers.machine.device import pick_device, pick_dtype
from helpers.machine.hub import find_model
from helpers.machine.loading import load_folder, save_folder, saved_precision
from helpers.machine.packaged import EMBEDDED, stand_in


def load_model(
    name: str | Path = EMBEDDED, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
) -> tuple:
    """Load a causal language model and its tokenizer.

    name: one that packages hold, so that it needs no network: "embedded" (SmolLM2-135M-Instruct), "larger"
        (Qwen2.5-Coder-1.5B-Instruct) or "base" (Gemma 3 270M, pretrained only), see `packaged`; the latter two are optional,
        and the hub's take their place. Or a folder, or a name on the hub. (A folder that is called base: "./base".)
        The folder of an adapter is for `open_model`.
    device: where to put it; the fastest there is when left out.
    dtype: what to hold the weights in. Training needs float32. A model that is only asked may be held in
        `pick_dtype(device)`, which it then computes in: 3 GiB instead of 6 for "larger" where bfloat16 is fast. Elsewhere
        that is float32 still, as computing in bfloat16 would take many times as long.
    Returns (model, tokenizer), the model in evaluation mode. `model.stored_dtype` is the precision that its weights came in,
    and that `save_model` writes again. Raises ModelError, one line with the remedy; see `loading`.
    """
    name = stand_in(name)
    model, tokenizer = load_folder(find_model(name), str(name), dtype)
    model.config.name_or_path = str(name)  # an adapter's file names its base
    return model.to(device or pick_device()).eval(), tokenizer


def open_model(name: str | Path, merged: bool = True) -> tuple:
    """Load model and tokenizer by name or folder; an adapter's gives its base, which may be an adapter, too, merged with it.

    merged: False leaves the last adapter beside its base, so that it can learn on.
    Returns (model, tokenizer) as `load_model` does. Raises ModelError.
    """
    base, adapters = lineage(name)
    with adapters[0].loading_base() if adapters else nullcontext():
        model, tokenizer = load_model(base)
    for adapter in adapters:  # the lowest first
        lora.load(model, adapter.folder)
        if merged or adapter is not adapters[-1]:
            lora.merge(model)
            model.config.name_or_path = adapter.name  # the base of the next one
    return model, tokenizer


def save_model(model, tokenizer, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Save model and tokenizer as a folder that `load_model` and plain transformers load; return the folder.

    Its generation_config.json names every token that ends an answer, see `end_ids`, for programs that know no chat template.
    dtype: the precision to write; left out, that of `saved_precision`, so that a model is as large as it came. Weights that
    came in bfloat16 are trained in float32 and rounded once, here; torch.float32 keeps all they learnt, in twice the space.
    Raises ModelError when the model carries an adapter, OutputError when the folder holds something else.
    """
    return save_folder(model, tokenizer, folder, dtype or saved_precision(model))


def served_copy(model):
    """Copy a model to be asked: its weights in what is fast here, see `pick_dtype`; what else it holds stays as it is.

    `model.to(torch.bfloat16)` would round the angles, too, by which a model tells positions apart: some thousand tokens into
    a prompt they would be off by radians.
    """
    served, dtype = copy.deepcopy(model), pick_dtype(model.device)
    for weight in served.parameters():
        weight.data = weight.data.to(dtype)
    return served
