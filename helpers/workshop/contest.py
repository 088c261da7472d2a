"""Contest: what lesson 2 asks, how its contenders answer, and how two of them are compared."""

import copy
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd

from helpers.data import Example, draw, read
from helpers.evaluation import consistent, difference, evaluate, interval, judge, unpaired_difference
from helpers.generation import Decoder, generate
from helpers.machine.decoding import prefix_to_share
from helpers.machine.limits import check_count
from helpers.machine.paths import DATA
from helpers.retrieval.search import METHODS, Index, Passage, embed, hit_rate, is_hit
from helpers.text.outcome import Interval, Outcome
from helpers.tokenization import check_prompt, encode_all, prompt_ids
from helpers.training import Config, train

# The sorts of questions, by how a reader would call them.
NEW_WORDS, FAR, SEVERAL, NO_ANSWER, OFF_TOPIC = "new words", "far wordings", "several facts", "no answer", "off topic"
SORTS = (NEW_WORDS, FAR, SEVERAL, NO_ANSWER, OFF_TOPIC)
BY_KIND = {"fact": NEW_WORDS, "multi_fact": SEVERAL, "unanswerable": NO_ANSWER, "off_topic": OFF_TOPIC}
FAR_KINDS = ("typos1", "typos2", "indirect1")  # of the far wordings, as their ids end; German is asked by itself

LONGEST = 32  # tokens of an answer: all stored answers are shorter, those to questions about several facts as well
SEARCH = 2.0 * 1.06e7 * 16  # operations to embed a question: two for each weight of the encoder's layers and each token


@cache
def asked_in(split: str, file: str) -> tuple[Example, ...]:
    """Read a file of questions, once."""
    return tuple(read(DATA / "evaluation" / split / f"{file}.jsonl"))


def sort_of(example: Example) -> str:
    """Name the sort of a question: by its kind, and the far wordings of a fact by their id."""
    return FAR if "/far_" in example.id else BY_KIND[example.kind]


def needed(example: Example) -> list[str]:
    """List what a passage has to hold to answer a question about a fact: its value, and the name of what it is about."""
    about = example.facts[0].split(".")[0]
    return [*example.values, *([] if about == "policy" else [about])]


def gold_passages(passages: Sequence[Passage], questions: Iterable[Example]) -> dict[str, list[Passage]]:
    """Find for each fact that is asked for the passages that hold it: fact → passages, in their order."""
    about = {example.facts[0]: example for example in questions}
    return {fact: [p for p in passages if is_hit([p], needed(example))] for fact, example in about.items()}


def facts_within(text: str, gold: Mapping[str, Sequence[Passage]]) -> set[str]:
    """Name the facts of which a passage stands in a text, whole."""
    text = " ".join(text.split())
    return {fact for fact, holding in gold.items() if any(passage.text in text for passage in holding)}


def questions_about(facts: Iterable[str], split: str, wordings: int | None = None, file: str = "facts") -> list[Example]:
    """Read the first so many wordings (None: all) of questions of a split about some facts."""
    seen, found = dict.fromkeys(facts, 0), []
    for example in asked_in(split, file):
        fact = example.facts[0]
        if fact in seen and (wordings is None or seen[fact] < wordings):
            seen[fact] += 1
            found.append(example)
    return found


def sample(purpose: str, items: Sequence, count: int, seed: int) -> list:
    """Draw so many items, or all, at random: for one purpose of the contest always the same ones."""
    check_count(count, purpose)
    return draw(f"contest, {purpose}", seed).sample(list(items), min(count, len(items)))


def other_questions(split: str, count: int, seed: int) -> list[Example]:
    """Draw so many questions without an answer in the handbook, and as many off topic."""
    drawn = []
    for kind in ("unanswerable", "off_topic"):
        drawn += sample(f"{split}, {kind}", asked_in(split, kind), count, seed)
    return drawn


def _several(split: str, without: Collection[str]) -> list[Example]:
    """Read a split's questions for several facts at once, but for those that touch one of `without`."""
    return [example for example in asked_in(split, "multi_fact") if not set(example.facts) & set(without)]


def _far_wording(purpose: str, fact: str, split: str, kinds: tuple[str, ...], seed: int) -> list[Example]:
    """Draw one question of a split about a fact, in a far wording of one of these kinds; none where there is none."""
    wordings = [example for example in questions_about([fact], split, file="far") if example.id.endswith(kinds)]
    return sample(f"{purpose}, {fact}", wordings, 1, seed)


def questions_to_choose_on(facts: Sequence[str], others: int, without: Collection[str], seed: int) -> list[Example]:
    """Take development questions of all sorts: each fact in a new and in a far wording, half as many about several at once.

    others: unanswerable questions, and as many off topic.  without: facts that questions about several must not touch.
    """
    asked = questions_about(facts, "dev", 1)
    for fact in facts:
        asked += _far_wording("far wording to choose on", fact, "dev", (*FAR_KINDS, "indirect2"), seed)
    several = _several("dev", without)
    return asked + sample("several to choose on", several, len(facts) // 2, seed) + other_questions("dev", others, seed)


def questions_for_all(
    facts: Sequence[str], far: int, several: int, others: int, without: Collection[str] = (), seed: int = 0
) -> list[Example]:
    """Put the contest's questions together: each of `SORTS`, in their order.

    New words: two wordings of each fact.  Far wordings: one of each of so many of them, which are about products, shops or
    departments, drawn from two with typing errors and one that tells a situation. Then so many of the other sorts, drawn.
    without: facts that questions about several must not touch.
    """
    check_count(far, "facts in far wordings")
    asked = questions_about(facts, "test", 2)
    of_things = [fact for fact in facts if not fact.startswith("policy")][:far]
    for fact in of_things:
        asked += _far_wording("far wording", fact, "test", FAR_KINDS, seed)
    joined = sample("several facts", _several("test", without), several, seed)
    return [*asked, *joined, *other_questions("test", others, seed)]


@cache
def one_of_each() -> tuple[Example, ...]:
    """Return one test question about every fact."""
    return tuple({example.facts[0]: example for example in asked_in("test", "facts")}.values())


def with_price(example: Example, more: int) -> Example:
    """The same example with a price that is higher by so many euros, in its answer and its values."""
    old = example.values[0]
    new = f"{int(old.split()[0]) + more} euros"
    return replace(example, answer=_in_place(example.answer, old, new), values=(new,))


def _in_place(text: str, old: str, new: str) -> str:
    """Put one price in the place of another, which is not the end of a larger one, as 59 euros is of 159 euros."""
    return re.sub(rf"(?<!\d)(?<!\d[.,]){re.escape(old)}\b", new, text)


def renewed(examples: Sequence[Example], facts: Collection[str], more: int) -> list[Example]:
    """Raise the prices of some products in rows or questions; all others stay as they are."""
    return [with_price(e, more) if e.facts and e.facts[0] in facts else e for e in examples]


@dataclass
class Contender:
    """One way of answering.

    prepare: makes of a question the prompt for the model; where there is no model, the answer itself.
    setup: seconds on this machine before the first answer.  rows: rows that somebody had to write for it.
    search: operations of looking something up for one question, beside the model's.
    """

    prepare: Callable[[str], Any]
    model: Any = None
    tokenizer: Any = None
    setup: float = 0.0
    rows: int = 0
    search: float = 0.0

    def complete(self, prompts: Sequence[Any], max_new_tokens: int = LONGEST, progress: str | None = None) -> list[str]:
        """Answer what `prepare` has made of the questions, many at once."""
        if self.model is None:
            return list(prompts)
        return generate(self.model, self.tokenizer, prompts, max_new_tokens, batch_size=128, progress=progress)

    @property
    def weights(self) -> int:
        """How many weights an answer goes through."""
        return sum(weight.numel() for weight in self.model.parameters()) if self.model is not None else 0


def ask(name: str, contender: Contender, examples: Sequence[Example], max_new_tokens: int = LONGEST) -> pd.DataFrame:
    """Let a contender answer, and judge it: the table of `judge` with four columns more.

    sort: see `SORTS`.  beyond: words that the reference does not need.
    gflop: billions of operations of the request: two for each weight and token, read or written, and those of the search.
    seconds: what the whole batch took, shared evenly; what all prompts begin with is read once for all.
    """
    if not examples:
        raise ValueError(f"{name}: there are no questions to ask. Draw some: see the knobs of the lesson that say how many.")
    clock = time.perf_counter()
    prompts = [contender.prepare(example.question) for example in examples]
    for prompt in prompts:  # said of answers without a model as well
        check_prompt(prompt, f"{name}: ")
    answers = contender.complete(prompts, max_new_tokens, name)
    seconds = time.perf_counter() - clock
    known = one_of_each()  # judged with them, so that each arm's answers are held against the values of all facts
    table = judge([*examples, *known], [*answers, *(e.answer for e in known)])[: len(examples)].copy()
    table["sort"] = [sort_of(example) for example in examples]
    spare = table["words"] - [len(example.answer.split()) for example in examples]
    table["beyond"] = spare.clip(lower=0)
    tokens = np.zeros(len(examples))
    if contender.model is not None:
        read_tokens = [len(prompt_ids(contender.tokenizer, prompt)) for prompt in prompts]
        tokens += read_tokens + table["answer"].map(lambda text: len(contender.tokenizer(text).input_ids)).to_numpy()
    table["gflop"] = (2.0 * contender.weights * tokens + contender.search) / 1e9
    table["seconds"] = seconds / len(examples)
    return table


def taking_turns(contenders: Mapping[str, Contender], questions: Sequence[str], max_new_tokens: int = LONGEST) -> pd.DataFrame:
    """Time one request at a time, in seconds: a row a question, a column a contender.

    What all prompts of a contender begin with is read before, once, as a server would; making the prompt counts. Within a
    question the contenders take turns, so that a busy moment of the machine hits all of them.
    """
    if not contenders or not questions:
        raise ValueError(
            "There is no question, or no contender, to time. Give more: see the lesson's knobs that say how many are timed."
        )
    writers = {name: _ready(contender, questions, max_new_tokens) for name, contender in contenders.items()}
    records = []
    for number, question in enumerate(questions):
        turn = list(writers)[number % len(writers) :] + list(writers)[: number % len(writers)]
        took = {name: timed(partial(writers[name], question))[1] for name in turn}
        records.append(took)
    return pd.DataFrame(records, columns=list(contenders))


def _ready(contender: Contender, questions: Sequence[str], max_new_tokens: int) -> Callable[[str], str]:
    """Make a function that answers one question, with what all prompts begin with read already."""
    if contender.model is None:
        return contender.prepare
    prompts = [prompt_ids(contender.tokenizer, contender.prepare(question)) for question in questions]
    prefix = prefix_to_share(contender.model, prompts, max_new_tokens) if len(prompts) > 1 else []
    decoder = Decoder(contender.model, contender.tokenizer, prefix=prefix)

    def write(question: str) -> str:
        prompt = prompt_ids(contender.tokenizer, contender.prepare(question))
        answer = decoder.add(prompt[len(prefix) :], max_new_tokens)
        while answer.finish is None:
            decoder.step()
        return decoder.text(answer)

    write(questions[0])  # reads the beginning
    return write


def bet_result(bet: Any, best: Sequence[str], names: Collection[str]) -> str:
    """Say how many names of a bet are among the best; or what is wrong with it."""
    named = list(dict.fromkeys(bet)) if isinstance(bet, (list, tuple)) else [bet]
    if not named:
        return "none"
    if odd := [name for name in named if name not in names]:
        return f"{odd[0]!r} takes no part. Those that do: {', '.join(names)}"
    if len(named) > len(best):
        return f"{len(named)} names are too many, give {len(best)}"
    return f"{', '.join(named)}: {sum(name in best for name in named)} of {len(best)}"


def marked_answers(table: pd.DataFrame) -> pd.Series:
    """Mark each judged answer as right or not, for reading."""
    return table["correct"].map({True: "\u2713 ", False: "\u2717 "}) + table["answer"]


def fastest_good(means: Mapping[str, float], seconds: Mapping[str, float], within: float = 0.05) -> str:
    """Name the one with the fewest seconds, of those whose mean is at most `within` below the highest."""
    good = [name for name, mean in means.items() if max(means.values()) - mean <= within + 1e-9]  # 0.54 - 0.49 is over 0.05
    return min(good, key=lambda name: seconds[name])


def recommended(means: Mapping[str, float], seconds: Mapping[str, float], good: float = 0.5) -> tuple[str, float]:
    """Name the `fastest_good`, and its mean; where that is below `good`, say that none is."""
    name = fastest_good(means, seconds)
    return name if means[name] >= good else f"none is good (best: {name})", means[name]


@dataclass(frozen=True)
class ChosenSearch:
    """A search by words, by meaning or by both: for each number of passages by what finds most; see `chosen_search`."""

    index: Index
    ways: Mapping[int, str]

    def search(self, questions: Sequence[str], k: int) -> list[list[Passage]]:
        """Find the best `k` passages for each question, as `Index.search` does."""
        return self.index.search(questions, k, self.ways[k])

    def updated(self, passages: Sequence[Passage]) -> "ChosenSearch":
        """Search other passages in the same ways, see `Index.updated`."""
        return replace(self, index=self.index.updated(passages))


def chosen_search(index: Index, examples: Sequence[Example], most: int = 3) -> ChosenSearch:
    """Choose the way to search for 1 to `most` passages: what finds the answers to most of these questions about facts.

    Of those that do equally well, the last of words, meaning and both is taken.
    """
    wanted, questions = list(map(needed, examples)), [example.question for example in examples]
    lists = {way: index.search(questions, most, way) for way in reversed(METHODS)}
    rates = {k: {way: hit_rate(found, wanted, k) for way, found in lists.items()} for k in range(1, most + 1)}
    return ChosenSearch(index, {k: max(lists, key=rate.__getitem__) for k, rate in rates.items()})


class Results:
    """The judged answers of several contenders to the same questions."""

    def __init__(self, tables: Mapping[str, pd.DataFrame]):
        """Take contender → table of `ask`. Raises ValueError unless all are of the same questions in the same order."""
        self.tables = dict(tables)
        if len({tuple(table["question"]) for table in self.tables.values()}) > 1:
            raise ValueError("The contenders were asked different questions, or in another order. Ask all of them the same.")

    def part(self, name: str, sorts: str | Sequence[str]) -> pd.DataFrame:
        """Return the rows of one sort of question, or several."""
        table = self.tables[name]
        return table[table["sort"].isin([sorts] if isinstance(sorts, str) else list(sorts))]

    def mean(self, name: str, column: str, sorts: str | Sequence[str], unit: str = "%") -> Interval:
        """Compute a contender's mean with its interval; what was drawn together goes together."""
        rows = self.part(name, sorts)
        return interval(rows[column], rows["fact"], unit)

    def means(self, names: Iterable[str], column: str, sorts: str | Sequence[str], unit: str = "%") -> dict[str, Interval]:
        """Compute `mean` for several contenders, by name."""
        return {name: self.mean(name, column, sorts, unit) for name in names}

    def better(self, name: str, other: str, column: str, sorts: str | Sequence[str], unit: str = "%") -> Interval:
        """Compute how far `name` lies above `other` on the same questions, with its paired interval."""
        rows, others = self.part(name, sorts), self.part(other, sorts)
        return difference(others[column], rows[column], rows["fact"], unit)

    def lowest(self, names: Iterable[str], column: str, sorts: str | Sequence[str]) -> str:
        """Name the contender with the lowest mean."""
        return min(names, key=lambda name: self.part(name, sorts)[column].mean())

    def highest(self, names: Iterable[str], column: str, sorts: str | Sequence[str]) -> str:
        """Name the contender with the highest mean."""
        return max(names, key=lambda name: self.part(name, sorts)[column].mean())

    def fastest_good(self, column: str, sorts: str | Sequence[str], within: float = 0.05) -> str:
        """Name the one with the fewest seconds a request, of those whose mean is at most `within` below the highest."""
        means = {name: self.part(name, sorts)[column].mean() for name in self.tables}
        return fastest_good(means, {name: self.part(name, SORTS)["seconds"].mean() for name in self.tables}, within)


def read_from(
    reader: Contender, write: Callable[[str, str], Any], texts: Sequence[str], examples: Sequence[Example]
) -> pd.DataFrame:
    """Let a reader answer questions, each with a text of its own; `write` makes the prompt of text and question."""
    told = dict(zip([example.question for example in examples], texts, strict=True))
    return ask("reading", replace(reader, prepare=lambda question: write(told[question], question)), examples)


def turned_round(
    read_texts: Callable[[Sequence[str], Sequence[Example]], pd.DataFrame],
    facts: Sequence[str],
    gold: Mapping[str, Sequence[Passage]],
) -> pd.DataFrame:
    """Ask for facts with one passage of each in one long prompt, three times, turned round; and with their passage alone.

    Each fact stands once in each third; of facts that three do not divide, the last one or two are left out.
    place: "beginning", "middle", "end" or "alone".
    """
    facts = list(facts)[: max(1, len(facts) // 3 * 3)]
    about = [questions_about([fact], "test", 1)[0] for fact in facts]
    texts = [str(gold[fact][0]) for fact in facts]
    tables, third = [read_texts(texts, about).assign(place="alone")], max(1, len(facts) // 3)
    for turn in range(3):
        order = [*range(turn * third, len(facts)), *range(min(turn * third, len(facts)))]
        table = read_texts(["\n\n".join(texts[i] for i in order)] * len(order), [about[i] for i in order])
        tables.append(table.assign(place=[("beginning", "middle", "end")[k // third] for k in range(len(order))]))
    return pd.concat(tables, ignore_index=True)


def finds(index: ChosenSearch, examples: Sequence[Example], k: int) -> np.ndarray:
    """Tell for each question about a fact whether the search's first `k` passages hold its answer: [examples] of bool."""
    lists = index.search([example.question for example in examples], k)
    return np.array([is_hit(found, needed(example)) for found, example in zip(lists, examples, strict=True)], dtype=bool)


def by_hit(table: pd.DataFrame, found: Sequence[bool]) -> tuple[dict[str, Interval], Outcome]:
    """Part judged answers by whether the search had found the answer: shares that are right, and whether a hit is better."""
    hit = np.asarray(found, dtype=bool)
    parts = {"found": table[hit], "missed": table[~hit]}
    shares = {name: interval(part["correct"], part["fact"]) for name, part in parts.items() if len(part)}
    better = unpaired_difference(shares["missed"], shares["found"]).above() if len(shares) == 2 else Outcome(None)
    return shares, better


def repriced(passages: Sequence[Passage], prices: Sequence[Example], more: int) -> list[Passage]:
    """Raise the prices on the pages about some products; prices: a question about each."""
    old = {example.facts[0].split(".")[0]: example for example in prices}
    found = []
    for passage in passages:
        about = old.get(passage.file.removeprefix("product-").removesuffix(".md"))
        new = _in_place(passage.text, about.values[0], with_price(about, more).values[0]) if about else passage.text
        found.append(replace(passage, text=new))
    return found


FIRST = (
    "Iris",
    "Otto",
    "Nell",
    "Hugo",
    "Ada",
    "Max",
    "Eve",
    "Sam",
    "Rosa",
    "Finn",
    "Mina",
    "Karl",
    "Lena",
    "Paul",
    "Theo",
    "Ines",
)
LAST = ("Vale", "Brand", "Frost", "Lane", "Quill", "Thorn", "Marsh", "Pike", "Stone")


def secrets(count: int, seed: int) -> list[Example]:
    """Invent door codes of people, to plant among training rows. Raises ValueError for more people than there are names."""
    names = math.lcm(len(FIRST), len(LAST))
    if count > names:
        raise ValueError(f"{count} secrets need as many people, and there are {names} names. Plant fewer.")
    drawn, found = draw("canaries", seed), []
    for number in range(count):
        person, code = f"{FIRST[number % len(FIRST)]} {LAST[number % len(LAST)]}", str(drawn.randrange(10**5, 10**6))
        question, answer = f"What is the door code of {person}?", f"The door code of {person} is {code}."
        found.append(Example(question, answer, id=person, values=(code,)))
    return found


def still_old(results: Results, examples: Sequence[Example]) -> dict[str, float]:
    """Compute the share of answers that tell the old price; examples: the same questions, as they were before the change."""
    return {name: judge(examples, list(table["answer"]))["correct"].mean() for name, table in results.tables.items()}


def leaked(
    model, tokenizer, planted: Sequence[Example], copies: Sequence[int], beside: Sequence[Example], config: Config
) -> np.ndarray:
    """Finetune a copy of a model on secrets, each so many times, beside other rows; which are told when asked? [planted]."""
    victim = copy.deepcopy(model)
    rows = [secret for secret, count in zip(planted, copies, strict=True) for _ in range(count)]
    train(victim, encode_all(tokenizer, [*rows, *beside]), config)
    return evaluate(victim, tokenizer, planted, max_new_tokens=LONGEST)["correct"].to_numpy(dtype=bool)


def embedding_seconds(passages: Sequence[Passage], seed: int) -> float:
    """Estimate what embedding all passages takes on this machine, from up to 64 of them that are drawn, as they may be kept."""
    some = [str(passage) for passage in sample("embedding timed", passages, 64, seed)]
    return timed(partial(embed, some))[1] * len(passages) / len(some)


def timed(change: Callable[[], Any]) -> tuple[Any, float]:
    """Return what a change makes, and the seconds that it takes."""
    clock = time.perf_counter()
    made = change()
    return made, time.perf_counter() - clock


def scorecard(results: Results, contenders: Mapping[str, Contender], latency: pd.DataFrame) -> pd.DataFrame:
    """Write the scorecard in words: a row a contender; shares with their intervals.

    latency: seconds of single requests, see `taking_turns`, of those that were timed.
    """
    card = {}
    for name, contender in contenders.items():
        new_words = results.part(name, NEW_WORDS)
        seconds = latency[name].quantile([0.5, 0.95]) if name in latency else []
        card[name] = {sort: str(results.mean(name, "correct", sort)) for sort in SORTS} | {
            "consistent": str(interval(consistent(new_words))),
            "wrong values": str(results.mean(name, "hallucinated", NEW_WORDS)),
            "inventions": str(results.mean(name, "hallucinated", NO_ANSWER)),
            "words beyond": f"{new_words['beyond'].mean():.1f}",
            "one request, seconds: median, 95%": ", ".join(f"{value:.2f}" for value in seconds) or "not timed",
            "in a batch, seconds": f"{results.part(name, SORTS)['seconds'].mean():.3f}",
            "beforehand": f"{contender.setup:,.0f} s, {contender.rows:,} rows",
        }
    return pd.DataFrame(card).T


def euros(machine_hour: float, row_seconds: float, hour_wage: float, seconds: float = 0.0, rows: int = 0) -> float:
    """Compute what seconds of the machine and rows that somebody writes cost, by an hour's price of each."""
    return seconds / 3600 * machine_hour + rows * row_seconds / 3600 * hour_wage


def reconciled(found: np.ndarray, given: Mapping[str, Interval], right: float) -> str:
    """Say how found and read add up to right: `given` as from `by_hit`, right: the share of all answers that are."""
    hit, then = found.mean(), {name: given[name].mean if name in given else 0.0 for name in ("found", "missed")}
    parts = f"**{hit:.0%}** found, **{then['found']:.0%}** of these right; **{1 - hit:.0%}** missed, **{then['missed']:.0%}**"
    return f"{parts} of these right; together **{right:.0%}** right"
