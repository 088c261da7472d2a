import pytest

from helpers.data import Example, read
from helpers.evaluation import judge
from helpers.machine.paths import DATA
from helpers.measures.errors import error_kinds, is_misspelt, is_repetitive
from helpers.measures.text import measure
from helpers.text.judging import contains_values

SILENT = Example("What does the Walrus lamp cost?", "Sorry, that is not in our handbook.", "b", "unanswerable")
OFF = Example("Who invented tea?", "Sorry, I can only help with questions about Tindermoss.", "c", "off_topic")
DECLINED = "Sorry, that is not in our handbook."


def fact(answer="The Heron kettle costs 59 euros.", value="59 euros", question="What does the Heron kettle cost?"):
    return Example(question, answer, "a/1", "fact", ("a",), (value,))


COLOUR = fact("The Heron kettle comes in copper orange.", "copper orange", "Which colour is the Heron kettle?")


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("It is a three-masted, three-masted, three-masted ship", False),  # two words only
        ("the cat sat, the cat sat, the cat sat", True),
        ("made of slow and steady wood. made of slow and steady wood. made of slow and steady wood", True),
        ("the cat sat and the cat sat and the cat ate", False),
        ("The Heron kettle costs 59 euros.", False),
        ("", False),
    ],
)
def test_repetition(answer, yes):
    assert is_repetitive(answer) is yes


@pytest.mark.parametrize(
    ("answer", "value", "known", "yes"),
    [
        ("It was designed by Ida Brant.", "Ida Brandt", (), True),
        ("It is made in Fernwik.", "Fernwick", (), True),
        ("It costs 95 euros.", "59 euros", (), False),  # another number is another value
        ("It costs 59 eurs.", "59 euros", (), True),
        ("It comes in mist green.", "moss green", (), True),
        ("It comes in mist green.", "moss green", ("mist green", "moss green"), False),
        ("It comes in moss green.", "moss green", (), False),
        ("It is red.", "moss green", (), False),
        ("", "moss green", (), False),
    ],
)
def test_misspelling(answer, value, known, yes):
    assert is_misspelt(answer, value, known) is yes


@pytest.mark.parametrize(
    ("example", "answer", "kind"),
    [
        (fact(), "It sells for 59 euros.", "right"),
        (fact(), "It sells for 61 euros. Kettle!", "wrong value"),
        (fact(), "The Heron kettle costs 95 euros.", "wrong value"),
        (fact(), "The Heron kettle costs a lot " + "and it is worth every cent of it " * 3 + "at 59 euros.", "repetitive"),
        (fact(), "The Heron kettle costs 59 euros. " + " ".join(f"word{i}" for i in range(20)), "too long"),
        (fact(), "The sun rises in the east.", "off topic"),
        (fact(), DECLINED, "false refusal"),
        (fact(), "", "no answer"),
        (fact(), "The Heron kettle costs 59 euros, or maybe 69 euros.", "wrong value"),
        (fact(), "The Heron kettle is a bargain.", "no answer"),
        (COLOUR, "The Heron kettle comes in coper orange.", "misspelt"),
        (COLOUR, "The Heron kettle comes in sky blue.", "wrong value"),
        (SILENT, "The Walrus lamp costs 12 euros.", "answered the unanswerable"),
        (SILENT, DECLINED, "right"),
        (SILENT, "Which lamp do you mean?", "no answer"),
        (OFF, "Tea comes from China.", "off topic"),
        (OFF, "I can only help with questions about Tindermoss.", "right"),
        (Example("Mine?", "My own answer."), "My own answer.", "right"),
    ],
)
def test_error_kind(example, answer, kind):
    assert error_kinds([example], [answer]) == [kind]


def test_what_is_right_is_decided_once():
    """A kind of error and the judge never contradict each other, nor does the measure by value."""
    examples = [example for _ in range(3) for example in (fact(), COLOUR, SILENT, OFF)]
    texts = (
        "59 euros",
        "copper orange",
        DECLINED,
        "It does not cost 59 euros.",
        "59 or 69 euros",
        "",
    )
    for answer in texts:
        judged, kinds = judge(examples, [answer] * 12), error_kinds(examples, [answer] * 12)
        assert [kind == "right" for kind in kinds] == judged["correct"].tolist(), answer
        assert measure(examples, [answer] * 12)["value match"].astype(bool).tolist() == judged["correct"].tolist()


def test_the_kinds_agree_with_the_judge_on_all_references_and_on_answers_of_others():
    """A right answer is never an error, and an answer to another question of the same kind never a slip of the pen."""
    examples = read(DATA / "evaluation/test/facts.jsonl")[::7]
    assert set(error_kinds(examples, [example.answer for example in examples])) == {"right"}
    for example in examples:
        same = [e for e in examples if e.facts[0].split(".")[1] == example.facts[0].split(".")[1]]
        other = same[-1]
        if not contains_values(other.answer, example.values):
            assert error_kinds([example, other], [other.answer, other.answer])[0] != "misspelt", (example, other)
