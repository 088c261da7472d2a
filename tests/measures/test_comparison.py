import html.parser
import json

import numpy as np
import pandas as pd
import pytest

from helpers.data import DataError, Example
from helpers.evaluation import Interval, difference, judge
from helpers.measures.comparison import (
    Verdict,
    compare,
    load_results,
    report,
    results_table,
    save_results,
)


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
    assert "A difference of 5 points would show with about 2,394." in str(even)
    assert str(even).count("%") == 3
    other = table.assign(question="Another?")
    with pytest.raises(ValueError, match="answered different questions"):
        compare("new", table, "old", other)


def test_results_are_saved_loaded_and_compared(tmp_path):
    path = tmp_path / "results" / "mine.jsonl"
    table = judged(np.arange(40) < 20)
    table.loc[0, "answer"] = 'odd: "quotes",\nlines and \u2028 separators'
    save_results(path, "mine", table)
    name, back = load_results(path)
    assert name == "mine" and not list(path.parent.glob("*.partial"))
    pd.testing.assert_frame_equal(back, table)
    assert compare("new", judged(np.arange(40) < 40), name, back).word == "better"
    assert results_table({"mine": back}).loc["all", "mine"].startswith("50.0% (")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "damaged"),
        (lambda text: "\n".join(text.split("\n")[:-3]) + "\n", "37|38 answers, and not as many"),
        (lambda text: "", "0 answers"),
        (lambda text: "question,answer\nWhy?,So.\n", "line 1: damaged, or not JSON Lines"),
        (lambda text: '{"question": "Why?", "answer": "So."}\n', "line 1: expected 'evaluation results"),
        (lambda text: text.replace("version 1", "version 9"), "line 1: expected 'evaluation results"),
        (lambda text: text.replace('"expected"', '"hoped"', 3), "line 2: expected an answer"),
        (lambda text: "[1]\n" + text, "line 1: expected"),
        (lambda text: "\ufffd\x00" + text, "line 1: damaged"),
    ],
)
def test_a_damaged_or_foreign_file_is_one_clear_error(tmp_path, damage, said):
    path = tmp_path / "mine.jsonl"
    save_results(path, "mine", judged(np.arange(40) < 20))
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load_results(path)
    assert str(caught.value).startswith(str(path)) and "save_results" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_results_file_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no such file"):
        load_results(tmp_path / "nowhere.jsonl")


class Checker(html.parser.HTMLParser):
    """Collects tags, and what would be loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.tags, self.loaded = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_a_report_stands_alone_and_is_escaped():
    table = judged(np.arange(40) < 20).assign(error="right")
    table.loc[0, "answer"] = "<script>alert('x')</script> & {braces}"
    table.loc[1, "error"] = "wrong value"
    other = judged(np.arange(40) < 30).assign(error="right")
    verdict = compare("a <b>", table, "c", other)
    page = report({"a <b>": table, "c": other}, verdict, title="Mine & yours")
    checker = Checker()
    checker.feed(page)
    assert not checker.loaded and "script" not in checker.tags and checker.tags.count("table") == 3
    assert checker.tags.count("tr") == 3 + 2 + 2 + 40  # three headers, kinds of question, kinds of error, answers
    assert "&lt;script&gt;" in page and "Mine &amp; yours" in page and "a &lt;b&gt;" in page and "{braces}" in page
    assert page.count('class="wrong"') == 20
    assert str(difference(other["correct"], table["correct"], table["fact"])) in page


def test_results_are_plain_json(tmp_path):
    save_results(tmp_path / "mine.jsonl", "mine", judged(np.arange(40) < 20))
    lines = [json.loads(line) for line in (tmp_path / "mine.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines[0] == {"format": "evaluation results, version 1", "model": "mine", "answers": 40} and len(lines) == 41
