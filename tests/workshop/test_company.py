"""The company's model: the lessons that use it make the same one, and none tests what another keeps scarce."""

import ast
from dataclasses import replace

import nbformat
import pytest

from helpers.data import draw, read
from helpers.machine.paths import DATA
from helpers.models import load_model
from helpers.training import History
from helpers.workshop.company import Recipe, first_finetune, note, noted, questions, scarce, taught
from helpers.workshop.notebooks import NOTEBOOKS


def knobs(number):
    """The knobs of a lesson, by name."""
    path = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    assigned = [node for cell in cells for node in ast.parse(cell.source).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}


def test_lessons_1_2_and_7_make_the_same_model_whichever_runs_first():
    for number in ("01", "02", "07"):
        mine = {name: value for name, value in knobs(number).items() if name in Recipe.__dataclass_fields__}
        assert Recipe(**mine) == Recipe() and {"wordings", "max_steps", "seed", "model_name"} <= set(mine)


@pytest.mark.parametrize("seed", range(5))
def test_no_lesson_tests_a_fact_that_was_kept_scarce(seed):
    recipe = Recipe(seed=seed)
    few = scarce(recipe)
    assert sorted(few.values()) == [1] * 12 + [3] * 12
    drawn = [
        {example.facts[0] for example in questions(split, 50, 5, recipe, purpose) if example.kind == "fact"}
        for split, purpose in (("test", "why finetune"), ("test", "evaluation, test"), ("dev", "evaluation, development"))
    ]
    assert all(len(facts) == 50 and not facts & set(few) for facts in drawn)
    assert drawn[0] != drawn[1] != drawn[2], "a purpose of its own, a draw of its own"


def test_scarce_facts_are_taught_in_as_many_wordings_as_they_say():
    recipe = Recipe(wordings=4, scarce_facts=5)
    rows, few = taught(recipe), scarce(recipe)
    count = {fact: sum(row.facts == (fact,) for row in rows) for fact in {row.facts[0] for row in rows if row.facts}}
    assert {fact: count[fact] for fact in few} == few
    assert {n for fact, n in count.items() if fact not in few} == {4}
    assert {row.kind for row in rows} == {row.kind for row in read(DATA / "train.jsonl")}
    assert taught(recipe) == rows


def test_a_model_carries_its_recipe_and_what_it_took(tmp_path):
    assert noted(tmp_path) is None
    made = Recipe(seed=7, max_steps=3), History(3, steps=[{"step": 1, "loss": 2.5}], tokens=10, seconds=1.5)
    note(*made, tmp_path)
    assert noted(tmp_path) == made


def test_the_first_finetune_is_made_once_and_anew_from_another_base(tiny, tmp_path):
    base, recipe = load_model(tiny), Recipe(wordings=1, max_steps=1, model_name="tiny")
    _, made, history = first_finetune(*base, recipe)
    assert made == recipe and len(history.steps) == 1
    model, *again = first_finetune(*base, replace(recipe, seed=5))
    assert again == [made, history] and model.config.hidden_size == base[0].config.hidden_size
    assert first_finetune(*base, replace(recipe, model_name="another"))[1].model_name == "another"


def test_each_purpose_has_a_draw_of_its_own():
    first = draw("tested facts", 0).sample(range(1000), 20)
    assert first == draw("tested facts", 0).sample(range(1000), 20)
    assert first != draw("scarce facts", 0).sample(range(1000), 20) != draw("tested facts", 1).sample(range(1000), 20)


def test_no_lesson_draws_without_a_purpose():
    for path in NOTEBOOKS.glob("*.ipynb"):
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        assert "random.Random(" not in code and "import random" not in code, path.name


def test_no_lesson_hides_what_it_imported():
    """A function or a variable of the same name as an import would take its place in the cells below."""
    for path in NOTEBOOKS.glob("*.ipynb"):
        code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
        body = ast.parse(code).body
        imported = {a.asname or a.name for n in body if isinstance(n, ast.ImportFrom) for a in n.names}
        defined = {node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assigned = [node.targets for node in body if isinstance(node, ast.Assign)]
        defined |= {target.id for targets in assigned for target in targets if isinstance(target, ast.Name)}
        assert not imported & defined, (path.name, imported & defined)
