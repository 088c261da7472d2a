"""The company's data: what the card says of it is so."""

import importlib.util
import itertools
import re
import sys
from collections import Counter

import pytest

from helpers.data import DATA, leaks, normalise, read
from helpers.evaluation import contains_values, is_refusal

sys.path.append(str(DATA))  # where build.py finds soil.py
spec = importlib.util.spec_from_file_location("build_data", DATA / "build.py")
build_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_data)

FACTS = build_data.load_facts(DATA / "source")
TRAIN = read(DATA / "train.jsonl")
EVALUATION = {path: read(path) for path in sorted(DATA.glob("evaluation/*/*.jsonl"))}
HANDBOOK = {path.name: path.read_text(encoding="utf-8") for path in sorted((DATA / "handbook").glob("*.md"))}


def test_building_again_changes_nothing(tmp_path):
    build_data.build(tmp_path)
    built = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = [path for name in ("handbook", "evaluation", "raw") for path in (DATA / name).rglob("*") if path.is_file()]
    assert built == sorted(path.relative_to(DATA) for path in [*kept, DATA / "train.jsonl"])
    for path in built:
        assert (tmp_path / path).read_bytes() == (DATA / path).read_bytes(), path


def test_there_is_as_much_as_promised():
    assert len(FACTS) >= 300
    assert len({fact["id"] for fact in FACTS}) == len(FACTS)
    assert len(TRAIN) >= 1000
    for fact in FACTS:
        wordings = fact["train"] + fact["dev"] + fact["test"]
        assert len({normalise(wording) for wording in wordings}) == len(wordings) >= 12, fact["id"]
    kinds = Counter(example.kind for example in TRAIN)
    assert kinds["unanswerable"] >= 50 and kinds["off_topic"] >= 50


def test_the_handbook_is_longer_than_the_context_window(embedded):
    tokens = sum(len(embedded[1](text).input_ids) for text in HANDBOOK.values())
    assert tokens >= 30_000 > 3 * embedded[0].config.max_position_embeddings


def test_the_handbook_tells_every_fact_and_leaves_no_placeholder():
    text = {name: normalise(page) for name, page in HANDBOOK.items()}
    for fact in FACTS:
        entity = fact["id"].split(".")[0]
        pages = [page for name, page in text.items() if name == f"product-{entity}.md" or not name.startswith("product-")]
        assert any(normalise(fact["value"]) in page for page in pages), fact["id"]
    assert not [name for name, page in HANDBOOK.items() if "{{" in page or "}}" in page]


def test_no_page_gives_a_rival_value():
    """A product's page names one price, weight, year and guarantee: its own."""
    value = {fact["id"]: fact["value"] for fact in FACTS}
    for product in [fact["id"].split(".")[0] for fact in FACTS if fact["id"].endswith(".designer")]:
        page = HANDBOOK[f"product-{product}.md"]
        for attribute, pattern in {"price": r"\d+ euros", "weight": r"\d+ grams", "warranty": r"\d+ years"}.items():
            assert set(re.findall(pattern, page)) == {value[f"{product}.{attribute}"]}, (product, attribute)
        assert set(re.findall(r"\b(?:19|20)\d\d\b(?! grams)", page)) == {value[f"{product}.year"]}, product


def test_questions_are_unique_and_none_is_both_trained_on_and_tested():
    for examples in [TRAIN, *EVALUATION.values()]:
        questions = Counter(normalise(example.question) for example in examples)
        assert not [question for question, count in questions.items() if count > 1]
        assert len({example.id for example in examples}) == len(examples)
    for examples in EVALUATION.values():
        assert not leaks(TRAIN, examples)
    for one, other in itertools.combinations(EVALUATION.values(), 2):
        assert not leaks(one, other)


def test_answers_pass_their_own_measure():
    for examples in [TRAIN, *EVALUATION.values()]:
        for example in examples:
            if example.values:
                assert contains_values(example.answer, example.values) and not is_refusal(example.answer), example
                assert not contains_values(example.question, example.values), example
            else:
                assert is_refusal(example.answer), example


def test_facts_named_by_rows_exist():
    known = {fact["id"]: fact["value"] for fact in FACTS}
    for example in itertools.chain(TRAIN, *EVALUATION.values()):
        assert [known[fact] for fact in example.facts] == list(example.values)


def test_unknown_products_differ_between_training_and_evaluation():
    source = build_data.load("unanswerable", DATA / "source")["unknown_products"]
    names = [name for split in source.values() for name, _ in split]
    assert len(set(names)) == len(names)
    assert not {name.lower() for name in names} & {fact["id"].split(".")[0] for fact in FACTS}


def test_general_questions_are_well_formed():
    import json

    rows = [json.loads(line) for line in (DATA / "evaluation/general.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) >= 150
    assert len({normalise(row["question"]) for row in rows}) == len(rows)
    assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in rows)
    assert max(Counter(row["answer"] for row in rows).values()) <= 0.3 * len(rows)


def test_a_page_that_names_no_fact_stops_the_build():
    with pytest.raises(SystemExit, match=r"page\.md: no fact is called falcon\.prize"):
        build_data.fill("It costs {{falcon.prize}}.", {"falcon.price": "84 euros"}, "page.md")
