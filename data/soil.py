"""Soil the clean rows: build data/raw/, the export of a support desk as it comes in life, and the truth about each row.

`data/build.py` calls this. What is done to a row is kept in truth.jsonl: the names of its faults, and the question and
answer that a perfect repair would leave (null where the row has to go). All customers are invented: their addresses are at
example.org, their telephone numbers are from the ranges that Ofcom keeps for drama, and their card numbers pass the check
of card numbers but start with 9990, as no bank's do.
"""

import csv
import json
import random
import re
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

FIRST = ("Maja", "Otto", "Ines", "Bram", "Yara", "Nils", "Edda", "Luca", "Tilda", "Joris", "Asta", "Noor", "Selma", "Emil")
LAST = ("Brandvik", "Castell", "Duarte", "Eskola", "Gruber", "Halloran", "Ivanek", "Jansma", "Kessel", "Lindqvist", "Moreau")
CSV_COLUMNS = ("ticket_id", "created_at", "customer", "email", "product", "subject", "reply")
JSONL_COLUMNS = (*CSV_COLUMNS[:5], "question", "answer")
# What customers write around a question. The second text is how it reads once their data is masked.
PERSONAL = [
    ("Hello, I am {name}. {question}", "Hello, I am [NAME]. {question}"),
    ("{question} Please write to {email}.", "{question} Please write to [EMAIL]."),
    ("{question} You reach me on {phone} in the evening.", "{question} You reach me on [PHONE] in the evening."),
    ("I paid with card {card}. {question}", "I paid with card [CARD]. {question}"),
    ("My name is {name}, my number is {phone}. {question}", "My name is [NAME], my number is [PHONE]. {question}"),
    ("{question} Regards, {name} ({email})", "{question} Regards, [NAME] ([EMAIL])"),
    ("{question} My neighbour {other} would like to know.", "{question} My neighbour [NAME] would like to know."),
]
# Texts that look faulty and are not: a careless repair changes them.
HARMLESS = [
    "My budget is < 400 euros and I would like > 1 offer. {question}",
    "I read about you in R&D Weekly. {question}",
    "My order is 4000 1234 5678 9018. {question}",
    "I called on 2024-05-17 at 10:30:15 and waited 0.5 hours. {question}",
    "At the Caf\u00e9 No\u00ebl they could not tell me. {question}",
    "I asked @tindermoss already. {question}",
]
TYPOGRAPHIC = [
    "I\u2019d like to know: {question}",
    "At the Caf\u00e9 Zo\u00eb they asked me this \u2013 {question}",
    "\u201cAsk Tindermoss\u201d, they said. {question}",
    "My caf\u00e9\u2019s cr\u00e8me br\u00fbl\u00e9e is waiting \u2026 {question}",
]
MARKUP: list[Callable[[str], str]] = [
    lambda text: f"<p>{text}</p>",
    lambda text: text.replace(" ", "&nbsp;"),
    lambda text: f'<div class="reply"><span style="color:#333">{text}</span><br/></div>',
    lambda text: re.sub(r"(\w+)([.?])$", r"<b>\1</b>\2", text).replace("'", "&#39;"),
    lambda text: f"<!-- macro 17 -->\n<p>{text}</p>\n<p>&nbsp;</p>",
]
LANGUAGES = {
    "price": [
        ("Wie viel kostet das Modell {name} und wo gibt es das?", "Das Modell {name} kostet {number} Euro."),
        ("Combien co\u00fbte le mod\u00e8le {name} dans vos magasins ?", "Le mod\u00e8le {name} co\u00fbte {number} euros."),
        ("\u00bfCu\u00e1nto cuesta el modelo {name} en la tienda?", "El modelo {name} cuesta {number} euros."),
    ],
    "weight": [
        ("Wie viel wiegt das Modell {name}, und ist es nicht zu schwer?", "Das Modell {name} wiegt {number} Gramm."),
        (
            "Combien p\u00e8se le mod\u00e8le {name} ? Je le porte au dos.",
            "Le mod\u00e8le {name} p\u00e8se {number} grammes.",
        ),
        ("\u00bfCu\u00e1nto pesa el modelo {name}? Es para una excursi\u00f3n.", "El modelo {name} pesa {number} gramos."),
    ],
}
DISCLAIMER = (
    "This message and anything attached to it are meant for the person addressed. If you are not that person, please tell "
    "us and delete it. We do not promise that it is complete, that it arrived in time, or that nobody changed it on its way. "
)
COUNTS = {  # rows that get each fault, or two of them one after the other
    "none": 1000,
    "harmless": 36,
    "exact_duplicate": 80,
    "near_duplicate": 80,
    "empty_answer": 40,
    "truncated_answer": 50,
    "html": 80,
    "encoding": 80,
    "contradiction": 60,
    "personal_data": 84,
    "swapped": 30,
    "shifted": 30,
    "language": 24,
    "too_long": 12,
    "leaked_test": 40,
    "personal_data html": 15,
    "encoding html": 15,
}
# What a perfect repair drops; it mends the other faults.
DROPPED = ("exact_duplicate", "near_duplicate", "empty_answer", "truncated_answer", "contradiction")
DROPPED += ("language", "too_long", "leaked_test")


def card(rng: random.Random) -> str:
    """Invent a card number that passes Luhn's check and starts as no bank's does."""
    digits = [9, 9, 9, 0, *(rng.randrange(10) for _ in range(11))]
    doubled = sum(sum(divmod(2 * digit, 10)) for digit in digits[::2]) + sum(digits[1::2])
    number = "".join(map(str, [*digits, -doubled % 10]))
    return rng.choice([" ", "-", ""]).join(number[start : start + 4] for start in (0, 4, 8, 12))


def misread(text: str, rng: random.Random) -> str:
    """Read UTF-8 as Latin-1 or as cp1252 (with the five bytes that it lacks), once or, now and then, twice."""
    for _ in range(rng.choice([1, 1, 1, 2])):
        if rng.random() < 0.3:
            text = text.encode().decode("latin-1")
        else:
            text = "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())
    return text


def mistyped(text: str, rng: random.Random) -> str:
    """Exchange two letters inside a word."""
    place = rng.choice([match.start() for match in re.finditer(r"(?<=[a-z])([a-z])(?!\1)[a-z](?=[a-z])", text)])
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def reworded(text: str, rng: random.Random) -> str:
    """Ask the same question in almost the same words."""
    ways = [
        lambda: mistyped(text, rng),
        lambda: f"Hi, {text}",
        lambda: f"{text} Thanks!",
        lambda: text.upper().replace(" ", "  "),
        lambda: f"{text.rstrip('.?')}??",
    ]
    return rng.choice(ways)()


def outdated(answer: str, rng: random.Random) -> str:
    """State an older, lower price."""
    return re.sub(r"\d+(?= euros)", lambda price: str(max(3, int(price[0]) * rng.choice([70, 80, 90]) // 100)), answer)


def soil(ticket: dict, fault: str, row: dict, rng: random.Random) -> None:
    """Do one thing to a ticket made from a clean row; "clean" says what is right afterwards, None that it has to go."""
    question, answer = ticket["question"], ticket["answer"]
    if fault in DROPPED:
        ticket["clean"] = None
    if fault == "near_duplicate" or (fault == "leaked_test" and rng.random() < 0.5):
        ticket["question"] = reworded(question, rng)
    elif fault == "harmless":
        ticket["question"] = rng.choice(HARMLESS).format(question=question)
        ticket["clean"] = (ticket["question"], answer)
    elif fault == "empty_answer":
        ticket["answer"] = rng.choice(["", "", " ", "n/a", "-", "TODO"])
    elif fault == "truncated_answer":
        ticket["answer"] = answer[: rng.randint(len(answer) // 3, len(answer) - 3)].rstrip(" .")
    elif fault == "html":
        part = "question" if rng.random() < 0.3 else "answer"
        ticket[part] = rng.choice(MARKUP)(ticket[part])
    elif fault == "encoding":
        right = rng.choice(TYPOGRAPHIC).format(question=question)
        ticket["question"], ticket["clean"] = misread(right, rng), (right, answer)
    elif fault == "contradiction":
        ticket["answer"] = outdated(answer, rng)
        ticket["created_at"] = str(date(2019, 1, 1) + timedelta(rng.randrange(1200)))
    elif fault == "personal_data":
        dirty, masked = rng.choice(PERSONAL)
        other = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        phone = rng.choice(["07700 900", "+44 7700 900", "(020) 7946 0"]) + f"{rng.randrange(1000):03}"
        told = {"name": ticket["customer"], "email": ticket["email"], "phone": phone, "card": card(rng), "other": other}
        ticket["question"] = dirty.format(question=question, **told)
        ticket["clean"] = (masked.format(question=question), answer)
    elif fault == "swapped":
        ticket["question"], ticket["answer"] = answer, question
    elif fault == "language":
        name, number = row["product"], row["values"][0].split()[0]
        asked, told = rng.choice(LANGUAGES[row["facts"][0].split(".")[1]])
        ticket["question"], ticket["answer"] = asked.format(name=name), told.format(name=name, number=number)
    elif fault == "too_long":
        ticket["answer"] = f"{answer}\n\n-- \n{DISCLAIMER * rng.randint(20, 34)}"


def tickets(train: list[dict], test: list[dict], products: dict[str, str], rng: random.Random) -> list[dict]:
    """Make the whole export, in its order: first the rows of the CSV file. products: the full name of each, by its id."""
    pool, made, rows = rng.sample(train, len(train)), [], {row["id"]: row for row in train}

    def product(row: dict) -> str:
        return products.get(row["facts"][0].split(".")[0], "") if row["facts"] else ""

    def about(row: dict, *attributes: str) -> bool:
        return bool(product(row)) and row["facts"][0].endswith(attributes)

    def add(faults: list[str], row: dict, after: dict | None = None) -> None:
        name = f"{rng.choice(FIRST)} {rng.choice(LAST)}"
        ticket = {
            "file": "export.csv" if "shifted" in faults or rng.random() < 0.6 else "export.jsonl",
            "place": rng.random(),
            "faults": [fault for fault in faults if fault not in ("none", "harmless")],
            "source": row["id"],
            "created_at": str(date(2023, 1, 1) + timedelta(rng.randrange(900))),
            "customer": name,
            "email": f"{name.replace(' ', '.').lower()}@example.org",
            "product": product(row),
            "question": row["question"],
            "answer": row["answer"],
            "clean": (row["question"], row["answer"]),
        }
        if after:  # a copy stands behind its original
            ticket["file"] = max(ticket["file"], after["file"])
            ticket["place"] = after["place"] + ticket["place"] * (1 - after["place"])
        for fault in faults:
            soil(ticket, fault, {**row, "product": product(row)}, rng)
        made.append(ticket)

    for faults, number in COUNTS.items():
        plain = [ticket for ticket in made if not ticket["faults"] and ticket["question"] == rows[ticket["source"]]["question"]]
        if faults in ("exact_duplicate", "near_duplicate"):
            for original in rng.sample(plain, number):
                add([faults], rows[original["source"]], after=original)
        elif faults == "contradiction":  # three in four ask what another row asks, the others in words of their own
            same = [rows[ticket["source"]] for ticket in plain if about(rows[ticket["source"]], ".price")]
            told = {row["facts"][0] for row in same}
            other = [row for row in pool if about(row, ".price") and row["facts"][0] in told]
            for row in rng.sample(same, number * 3 // 4) + rng.sample(other, number // 4):
                add([faults], row)
        else:
            fitting = [row for row in pool if faults != "language" or about(row, ".price", ".weight")]
            for row in test[:number] if faults == "leaked_test" else fitting[:number]:
                add(faults.split(), row)
        used = {ticket["source"] for ticket in made}
        pool = [row for row in pool if row["id"] not in used]
    made.sort(key=lambda ticket: (ticket["file"], ticket["place"]))
    return [{"ticket_id": f"T{number}", **ticket} for number, ticket in enumerate(made, 10001)]


def build_export(out: Path, train: list[dict], test: list[dict], products: dict[str, str]) -> None:
    """Write export.csv, export.jsonl and truth.jsonl into a folder."""
    rng = random.Random("export")
    rows = tickets(train, rng.sample(test, len(test)), products, rng)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "export.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(CSV_COLUMNS)
        for row in rows:
            cells = [row[name] for name in JSONL_COLUMNS]
            if "shifted" in row["faults"]:  # the customer's cell is lost, and all that follows moves up
                cells = [*cells[:2], *cells[3:], ""]
            if row["file"] == "export.csv":
                writer.writerow(cells)
    with (
        (out / "export.jsonl").open("w", encoding="utf-8", newline="\n") as export,
        (out / "truth.jsonl").open("w", encoding="utf-8", newline="\n") as truth,
    ):
        for row in rows:
            if row["file"] == "export.jsonl":
                export.write(json.dumps({name: row[name] for name in JSONL_COLUMNS}, ensure_ascii=False) + "\n")
            question, answer = row["clean"] or (None, None)
            kept = {name: row[name] for name in ("ticket_id", "file", "source", "faults")}
            truth.write(json.dumps({**kept, "question": question, "answer": answer}, ensure_ascii=False) + "\n")
