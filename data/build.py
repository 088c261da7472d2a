"""Build Tindermoss's handbook, question sets, e-mails and instructions from data/source/; run as `python data/build.py`.

Everything below data/handbook/, data/evaluation/, data/emails/ and data/raw/, data/train.jsonl and data/instructions.jsonl
is made here, and only here. The same source always gives the same bytes: nothing depends on the clock, the machine or the
order of a set.
"""

import json
import random
import re
from pathlib import Path

import yaml
from soil import build_export

DATA = Path(__file__).parent
PLACEHOLDER = re.compile(r"\{\{([a-z]+)\.([a-z_]+)\}\}")
UNKNOWN = "Sorry, that is not in our handbook."
OFF_TOPIC = "Sorry, I can only help with questions about Tindermoss."
ATTRIBUTES = {
    "products": ["price", "weight", "colour", "material", "warranty", "year", "designer", "workshop"],
    "shops": ["street", "manager", "opened", "closes"],
    "departments": ["head", "room", "extension", "meeting"],
}
EMAILS = {"train": 480, "dev": 60, "test": 120}
# How two or three facts of one product are asked for, and answered, in one go.
NOUNS = {
    "price": ("price", "costs {}"),
    "weight": ("weight", "weighs {}"),
    "colour": ("colour", "comes in {}"),
    "material": ("material", "is made of {}"),
    "warranty": ("warranty", "has a warranty of {}"),
    "year": ("launch year", "was launched in {}"),
    "designer": ("designer", "was designed by {}"),
    "workshop": ("workshop", "is made in {}"),
}


def load(name: str, source: Path):
    """Read one YAML file of the source folder."""
    return yaml.safe_load((source / f"{name}.yaml").read_text(encoding="utf-8"))


def load_facts(source: Path) -> list[dict]:
    """List every fact: its id, the entity's full name, the value, and how it is asked and answered."""
    facts, company, questions = [], load("company", source), load("questions", source)
    for group, entities in company.items():
        for entity, values in entities.items():
            if group == "products":
                noun, *values = values
                name = f"{entity.title()} {noun}"
            else:
                name = f"{entity.title()} shop" if group == "shops" else f"{entity} department"
            for attribute, value in zip(ATTRIBUTES[group], values, strict=True):
                kind = f"{group}.{attribute}"
                facts.append({"id": f"{entity}.{attribute}", "kind": kind, "name": name, "value": value, **questions[kind]})
    for policy, asked in load("policies", source).items():
        facts.append({"id": f"policy.{policy}", "kind": "policy", "name": "", **asked})
    return facts


def capital(sentence: str) -> str:
    """Start with a capital letter."""
    return sentence[0].upper() + sentence[1:]


def row(id: str, question: str, answer: str, kind: str, facts=(), values=()) -> dict:
    """Make one question and answer, as a line of JSONL holds it."""
    return {
        "id": id,
        "question": capital(question),
        "answer": capital(answer),
        "kind": kind,
        "facts": list(facts),
        "values": list(values),
    }


def fact_rows(facts: list[dict], split: str) -> list[dict]:
    """Ask every fact in every wording of one split."""
    rows = []
    for fact in facts:
        answer = fact["answer"].format(name=fact["name"], value=fact["value"])
        for number, wording in enumerate(fact[split], 1):
            question = wording.format(name=fact["name"])
            rows.append(row(f"{fact['id']}/{split}{number}", question, answer, "fact", [fact["id"]], [fact["value"]]))
    return rows


def with_typos(question: str, name: str, rng: random.Random, count: int = 3) -> str:
    """Mistype up to `count` words of four letters or more: two letters swapped, one dropped or one doubled.

    A word keeps its first letter, and of the name's words at most one is mistyped.
    """
    words = [match.span() for match in re.finditer(r"[A-Za-z]{4,}", question)]
    start = question.index(name)
    in_name = [span for span in words if start <= span[0] < start + len(name)]
    able = [span for span in words if span not in in_name] + rng.sample(in_name, 1)
    for begin, end in sorted(rng.sample(able, min(count, len(able))), reverse=True):  # from the end: earlier places stay
        i = rng.randrange(begin + 1, end - 1)
        letter, following = question[i : i + 2]
        swapped = following + letter if following != letter else letter  # two alike: a swap would not show
        typed = rng.choice([swapped, following, letter + letter + following])
        question = question[:i] + typed + question[i + 2 :]
    return question


def far_rows(facts: list[dict], far: dict, split: str, rng: random.Random) -> list[dict]:
    """Ask the facts of products, shops and departments in wordings far from training: `far` has them by group.attribute."""
    rows = []
    for fact in facts:
        if fact["kind"] not in far:
            continue
        name = fact["name"]
        told = far[fact["kind"]]
        plain = fact[split][: len(told["german"][split])]
        wordings = {
            "typos": [with_typos(wording.format(name=name), name, rng) for wording in plain],
            **{kind: [wording.format(name=name) for wording in told[kind][split]] for kind in ("indirect", "german")},
        }
        answer = fact["answer"].format(name=name, value=fact["value"])
        for kind, questions in wordings.items():
            for number, question in enumerate(questions, 1):
                id = f"{fact['id']}/far_{kind}{number}"
                rows.append(row(id, question, answer, "fact", [fact["id"]], [fact["value"]]))
    return rows


def multi_fact_rows(facts: list[dict], rng: random.Random, count: int) -> list[dict]:
    """Ask for two or three facts of a product at once, or one fact of two products. All values must be in the answer."""
    value = {fact["id"]: fact["value"] for fact in facts}
    products = {fact["id"].split(".")[0]: fact["name"] for fact in facts if fact["id"].endswith(".price")}
    rows = []
    for number in range(count):
        if number % 3 < 2:
            product = rng.choice(sorted(products))
            chosen = rng.sample(ATTRIBUTES["products"], 2 + number % 3)
            nouns = [NOUNS[attribute][0] for attribute in chosen]
            ids = [f"{product}.{attribute}" for attribute in chosen]
            told = [NOUNS[attribute][1].format(value[id]) for attribute, id in zip(chosen, ids, strict=True)]
            question = f"What are the {', the '.join(nouns[:-1])} and the {nouns[-1]} of the {products[product]}?"
            answer = f"The {products[product]} {', '.join(told[:-1])} and {told[-1]}."
        else:
            pair, attribute = rng.sample(sorted(products), 2), rng.choice(ATTRIBUTES["products"])
            noun, telling = NOUNS[attribute]
            ids = [f"{product}.{attribute}" for product in pair]
            told = [f"the {products[product]} {telling.format(value[id])}" for product, id in zip(pair, ids, strict=True)]
            question = f"Name the {noun} of the {products[pair[0]]} and of the {products[pair[1]]}."
            answer = f"{told[0]} and {told[1]}."
        if question not in {line["question"] for line in rows}:
            rows.append(row(f"multi/{number + 1}", question, answer, "multi_fact", ids, [value[id] for id in ids]))
    return rows


def unanswerable_rows(unanswerable: dict, questions: dict, split: str, rng: random.Random, per_product: int) -> list[dict]:
    """Ask about products that do not exist, and about things the handbook is silent on."""
    rows = []
    kinds = [kind for kind in questions if kind.startswith("products.")]
    for name, kind in unanswerable["unknown_products"][split]:
        for attribute in rng.sample(kinds, per_product):
            question = rng.choice(questions[attribute][split]).format(name=f"{name} {kind}")
            rows.append(row(f"unknown/{split}{len(rows) + 1}", question, UNKNOWN, "unanswerable"))
    for asked in unanswerable["unknown_attributes"][split]:
        rows.append(row(f"unknown/{split}{len(rows) + 1}", asked["question"], UNKNOWN, "unanswerable"))
    return rows


def off_topic_rows(questions: list[str], split: str) -> list[dict]:
    """Ask what has nothing to do with the company."""
    return [row(f"off_topic/{split}{i}", question, OFF_TOPIC, "off_topic") for i, question in enumerate(questions, 1)]


def needed(family: str, output: str) -> list[str]:
    """List what a right answer has to contain: a JSON object's values, or else every line; nothing if many are right."""
    if family == "open":
        return []
    return [str(value) for value in json.loads(output).values()] if output.startswith("{") else output.splitlines()


def instruction_rows(task: str, told: dict, split: str) -> list[dict]:
    """Give a task's rows its instructions in turn. An instruction with a gap, {}, takes the input into itself."""
    family, wordings, rows = task.split("_")[0], told["instructions"], []
    for number, (text, output, *values) in enumerate(told["rows"], 1):
        wording = wordings[(number - 1) % len(wordings)]
        rows.append(
            {
                "id": f"{task}/{number}",
                "task": task,
                "family": family,
                "split": split,
                "instruction": wording.replace("{}", text),
                "input": "" if "{}" in wording else text,
                "output": output,
                "values": values[0] if values else needed(family, output),
            }
        )
    return rows


def email(told: dict, shared: dict, intent: str, wording: str, products: dict[str, str], rng: random.Random) -> tuple[str, str]:
    """Put an e-mail together, with its ticket. One in ten is typed without capitals, as on a telephone."""
    product, other = rng.sample([products[name] for name in told["products"]], 2)
    number = str(rng.randrange(10_000, 100_000))
    if rng.random() < (0.2 if intent == "question" else 0.8):
        writing = rng.choice(shared["writings"])
        parts = (number[:2], number[2:]) if writing.count("{}") == 2 else (number,)
        order = rng.choice(told["order"]).format(order=writing.format(*parts))
    else:
        number, order = "-", ""
    urgency = "high" if rng.random() < 0.4 else "normal"
    pressing = rng.choice(told[urgency]) if urgency == "high" or rng.random() < 0.7 else ""
    phone = f"01632 960{rng.randrange(1000):03}"  # kept by Ofcom for drama
    aside = rng.choice(told["asides"]).format(phone=phone) if rng.random() < 0.4 else ""
    wanted = wording.format(product=product, other=other, address=rng.choice(told["addresses"]))
    wanted = re.sub(r"\b([Aa]) (?=[AEIOU])", r"\1n ", wanted)  # an Ember fire pit
    body = [order, wanted, aside] if rng.random() < 0.25 else [wanted, order, aside]
    person = rng.choice(told["people"])
    signed = person if rng.random() < 0.6 else person.split()[0]
    closing = f"{rng.choice(shared['closings'])}\n{signed}".strip()
    text = "\n\n".join(filter(None, [rng.choice(shared["greetings"]), " ".join(filter(None, [*body, pressing])), closing]))
    ticket = f"intent: {intent}\nproduct: {product}\norder: {number}\nurgency: {urgency}"
    return text.lower() if rng.random() < 0.1 else text, ticket


def email_rows(emails: dict, products: dict[str, str], split: str, count: int) -> list[dict]:
    """Write `count` e-mails of a split, as many of each intent, its wordings in turn. A row's fact is its wording."""
    rng, told, rows = random.Random(f"emails/{split}"), emails[split], []
    for number in range(count):
        intents = list(told["intents"])
        intent = intents[number % len(intents)]
        wordings = told["intents"][intent]
        turn = number // len(intents) % len(wordings)
        text, ticket = email(told, emails, intent, wordings[turn], products, rng)
        line = row(f"email/{split}{number + 1}", text, ticket, "fact", [f"email.{intent}_{split}{turn + 1}"])
        rows.append(line | {"question": text, "answer": ticket})
    rng.shuffle(rows)
    return rows


def fill(template: str, value: dict[str, str], page: str) -> str:
    """Put the facts into a handbook page; stop at a placeholder that names no fact."""

    def replace(match: re.Match) -> str:
        id = ".".join(match.groups())
        if id not in value:
            raise SystemExit(f"{page}: no fact is called {id}. Correct the placeholder or add the fact to the source.")
        return value[id]

    return PLACEHOLDER.sub(replace, template)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def build(out: Path = DATA, source: Path = DATA / "source") -> None:
    """Write the handbook, all question sets, the e-mails, the instructions and the messy export below `out`."""
    facts, questions = load_facts(source), load("questions", source)
    unanswerable, off_topic = load("unanswerable", source), load("off_topic", source)
    value = {fact["id"]: fact["value"] for fact in facts}
    pages = {page.name: page.read_text(encoding="utf-8") for page in sorted((source / "handbook").glob("*.md"))}
    told = {".".join(match) for text in pages.values() for match in PLACEHOLDER.findall(text)}
    if silent := sorted(set(value) - told):
        raise SystemExit(f"The handbook never tells {', '.join(silent)}. Add the placeholder to a page of the source.")
    for name, text in pages.items():
        (out / "handbook").mkdir(parents=True, exist_ok=True)
        (out / "handbook" / name).write_text(fill(text, value, name), encoding="utf-8", newline="\n")
    train = fact_rows(facts, "train")
    rng = random.Random("train")
    train += unanswerable_rows(unanswerable, questions, "train", rng, per_product=3)
    train += off_topic_rows(off_topic["train"], "train")
    rng.shuffle(train)
    write_jsonl(out / "train.jsonl", train)
    for split in ("dev", "test"):
        rng = random.Random(split)  # one each, so that a change to training leaves the evaluation sets alone
        folder = out / "evaluation" / split
        write_jsonl(folder / "facts.jsonl", fact_rows(facts, split))
        write_jsonl(folder / "unanswerable.jsonl", unanswerable_rows(unanswerable, questions, split, rng, per_product=2))
        write_jsonl(folder / "off_topic.jsonl", off_topic_rows(off_topic[split], split))
        write_jsonl(folder / "multi_fact.jsonl", multi_fact_rows(facts, rng, count=30 if split == "dev" else 90))
        write_jsonl(folder / "far.jsonl", far_rows(facts, load("far", source), split, random.Random(f"far/{split}")))
    general = [{"id": f"general/{i}", **question} for i, question in enumerate(load("general", source), 1)]
    write_jsonl(out / "evaluation" / "general.jsonl", general)
    tasks = [(task, told, split) for split, tasks in load("instructions", source).items() for task, told in tasks.items()]
    write_jsonl(out / "instructions.jsonl", [row for task in tasks for row in instruction_rows(*task)])
    products = {fact["id"].split(".")[0]: fact["name"] for fact in facts if fact["id"].endswith(".price")}
    for split, count in EMAILS.items():
        write_jsonl(out / "emails" / f"{split}.jsonl", email_rows(load("emails", source), products, split, count))
    build_export(out / "raw", train, fact_rows(facts, "test"), products)
    text = (source / "general.txt").read_text(encoding="utf-8")
    (out / "evaluation" / "general.txt").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    build()
    print(f"Built the handbook, the question sets, the e-mails, the instructions and the messy export in {DATA}.")
