import html.parser

import numpy as np
import pandas as pd
import pytest

from helpers.data import Example
from helpers.evaluation import difference, judge
from helpers.measures.comparison import Verdict, compare, html_report, results_table
from helpers.text.outcome import Interval


def judged(right, seed=0):
    """A table of questions, of which the first so many are answered right."""
    examples = [Example(f"Q{i}?", f"It costs {i} euros.", f"f{i}/1", "fact", (f"f{i}",), (f"{i} euros",)) for i in range(40)]
    return judge(examples, [e.answer if hit else "It is red." for e, hit in zip(examples, right, strict=True)])


@pytest.mark.parametrize(("before", "after", "word"), [(0.2, 0.9, "better"), (0.9, 0.2, "worse"), (0.5, 0.6, "cannot tell")])
def test_verdicts_in_words(before, after, word):
    order = np.random.default_rng(3).permutation(40)
    verdict = compare("new", judged(order < 40 * after), "old", judged(np.arange(40) < 40 * before))
    assert verdict.word == word and verdict.change.count == 40
    assert word in str(verdict).lower() and "new" in str(verdict) and "old" in str(verdict)
    assert ("would tell" in str(verdict)) == (word == "cannot tell")


def test_verdict_on_equal_models():
    table = judged(np.arange(40) < 20)
    assert str(compare("new", table, "old", table)).endswith("Both get the same questions right.")
    even = Verdict("new", "old", Interval(0.0, -0.1, 0.1, 300, 100), 10)
    assert "(300 questions about 100 things)" in str(even)
    assert "A difference of 5 points would show with about 2,400." in str(even)
    assert str(even).count("%") == 3
    other = table.assign(question="Another?")
    with pytest.raises(ValueError, match="answered different questions"):
        compare("new", table, "old", other)


def test_results_go_to_a_file_and_come_back_by_pandas(tmp_path):
    """As lesson 7 keeps them, and compares them with another model's a week later."""
    table, path = judged(np.arange(40) < 20), tmp_path / "mine.jsonl"
    table.loc[0, "answer"] = 'odd: "quotes",\nlines and \u2028 separators'
    table.loc[1, ["id", "answer", "fact"]] = ["2024-05-01", "59", "1e5"]
    table.to_json(path, orient="records", lines=True)
    back = pd.read_json(path, lines=True, dtype=False)
    pd.testing.assert_frame_equal(back, table)
    assert compare("new", judged(np.arange(40) < 40), "mine", back).word == "better"
    assert results_table({"mine": back}).loc["all", "mine"].startswith("50.0% (")


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its tags with their attributes, its text, and what it would load from elsewhere."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.loaded = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data):
        self.texts.append(data)


HOSTILE = (
    "<script>alert('x')</script> & {braces}",
    "<img src=x onerror=alert(1)>",
    "</td></table><h1>gone</h1>",
    "&lt;b&gt; stays",
    '"><a href="http://elsewhere">',
    "\u2717 not wrong",
)


def test_a_report_stands_alone_and_shows_every_answer():
    table = judged(np.arange(40) < 20).assign(error="right")
    table.loc[20:, "error"] = "wrong value"
    other = judged(np.arange(40) < 30).assign(error="right")
    verdict = compare("mine", table, "theirs", other)
    page = html_report({"mine": table, "theirs": other}, verdict)
    seen = Page(page)
    assert not seen.loaded and seen.tags.count("table") == seen.tags.count("caption") == 3
    assert seen.texts.count("\u2717 wrong value") == 20 and seen.texts.count("\u2717 right") == 10  # a mark, not colour alone
    assert set(table["question"]) | set(table["answer"]) <= set(seen.texts)
    assert str(verdict) in seen.texts and str(difference(other["correct"], table["correct"], table["fact"])) in page


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", ["question", "answer", "expected", "error", "kind", "model", "title"])
def test_nothing_in_a_report_is_taken_for_html(place, text):
    """Answers come from a model, questions from a stranger's file, a model's name from a folder: each is text."""
    table = judged(np.arange(40) < 20).assign(error="right")
    if place in table:
        table[place] = text
    verdict = compare(text, table, "theirs", table)
    page = html_report({text if place == "model" else "mine": table}, verdict, text if place == "title" else "Mine")
    usual = Page(html_report({"mine": judged(np.arange(40) < 20).assign(error="right")}, verdict))
    seen = Page(page)
    assert set(seen.tags) == set(usual.tags) and seen.tags.count("h1") == 1 and not seen.loaded
    assert any(text in found for found in seen.texts)


def test_a_report_leaves_no_row_out():
    """Above 262,144 cells pandas would leave rows out without a word."""
    table = pd.concat([judged(np.arange(40) < 20).assign(error="right")] * 3, ignore_index=True)
    with pd.option_context("styler.render.max_elements", 100):
        assert Page(html_report({"mine": table})).texts.count("Q7?") == 3
