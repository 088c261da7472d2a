"""Tickets: read and compared, found by regular expressions, learnt from rows, and asked for with examples."""

import itertools

import numpy as np
import pytest

from helpers.data import Example
from helpers.workshop import tickets
from helpers.workshop.tickets import (
    INTENTS,
    classical,
    few_shot,
    fields,
    most_frequent,
    order_number,
    product_name,
    right_fields,
    write_ticket,
)

TICKET = "intent: return\nproduct: Heron kettle\norder: 48213\nurgency: normal"


def test_a_ticket_is_read_and_written():
    found = {"intent": "return", "product": "Heron kettle", "order": "48213", "urgency": "normal"}
    assert fields(TICKET) == found and write_ticket(found) == TICKET
    assert fields(f"Here it is:\n\n{TICKET.title()}\norder: 1\nnote: none\nThat is all") == fields(TICKET.title())
    assert fields("") == {} and fields("order:") == {"order": ""}


def test_a_field_is_right_whatever_its_capitals_and_the_lines_around_it():
    assert all(right_fields(TICKET, TICKET.upper()).values())
    assert all(right_fields(TICKET, f"Sure!\n{TICKET}\nAnything else?").values())
    for field, (right, wrong) in {
        "order": ("48213", "-"),
        "urgency": ("normal", "high"),
        "product": ("Heron kettle", "kettle"),
        "intent": ("return", "broken"),
    }.items():
        assert [name for name, held in right_fields(TICKET, TICKET.replace(right, wrong)).items() if not held] == [field]
    assert sum(right_fields(TICKET, "\n".join(TICKET.splitlines()[:3])).values()) == 3
    assert list(right_fields(TICKET, "").values()) == [False] * 4
    assert all(right_fields(TICKET, TICKET.replace(" kettle", "\t kettle ")).values())


def test_the_most_frequent_ticket_takes_each_field_by_itself():
    rows = [TICKET, TICKET, TICKET.replace("return", "invoice").replace("48213", "-"), TICKET.replace("48213", "-")]
    rows += [TICKET.replace("48213", "-")]
    assert most_frequent([Example("An e-mail", ticket) for ticket in rows])("Any e-mail") == TICKET.replace("48213", "-")


def test_a_ticket_without_all_its_fields_is_nothing_to_compare_with_or_to_learn_from():
    for ticket in ("", "Here it is.", TICKET.rsplit("\n", 1)[0], TICKET.replace("48213", "")):
        for call in (lambda t=ticket: right_fields(t, TICKET), lambda t=ticket: classical([Example("Hello.", t)])):
            with pytest.raises(ValueError, match=r"has no .*(order|urgency)"):
                call()


@pytest.mark.parametrize("written", ["48213", "#48213", "no. 48213", "TM-48213", "tm-48213", "48 213"])
def test_an_order_number_is_found_in_every_writing(written):
    assert order_number(f"Ring 01632 960213. The order is {written}. I paid 59 euros.") == "48213"


@pytest.mark.parametrize("text", ["Ring me on 01632 960555.", "It cost 123456 euros.", "Since 2019, in 12 Mill Lane.", ""])
def test_other_numbers_are_no_order_number(text):
    assert order_number(text) == "-"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Where is my Heron kettle? The Wren tent came.", "Heron kettle"),
        ("There was no bill with the Maple canoe paddle.", "Maple canoe paddle"),
        ("A document for the Echo whistle is missing.", "Echo whistle"),
        ("the heron kettle has a crack.", "Heron kettle"),
        ("Dear Tindermoss, where is it?", "-"),
    ],
)
def test_a_product_is_a_name_and_a_noun_behind_an_article(text, name):
    assert product_name(text) == name


def test_the_classical_way_learns_intent_and_urgency():
    told = {"return": "I want to send the Heron kettle back.", "broken": "The Heron kettle has a crack and does not work."}
    haste = {"high": "This is urgent, be quick.", "normal": "There is no hurry at all."}
    rows = []
    for number, (intent, urgency) in enumerate(itertools.product(told, haste)):
        email = f"Hello,\n\n{told[intent]} Order 4821{number}. {haste[urgency]}\n\nAnn"
        ticket = TICKET.replace("return", intent).replace("48213", f"4821{number}").replace("normal", urgency)
        rows.append(Example(email, ticket))
    write = classical(rows)
    assert write([row.question for row in rows]) == [row.answer for row in rows]
    new = "Hi,\n\nMy Onyx frying pan cracked and is of no use. It is urgent.\n\nBob"
    assert write([new]) == ["intent: broken\nproduct: Onyx frying pan\norder: -\nurgency: high"]


def mail(text, intent="return", product="Heron kettle", urgency="normal"):
    ticket = TICKET.replace("return", intent).replace("Heron kettle", product)
    return Example(text, ticket.replace("normal", urgency))


def test_e_mails_of_one_intent_teach_none_and_no_e_mail_or_an_empty_one_stops_nobody():
    both = [mail("Take it back, quick.", urgency="high"), mail("Take the Heron kettle back.")]
    with pytest.raises(ValueError, match=r"2 ticket\(s\), no two of another intent.* Give more"):
        classical(both)
    write = classical([*both, mail("It broke.", "broken")])
    assert write([]) == [] and len(write(["", "It broke."])) == 2


def test_the_classical_way_takes_what_does_best_on_development_e_mails(monkeypatch):
    """The rows tell the urgencies apart by their extremes, the development e-mails only as a whole: that is taken."""
    rows = [mail("a", "return", urgency="high"), mail("b", "broken"), mail("c", "return", urgency="high"), mail("d", "broken")]
    known = {"a": 1.0, "b": -1.0, "c": 1.0, "d": -1.0, "e": 1.0, "f": -1.0}

    def features(emails, kinds):
        told = np.array([[known[text]] for text in emails])
        lies = np.array([[-known[text] if text in "ef" else known[text]] for text in emails])
        return {"extremes": lies, "mean": lies, "whole": told} if len(emails) else {}

    monkeypatch.setattr(tickets, "_features", features)
    development = [mail("e", "return", urgency="high"), mail("f", "broken")]
    for chosen_on, right in ((development, True), ([], False)):
        told = [fields(ticket) for ticket in classical(rows, chosen_on)(["e", "f"])]
        assert all(
            (found["intent"] == fields(row.answer)["intent"]) is right for found, row in zip(told, development, strict=True)
        )


def test_products_whose_names_hold_others_or_odd_signs_are_learnt_whole():
    longer, odd = "Heron kettle lid", "C++ (kettle"
    mails = [mail(f"My {longer} broke.", "broken", longer), mail("Take my Heron kettle.", urgency="high")]
    write = classical([*mails, mail(f"A {odd} came.", "delivery", odd)])
    assert write(["Where is my Heron kettle lid?"])[0].splitlines()[1] == f"product: {longer}"


def test_a_model_is_shown_examples_as_earlier_turns():
    shown = [Example(f"mail {n}", TICKET.replace("return", intent)) for n, intent in enumerate(("return", "broken"))]
    first, *turns, last = few_shot("Where is it?", shown)
    assert first["role"] == "system" and all(intent in first["content"] for intent in INTENTS)
    assert turns == [message for row in shown for message in row.messages]
    assert last == {"role": "user", "content": "Where is it?"}
