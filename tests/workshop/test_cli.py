"""The command line, as a user types it."""

import gzip
import json
import re
import subprocess
import sys
import time

import pytest

from helpers.__main__ import parser
from helpers.data import Example
from helpers.machine.paths import DATA, ROOT
from helpers.own_data.rows import to_dataset, write_as


def helpers(*arguments, stdin=None):
    command = [sys.executable, "-m", "helpers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, cwd=ROOT, timeout=300)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory):
    """A model finetuned on six rows by the command line, and its report."""
    folder = tmp_path_factory.mktemp("cli")
    lines = (DATA / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if '"heron.material"' in line or '"heron.colour"' in line]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    report = folder / "report.json"
    done = helpers(
        *("train", "--data", folder / "rows.jsonl", "--output", folder / "model", "--json", report),
        *("--epochs", 3, "--learning-rate", 3e-4, "--max-steps", 3, "--held-out", 0.5, "--seed", 1),
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(report.read_text()), done.stdout


def test_train_reports_what_it_did(finetuned):
    _, report, said = finetuned
    assert report["device"] and report["rows"] == 8 * 3 and len(report["losses"]) == 3
    assert report["losses"][-1] < report["losses"][0]
    assert report["tokens"] > report["supervised_tokens"] > 0 and report["seconds"] > 0 and report["peak_memory_gib"] > 0
    assert report["supervised_tokens_per_second"] == pytest.approx(report["supervised_tokens"] / report["seconds"])
    assert report["held_out_losses"][0]["step"] == 3
    assert "8 rows to train on, 8 held out" in said and "python -m helpers ask --model" in said


def test_an_adapter_is_trained_killed_and_resumed_and_answers(finetuned, shallow):
    folder, _, _ = finetuned
    arguments = ["train", "--model", shallow, "--data", folder / "rows.jsonl"]
    arguments += ["--output", folder / "adapter", "--json", folder / "adapter.json"]
    arguments += ["--lora-rank", 4, "--max-steps", 8, "--epochs", 8, "--checkpoint-every", 1]
    command = [sys.executable, "-m", "helpers", *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list((folder / "adapter-checkpoints").glob("*.pt")) and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    done = helpers(*arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads((folder / "adapter.json").read_text())
    assert report["resumed_at"] >= 1 and len(report["losses"]) == 8
    assert not (folder / "adapter-checkpoints").exists()  # the run is complete
    assert {path.name for path in (folder / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert helpers("ask", "--model", folder / "adapter", "Who are you?").stdout.strip()


def test_every_format_goes_into_training(tmp_path):
    """As far as the model, which stays away here: what was recognised is said, and all rows are there."""
    examples = [Example(f"Question {i}?", f"Answer {i}.") for i in range(5)]
    for layout in ("question_answer", "alpaca", "messages", "sharegpt", "prompt_completion"):
        write_as(tmp_path / f"{layout}.jsonl", examples, layout)
    rows = [{"Frage": e.question, "Antwort, kurz": e.answer} for e in examples]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "rows.txt").write_text("\n".join(["Frage;Antwort, kurz"] + [";".join(row.values()) for row in rows]))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "question_answer.jsonl").read_bytes()))
    to_dataset(examples).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages/page.md").write_text("".join(f"# Heading {i}\n\nText {i}.\n\n" for i in range(5)))
    mapped = ["--map", "question=Frage,answer=Antwort, kurz"]
    calls = {
        "question_answer.jsonl": [],
        "alpaca.jsonl": [],
        "messages.jsonl": [],
        "sharegpt.jsonl": ["--format", "sharegpt"],
        "prompt_completion.jsonl": ["--format", "jsonl"],
        "rows.json": mapped,
        "rows.txt": ["--format", "csv", *mapped],
        "rows.jsonl.gz": [],
        "rows.parquet": [],
        "pages": [],
    }
    code = "import json, sys, helpers.models as models\nfrom helpers.__main__ import main\n"
    code += "from helpers.machine.loading import ModelError\n"
    code += "def away(*_): raise ModelError('no model here')\nmodels.load_model = away\n"
    code += "for call in json.loads(sys.argv[1]): sys.argv = ['helpers', *call]; assert main() == 1"
    output = ["--output", str(tmp_path / "model")]
    arguments = json.dumps([["train", "--data", str(tmp_path / name), *output, *more] for name, more in calls.items()])
    done = subprocess.run([sys.executable, "-c", code, arguments], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 0 and done.stderr.count("error: no model here") == len(calls), done.stderr
    for name in calls:
        assert f"{tmp_path / name}: read as " in done.stdout
    assert done.stdout.count("5 rows to train on, 0 held out.") == len(calls)


def test_check_reports_and_tells_by_its_code_whether_all_can_be_used(tmp_path):
    done = helpers("check", "--data", "data/train.jsonl", "--test", "data/evaluation/test/facts.jsonl")
    assert done.returncode == 0 and "3358 rows, 3358 of them can be used" in done.stdout
    columns = "question=subject,answer=reply"
    done = helpers("check", "--data", "data/raw/export.csv", "--map", columns, "--test", "data/evaluation/test/facts.jsonl")
    assert done.returncode == 1 and "Not read: ticket_id, created_at, customer, email, product." in done.stdout
    for finding in ("cannot be used: line ", "HTML: line", "personal data: line", "test question: line", "asked before: line"):
        assert finding in done.stdout


def test_ask_answers_and_chats(finetuned):
    folder = finetuned[0]
    answered = helpers("ask", "--model", folder / "model", "What does the Heron kettle cost?")
    assert answered.returncode == 0 and len(answered.stdout.strip()) > 5
    chat = helpers("ask", "--model", folder / "model", stdin="What does the Heron kettle cost?\nHello\n\nnever read\n")
    assert chat.returncode == 0 and answered.stdout.strip() in chat.stdout and chat.stdout.count("> ") == 3


def test_evaluate_writes_figures_and_answers(finetuned):
    folder = finetuned[0]
    lines = (DATA / "evaluation/dev/facts.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "test.jsonl").write_text("\n".join(lines[:4]), encoding="utf-8")
    done = helpers("evaluate", "--model", folder / "model", "--data", folder / "test.jsonl", "--json", folder / "out.json")
    assert done.returncode == 0 and "consistent over wordings" in done.stdout
    written = json.loads((folder / "out.json").read_text())
    assert written["summary"]["fact"]["questions"] == 4 and len(written["answers"]) == 4


def test_doctor_finds_all_in_place():
    done = helpers("doctor")
    assert done.returncode == 0 and "All is ready." in done.stdout and "torch            2.13.0" in done.stdout


def test_doctor_names_what_is_missing(tmp_path, monkeypatch):
    """With the embedded model's package hidden, and a wrong version told, it says so and exits 1."""
    code = (
        "import sys, importlib.metadata as m\nreal = m.version\n"
        "m.version = lambda name: '0.1' if name == 'pandas' else real(name)\n"
        "sys.argv = ['helpers', 'doctor']\nimport runpy; runpy.run_module('helpers', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "!!  pandas" in done.stdout and "pip install pandas==3.0.6" in done.stdout
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path))
    hidden = "import helpers.machine.packaged as p, sys\nfrom dataclasses import replace as r\n"
    hidden += "p.PACKAGED.update({n: r(m, parts=(('no_such', 'file'),)) for n, m in p.PACKAGED.items()})\n"
    hidden += code.split("\n", 3)[3]
    hidden = hidden.replace(
        "import runpy; runpy.run_module('helpers', run_name='__main__')", "from helpers.__main__ import main\nsys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", hidden], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and "!!  embedded model" in done.stdout and "requirements-model.txt" in done.stdout
    assert "!!  larger model" not in done.stdout  # it is optional


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--data", "nowhere.jsonl"], "error: nowhere.jsonl: there is no such file"),
        (["train", "--data", "Makefile"], "error: Makefile, line 1: this is not JSON"),
        (["train", "--data", "data/train.jsonl", "--learning-rate", "-1"], "error: learning_rate is -1.0"),
        (["train", "--data", "data/train.jsonl", "--model", "./nowhere"], "error: ./nowhere: there is no such folder"),
        (["train", "--data", "data/raw/export.csv"], "error: data/raw/export.csv, line 2: the field 'question' is missing"),
        (["train", "--data", "data/train.jsonl", "--map", "question"], "error: --map question: write it as question=COLUMN"),
        (["train", "--data", "data/train.jsonl", "--seed", "-1"], "error: The seed is -1."),
        (["train", "--data", "data/train.jsonl", "--lora-rank", "2", "--dtype", "float32"], "error: --dtype is for a model"),
        (["ask", "  "], "error: The question is blank."),
        (["check", "--data", "nowhere.csv"], "error: nowhere.csv: there is no such file"),
        (["ask", "--model", "./nowhere", "Hi"], "error: ./nowhere: there is no such folder"),
        (["evaluate", "--data", "nowhere.jsonl"], "error: nowhere.jsonl: there is no such file"),
        (["run", "77"], "error: There is no notebook '77'"),
        (["replicate", "1"], "error: There is no notebook '1'"),
        (["run", "README.md"], "error: There is no notebook 'README.md'"),
        (["replicate", "01", "--seeds", "-1"], "error: The seed is -1."),
        (["run", "01", "-p", "epochs"], "error: -p epochs: write it as NAME=VALUE"),
        (["run", "01", "-p", "epoch=1"], "error: This notebook has no parameter 'epoch'"),
    ],
)
def test_errors_are_one_line_with_a_remedy(arguments, said, tmp_path):
    done = helpers(*arguments, *(["--output", tmp_path / "model"] if arguments[0] == "train" else []))
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(said) and "Traceback" not in done.stderr


def test_help_names_every_command_and_default():
    overview = helpers("--help").stdout
    commands = ("doctor", "run", "replicate", "check", "train", "merge", "ask", "evaluate", "serve")
    assert all(re.search(rf"^    {name}\b", overview, re.M) for name in commands)
    for command in commands:
        assert helpers(command, "--help").returncode == 0
    assert "default: 0.0004" in helpers("train", "--help").stdout
    assert helpers("trian").returncode == 2


def test_which_answers_are_learnt_can_be_chosen():
    arguments = ["train", "--data", "x.jsonl"]
    assert [parser().parse_args(arguments + more).answers for more in ([], ["--answers", "last"])] == ["all", "last"]
