"""`make gpu` is ready for a machine with a GPU: here its script runs on the CPU, with tiny models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("run.py")


def run(*arguments, **environment):
    command = [sys.executable, SCRIPT, *arguments]
    here = {**os.environ, **environment}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, env=here)


def test_every_part_runs_and_is_told(tmp_path):
    done = run("--device", "cpu", "--small", "--out", tmp_path, "--minutes", 60)
    report = json.loads((tmp_path / "gpu.json").read_text())
    wrong = [line for line in report["lines"] if line["ok"] is False]
    assert done.returncode == 0 and wrong == [], done.stderr[-3000:]
    assert report["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {line["part"] for line in report["lines"]} == {
        *("flat", "float16", "memory", "rates", "large", "generation", "processes", "architectures")
    }
    figures = {line["what"]: line["value"] for line in report["lines"]}
    for what in ("flat against padded", "toy, package against Trainer", "toy, share of that", "toy, 2 at once"):
        assert figures[what] > 0
    assert sum(line["ok"] is True for line in report["lines"]) >= 4
    table = (tmp_path / "gpu.md").read_text()
    assert table == done.stdout.rstrip("\n") + "\n" and table.count("\n| ") == len(report["lines"]) + 1


def test_what_has_no_time_left_is_left_out(tmp_path):
    done = run("--device", "cpu", "--small", "--out", tmp_path, "--minutes", 0.01)
    assert done.returncode == 0 and done.stdout.count("left out for lack of time") == 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_no_gpu_is_one_line(tmp_path):
    done = run("--out", tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: no NVIDIA GPU can be reached.")


def test_what_is_missing_is_named(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u; f = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'accelerate' else f(name, *a)\n"
    )
    done = run("--out", tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "has no accelerate. Run this with a Python that has them" in done.stderr
