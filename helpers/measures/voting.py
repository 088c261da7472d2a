"""Voting: a person compares two answers without knowing whose they are; votes become ratings with intervals."""

import html
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from helpers.text.messages import DataError
from helpers.text.normalise import normalise

_SCORES = {"left": 1.0, "same": 0.5, "right": 0.0}  # what a vote gives the model on the left
_CHOICES = {"1": "left", "2": "same", "3": "right"}


@dataclass(frozen=True)
class Duel:
    """Two answers to one question, with the models that wrote them, as they stand left and right."""

    question: str
    left: str
    right: str
    left_answer: str
    right_answer: str


@dataclass(frozen=True)
class Vote:
    """Which answer to a question was better: "left", "same" or "right"; and whose the two were."""

    question: str
    left: str
    right: str
    choice: str


def draw_duels(
    questions: Sequence[str], answers: Mapping[str, Sequence[str]], count: int | None = None, seed: int = 0
) -> list[Duel]:
    """Draw duels: for each question two models whose answers differ, on sides drawn at random; at most `count` in all.

    answers: name of the model → its answer to each question.
    """
    rng, duels = random.Random(seed), []
    for i in rng.sample(range(len(questions)), len(questions)):
        pairs = [(a, b) for a in answers for b in answers if normalise(answers[a][i]) != normalise(answers[b][i])]
        if pairs:
            left, right = rng.choice(pairs)  # each pair stands in both orders
            duels.append(Duel(questions[i], left, right, answers[left][i], answers[right][i]))
    return duels[:count]


def append_vote(path: Path, vote: Vote) -> None:
    """Add a vote to a file, and have it written through before this returns: a kill loses no vote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a vote that a kill cut short: let it stand on a line of its own
                file.write(b"\n")
        file.write((json.dumps(asdict(vote), ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())


def read_votes(path: str | Path) -> list[Vote]:
    """Read votes; none when there is no file yet. A line that a kill cut short is passed over.

    Raises DataError for a line that is whole but no vote.
    """
    path, votes = Path(path), []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.split("\n"), 1):
        if not line or (line.startswith("{") and not line.endswith("}")):
            continue
        try:
            vote = Vote(**json.loads(line))
        except (ValueError, TypeError):
            vote = None
        if vote is None or vote.choice not in _SCORES:
            raise DataError(f"{path}, line {number}: this is not a vote. Move the file away to start anew.")
        votes.append(vote)
    return votes


class BlindVote:
    """A widget that shows one duel after another, without the models' names, and keeps every vote in a file.

    By mouse: the three buttons. By keyboard: type 1, 2 or 3 into the field, or reach a button with Tab and press Enter.
    Questions that were voted on in an earlier session are not asked again.
    """

    def __init__(self, duels: Sequence[Duel], path: str | Path):
        """Build the widget; `widget` is what a notebook displays."""
        import ipywidgets

        self.path = Path(path)
        done = {vote.question for vote in read_votes(self.path)}
        self.left = [duel for duel in duels if duel.question not in done]
        self.total = len(duels)
        self.heading = ipywidgets.HTML()
        layout = ipywidgets.Layout(border="1px solid #767676", padding="0.5em", margin="0.2em", width="48%")
        self.answers = [ipywidgets.HTML(layout=layout) for _ in range(2)]
        self.buttons = []
        for key, choice in _CHOICES.items():
            button = ipywidgets.Button(description={"same": "2: the same"}.get(choice, f"{key}: {choice} is better"))
            button.on_click(lambda _, choice=choice: self.vote(choice))
            self.buttons.append(button)
        self.field = ipywidgets.Text(placeholder="1, 2 or 3", description="Or type:", continuous_update=True)
        self.field.observe(self._typed, names="value")
        self.controls = ipywidgets.HBox([*self.buttons, self.field], layout=ipywidgets.Layout(flex_flow="row wrap"))
        self.widget = ipywidgets.VBox([self.heading, ipywidgets.HBox(self.answers), self.controls])
        self._show()

    def vote(self, choice: str) -> None:
        """Keep a vote on the duel that is shown, and show the next one."""
        if self.left:
            duel = self.left.pop(0)
            append_vote(self.path, Vote(duel.question, duel.left, duel.right, choice))
            self._show()

    def _typed(self, change) -> None:
        """Take a key as a vote, and clear the field for the next."""
        key = change["new"].strip()[-1:]
        if change["new"]:
            self.field.value = ""
        if key in _CHOICES:
            self.vote(_CHOICES[key])

    def _show(self) -> None:
        """Show the next duel, or thanks."""
        if not self.left:
            self.heading.value = f"<b>Thank you.</b> All {self.total} questions have a vote. Run the next cell."
            for part in (*self.answers, self.controls):
                part.layout.display = "none"
            return
        duel, number = self.left[0], self.total - len(self.left) + 1
        self.heading.value = f"<b>{number} of {self.total}: {html.escape(duel.question)}</b>"
        for box, name, text in zip(self.answers, ("Left", "Right"), (duel.left_answer, duel.right_answer), strict=True):
            box.value = f"<b>{name}</b><br>{html.escape(text)}"


def bradley_terry(votes: Sequence[Vote], names: Sequence[str]) -> np.ndarray:
    """Fit how strong each model is, on Elo's scale around 1000: 400 more means preferred ten times as often: [names].

    A model's chance to win is its strength over the sum of both. Each two models that met get one tie more, so that one
    that has won every time does not get an infinite rating.
    Source: Bradley and Terry 1952; the iteration is Hunter's, 2004, https://doi.org/10.1214/aos/1079120141
    """
    wins = np.zeros((len(names), len(names)))
    place = {name: i for i, name in enumerate(names)}
    for vote in votes:
        left, right, score = place[vote.left], place[vote.right], _SCORES[vote.choice]
        wins[left, right] += score
        wins[right, left] += 1 - score
    wins += np.where(wins + wins.T > 0, 0.5, 0.0)
    met, strength = wins + wins.T, np.ones(len(names))
    for _ in range(500):
        before = strength
        strength = wins.sum(axis=1) / (met / (strength[:, None] + strength)).sum(axis=1)
        strength /= np.exp(np.log(strength).mean())
        if np.abs(strength - before).max() < 1e-6 * strength.min():
            break
    return 1000 + 400 * np.log10(strength)


def ratings(votes: Sequence[Vote], samples: int = 200, seed: int = 0) -> pd.DataFrame:
    """Rate models from votes by Bradley and Terry, with the 95% interval of a bootstrap over votes; the best model first.

    Raises ValueError without votes.
    """
    if not votes:
        raise ValueError("There are no votes yet. Vote in the widget above, then run this again.")
    names = sorted({name for vote in votes for name in (vote.left, vote.right)})
    rng = np.random.default_rng(seed)
    drawn = [[votes[i] for i in rng.integers(len(votes), size=len(votes))] for _ in range(samples)]
    table = pd.DataFrame({"model": names, "votes": [sum(name in (v.left, v.right) for v in votes) for name in names]})
    table["rating"] = bradley_terry(votes, names)
    table["low"], table["high"] = np.percentile([bradley_terry(part, names) for part in drawn], [2.5, 97.5], axis=0)
    return table.sort_values("rating", ascending=False).set_index("model")
