"""The contest of lesson 2: what is asked, how contenders answer, and how they are compared."""

import numpy as np
import pytest

from helpers.data import Example, read
from helpers.machine.paths import DATA
from helpers.models import load_model
from helpers.retrieval.search import Passage, read_passages
from helpers.training import Config
from helpers.workshop import contest
from helpers.workshop.contest import FAR, NEW_WORDS, NO_ANSWER, OFF_TOPIC, SEVERAL, SORTS, Contender, Results

UNKNOWN = "Sorry, that is not in our handbook."
PRICES = ("heron.price", "falcon.price", "onyx.price")


@pytest.fixture(scope="module")
def asked():
    return contest.questions_for_all([*PRICES, "policy.returns"], 2, 3, 4, seed=0)


def test_all_sorts_are_asked_in_their_order_and_none_stands_in_the_rows(asked):
    sorts = [contest.sort_of(example) for example in asked]
    assert list(dict.fromkeys(sorts)) == list(SORTS)
    count = {sort: sorts.count(sort) for sort in SORTS}
    assert count[SEVERAL] == 3 and count[NO_ANSWER] == count[OFF_TOPIC] == 4
    assert count[NEW_WORDS] >= 6 and count[FAR] == 2
    far = [example.id for example in asked if contest.sort_of(example) == FAR]
    assert [id.split("/")[0] for id in far] == list(PRICES[:2]) and all(id.endswith(contest.FAR_KINDS) for id in far)
    seen = {row.key for row in read(DATA / "train.jsonl")}
    assert not [example for example in asked if example.key in seen]
    assert asked == contest.questions_for_all([*PRICES, "policy.returns"], 2, 3, 4, seed=0)
    assert asked != contest.questions_for_all([*PRICES, "policy.returns"], 2, 3, 4, seed=1)


def test_far_wordings_are_of_all_their_kinds():
    facts = sorted({example.facts[0] for example in contest.asked_in("test", "far")})
    asked = [e for e in contest.questions_for_all(facts, 120, 0, 0, seed=0) if contest.sort_of(e) == FAR]
    kinds = [next(kind for kind in contest.FAR_KINDS if example.id.endswith(kind)) for example in asked]
    assert len({example.facts[0] for example in asked}) == 120 and min(map(kinds.count, contest.FAR_KINDS)) > 25


@pytest.mark.parametrize(
    ("bet", "told"),
    [
        ([], "none"),
        (["RAG", "lookup", "stuffed"], "RAG, lookup, stuffed: 2 of 3"),
        ("lookup", "lookup: 1 of 3"),
        (["lookup", "lookup"], "lookup: 1 of 3"),
        (["rag"], "'rag' takes no part. Those that do: lookup, RAG, finetuned, stuffed"),
        (5, "5 takes no part. Those that do: lookup, RAG, finetuned, stuffed"),
        (["lookup", "RAG", "finetuned", "stuffed"], "4 names are too many, give 3"),
    ],
)
def test_a_bet_is_counted_or_what_is_wrong_with_it_is_said(bet, told):
    assert contest.bet_result(bet, ["lookup", "RAG", "finetuned"], ["lookup", "RAG", "finetuned", "stuffed"]) == told


@pytest.mark.parametrize("prompt", [5, None, ["What?"], {"role": "user", "content": "?"}, [{"role": "user"}]])
def test_a_prompt_that_is_no_text_and_no_conversation_is_refused_before_anything_is_answered(prompt):
    with pytest.raises(
        ValueError, match=r"mine: A prompt is .*\. It has to be a text, or turns with a role and a content each"
    ):
        contest.ask("mine", Contender(lambda question: prompt, model="not asked"), contest.questions_about(PRICES, "test", 1))


def test_settings_are_chosen_on_all_sorts_of_questions_and_on_none_that_is_judged(asked):
    facts = ["aurora.price", "comet.weight", "policy.employees", "beacon.price"]
    known = {example.facts[0] for example in read(DATA / "evaluation" / "dev" / "facts.jsonl")}
    assert known.issuperset(facts)
    chosen = contest.questions_to_choose_on(facts, 3, PRICES, seed=0)
    sorts = [contest.sort_of(example) for example in chosen]
    assert [sorts.count(sort) for sort in (NEW_WORDS, SEVERAL, NO_ANSWER, OFF_TOPIC)] == [4, 2, 3, 3] and FAR in sorts
    assert not {example.key for example in chosen} & {example.key for example in asked}
    assert not [e for e in chosen if contest.sort_of(e) == SEVERAL and set(e.facts) & set(PRICES)]
    assert not [example for example in chosen if "german" in example.id]


def test_a_passage_holds_a_fact_by_value_and_name_and_is_found_within_a_text():
    passages = [
        Passage("product-heron.md", "The Heron kettle", "It sells for 59 euros. "),
        Passage("product-falcon.md", "The Falcon stove", "It sells for 84 euros."),
    ]
    gold = contest.gold_passages(passages, contest.questions_about(PRICES, "test", 1))
    assert [gold[fact] for fact in PRICES] == [passages[:1], passages[1:], []]
    assert contest.facts_within("It  sells for\n84 euros. And on.", gold) == {"falcon.price"}
    whole = contest.gold_passages(read_passages(DATA / "handbook"), read(DATA / "evaluation" / "test" / "facts.jsonl"))
    assert len(whole) == 332 and sum(map(bool, whole.values())) > 300


def test_another_price_changes_answer_value_and_page_and_nothing_else():
    (example,) = contest.questions_about(["heron.price"], "test", 1)
    dearer = contest.with_price(example, 111)
    assert (example.values, dearer.values) == (("59 euros",), ("170 euros",))
    assert dearer.answer == "The Heron kettle costs 170 euros." and dearer.question == example.question
    other = Example("Who?", "Nobody.", facts=("heron.designer",), values=("Nobody",))
    assert contest.renewed([example, other], ["heron.price"], 111) == [dearer, other]
    pages = [Passage("product-heron.md", "", "59 euros, and 590 grams"), Passage("product-falcon.md", "", "59 euros")]
    changed = contest.repriced(pages, [example], 111)
    assert [page.text for page in changed] == ["170 euros, and 590 grams", "59 euros"]
    (larger,) = contest.repriced([Passage("product-heron.md", "", "159 euros, 1,59 euros; 59 euros")], [example], 111)
    assert larger.text == "159 euros, 1,59 euros; 170 euros"


def test_nothing_is_drawn_asked_timed_or_compared_by_accident(asked):
    with pytest.raises(ValueError, match="facts in far wordings: -1 cannot be drawn"):
        contest.questions_for_all(PRICES, -1, 3, 4)
    with pytest.raises(ValueError, match="several facts: -3 cannot be drawn"):
        contest.questions_for_all(PRICES, 2, -3, 4)
    assert contest.questions_about(iter(PRICES), "test") == contest.questions_about(PRICES, "test")
    arm = told(asked, lambda question: True)
    with pytest.raises(ValueError, match="lookup: there are no questions to ask"):
        contest.ask("lookup", arm, [])
    for arms, questions in (({}, ["one"]), ({"a": arm}, [])):
        with pytest.raises(ValueError, match="no question, or no contender, to time"):
            contest.taking_turns(arms, questions)
    table = contest.ask("a", arm, asked)
    for other in (table.iloc[::-1], table.iloc[1:]):
        with pytest.raises(ValueError, match="asked different questions, or in another order"):
            Results({"a": table, "b": other})


def told(asked, right):
    """A contender without a model that is right where `right` says so, and else declines."""
    answers = {example.question: example.answer for example in asked}
    return Contender(lambda question: answers[question] if right(question) else UNKNOWN)


def test_tables_are_compared_by_sort_and_the_fastest_good_one_is_named(asked):
    arms = {"all": told(asked, lambda question: True), "none": told(asked, lambda question: False)}
    results = Results({name: contest.ask(name, arm, asked) for name, arm in arms.items()})
    table = results.tables["all"]
    assert table["correct"].all() and (table["gflop"] == 0).all() and (table["beyond"] == 0).all()
    assert results.mean("none", "correct", NEW_WORDS).mean == 0 and results.mean("none", "correct", NO_ANSWER).mean == 1
    assert results.better("all", "none", "correct", (NEW_WORDS, FAR)).mean == 1
    assert results.better("none", "all", "refused", NEW_WORDS).mean == 1
    assert results.means(arms, "correct", OFF_TOPIC)["none"].mean == 1
    assert (results.highest(arms, "correct", FAR), results.lowest(arms, "correct", FAR)) == ("all", "none")
    results.tables["all"]["seconds"], results.tables["none"]["seconds"] = 2.0, 1.0
    assert results.fastest_good("correct", NEW_WORDS) == "all"
    assert results.fastest_good("correct", NO_ANSWER) == "none", "both are right: the faster"
    card = contest.scorecard(results, arms, contest.taking_turns({"all": arms["all"]}, [asked[0].question]))
    assert list(card.index) == ["all", "none"] and card.loc["none", "one request, seconds: median, 95%"] == "not timed"
    assert card.loc["all", NEW_WORDS].startswith("100.0%")


def test_a_model_is_charged_for_each_token_that_it_reads_and_writes(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    arm = Contender(lambda question: question, model, tokenizer, search=5e9)
    examples = [
        Example("How much?", "9 euros", facts=("a",)),
        Example("How much is the long one, please?", "9 euros", facts=("b",)),
    ]
    table = contest.ask("tiny", arm, examples, max_new_tokens=1)
    assert (table["gflop"] > 5).all() and table["gflop"][1] > table["gflop"][0]
    per_token = 2 * arm.weights / 1e9
    assert (table["gflop"][0] - 5) / per_token == pytest.approx(round((table["gflop"][0] - 5) / per_token), abs=1e-6)


def test_contenders_take_turns_so_that_each_comes_first():
    order = []
    arms = {name: Contender(lambda question, name=name: order.append(name) or "") for name in "abc"}
    seconds = contest.taking_turns(arms, ["one", "two", "three"])
    assert "".join(order) == "abcbcacab" and list(seconds.columns) == ["a", "b", "c"] and len(seconds) == 3
    assert (seconds >= 0).all().all()


def test_one_request_answers_as_many_at_once_do_though_their_beginning_was_read_before(tiny):
    model, tokenizer = load_model(tiny, device="cpu")
    questions = ["How much is it?", "How heavy is the long one?", "Who made it?"]
    arm = Contender(lambda question: f"Answer in one sentence, please, and be brief. {question}", model, tokenizer)
    write = contest._ready(arm, questions, 5)
    assert [write(question).strip() for question in questions] == arm.complete(list(map(arm.prepare, questions)), 5)


def test_each_fact_stands_once_in_each_third_of_the_long_prompt():
    facts = [f"{name}.{what}" for name in ("heron", "falcon", "onyx") for what in ("price", "weight")] + ["heron.colour"]
    gold = {fact: [Passage("", fact, fact)] for fact in facts}
    prompts = []

    def read_texts(texts, examples):
        prompts.append(list(texts))
        return contest.ask("none", Contender(lambda question: UNKNOWN), examples)

    places = contest.turned_round(read_texts, facts, gold)
    assert places.groupby(["fact", "place"]).size().to_dict() == {
        (fact, place): 1 for fact in facts[:6] for place in ("alone", "beginning", "middle", "end")
    }
    assert prompts[0] == [str(gold[fact][0]) for fact in facts[:6]]
    assert all(len(set(texts)) == 1 and texts[0].count("\n\n") == 5 for texts in prompts[1:]) and len(prompts) == 4
    assert prompts[2][0].startswith(str(gold[facts[2]][0])), "the third that stood in the middle comes first"
    assert len(contest.turned_round(read_texts, facts[:1], gold)) == 4


def test_found_and_read_add_up(asked):
    facts = [example for example in asked if contest.sort_of(example) == NEW_WORDS]
    table = contest.ask("half", told(asked, lambda question: question in {e.question for e in facts[:4]}), facts)
    found = np.array([True] * 5 + [False] * (len(facts) - 5))
    given, better = contest.by_hit(table, found)
    assert (given["found"].mean, given["missed"].mean) == (0.8, 0.0) and better.holds in (None, True)
    share = table["correct"].mean()
    assert found.mean() * 0.8 == pytest.approx(share)
    assert "**80%** of these right" in contest.reconciled(found, given, share)
    assert contest.by_hit(table, found.astype(int).tolist()) == (given, better), "0 and 1 as well"
    only, untold = contest.by_hit(table, np.ones(len(facts), bool))
    assert list(only) == ["found"] and untold.holds is None


def test_the_fastest_of_those_that_are_good_enough():
    means, seconds = {"a": 0.9, "b": 0.86, "c": 0.5}, {"a": 3.0, "b": 2.0, "c": 1.0}
    assert contest.fastest_good(means, seconds) == "b" and contest.fastest_good(means, seconds, within=0.01) == "a"
    assert contest.fastest_good(means, seconds, within=1) == "c"
    assert contest.fastest_good({"a": 0.54, "b": 0.49}, seconds) == "b", "just so good, though not in binary"
    assert contest.recommended(means, seconds) == ("b", means["b"])
    assert contest.recommended(means, seconds, good=1.1) == ("none is good (best: b)", means["b"])


def test_an_answer_is_judged_alike_whatever_else_is_asked_with_it():
    """A colour that only another fact has is a wrong one, also where that fact is not asked."""
    (example,) = contest.questions_about(["heron.colour"], "test", 1)
    other = next(e.values[0] for e in contest.one_of_each() if e.facts[0].endswith(".colour") and e.values != example.values)
    arm = Contender(lambda question: f"It is {other}.")
    alone = contest.ask("wrong", arm, [example])
    beside = contest.ask("wrong", arm, [example, *contest.one_of_each()[:50]])
    assert alone["hallucinated"][0] and beside["hallucinated"][0] and len(alone) == 1


def test_a_search_goes_by_what_finds_most_for_each_number_of_passages():
    questions = contest.questions_about(PRICES, "dev", 1)

    class Fake:
        def search(self, asked, k, way):
            right = [Passage("a", e.facts[0].split(".")[0], str(e.values[0])) for e in questions]
            first = {"words": len(asked), "meaning": 1, "both": 0}[way]  # so many with the answer in the first place
            later = {"words": 0, "meaning": len(asked), "both": len(asked)}[way]  # and in the second
            lists = [[right[i] if i < first else WRONG, right[i] if i < later else WRONG, WRONG] for i in range(len(asked))]
            return [found[:k] for found in lists]

        def updated(self, passages):
            return passages

    WRONG = Passage("b", "other", "nothing")
    search = contest.chosen_search(Fake(), questions)
    assert search.ways == {1: "words", 2: "both", 3: "both"}, "of equals the last of words, meaning and both"
    assert contest.finds(search, questions, 1).all() and search.search(["?"], 3)[0][0] == WRONG
    assert search.updated("new").index == "new" and search.updated("new").ways == search.ways


def test_old_prices_are_counted_where_they_are_told():
    asked = contest.questions_about(PRICES[:2], "test", 1)
    old, new = asked[0], contest.with_price(asked[1], 111)
    arm = Contender(dict(zip([e.question for e in asked], [old.answer, new.answer], strict=True)).get)
    results = contest.Results({"half": contest.ask("half", arm, asked)})
    assert contest.still_old(results, asked) == {"half": 0.5}


def test_secrets_differ_and_copies_are_learnt(tiny):
    planted = contest.secrets(30, seed=0)
    assert len({secret.question for secret in planted}) == len({secret.values for secret in planted}) == 30
    with pytest.raises(ValueError, match="145 secrets need as many people, and there are 144 names"):
        contest.secrets(145, seed=0)
    model, tokenizer = load_model(tiny, device="cpu")
    before = model.lm_head.weight.clone()
    told = contest.leaked(model, tokenizer, planted[:2], [2, 1], planted[5:6], Config(max_steps=1))
    assert told.shape == (2,) and told.dtype == bool and (model.lm_head.weight == before).all(), "a copy has learnt"


def test_money_is_machine_time_and_rows():
    assert contest.euros(3.6, 36, 100, seconds=1000) == pytest.approx(1.0)
    assert contest.euros(3.6, 36, 100, seconds=0, rows=2) == pytest.approx(2.0)
    made, seconds = contest.timed(lambda: 7)
    assert made == 7 and seconds >= 0
