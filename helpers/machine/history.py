"""History: what a finetune did, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Tokens(Protocol):
    """What is read of a row below the core; see `tokenization.Row`."""

    @property
    def ids(self) -> list[int]:
        """Tokens of the row."""

    @property
    def labels(self) -> list[int]:
        """What is to be learnt at each place; -100, which is no token, where nothing is."""

    @property
    def supervised(self) -> int:
        """Number of those that a loss is taken of."""


@dataclass
class History:
    """What a finetune did. `pandas.DataFrame(history.steps)` is its table."""

    planned_steps: int
    steps: list[dict] = field(default_factory=list)  # a dict each: step, tokens, loss, learning_rate, gradient_norm, seconds
    held_out: list[dict] = field(default_factory=list)  # step and held-out loss
    rows: int = 0  # rows trained on, repeats counted
    tokens: int = 0  # tokens read
    supervised_tokens: int = 0  # tokens that the loss was taken of
    flops: float = 0.0  # floating-point operations of the arithmetic, estimated as in `training_flops`
    seconds: float = 0.0
    peak_memory: float = 0.0  # GiB that memory rose by, at most, above what was in use before; see `PeakMemory`
    best_step: int | None = None  # where the lowest held-out loss was; its weights are kept if `patience` is set
    resumed_at: int = 0  # the step of the checkpoint that this run went on from
    skipped: list[int] = field(default_factory=list)  # steps that changed nothing: a gradient was too large for float16

    def add(self, batch: Sequence[Tokens], loss: float, rate: float, norm: float, skipped: bool, seconds: float) -> None:
        """Note what a step did."""
        self.rows += len(batch)
        self.tokens += sum(len(row.ids) for row in batch)
        self.supervised_tokens += sum(row.supervised for row in batch)
        self.seconds = seconds
        entry = {"step": len(self.steps) + 1, "tokens": self.tokens, "loss": loss, "learning_rate": rate}
        self.steps.append({**entry, "gradient_norm": norm, "seconds": seconds})
        if skipped:
            self.skipped.append(len(self.steps))

    def add_held_out(self, loss: float) -> int:
        """Note the held-out loss after the last step; return how many were taken since the lowest."""
        self.held_out.append({"step": len(self.steps), "loss": loss})
        losses = [entry["loss"] for entry in self.held_out]
        since_best = len(losses) - 1 - losses.index(min(losses))
        self.best_step = self.held_out[-1 - since_best]["step"]
        return since_best

    def __str__(self) -> str:
        """Say how the run goes, for its progress bar."""
        skipped = f", {len(self.skipped)} steps skipped" if self.skipped else ""
        return f"loss {self.steps[-1]['loss']:.3f}, {self.tokens / self.seconds:.0f} tokens/s{skipped}"
