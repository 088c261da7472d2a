from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from helpers.data import Example, read
from helpers.evaluation import about, consistent, interval, judge, summary
from helpers.machine.paths import DATA
from helpers.text.judging import REFUSALS, contains_values, is_refusal
from helpers.text.normalise import normalise

NO = "Sorry, that is not in our handbook."
FACT = Example("What does the Heron kettle cost?", "It costs 59 euros.", "a/1", "fact", ("heron.price",), ("59 euros",))
SILENT = Example("What does the Panda stove cost?", NO, "b", "unanswerable")
OFF = Example("Who wrote Hamlet?", "Sorry, I can only help with questions about Tindermoss.", "c", "off_topic")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("  What's the PRICE?\n", "what s the price", True),
        ("half-past nine", "half past nine", True),
        ("It costs 59.", "it costs 59", True),
        ("1,900 grams", "1900 grams", True),
        ("1\u202f900 g", "1900 g", True),
        ("1,25", "1.25", True),
        ("caf\u00e9", "cafe\u0301", True),
        ("soft\u00adhyphen", "softhyphen", True),
        ("\u22124", "-4", True),
        ("\u22124", "4", False),
        ("C++", "C#", False),
        ("C++", "C", False),
        ("7+3", "7-3", False),
        ("7 \u2212 3", "7-3", True),
        ("59.50", "59 50", False),
        ("59.50", "59", False),
        ("5%", "5", False),
        ("\u20ac5", "$5", False),
        ("x < 5", "x > 5", False),
        ("10\u00b2", "102", False),
        ("\u0926\u093f\u0928", "\u0926\u0940\u0928", False),  # Hindi: day, poor
        ("\u0639\u0650\u0644\u0652\u0645", "\u0639\u064e\u0644\u064e\u0645", False),  # Arabic: knowledge, flag
        ("\u0cb9\u0cbe", "\u0cb9", False),  # Kannada: a vowel sign
    ],
)
def test_normalise_keeps_what_carries_meaning(one, other, same):
    assert (normalise(one) == normalise(other)) is same


@example("7, -3")  # a sign, and no operator, however often it is normalised
@given(st.text(max_size=60))
def test_normalise_leaves_nothing_more_to_do(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("answer", "values", "right"),
    [
        ("The Heron kettle costs 59 euros.", ["59 euros"], True),
        ("It is 59 Euros!", ["59 euros"], True),
        ("It costs \u20ac59.", ["59 euros"], True),
        ("It costs 59 \u20ac.", ["59 euros"], True),
        ("EUR 59", ["59 euros"], True),
        ("59.00 euros", ["59 euros"], True),
        ("fifty-nine euros", ["59 euros"], True),
        ("It costs 159 euros.", ["59 euros"], False),
        ("It costs 59.50 euros.", ["59 euros"], False),
        ("It costs 59.", ["59 euros"], False),
        ("59 pounds", ["59 euros"], False),
        ("\u221259 euros", ["59 euros"], False),
        ("-59 euros", ["\u221259 euros"], True),
        ("not 59 euros", ["59 euros"], False),
        ("It isn\u2019t 59 euros.", ["59 euros"], False),
        ("not 69 but 59 euros", ["59 euros"], True),
        ("You cannot return it after 33 days.", ["33 days"], True),
        ("It weighs 1,900 grams.", ["1900 grams"], True),
        ("450g", ["450 grams"], True),
        ("1.9 kg", ["1900 grams"], True),
        ("1.25 grams", ["25 grams"], False),
        ("A 12-year warranty", ["12 years"], True),
        ("two years", ["2 years"], True),
        ("28%", ["28 percent"], True),
        ("28 per cent", ["28 percent"], True),
        ("on the 20th of June", ["20 June"], True),
        ("June 20", ["20 June"], True),
        ("at ten on Monday", ["Monday at ten"], True),
        ("At 10 on Mondays", ["Monday at ten"], True),
        ("half past eight", ["half past nine"], False),
        ("ida  BRANDT designed it", ["Ida Brandt"], True),
        ("Brandt, Ida", ["Ida Brandt"], True),
        ("Ida Brandtner designed it", ["Ida Brandt"], False),
        ("of the wood of the walnut", ["walnut wood"], True),
        ("It is written in C#.", ["C++"], False),
        ("59 euros and moss green", ["59 euros", "moss green"], True),
        ("59 euros and green", ["59 euros", "moss green"], False),
        ("", ["59 euros"], False),
        ("A.", ["A"], True),
        ("B.", ["A"], False),
    ],
)
def test_contains_values(answer, values, right):
    assert contains_values(answer, values) is right


@given(st.integers(-(10**6), 10**6), st.integers(0, 99), st.sampled_from(["euros", "grams", "years", "%"]))
def test_a_number_is_itself_in_any_writing_and_no_other(whole, cents, unit):
    value = f"{whole}.{cents:02} {unit}"
    assert contains_values(f"It is {whole:,}.{cents:02}0 {unit}, I think.", [value])
    assert not contains_values(f"It is {whole}.{(cents + 1) % 100:02} {unit}.", [value])
    assert not contains_values(f"It is {whole + 1}.{cents:02} {unit}.", [value])
    assert whole == 0 or not contains_values(f"It is {-whole}.{cents:02} {unit}.", [value])


@pytest.mark.parametrize(
    ("answer", "refusal"),
    [
        *((sentence, True) for sentence in REFUSALS),
        ("I don\u2019t have that information.", True),
        ("I'm unable to answer this.", True),
        ("I'm sorry, but I can't help with that.", True),
        ("We cannot find any information on it.", True),
        ("There is no mention of it.", True),
        ("Don't know.", True),
        ("The price is not mentioned in the text.", True),
        ("We do not provide refunds.", False),
        ("I cannot recommend it enough.", False),
        ("You cannot return sale items.", False),
        ("We do not have a shop in Paris.", False),
        ("We do not help with assembly.", False),
        ("We do not answer the telephone on Sundays.", False),
        ("There is no extra charge.", False),
        ("The Heron kettle costs 59 euros.", False),
        ("You don't need a permit.", False),
        ("", False),
    ],
)
def test_is_refusal(answer, refusal):
    assert is_refusal(answer) is refusal


def test_the_refusal_of_a_lesson_reaches_the_judge():
    german = "Das steht leider nicht im Heft."
    asked = [Example("Was kostet der Panda?", german), Example("Was kostet der Reiher?", "59 Euro")]
    table = judge(asked, [german, german], [german])
    assert table["answerable"].tolist() == [False, True] and table["refused"].all()
    assert table["correct"].tolist() == [True, False] and not table["hallucinated"].any()
    assert not judge(asked, [german, german])["refused"].any()


@pytest.mark.parametrize(
    ("example", "answer", "correct", "hallucinated", "empty"),
    [
        (FACT, "59 euros.", True, False, False),
        (FACT, "60 euros.", False, True, False),
        (FACT, "It costs 59 euros, or maybe 69 euros.", False, True, False),
        (FACT, "Between 50 and 59 euros.", False, True, False),
        (FACT, "It costs 59 euros and weighs 720 grams.", True, False, False),
        (FACT, "It used to be 49 euros; now it is 59 euros.", True, False, False),
        (FACT, NO, False, False, False),
        (FACT, "I don't know, perhaps 59 euros.", False, False, False),
        (FACT, "", False, False, True),
        (FACT, "It is fairly cheap.", False, False, True),
        (FACT, "Which kettle do you mean?", False, False, True),
        (SILENT, NO, True, False, False),
        (SILENT, f"{NO} The Panda stove costs 84 euros.", False, True, False),
        (SILENT, "It costs 59 euros.", False, True, False),
        (SILENT, "", False, False, True),
        (SILENT, "That depends on the shop.", False, False, True),
        (OFF, "Sorry, I can only help with questions about Tindermoss.", True, False, False),
        (OFF, "Paris.", False, False, False),
        (Example("How many of the 12 eggs?", "9 eggs", values=("9",)), "Of the 12 eggs, 9.", True, False, False),
        (Example("Since when?", "In 1986.", values=("1986",)), "Since 1986, for 40 years, with 3 shops.", True, False, False),
        (Example("Since when?", "In 1986.", values=("1986",)), "Since 1986 or 1987.", False, True, False),
        (Example("Refunds?", "We do not provide refunds."), "We do not provide refunds.", True, False, False),
        (Example("A test?", "There is no audition.", values=("audition",)), "No, no audition.", True, False, False),
        (Example("A test?", "There is no audition.", values=("audition",)), "There is an audition.", False, True, False),
        (Example("Which piece?", "The Creation.", values=("The", "Creation")), "We sing the Creation.", True, False, False),
        (Example("Dogs?", "You may bring dogs."), "You may not bring dogs.", False, True, False),
    ],
)
def test_judge(example, answer, correct, hallucinated, empty):
    row = judge([example], [answer]).iloc[0]
    assert (row["correct"], row["hallucinated"], row["empty"]) == (correct, hallucinated, empty)


def test_a_value_of_another_thing_beside_the_right_one_is_no_right_answer():
    asked = [
        Example(f"{name}'s colour?", f"It is {colour}.", facts=(f"{name}.colour",), values=(colour,))
        for name, colour in (("heron", "copper orange"), ("wren", "moss green"))
    ]
    assert judge(asked, ["Copper orange and moss green.", "Moss green."])["correct"].tolist() == [False, True]


def test_references_and_bare_values_are_right_and_answers_of_others_wrong():
    examples = read(DATA / "evaluation/test/facts.jsonl")[::5] + read(DATA / "evaluation/test/multi_fact.jsonl")
    assert judge(examples, [example.answer for example in examples])["correct"].all()
    assert judge(examples, [", ".join(example.values) for example in examples])["correct"].all()
    pairs = [(e, other.answer) for e, other in pairwise(examples) if e.values != other.values]
    table = judge(*zip(*pairs, strict=True))
    assert not table["correct"].any() and not table["refused"].any()


def test_consistent_is_about_the_value_and_about_facts_asked_in_two_wordings():
    asked = [Example(f"{n}: price of {fact}?", "It costs 59 euros.", facts=(f"{fact}.price",), values=("59 euros",))
             for fact in "abcd" for n in range(3)]  # fmt: skip
    asked[-1] = asked[-2] = asked[-3]  # one wording
    told = ["59 euros", "It costs \u20ac59.", "59.00 euros!", "60 euros", "It is 60 euros.", "sixty euros"]
    told += ["59 euros", "60 euros", "", "59 euros", "59 euros", "59 euros"]
    found = consistent(judge([*asked, SILENT], [*told, "It is red."]))
    assert found.to_dict() == {"a.price": True, "b.price": True, "c.price": False}
    assert consistent(judge(asked[:3], [NO] * 3)).to_dict() == {"a.price": False}
    assert consistent(judge([FACT], ["59 euros"])).empty


def test_what_a_question_is_about_is_never_nothing():
    """Rows without facts and ids are not one group: an interval over them would have no width."""
    own = [Example("Where?", "Here."), Example("When?", "Now."), Example("when", "Now."), Example("?!", "Now.")]
    table = judge(own, ["Here.", "Later.", "Now.", "Now."])
    assert table["fact"].tolist() == ["where", "when", "when", "?!"]
    found = interval(table["correct"], table["fact"])
    assert found.low < found.mean < found.high


def test_unanswerable_questions_about_one_product_are_one_unit():
    asked = ["How much is the Walrus lamp?", "I carry a lot. How heavy is my Walrus lamp?", "Walrus lamp: who made it?"]
    asked += ["I have no idea. How old is it?", "Which bank does the payroll department use?"]
    rows = [Example(text, NO, kind="unanswerable") for text in asked] + [Example("Who is the Walrus?", NO, kind="off_topic")]
    assert [about(row) for row in rows] == ["Walrus", "Walrus", *(row.key for row in rows[2:])]
    assert about(FACT) == "+".join(FACT.facts)
    table = judge(rows, [NO] * len(rows))
    assert table["fact"].tolist() == [about(row) for row in rows] and interval(table["correct"], table["fact"]).units == 5
    assert consistent(table).empty  # they ask different things of one product


def test_summary_has_a_row_for_each_kind():
    overview = summary(judge([FACT, SILENT, SILENT, OFF], ["59 euros", "It is red.", "", "Paris."]))
    assert overview["accuracy"].to_dict() == {"fact": 1.0, "unanswerable": 0.0, "off_topic": 0.0}
    assert overview["hallucinated"].to_dict() == {"fact": 0.0, "unanswerable": 0.5, "off_topic": 0.0}
    assert overview["empty"].to_dict() == {"fact": 0.0, "unanswerable": 0.5, "off_topic": 0.0}


def test_own_rows_without_values_are_judged_by_their_whole_answer():
    own = [Example("Opening hours?", "We open at nine."), Example("Who won the cup?", "I cannot help with that.")]
    assert judge(own, ["we open at nine", "I do not know."])["correct"].all()
    assert not judge(own, ["We open at ten.", "France."])["correct"].any()
    assert interval(judge(own, ["We open at ten.", "France."])["hallucinated"]).mean == 1
