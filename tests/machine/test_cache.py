"""What was made is kept as long as it would be made alike, and a line says that it was kept."""

from datetime import date

import pytest
import torch

from helpers.machine import cache
from helpers.machine.cache import clear_cache, code_digest, made_folder, remember, weights_digest


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNING_CACHE", str(tmp_path))
    return tmp_path / "made"


def test_weights_of_the_same_sum_are_told_apart():
    layer, other = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    other.load_state_dict(layer.state_dict())
    assert weights_digest(layer) == weights_digest(other)
    with torch.no_grad():
        other.weight.copy_(layer.weight.flip(0))
    assert weights_digest(layer) != weights_digest(other)
    assert weights_digest(layer) != weights_digest(layer.bfloat16())


def test_what_was_made_is_remembered_until_its_content_changes(cached):
    calls = []

    def make():
        calls.append(1)
        return {"n": len(calls), "vectors": [1.5]}

    assert remember(make, "thing", "a", 1) == remember(make, "thing", "a", 1) == {"n": 1, "vectors": [1.5]}
    assert remember(make, "thing", "a", 2)["n"] == 2
    next(cached.glob("thing-*.pt")).write_bytes(b"half")
    remember(make, "thing", "a", 1), remember(make, "thing", "a", 2)
    assert len(calls) == 3
    clear_cache()
    assert not cached.exists() and made_folder() == cached


def test_a_line_says_that_something_was_kept(cached, capsys):
    def make():
        return [1.0]

    remember(make, "losses", 1)
    assert capsys.readouterr().out == ""
    remember(make, "losses", 1)
    said = f"losses: kept from an earlier run of {date.today()}, with the same code, data, settings and weights.\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("changed", ["helpers", "the function", "precision", "library"])
def test_what_other_code_made_is_made_again(cached, monkeypatch, capsys, changed):
    """Yesterday's losses are not this run's when the loop has changed since."""

    def make():
        return [1.0]

    remember(make, "losses", 1)
    if changed == "helpers":
        monkeypatch.setattr(cache, "code_digest", lambda: "another loop")
    elif changed == "precision":
        monkeypatch.setattr(cache, "pick_dtype", lambda device: torch.float64)
    elif changed == "library":
        code_digest.cache_clear()
        monkeypatch.setattr(cache, "version", lambda name: "99.0")
    else:

        def make():
            return [2.0]

    assert remember(make, "losses", 1) == ([2.0] if changed == "the function" else [1.0])
    assert "kept" not in capsys.readouterr().out and len(list(cached.iterdir())) == 2
    code_digest.cache_clear()


def test_every_file_of_the_package_is_part_of_its_code(tmp_path, monkeypatch):
    """A comment is enough, in any room: what decides is not guessed."""
    (tmp_path / "machine").mkdir()
    for name in ("training.py", "machine/cache.py"):
        (tmp_path / name).write_text("loss = 1\n")
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "machine" / "cache.py"))
    found = set()
    for name in ("training.py", "machine/cache.py", "new.py"):
        code_digest.cache_clear()
        found.add(code_digest())
        (tmp_path / name).write_text("loss = 2\n")
    code_digest.cache_clear()
    assert len(found | {code_digest()}) == 4
    code_digest.cache_clear()
