import os
import random

import numpy as np
import pytest

from helpers.measures.voting import BlindVote, Duel, Vote, append_vote, bradley_terry, draw_duels, ratings, read_votes
from helpers.text.messages import DataError

QUESTIONS = [f"Question {i}?" for i in range(30)]
ANSWERS = {"base": ["I do not know."] * 30, "tuned": ["I do not know!"] * 10 + ["59 euros."] * 20}


def games(strengths, count, seed=0):
    """Votes of people who prefer as Bradley and Terry say."""
    rng, votes = random.Random(seed), []
    for i in range(count):
        left, right = rng.sample(sorted(strengths), 2)
        wins = rng.random() < 1 / (1 + 10 ** ((strengths[right] - strengths[left]) / 400))
        votes.append(Vote(f"Q{i}?", left, right, "left" if wins else "right"))
    return votes


def test_duels_are_drawn_where_answers_differ_on_shuffled_sides():
    duels = draw_duels(QUESTIONS, ANSWERS, seed=1)
    assert len(duels) == 20 and len(draw_duels(QUESTIONS, ANSWERS, 7)) == 7
    assert duels == draw_duels(QUESTIONS, ANSWERS, seed=1) != draw_duels(QUESTIONS, ANSWERS, seed=2)
    assert 4 <= sum(duel.left == "tuned" for duel in duels) <= 16
    for duel in duels:
        i = QUESTIONS.index(duel.question)
        assert duel.left_answer == ANSWERS[duel.left][i] and duel.right_answer == ANSWERS[duel.right][i]


def test_votes_are_on_file_at_once_and_a_session_goes_on(tmp_path):
    path, duels = tmp_path / "deep" / "votes.jsonl", draw_duels(QUESTIONS, ANSWERS)
    assert read_votes(path) == []
    session = BlindVote(duels, path)
    session.buttons[0].click()
    session.field.value = "3"
    assert session.field.value == "" and len(read_votes(path)) == 2
    session.field.value = "x"  # no vote
    assert [vote.choice for vote in read_votes(path)] == ["left", "right"]
    assert [vote.left for vote in read_votes(path)] == [duel.left for duel in duels[:2]]
    again = BlindVote(duels, path)
    assert again.left == duels[2:] and "3 of 20" in again.heading.value
    while again.left:
        again.vote("same")
    again.vote("left")  # nothing is left to vote on
    assert len(read_votes(path)) == 20 and "Thank you" in again.heading.value
    assert "Thank you" in BlindVote(duels, path).heading.value


def test_a_duel_is_blind_and_escaped(tmp_path):
    session = BlindVote([Duel("<i>Why?</i>", "base", "tuned", "<script>1</script>", "so & so")], tmp_path / "votes.jsonl")
    shown = session.heading.value + "".join(box.value for box in session.answers)
    assert "base" not in shown and "tuned" not in shown
    assert "<script>" not in shown and "&lt;i&gt;" in shown and "so &amp; so" in shown


def test_a_vote_cut_short_by_a_kill_costs_only_itself(tmp_path):
    path = tmp_path / "votes.jsonl"
    votes = games({"a": 1000, "b": 1000}, 3)
    for vote in votes[:2]:
        append_vote(path, vote)
    whole = path.read_bytes()
    for cut in range(1, len(whole) - whole.index(b"\n") - 2):
        path.write_bytes(whole[:-1][:-cut])
        assert read_votes(path) == votes[:1]
        append_vote(path, votes[2])
        assert read_votes(path) == [votes[0], votes[2]]


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"question": "Q?"}', '{"question":1,"left":2,"right":3,"choice":"both"}'])
def test_a_foreign_votes_file_is_refused(tmp_path, line):
    (tmp_path / "votes.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"line 1: this is not a vote. Move the file away"):
        read_votes(tmp_path / "votes.jsonl")


def test_bradley_terry_finds_the_strengths_that_made_the_votes():
    truth = {"a": 850.0, "b": 1000.0, "c": 1150.0}
    names = sorted(truth)
    votes = games(truth, 4000)
    assert bradley_terry(votes, names) == pytest.approx(list(truth.values()), abs=25)


def test_bradley_terry_agrees_with_maximum_likelihood():
    from scipy.optimize import minimize

    votes = [*games({"a": 900, "b": 1000, "c": 1100}, 60), Vote("Q?", "a", "b", "same")]
    names, score = ["a", "b", "c"], {"left": 1.0, "same": 0.5, "right": 0.0}
    met = {frozenset((v.left, v.right)) for v in votes}

    def loss(free):
        s = dict(zip(names, [0, *free], strict=True))
        total = sum(score[v.choice] * np.log1p(np.exp(s[v.right] - s[v.left])) for v in votes)
        total += sum((1 - score[v.choice]) * np.log1p(np.exp(s[v.left] - s[v.right])) for v in votes)
        return total + sum(0.5 * np.log1p(np.exp(s[a] - s[b])) for pair in met for a in pair for b in pair if a != b)

    best = np.array([0, *minimize(loss, [0.0, 0.0]).x]) * 400 / np.log(10)
    assert bradley_terry(votes, names) == pytest.approx(best - best.mean() + 1000, abs=0.5)


def test_one_that_always_wins_gets_a_finite_rating():
    votes = [Vote(f"Q{i}?", "tuned", "base", "left") for i in range(10)]
    table = ratings(votes)
    assert table.index.tolist() == ["tuned", "base"] and np.isfinite(table.to_numpy()).all()
    assert table.loc["tuned", "rating"] - table.loc["base", "rating"] == pytest.approx(400 * np.log10(21))


def test_intervals_cover_the_truth_about_95_times_in_100():
    truth, hits = {"a": 920.0, "b": 1080.0}, 0
    for seed in range(60):
        table = ratings(games(truth, 80, seed), samples=60)
        hits += table.loc["b", "low"] <= 1080 <= table.loc["b", "high"]
    assert 52 <= hits <= 60


def test_no_votes_no_ratings():
    with pytest.raises(ValueError, match="There are no votes yet"):
        ratings([])


def test_every_vote_is_flushed_to_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(descriptor))
    append_vote(tmp_path / "votes.jsonl", Vote("Q?", "a", "b", "left"))
    assert len(synced) == 1
