"""`python -m helpers evaluate` with a comparison and a page, as a user types it."""

import json
import subprocess
import sys

import pytest

from helpers.evaluation import consistent, judge, summary
from helpers.machine.paths import DATA, ROOT
from helpers.measures.comparison import compare
from helpers.own_data.rows import read_any


def evaluate(*arguments):
    command = [sys.executable, "-m", "helpers", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_two_models_are_compared_and_a_page_is_written(tiny, tmp_path):
    questions = tmp_path / "test.jsonl"
    lines = (DATA / "evaluation/dev/facts.jsonl").read_text(encoding="utf-8").splitlines()[:14]
    odd = {"question": "Is <b>this</b> & that sold?", "answer": "Sorry, that is not in our handbook.", "kind": "unanswerable"}
    questions.write_text("\n".join([*lines, json.dumps(odd)]), encoding="utf-8")
    other, page, figures = tmp_path / "other", tmp_path / "pages" / "report.html", tmp_path / "out.json"
    other.symlink_to(tiny)  # the same model under another name
    arguments = ("--model", tiny, "--data", questions, "--compare", other, "--report", page, "--json", figures)
    done = evaluate(*arguments)
    assert done.returncode == 0, done.stderr
    said = f"Cannot tell {tiny} from {other} with this many questions (15 questions about "
    assert said in done.stdout and "Both get the same questions right." in done.stdout
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert written["verdict"].startswith(said) and len(written["answers"]) == 15
    assert "Too few" not in written["verdict"]
    assert {answer["error"] for answer in written["answers"]} <= {
        "wrong value",
        "off topic",
        "no answer",
        "repetitive",
        "answered the unanswerable",
    }
    text = page.read_text(encoding="utf-8")
    assert (
        "Is &lt;b&gt;this&lt;/b&gt; &amp; that sold?" in text and "Cannot tell" in text and "answered the unanswerable" in text
    )
    assert "http" not in text.split("</head>")[1] and "<script" not in text


def test_without_a_comparison_there_is_no_verdict(tiny, tmp_path):
    rows = "question,answer\nWhat is it?,A kettle.\nWho made it?,Ida Brandt.\nWhat is its name?,Ask Ann.\n"
    (tmp_path / "test.csv").write_text(rows, encoding="utf-8")
    done = evaluate(
        *("--model", tiny, "--data", tmp_path / "test.csv", "--refusal", "Ask Ann."),
        *("--report", tmp_path / "report.html", "--json", tmp_path / "o"),
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "o").read_text())
    assert "verdict" not in written and "tell" not in done.stdout
    assert written["answers"][2]["error"] in ("answered the unanswerable", "no answer")  # its own refusal has reached the judge
    assert "consistent" not in done.stdout  # no fact is asked in two wordings
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<table ") == 3


def test_a_model_to_compare_that_is_not_there_is_one_line(tiny):
    done = evaluate("--model", tiny, "--data", "data/evaluation/dev/off_topic.jsonl", "--compare", "./nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ./nowhere: there is no such folder")


LAYOUTS = {  # what learners bring: rows that name neither facts nor ids
    "plain.csv": "question,answer\n" + "".join(f"What is number {i}?,It is {i}0.\n" for i in range(20)),
    "alpaca.json": json.dumps([{"instruction": f"Say {i}.", "input": "", "output": f"{i}0"} for i in range(20)]),
    "chats.jsonl": "".join(
        json.dumps({"messages": [{"role": "user", "content": f"Number {i}?"}, {"role": "assistant", "content": f"{i}0"}]})
        + "\n"
        for i in range(20)
    ),
    "share.json": json.dumps(
        [{"conversations": [{"from": "human", "value": f"Nr {i}?"}, {"from": "gpt", "value": f"{i}0"}]} for i in range(20)]
    ),
    "same_id.csv": "id,question,answer\n" + "".join(f"shop,What is {i}?,It is {i}0.\n" for i in range(20)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_without_facts_are_groups_of_their_own(name, tmp_path):
    """11 right against 10 of 20 tell nothing, and no interval is without width."""
    path = tmp_path / name
    path.write_text(LAYOUTS[name], encoding="utf-8")
    rows = read_any(path)
    wrong = ["It is 7777."] * 20
    mine, other = ([*(row.answer for row in rows[:n]), *wrong[n:]] for n in (11, 10))
    mine, other = judge(rows, mine), judge(rows, other)
    assert mine["fact"].nunique() == 20 and mine["correct"].sum() == 11 and not len(consistent(mine))
    verdict = compare("mine", mine, "embedded", other)
    assert verdict.word == "cannot tell" and verdict.change.low < 0 < verdict.change.high
    assert (summary(mine)["high"] - summary(mine)["low"]).min() > 0.2
