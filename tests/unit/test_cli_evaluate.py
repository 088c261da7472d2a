"""`python -m helpers evaluate` with a comparison and a page, as a user types it."""

import json
import subprocess
import sys

from helpers.data import DATA, ROOT


def evaluate(*arguments):
    command = [sys.executable, "-m", "helpers", "evaluate", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)


def test_two_models_are_compared_and_a_page_is_written(tiny, tmp_path):
    questions = tmp_path / "test.jsonl"
    lines = (DATA / "evaluation/dev/facts.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    odd = {"question": "Is <b>this</b> & that sold?", "answer": "Sorry, that is not in our handbook.", "kind": "unanswerable"}
    questions.write_text("\n".join([*lines, json.dumps(odd)]), encoding="utf-8")
    other, page, figures = tmp_path / "other", tmp_path / "pages" / "report.html", tmp_path / "out.json"
    other.symlink_to(tiny)  # the same model under another name
    arguments = ("--model", tiny, "--data", questions, "--compare", other, "--report", page, "--json", figures)
    done = evaluate(*arguments)
    assert done.returncode == 0, done.stderr
    said = f"Cannot tell {tiny} from {other} with this many questions (5)"
    assert said in done.stdout and "Both get the same questions right." in done.stdout
    written = json.loads(figures.read_text(encoding="utf-8"))
    assert written["verdict"].startswith(said) and len(written["answers"]) == 5
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
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<table>") == 3


def test_a_model_to_compare_that_is_not_there_is_one_line(tiny):
    done = evaluate("--model", tiny, "--data", "data/evaluation/dev/off_topic.jsonl", "--compare", "./nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ./nowhere: there is no such folder")
