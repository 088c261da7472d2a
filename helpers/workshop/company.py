"""Company: how lesson 1 teaches the invented company's facts, and which a test may ask for; one recipe for its model."""

import copy
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from helpers.data import Example, draw, limit, read, spaced
from helpers.machine.paths import DATA, build_folder
from helpers.models import load_model, save_model
from helpers.tokenization import encode_all
from helpers.training import Config, History, train


@dataclass(frozen=True)
class Recipe:
    """The knobs of lesson 1's finetune. Other lessons that need its model make the same one."""

    wordings: int = 8  # of each fact
    scarce_facts: int = 12  # shown in one wording only, and as many in three
    epochs: int = 1
    learning_rate: float = 6e-4
    batch_size: int = 10
    upper_layers: int | None = 14
    max_steps: int | None = None
    seed: int = 0
    model_name: str = "embedded"  # what it starts from


def scarce(recipe: Recipe) -> dict[str, int]:
    """Draw the facts that are kept scarce: fact → its number of wordings, 1 or 3. No test of what was taught asks for them."""
    facts = sorted({fact for row in read(DATA / "train.jsonl") for fact in row.facts})
    drawn = draw("scarce facts", recipe.seed).sample(facts, 2 * recipe.scarce_facts)
    return dict.fromkeys(drawn[: recipe.scarce_facts], 1) | dict.fromkeys(drawn[recipe.scarce_facts :], 3)


def taught(recipe: Recipe) -> list[Example]:
    """Choose the rows to train on, spaced: every fact in so many wordings, but for the scarce ones."""
    few, count, rows = scarce(recipe), Counter(), []
    for row in limit(read(DATA / "train.jsonl"), recipe.wordings, recipe.seed):
        count[row.facts] += 1
        if not row.facts or count[row.facts] <= few.get(row.facts[0], recipe.wordings):
            rows.append(row)
    return spaced(rows, recipe.seed)


def questions(split: str, facts: int, others: int, recipe: Recipe, purpose: str) -> list[Example]:
    """Draw questions of a split ("dev" or "test"): every wording of so many fully taught facts, and others of each other kind.

    purpose: names the draw; another purpose draws others.
    """
    sets = {kind: read(DATA / "evaluation" / split / f"{kind}.jsonl") for kind in ("facts", "unanswerable", "off_topic")}
    few = scarce(recipe)
    names = sorted({example.facts[0] for example in sets["facts"]} - set(few))
    chosen = set(draw(f"{purpose}, facts", recipe.seed).sample(names, min(facts, len(names))))
    asked = [example for example in sets["facts"] if example.facts[0] in chosen]
    for kind in ("unanswerable", "off_topic"):
        asked += draw(f"{purpose}, {kind}", recipe.seed).sample(sets[kind], min(others, len(sets[kind])))
    return asked


def note(recipe: Recipe, history: History, folder: str | Path) -> None:
    """Leave in the folder of a model by which recipe it was made, and what that took."""
    made = {"recipe": asdict(recipe), "history": asdict(history)}
    (Path(folder) / "made.json").write_text(json.dumps(made, indent=1), encoding="utf-8")


def noted(folder: str | Path) -> tuple[Recipe, History] | None:
    """Read back how a model was made, and what that took; None where nothing was left."""
    path = Path(folder) / "made.json"
    if not path.is_file():
        return None
    made = json.loads(path.read_text(encoding="utf-8"))
    return Recipe(**made["recipe"]), History(**made["history"])


def first_finetune(base, tokenizer, recipe: Recipe) -> tuple:
    """Load the model of lesson 1, with its recipe and the history of its training; make it where it is missing.

    base, tokenizer: the general model of `recipe.model_name`. A model that was made of another one is made again.
    """
    folder = build_folder() / "models" / "tindermoss"
    made = noted(folder)
    if made is None or made[0].model_name != recipe.model_name:
        names = ("epochs", "learning_rate", "batch_size", "upper_layers", "max_steps", "seed")
        config = Config(**{name: getattr(recipe, name) for name in names}, shuffle=False)
        learner = copy.deepcopy(base)
        made = recipe, train(learner, encode_all(tokenizer, taught(recipe)), config)
        note(*made, save_model(learner, tokenizer, folder))
    model, _ = load_model(folder)
    return model, *made
