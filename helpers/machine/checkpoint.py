"""Checkpoints: everything a finetune needs to go on after a kill as if nothing had happened."""

import math
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from helpers.machine.cache import digest, tensors_digest
from helpers.machine.files import check_disk, written_aside

KEPT = 2  # checkpoints that stay; should the newest be damaged, the one before is still there
NO_RESULT = ("checkpoint_every", "micro_batch_tokens", "gradient_checkpointing")  # settings that change no result
STRUCTURE, START = "the model", "the starting weights"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or resumed from. The message names the file and the remedy."""


def _options() -> StateDictOptions:
    """Whole tensors on the CPU of the first process, of the weights that learn; alike for one process, DDP and FSDP."""
    several = distributed.is_initialized() and distributed.get_world_size() > 1
    return StateDictOptions(
        full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, broadcast_from_rank0=several, strict=False
    )


def _state(model) -> dict[str, torch.Tensor]:
    """Look up the weights that learn, by name. torch keeps a frozen head that is tied to the embedding, by its second name."""
    named = model.named_parameters(remove_duplicate=False)
    frozen = {name.removeprefix("module.") for name, weight in named if not weight.requires_grad}
    weights = get_model_state_dict(model, options=_options())
    return {name: cast(torch.Tensor, weight) for name, weight in weights.items() if name not in frozen}


def learnt_weights(model) -> dict[str, torch.Tensor]:
    """Copy the weights that learn, by name: on the first process; other processes get none."""
    return {name: weight.clone() for name, weight in _state(model).items()}


def put_weights(model, weights: dict[str, torch.Tensor]) -> None:
    """Put copied weights back. Every process calls this; the first one's weights count."""
    set_model_state_dict(model, dict(weights), options=_options())


def _learning(model) -> dict[str, torch.Tensor]:
    """List the weights that learn, by the names they have without a wrapper for several processes."""
    return {name.removeprefix("module."): weight for name, weight in model.named_parameters() if weight.requires_grad}


def fingerprint(model, rows: Sequence[object], held_out: Sequence[object], settings: dict) -> dict[str, str]:
    """Describe what decides a run: its settings, its data, the model as it is built, and the weights that it starts from.

    Left out is what changes the last bits of a result at most: how much is computed at once, the number of processes,
    the versions of the libraries.
    """
    learning = _learning(model)
    fixed = {name: weight for name, weight in model.named_parameters() if name not in learning} | dict(model.named_buffers())
    return {
        **{name: str(value) for name, value in settings.items() if name not in NO_RESULT},
        "the training data": digest(*rows),
        "the held-out data": digest(*held_out),
        STRUCTURE: digest(str(model), str(model.config.to_diff_dict()), sorted(learning), tensors_digest(fixed)),
        START: tensors_digest(learning),
    }


def _changed(theirs: dict[str, str], run: dict[str, str], name: str) -> str:
    """Say that something differs from the run of a checkpoint, and how to go on with that run."""
    if name in (STRUCTURE, START):
        return f"{name} {'was' if name == STRUCTURE else 'were'} different. Load that model anew to go on"
    if name.startswith("the "):
        return f"{name} was different. Give it that data again to go on"
    return f"{name} was {theirs.get(name)} (now {run[name]}). Set it back to go on"


def saved_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-*.pt"))


def save_checkpoint(folder: str | Path, model, optimizer, run: dict[str, str], progress: dict) -> None:
    """Write a checkpoint aside, so that a kill never leaves half of one.

    run: the fingerprint.  progress: "step", and what else the loop wants back.
    Every process calls this, the first one writes. Raises CheckpointError when the disk is full; older ones stay.
    """
    state = {
        "run": run,
        "progress": progress,
        "weights": _state(model),
        # asked when it has none, as before its first step, torch would take a step to give it one
        "optimizer": get_optimizer_state_dict(model, optimizer, options=_options()) if optimizer.state else {},
        "random": torch.get_rng_state(),
    }
    if distributed.is_initialized() and distributed.get_rank() > 0:
        return
    folder = Path(folder)
    path = folder / f"step-{progress['step']:07d}.pt"
    for leftover in folder.glob(".step-*.partial"):  # of a process that was killed
        leftover.unlink()
    try:
        with written_aside(path) as partial, partial.open("wb") as file:
            torch.save(state, file)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        older = saved_checkpoints(folder)
        kept = f"{older[-1]} is still good" if older else "there is no older one"
        raise CheckpointError(f"{path}: could not be written ({error}). Free some space; {kept}.") from error
    for old in saved_checkpoints(folder)[:-KEPT]:
        old.unlink()


def resume(folder: str | Path, model, optimizer, run: dict[str, str]) -> tuple[dict, dict[str, str]] | None:
    """Bring model, optimizer and random numbers to the newest checkpoint of this very run; return its progress, and its run.

    run: the fingerprint. The model may hold the weights the run started from, or those the checkpoint has anyway, as it
    does after Ctrl-C or at the end of the run.
    None when the folder has no checkpoint. Raises CheckpointError when the newest is damaged or belongs to another run.
    """
    files = saved_checkpoints(Path(folder))
    if not files:
        return None
    path = files[-1]
    try:
        with zipfile.ZipFile(path) as archive:  # what torch.save writes; torch.load does not look at its checksums
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
        theirs, progress = state["run"], state["progress"]
    except Exception as error:  # a damaged file fails in many ways: zip, pickle, missing keys
        older = f"the run then goes on from {files[-2].name}" if len(files) > 1 else "the run then starts again"
        reason = f"{type(error).__name__}: {error}".split("\n")[0][:120]
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({reason}). Delete it; {older}.") from error
    changed = [name for name in run if theirs.get(name) != run[name]]
    if changed == [START]:
        for known in filter(None, (state["weights"], progress["best"])):
            if tensors_digest({name: known[name] for name in _learning(model)}) == run[START]:
                changed = []
    if changed:
        raise CheckpointError(
            f"{path}: belongs to a run in which {_changed(theirs, run, changed[0])}, "
            "or choose another folder (or delete this one) to start anew."
        )
    set_model_state_dict(model, state["weights"], options=_options())
    if state["optimizer"]:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=_options())
    torch.set_rng_state(state["random"])
    return progress, theirs


def disk_needed(model, steps: int, every: int, dtype: torch.dtype) -> int:
    """Estimate the bytes that a run of so many steps keeps on the disk at most: checkpoints, and what it saves in the end.

    every: steps between checkpoints; 0: none.  dtype: the precision that a whole model is saved in, see `saved_precision`.
    Adapters that are to be trained alone have to be on the model already; they are saved as they are held, in float32.
    """
    learnt = [weight.numel() for weight in model.parameters() if weight.requires_grad]
    saved = dtype if len(learnt) == len(list(model.parameters())) else torch.float32
    checkpoints = min(KEPT + 1, math.ceil(steps / every)) if every else 0
    return sum(learnt) * (saved.itemsize + 3 * 4 * checkpoints)  # a checkpoint holds AdamW's two means of each weight too


def check_space(model, steps: int, every: int, dtype: torch.dtype, output: Path, folder: Path) -> None:
    """Raise OutputError when the disk of `output` has no room for what `disk_needed` says, with what is in `folder`."""
    there = sum(path.stat().st_size for path in saved_checkpoints(folder))
    check_disk(output, disk_needed(model, steps, every, dtype) - there, "the model with its checkpoints")


def discard_checkpoints(folder: Path) -> None:
    """Delete the checkpoints in a folder, and the folder, unless it holds something else."""
    for path in saved_checkpoints(folder):
        path.unlink()
    with suppress(OSError):  # there is none, or it is not empty
        folder.rmdir()
