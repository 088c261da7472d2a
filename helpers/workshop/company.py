"""Company: how lesson 1 teaches the invented company's facts, and which a test may ask for; one recipe for its model."""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from helpers.data import Example, draw, limit, read, spaced
from helpers.machine.limits import check_count
from helpers.machine.paths import DATA, build_folder
from helpers.machine.records import read_note, short_hash, write_note
from helpers.models import load_model, save_model
from helpers.tokenization import encode_all
from helpers.training import Config, History, train


@dataclass(frozen=True)
class Recipe:
    """The knobs of lesson 1's finetune. Other lessons that need its model make the same one."""

    wordings: int = 8  # of each fact
    scarce_facts: int = 24  # shown in one wording only, as often as the others in theirs
    epochs: int = 1
    learning_rate: float = 6e-4
    batch_size: int = 10
    upper_layers: int | None = 14
    max_steps: int | None = None
    seed: int = 0
    model_name: str = "embedded"  # what it starts from


def scarce(recipe: Recipe) -> set[str]:
    """Draw the facts that are taught in one wording only. No test of what was taught asks for them."""
    facts = sorted({fact for row in read(DATA / "train.jsonl") for fact in row.facts})
    return set(draw("scarce facts", recipe.seed).sample(facts, recipe.scarce_facts))


def taught(recipe: Recipe) -> list[Example]:
    """Choose the rows to train on, spaced: every fact in so many wordings, a scarce one as often in one wording."""
    few, rows = scarce(recipe), []
    only: dict[tuple[str, ...], Example] = {}
    for row in limit(read(DATA / "train.jsonl"), recipe.wordings, recipe.seed):
        is_scarce = bool(row.facts) and row.facts[0] in few
        rows.append(only.setdefault(row.facts, row) if is_scarce else row)
    return spaced(rows, recipe.seed)


def questions(split: str, facts: int, others: int, recipe: Recipe, purpose: str) -> list[Example]:
    """Draw questions of a split ("dev" or "test"): every wording of so many fully taught facts, and others of each other kind.

    purpose: names the draw; another purpose draws others.
    """
    check_count(min(facts, others), purpose)
    sets = {kind: read(DATA / "evaluation" / split / f"{kind}.jsonl") for kind in ("facts", "unanswerable", "off_topic")}
    names = sorted({example.facts[0] for example in sets["facts"]} - scarce(recipe))
    chosen = set(draw(f"{purpose}, facts", recipe.seed).sample(names, min(facts, len(names))))
    asked = [example for example in sets["facts"] if example.facts[0] in chosen]
    for kind in ("unanswerable", "off_topic"):
        asked += draw(f"{purpose}, {kind}", recipe.seed).sample(sets[kind], min(others, len(sets[kind])))
    return asked


def note(recipe: Recipe, history: History, folder: str | Path) -> None:
    """Leave in the folder of a model its recipe, a hash of the rows that it was trained on, and what that took."""
    write_note(folder, **asdict(recipe), rows=short_hash(repr(taught(recipe))), history=asdict(history))


def noted(recipe: Recipe, folder: str | Path) -> History | None:
    """Read what it took to make a model by this recipe of today's rows; of another one None, and why is printed."""
    made = read_note(folder, **asdict(recipe), rows=short_hash(repr(taught(recipe))))
    return History(**made["history"]) if made else None


def first_finetune(base, tokenizer, recipe: Recipe) -> tuple[Any, History]:
    """Load the model of lesson 1, with the history of its training; make it where none has this recipe and today's rows.

    base, tokenizer: the general model of `recipe.model_name`; it stays as it is.
    """
    folder = build_folder() / "models" / "tindermoss"
    history = noted(recipe, folder)
    if history is None:
        names = ("epochs", "learning_rate", "batch_size", "upper_layers", "max_steps", "seed")
        config = Config(**{name: getattr(recipe, name) for name in names}, shuffle=False)
        learner = copy.deepcopy(base)
        history = train(learner, encode_all(tokenizer, taught(recipe)), config)
        note(recipe, history, save_model(learner, tokenizer, folder))
    return load_model(folder)[0], history
