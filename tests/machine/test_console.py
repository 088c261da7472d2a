import io
import subprocess
import sys

import pytest

from helpers.machine.console import checked_question, next_question


def test_output_into_a_pipe_that_is_not_utf_8_loses_nothing():
    code = "from helpers.machine.console import keep_all_output; keep_all_output(); print('84 \\u20ac \\U0001f600')"
    for encoding, said in (("ascii", b"84 \\u20ac \\U0001f600"), ("utf-8", "84 \u20ac \U0001f600".encode())):
        done = subprocess.run(
            [sys.executable, "-X", "utf8=0", "-c", code], capture_output=True, env={"PYTHONIOENCODING": encoding}
        )
        assert done.stdout.strip() == said, done.stderr


def test_questions_are_text(monkeypatch):
    assert checked_question("  How much? ") == "How much?"
    for text, said in (("  ", "is blank"), ("caf\udce9", "no text in UTF-8")):
        with pytest.raises(ValueError, match=said):
            checked_question(text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" Why? \n \n")))
    assert [next_question(), next_question(), next_question()] == ["Why?", "", ""]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    with pytest.raises(ValueError, match="no text in UTF-8"):
        next_question()
