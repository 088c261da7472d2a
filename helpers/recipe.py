"""Recipe: rows become a finetuned folder. The one road that the command line and the server's jobs take."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from helpers import lora
from helpers.data import Example, split
from helpers.machine.checkpoint import check_space, discard_checkpoints, learnt_weights
from helpers.machine.device import pick_device
from helpers.machine.loading import saved_precision
from helpers.machine.probe import context_window
from helpers.machine.process import processes
from helpers.models import save_model
from helpers.tokenization import encode_all
from helpers.training import Config, History, planned_steps, train


def finetune(
    examples: Sequence[Example],
    open_learner: Callable[[], tuple],
    output: Path,
    config: Config,
    checkpoints: Path,
    *,
    resumable: bool = True,
    held_out: float = 0.0,
    answers: str = "all",
    dtype: torch.dtype | None = None,
    on_step: Callable[[History], None] | None = None,
    before_saving: Callable[..., None] | None = None,
) -> History:
    """Finetune on examples and save what was learnt as the folder `output`: a model, or the adapter that one carries.

    open_learner: gives the model to train and its tokenizer: the whole of it learns, or the adapter that it carries.
    checkpoints: the folder for them, until the run is complete; it goes on from one of its own. resumable: False makes none.
    held_out: share of the examples to keep back and take a loss of.
    answers: which of a conversation are learnt, see `encode_all`.  dtype: the precision to write, see `save_model`.
    on_step: see `train`.  before_saving: called with the finetuned model and its tokenizer.
    Returns what the run did. Raises DataError, ModelError, OutputError, and what `train` raises.
    """
    examples, held = split(examples, held_out, seed=config.seed) if held_out else (examples, [])
    state = processes(pick_device())
    state.print(f"{len(examples)} rows to train on, {len(held)} held out.")
    model, tokenizer = open_learner()
    rows, held_rows = (encode_all(tokenizer, part, context_window(model), answers) for part in (examples, held))
    if state.is_main_process:
        steps, every = planned_steps(len(rows), config), config.checkpoint_every if resumable else 0
        check_space(model, steps, every, dtype or saved_precision(model), output, checkpoints)
    history = train(model, rows, config, held_rows, on_step, checkpoints if resumable else None)
    if state.num_processes > 1:  # the weights may be cut into shares: put them together in a model of one piece
        weights = learnt_weights(model)
        model, tokenizer = open_learner()
        model.load_state_dict(weights, strict=False)
    if state.is_main_process:
        if before_saving:
            before_saving(model, tokenizer)
        if lora.layers(model):
            lora.save(model, output)
        else:
            save_model(model, tokenizer, output, dtype)
            if dtype is None and (saved := saved_precision(model)) != model.dtype:
                kept = "--dtype float32 keeps the last bits of what was learnt, in twice the space."
                print(f"Saved in {str(saved).removeprefix('torch.')}, as it came; {kept}")
        discard_checkpoints(checkpoints)  # the run is complete
    return history
