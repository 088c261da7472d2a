"""The company's data: what the card says of it is so."""

import datetime
import importlib.util
import itertools
import json
import re
import sys
from collections import Counter

import pytest

from helpers.data import leaks, read
from helpers.machine.paths import DATA
from helpers.text.judging import contains_values, is_refusal
from helpers.text.normalise import normalise
from helpers.workshop.tickets import FIELDS, INTENTS, fields, order_number, write_ticket

sys.path.append(str(DATA))  # where build.py finds soil.py
spec = importlib.util.spec_from_file_location("build_data", DATA / "build.py")
build_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build_data)


def read_rows(name):
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


FACTS = build_data.load_facts(DATA / "source")
TRAIN = read(DATA / "train.jsonl")
EVALUATION = {path: read(path) for path in sorted(DATA.glob("evaluation/*/*.jsonl"))}
HANDBOOK = {path.name: path.read_text(encoding="utf-8") for path in sorted((DATA / "handbook").glob("*.md"))}
EMAILS = {split: read(DATA / "emails" / f"{split}.jsonl") for split in ("train", "dev", "test")}
INSTRUCTIONS = read_rows("instructions.jsonl")


def test_building_again_changes_nothing(tmp_path):
    build_data.build(tmp_path)
    built = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = [path for name in ("handbook", "evaluation", "emails", "raw") for path in (DATA / name).rglob("*") if path.is_file()]
    assert built == sorted(path.relative_to(DATA) for path in [*kept, DATA / "train.jsonl", DATA / "instructions.jsonl"])
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
        assert len({example.id for example in examples}) == len(examples)
    questions = Counter(example.key for example in itertools.chain(TRAIN, *EVALUATION.values()))
    assert not [question for question, count in questions.items() if count > 1]


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


def test_far_wordings_ask_every_fact_of_the_company_s_things_in_each_kind():
    asked = {fact["id"] for fact in FACTS if fact["kind"] != "policy"}
    for split, count in {"dev": 1, "test": 2}.items():
        rows = read(DATA / "evaluation" / split / "far.jsonl")
        kinds = [f"{kind}{n}" for kind in ("typos", "indirect", "german") for n in range(1, count + 1)]
        names = [f"{fact}/far_{kind}" for kind in kinds for fact in asked]
        assert sorted(row.id for row in rows) == sorted(names)
        plain = {row.id: row.question for row in read(DATA / "evaluation" / split / "facts.jsonl")}
        for row in rows:
            assert row.kind == "fact"
            if "/far_typos" in row.id:
                told = plain[row.id.replace("far_typos", split)].split()
                typed = row.question.split()
                wrong = [(one, other) for one, other in zip(told, typed, strict=True) if one != other]
                assert 2 <= len(wrong) <= 3 and all(one[0] == other[0] for one, other in wrong), row
                name = next(fact["name"] for fact in FACTS if fact["id"] == row.facts[0])
                assert sum(one.strip(".,:?'s") in name.split() for one, _ in wrong) <= 1, row


def test_a_typing_error_swaps_drops_or_doubles_a_letter():
    rng, seen = build_data.random.Random(0), set()
    for _ in range(200):
        typed = build_data.with_typos("The Wren tent", "Wren tent", rng, count=1).split()
        seen.update(typed)
        assert sum(word not in ("The", "Wren", "tent") for word in typed) == 1 and typed[0] == "The"
    swapped, dropped, doubled = "Wern Wrne tnet tetn", "Wen Wrn tnt tet", "Wrren Wreen teent tennt"
    assert seen == set(f"The Wren tent {swapped} {dropped} {doubled}".split())


def test_unknown_products_differ_between_training_and_evaluation():
    source = build_data.load("unanswerable", DATA / "source")["unknown_products"]
    names = [name for split in source.values() for name, _ in split]
    assert len(set(names)) == len(names)
    assert not {name.lower() for name in names} & {fact["id"].split(".")[0] for fact in FACTS}


def test_general_questions_are_well_formed():
    rows = read_rows("evaluation/general.jsonl")
    assert len(rows) >= 150
    assert len({normalise(row["question"]) for row in rows}) == len(rows)
    assert all(len(set(row["choices"])) == 4 and row["answer"] in range(4) for row in rows)
    assert max(Counter(row["answer"] for row in rows).values()) <= 0.3 * len(rows)


def test_a_page_that_names_no_fact_stops_the_build():
    with pytest.raises(SystemExit, match=r"page\.md: no fact is called falcon\.prize"):
        build_data.fill("It costs {{falcon.prize}}.", {"falcon.price": "84 euros"}, "page.md")


def body(email):
    """The middle of an e-mail, between greeting and closing, by sentence."""
    return {normalise(part) for part in re.split(r"(?<=[.?!:;]) ", max(email.split("\n\n"), key=len))}


def test_emails_are_as_many_and_as_varied_as_promised():
    source = build_data.load("emails", DATA / "source")
    assert {split: len(rows) for split, rows in EMAILS.items()} == {"train": 480, "dev": 60, "test": 120}
    for split, rows in EMAILS.items():
        wordings = Counter(row.facts for row in rows)
        told = {intent: len(texts) for intent, texts in source[split]["intents"].items()}
        assert list(told) == list(INTENTS) and min(told.values()) >= {"train": 10, "dev": 3, "test": 4}[split]
        assert len(wordings) == sum(told.values()) and max(wordings.values()) <= 7
        assert len({normalise(row.question) for row in rows}) == len({row.id for row in rows}) == len(rows)
        tickets = [fields(row.answer) for row in rows]
        assert set(Counter(ticket["intent"] for ticket in tickets).values()) == {len(rows) // 6}
        assert 0.3 <= sum(ticket["urgency"] == "high" for ticket in tickets) / len(rows) <= 0.5
        assert 0.2 <= sum(ticket["order"] == "-" for ticket in tickets) / len(rows) <= 0.4


def test_a_ticket_tells_what_its_email_tells():
    for row in itertools.chain(*EMAILS.values()):
        ticket = fields(row.answer)
        assert list(ticket) == list(FIELDS) and write_ticket(ticket) == row.answer
        assert ticket["product"].lower() in row.question.lower() and order_number(row.question) == ticket["order"]
        assert ticket["urgency"] in ("high", "normal") and row.facts[0].startswith(f"email.{ticket['intent']}_")


def test_no_wording_product_name_or_address_of_an_email_stands_in_two_splits():
    """Shared are greetings and closings only."""
    source = build_data.load("emails", DATA / "source")
    for one, other in itertools.combinations(EMAILS, 2):
        assert not leaks(EMAILS[one], EMAILS[other])
        ours, theirs = ({sentence for row in EMAILS[split] for sentence in body(row.question)} for split in (one, other))
        assert not ours & theirs
        text = f" {normalise(' '.join(row.question for row in EMAILS[one]))} "
        names = {part for person in source[other]["people"] for part in person.split()}
        names |= {product.title() for product in source[other]["products"]}
        names |= {fields(row.answer)["product"] for row in EMAILS[other]} | set(source[other]["addresses"])
        assert not [name for name in names if f" {normalise(name)} " in text]
    assert leaks(TRAIN, EMAILS["test"]) == []


def test_instructions_are_as_many_and_as_varied_as_promised():
    fields = ["id", "task", "family", "split", "instruction", "input", "output", "values"]
    assert all(list(row) == fields for row in INSTRUCTIONS)
    assert len({row["id"] for row in INSTRUCTIONS}) == len(INSTRUCTIONS) == 495
    assert sum(not row["input"] for row in INSTRUCTIONS) == 96
    source = build_data.load("instructions", DATA / "source")
    assert {split: len(tasks) for split, tasks in source.items()} == {"train": 24, "held_out": 8}
    for task, told in (source["train"] | source["held_out"]).items():
        assert len(set(told["instructions"])) == 5 and len(told["rows"]) >= 14, task
    families = {split: {row["family"] for row in INSTRUCTIONS if row["split"] == split} for split in source}
    assert families["held_out"] == families["train"] - {"open"} == {"rewrite", "list", "extract", "classify", "format"}
    for row in INSTRUCTIONS:
        assert not row["input"] or 5 <= len(row["input"].split()) <= 25, row
        assert 1 <= len(row["output"].split()) <= 20, row


def test_no_instruction_stands_in_both_splits_and_no_input_in_two_rows():
    told = {
        split: {normalise(r["instruction"]) for r in INSTRUCTIONS if r["split"] == split} for split in ("train", "held_out")
    }
    assert not told["train"] & told["held_out"]
    inputs = Counter(normalise(row["input"] or row["instruction"]) for row in INSTRUCTIONS)
    assert not [text for text, count in inputs.items() if count > 1]


def test_instructions_tell_nothing_of_the_company_and_write_to_nobody():
    text = normalise(" ".join(f"{row['instruction']} {row['input']} {row['output']}" for row in INSTRUCTIONS))
    company = build_data.load("company", DATA / "source")
    people_and_towns = {name for product in company["products"].values() for name in product[-2:]}
    assert not [name for name in {"Tindermoss", *people_and_towns, *company["shops"]} if normalise(name) in text]
    addresses = re.findall(r"\S+@\S+", " ".join(row["input"] for row in INSTRUCTIONS))
    assert addresses and all(re.fullmatch(r"\S+@example\.org\W?", address) for address in addresses)


def right_form(task, told, text, output):
    """Tell whether the output is what the instruction asks for, as far as a program can."""
    lines = output.splitlines()
    match task:
        case "classify_sentiment" | "classify_topic" | "classify_form" | "classify_urgent" | "classify_indoors":
            return re.search(rf"\b{output}\b", told) and len(lines) == 1
        case "list_dashes" | "list_numbered" | "list_stars":
            marks = {"list_dashes": "- ", "list_stars": "* "}
            found = [line.removeprefix(marks.get(task, f"{number}. ")) for number, line in enumerate(lines, 1)]
            return f"{', '.join(found[:-1])} and {found[-1]}" in text and all(map(str.__ne__, found, lines))
        case "rewrite_upper":
            return output == text.upper()
        case "rewrite_lower":
            return output == text.lower()
        case "rewrite_question":
            return output.endswith("?") and sorted(normalise(output).split()) == sorted(normalise(text).split())
        case "rewrite_third_person":
            return output.startswith("She ") and not re.search(r"\b(I|me|my)\b", output)
        case "rewrite_past" | "rewrite_future":  # one verb changes, and nothing else
            rest = set(normalise(text).split()) - set(normalise(output).split())
            return len(rest) <= 1 and (task == "rewrite_past" or " will " in output)
        case "format_key_value":
            keys, values = zip(*(line.split(": ") for line in lines), strict=True)
            return keys == ("name", "job", "town") and all(value in text for value in values)
        case "format_json":
            order = json.loads(output)
            return list(order) == ["item", "number"] and f"{order['number']} {order['item']}" in text
        case "format_iso_date":
            date = datetime.date.fromisoformat(output)
            return f"{date.day} {date:%B %Y}" in text
        case "format_quotes":
            return output.count('"') == 2 and output.replace('"', "") == text
        case "format_brackets":
            return output == re.sub(r"\d+", r"(\g<0>)", text) != text
    return output in text if task.startswith("extract_") else task.startswith("open_")


def test_instructions_are_answered_as_they_ask():
    for row in INSTRUCTIONS:
        assert right_form(row["task"], row["instruction"], row["input"], row["output"]), row
        assert contains_values(row["output"], row["values"]), row
        assert bool(row["values"]) == (row["family"] != "open" or row["task"] == "open_opposite"), row


def test_a_label_is_not_given_away_by_the_wording_of_the_instruction():
    """Every wording of a classification stands with two labels at least."""
    labels = {}
    for row in INSTRUCTIONS:
        if row["family"] == "classify":
            labels.setdefault(row["instruction"], set()).add(row["output"])
    assert labels and all(len(found) > 1 for found in labels.values()), labels
