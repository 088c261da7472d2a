"""Tickets: e-mails to a shop turned into four fields the classical way, and the prompt that shows a model five of them."""

import re
from collections import Counter
from collections.abc import Callable, Sequence, Set

import numpy as np
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.linear_model import LogisticRegression

from helpers.data import Example
from helpers.retrieval.search import embed

FIELDS = ("intent", "product", "order", "urgency")
LEARNT = ("intent", "urgency")  # those that a classifier decides; the others are copied from the e-mail
INTENTS = ("return", "broken", "delivery", "address", "invoice", "question")
WAYS = [(seen, strength) for seen in ("extremes", "mean", "whole") for strength in (10.0, 1.0, 100.0)]
INSTRUCTION = f"""Turn the e-mail into a ticket of four lines.
intent: one of {", ".join(INTENTS)}
product: the product that it is about
order: the five digits of the order number, or - if there is none
urgency: high or normal"""
ORDER = re.compile(r"(?<![\d-])(?:tm-)?([1-9]\d) ?(\d{3})\b(?! ?\d)", re.IGNORECASE)  # telephone numbers begin with 0
ARTICLE = r"\b(?:[Tt]he|[Mm]y|[Aa]n?|[Yy]our|[Oo]ne) "
NAMED = re.compile(rf"{ARTICLE}([A-Z][a-z]+ [a-z]+)((?: [a-z]+)?)")
UNNAMED = re.compile(rf"{ARTICLE}(?=([a-z]+ [a-z]+)((?: [a-z]+)?))")  # in an e-mail without capitals


def fields(ticket: str) -> dict[str, str]:
    """Read the fields of a ticket, one a line, such as "order: 48213"; the first of each name counts, other lines do not."""
    found: dict[str, str] = {}
    for line in ticket.splitlines():
        name, colon, value = line.partition(":")
        if colon and name.strip().lower() in FIELDS:
            found.setdefault(name.strip().lower(), " ".join(value.split()))
    return found


def right_fields(expected: str, answer: str) -> dict[str, bool]:
    """Tell of each field of a ticket whether an answer has it right; capitals and white space do not count."""
    wanted, told = _whole(expected.casefold()), fields(answer.casefold())
    return {name: told.get(name) == value for name, value in wanted.items()}


def _whole(ticket: str) -> dict[str, str]:
    """Read the fields of a ticket that has to have all four; raises ValueError."""
    found = fields(ticket)
    if missing := [name for name in FIELDS if not found.get(name)]:
        raise ValueError(f"The ticket {ticket[:60]!r} has no {', '.join(missing)}. Write a line of each, such as order: -")
    return found


def write_ticket(found: dict[str, str]) -> str:
    """Write a ticket, a field a line."""
    return "\n".join(f"{name}: {found[name]}" for name in FIELDS)


def most_frequent(rows: Sequence[Example]) -> Callable[[str], str]:
    """File every e-mail alike, without reading it: of each field the value that is most frequent in the rows."""
    tickets = [_whole(row.answer) for row in rows]
    same = write_ticket({name: Counter(ticket[name] for ticket in tickets).most_common(1)[0][0] for name in FIELDS})
    return lambda email: same


def order_number(email: str) -> str:
    """Find the first number of five digits, in any of its writings: 48213, #48213, TM-48213, 48 213. None: a dash."""
    match = ORDER.search(email)
    return "".join(match.groups()) if match else "-"


def product_name(email: str, common: frozenset[str] = ENGLISH_STOP_WORDS) -> str:
    """Find the first name and noun behind an article, such as "the Heron kettle"; a noun may have two words.

    common: words that are no part of a noun. Where no name has a capital, the first two words that are not common.
    """
    bare = [match for match in UNNAMED.finditer(email) if not set(match[1].split()) & common]
    named = [*NAMED.finditer(email), *bare]
    if not named:
        return "-"
    name, more = named[0].groups()
    return (name + ("" if more.strip().lower() in common else more)).capitalize()


def classical(rows: Sequence[Example], development: Sequence[Example] = ()) -> Callable[[Sequence[str]], list[str]]:
    """Learn from e-mails and their tickets, without a language model; the function returned writes tickets for e-mails.

    Intent and urgency: logistic regression on embeddings, see `_features`; each of the two takes the features and the
    strength that are right most often on the development e-mails, or without any the first. Product and order number: two
    regular expressions.
    Raises ValueError where a ticket lacks a field, or all have the same intent or urgency: then there is nothing to learn.
    """
    tickets = [_whole(row.answer) for row in rows]
    for name in LEARNT:
        if len({ticket[name] for ticket in tickets}) < 2:
            raise ValueError(f"{len(tickets)} ticket(s), no two of another {name}: nothing to learn. Give more of them.")
    rehearsed = [_whole(row.answer) for row in development]
    ways = WAYS if rehearsed else WAYS[:1]
    kinds = {seen for seen, _ in ways}
    features, judged = (_features([row.question for row in part], kinds) for part in (rows, development))
    learners = {}
    for name in LEARNT:
        taught, wanted = ([ticket[name] for ticket in part] for part in (tickets, rehearsed))
        tried = {way: LogisticRegression(C=way[1], max_iter=2000).fit(features[way[0]], taught) for way in ways}
        best = max(ways, key=lambda way: tried[way].score(judged[way[0]], wanted)) if wanted else ways[0]
        learners[name] = best[0], tried[best]
    products = "|".join(sorted({re.escape(ticket["product"]) for ticket in tickets}, key=len, reverse=True))
    rest = re.sub(products, "", " ".join(row.question for row in rows), flags=re.IGNORECASE)
    common = ENGLISH_STOP_WORDS | set(re.findall(r"[a-z]+", rest.lower()))

    def write(emails: Sequence[str]) -> list[str]:
        if not emails:
            return []
        features = _features(emails, {seen for seen, _ in learners.values()})
        told = {name: learner.predict(features[seen]) for name, (seen, learner) in learners.items()}
        told |= {"product": [product_name(email, common) for email in emails], "order": map(order_number, emails)}
        return [write_ticket(dict(zip(told, values, strict=True))) for values in zip(*told.values(), strict=True)]

    return write


def _features(emails: Sequence[str], kinds: Set[str]) -> dict[str, np.ndarray]:
    """Describe each e-mail by its embedding, or by those of its sentences, in these kinds of `WAYS`: [emails, 384 or 768].

    extremes: the greatest and the least of each number over the sentences, so that one sentence can decide.
    """
    if not emails:
        return {}
    told = {"whole": embed(emails)} if "whole" in kinds else {}
    if kinds <= {"whole"}:
        return told
    sentences = [[part for part in re.split(r"(?<=[.?!:])\s+|\n+", email) if part] or [""] for email in emails]
    different = sorted({part for parts in sentences for part in parts})
    vectors = dict(zip(different, embed(different), strict=True))
    found = [np.stack([vectors[part] for part in parts]) for parts in sentences]
    extremes = np.stack([np.concatenate([each.max(axis=0), each.min(axis=0)]) for each in found])
    return told | {"extremes": extremes, "mean": np.stack([each.mean(axis=0) for each in found])}


def few_shot(email: str, shown: Sequence[Example]) -> list[dict]:
    """Write the messages that ask a model for a ticket: what to do, examples (five, say) as earlier turns, the e-mail."""
    turns = [message for row in shown for message in row.messages]
    return [{"role": "system", "content": INSTRUCTION}, *turns, {"role": "user", "content": email}]
