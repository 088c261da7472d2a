"""The company's model: the lessons that use it make the same one, and none tests what another keeps scarce."""

import ast
from dataclasses import replace

import nbformat
import pytest
import torch

from helpers.data import draw, read
from helpers.machine.paths import DATA
from helpers.models import load_model
from helpers.training import History
from helpers.workshop import company
from helpers.workshop.company import Recipe, first_finetune, note, noted, questions, scarce, taught
from helpers.workshop.notebooks import NOTEBOOKS


def parts(path):
    """The code of a lesson, and its knobs by name."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = "\n".join(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    assigned = [node for node in ast.parse(tagged).body if isinstance(node, ast.Assign)]
    return "\n".join(cell.source for cell in cells), {node.targets[0].id: ast.literal_eval(node.value) for node in assigned}


def test_all_lessons_that_need_the_companys_model_make_the_same_one_whichever_runs_first():
    lessons = {path.stem: parts(path)[1] for path in NOTEBOOKS.glob("*.ipynb") if "Recipe(" in parts(path)[0]}
    assert {stem[3:] for stem in lessons} >= {"why_finetune", "evaluation_and_iteration"}
    for stem, knobs in lessons.items():
        mine = {name: value for name, value in knobs.items() if name in Recipe.__dataclass_fields__}
        assert Recipe(**mine) == Recipe() and {"model_name", "wordings", "max_steps", "seed"} <= set(mine), stem


@pytest.mark.parametrize("seed", range(5))
def test_no_lesson_tests_a_fact_that_was_kept_scarce(seed):
    recipe = Recipe(seed=seed)
    few = scarce(recipe)
    assert len(few) == 24
    drawn = [
        {example.facts[0] for example in questions(split, 50, 5, recipe, purpose) if example.kind == "fact"}
        for split, purpose in (("test", "lesson 1"), ("test", "lesson 6, test"), ("dev", "lesson 6, development"))
    ]
    assert all(len(facts) == 50 and not facts & few for facts in drawn)
    assert drawn[0] != drawn[1] != drawn[2], "a purpose of its own, a draw of its own"
    with pytest.raises(ValueError, match="lesson 1: -1 cannot be drawn"):
        questions("test", -1, 5, recipe, "lesson 1")


def test_scarce_facts_are_taught_in_one_wording_and_as_often_as_the_others_in_theirs():
    recipe = Recipe(wordings=4, scarce_facts=5)
    rows, few = taught(recipe), scarce(recipe)
    asked = {fact: [row.question for row in rows if row.facts == (fact,)] for row in rows for fact in row.facts}
    assert {len(questions) for questions in asked.values()} == {4} and len(asked) == 332
    assert {fact for fact, questions in asked.items() if len(set(questions)) == 1} == few and len(few) == 5
    assert {len(set(questions)) for fact, questions in asked.items() if fact not in few} == {4}
    assert {row.kind for row in rows} == {row.kind for row in read(DATA / "train.jsonl")}
    assert taught(recipe) == rows


def test_a_model_of_another_recipe_or_of_other_rows_is_not_used(tmp_path, monkeypatch, capsys):
    rows = read(DATA / "train.jsonl")[:8]
    monkeypatch.setattr(company, "taught", lambda recipe: rows)
    assert noted(Recipe(), tmp_path) is None  # there is none
    (tmp_path / "config.json").write_text("{}")
    note(Recipe(seed=7, max_steps=3), History(planned_steps=3, rows=30, seconds=2.5), tmp_path)
    assert noted(Recipe(seed=7, max_steps=3), tmp_path) == History(planned_steps=3, rows=30, seconds=2.5)
    assert capsys.readouterr().out == ""
    assert noted(Recipe(seed=7), tmp_path) is None
    assert capsys.readouterr().out.endswith("is not used: it was made by other max steps.\n")
    assert noted(Recipe(seed=7, max_steps=3, model_name="larger"), tmp_path) is None
    assert capsys.readouterr().out.endswith("is not used: it was made by other model name.\n")
    monkeypatch.setattr(company, "taught", lambda recipe: rows[1:])
    assert noted(Recipe(seed=7, max_steps=3), tmp_path) is None
    assert capsys.readouterr().out.endswith("is not used: it was made by other rows.\n")


def test_the_first_finetune_is_made_once_and_again_for_another_recipe(tiny, monkeypatch, capsys):
    rows = read(DATA / "train.jsonl")[:8]
    monkeypatch.setattr(company, "taught", lambda recipe: rows)
    base, tokenizer = load_model(tiny, device="cpu")
    before = base.lm_head.weight.clone()
    recipe = Recipe(batch_size=4, upper_layers=1, max_steps=2, model_name=str(tiny))
    model, history = first_finetune(base, tokenizer, recipe)
    assert (history.planned_steps, history.rows) == (2, 8) and torch.equal(base.lm_head.weight, before)
    again, same = first_finetune(base, tokenizer, recipe)
    assert same == history, "loaded, not trained: not even the seconds differ"
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))
    assert capsys.readouterr().out == ""
    assert first_finetune(base, tokenizer, replace(recipe, max_steps=1))[1].planned_steps == 1
    assert capsys.readouterr().out == "The model in models/tindermoss is not used: it was made by other max steps.\n"


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
