"""Lookup: no model at all: the stored answer of the known question that is nearest to the one asked."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.data import Example
from helpers.evaluation import judge
from helpers.retrieval.search import embed, kept_vectors, word_index, word_tokens
from helpers.text.judging import REFUSALS

WAYS = ("words", "meaning")
DIGITS = 6  # of a score; what is beyond them comes of the order in which a computer adds


def _known(way: str) -> str:
    if way not in WAYS:
        raise ValueError(f"way is {way!r}; it has to be one of {', '.join(WAYS)}.")
    return way


@dataclass(frozen=True)
class Nearest:
    """The known row whose question is nearest to the one asked: its place, and how near, from 0 to 1."""

    row: int
    score: float


class Lookup:
    """Questions with their answers, found again by their words (BM25) or by their meaning (embeddings).

    way, threshold: a question that is less near than `threshold` to every known one is declined with `refusal`.
    `choose` sets both.
    """

    def __init__(self, rows: Sequence[Example], refusal: str, way: str = "meaning", threshold: float = 0.0):
        """Index the questions of the rows; embeddings are kept by content. Raises ValueError without rows."""
        if not rows:
            raise ValueError("There are no rows to look answers up in. Give the questions and answers that are written down.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; it has to be a score from 0 to 1, such as 0.75.")
        self.rows, self.refusal, self.way, self.threshold = list(rows), refusal, _known(way), threshold
        questions = [row.question for row in rows]
        self.words, self.vectors = word_index(questions), kept_vectors(questions)

    def nearest(self, questions: Sequence[str], way: str | None = None) -> list[Nearest]:
        """Find the nearest known question of each, by `way` or else by the one that was chosen.

        By meaning the score is the cosine of the two; by words, the BM25 score as a share of what the known question
        scores with itself. Of equals the first row is taken.
        """
        if _known(way or self.way) == "meaning":
            scores = embed(questions) @ self.vectors.T if len(questions) else np.zeros((0, len(self.rows)))
            scores = scores.astype(float).round(DIGITS).clip(0, 1)
            return [Nearest(int(row.argmax()), float(row.max())) for row in scores]
        found = []
        for tokens in word_tokens(questions):
            scores = self.words.get_scores(tokens) if tokens else np.zeros(len(self.rows))
            best = int(scores.argmax())
            own = word_tokens([self.rows[best].question])[0]
            most = self.words.get_scores(own)[best] if own else 0.0
            found.append(Nearest(best, round(min(1.0, float(scores[best] / most)), DIGITS) if most > 0 else 0.0))
        return found

    def answer(self, questions: Sequence[str]) -> list[str]:
        """Give the stored answer of the nearest question, or the refusal where none is near enough."""
        return [self._told(near, self.threshold) for near in self.nearest(questions)]

    def with_answers(self, rows: Sequence[Example]) -> "Lookup":
        """Make the same lookup with other answers to the same questions, as when a price has changed: at once.

        Raises ValueError where a question is another one.
        """
        if [row.question for row in rows] != [row.question for row in self.rows]:
            raise ValueError(
                "These rows ask other questions. Make a new lookup of them: Lookup(rows, ...).choose(development)."
            )
        changed = copy.copy(self)
        changed.rows = list(rows)
        return changed

    def _told(self, near: Nearest, threshold: float) -> str:
        return self.rows[near.row].answer if near.score >= threshold else self.refusal

    def choose(self, development: Sequence[Example]) -> "Lookup":
        """Set way and threshold to those with the most right answers on development questions; of equals the lower threshold.

        Thresholds from 0 to 0.95 are tried in steps of 0.05 for either way. `development` needs questions to be declined
        as well: without them, no threshold is the best. Raises ValueError where it is empty.
        """
        if not development:
            raise ValueError("There are no questions to choose way and threshold on. Give some, and some to be declined.")
        refusals = (*REFUSALS, self.refusal)
        best = (-1.0, self.way, self.threshold)
        for way in WAYS:
            near = self.nearest([example.question for example in development], way)
            for threshold in np.arange(0, 1, 0.05).round(2).tolist():
                right = judge(development, [self._told(one, threshold) for one in near], refusals)["correct"].mean()
                if right > best[0]:
                    best = (right, way, threshold)
        _, self.way, self.threshold = best
        return self
