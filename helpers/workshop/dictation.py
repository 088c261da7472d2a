"""Dictation: a task whose every input is new. Dictated words come back as written text: capitals and punctuation.

Here are its rows, the contenders that need no language model, what the others are asked, and the measures.
"""

import re
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
import pandas as pd
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import SGDClassifier

from helpers.data import Example
from helpers.evaluation import interval
from helpers.workshop.sentences import FORMS, MARKS, Sentence, dictated, form, harder

OPENERS = ("by default", "for example", "in particular", "in this case", "in addition", "however", "otherwise", "therefore")
QUESTIONS = {"what", "who", "why", "where", "whose"}  # a sentence that begins so is taken for a question
INSTRUCTION = "Add capital letters and punctuation to this text. Change no word:\n"


def asked(text: str) -> str:
    """Write what the finetuned model is asked: so few words that most of what it reads is the text."""
    return f"Punctuate: {text}"


def row(sentence: Sentence) -> Example:
    """Make the row that the model learns from: the dictated words, and what is written."""
    return Example(asked(sentence.dictated), sentence.text, kind="dictation", where=sentence.package)


def prompt(text: str, examples: Sequence[Sentence]) -> list[dict]:
    """Write the question to a model that is not finetuned: what to do, examples as turns of a chat, and the text."""
    told = [INSTRUCTION + sentence.dictated for sentence in examples] + [INSTRUCTION + text]
    turns = [{"role": "user", "content": content} for content in told]
    answers = [{"role": "assistant", "content": sentence.text} for sentence in examples]
    return [turn for pair in zip(turns, answers, strict=False) for turn in pair] + turns[-1:]


def rule(text: str) -> str:
    """Write a first capital and a last mark, I in capitals, and a comma where one nearly always stands.

    A text without words stays as it is.
    """
    written = re.sub(rf"^(?:{'|'.join(OPENERS)})(?= )", r"\g<0>,", text)
    written = re.sub(r",? (but|although|whereas)(?!\S)", r", \1", written)
    written = re.sub(r"\bi\b", "I", written)
    mark = "?" if text.split(" ")[0] in QUESTIONS else "." if text.strip() else ""
    return written[:1].upper() + written[1:] + mark


class Tagger:
    """A linear classifier of words, the field's plain way: how each is written, and the mark behind it.

    It sees a word and its neighbours, their endings, and how far the ends of the sentence are; it keeps every word.
    """

    def __init__(self, learnt: Sequence[Sentence], seed: int = 0):
        """Learn from sentences, by logistic regression with stochastic gradient descent.

        Raises ValueError where there is nothing to learn: no sentence, or all words written alike.
        """
        self.hasher = FeatureHasher(2**20, input_type="string")
        labels = [label for sentence in learnt for label in self._labels(sentence.text)]
        if min((len(set(label)) for label in zip(*labels, strict=True)), default=0) < 2:
            raise ValueError("All words are written alike, or have the same mark behind them. Give more sentences.")
        seen = self._features([sentence.dictated for sentence in learnt])
        self.forms, self.marks = (
            SGDClassifier(loss="log_loss", alpha=1e-6, random_state=seed % 2**32).fit(seen, label)  # it takes none beyond
            for label in zip(*labels, strict=True)
        )

    @staticmethod
    def _labels(text: str) -> list[tuple[str, str]]:
        """Give each word's form and the mark behind it, such as ("Title", ",")."""
        spoken = [word for word in text.split() if dictated(word)]  # a mark by itself is no word
        bare = [word.rstrip(MARKS) for word in spoken]
        return [(form(word), whole[len(word) :]) for word, whole in zip(bare, spoken, strict=True)]

    def _features(self, texts: Sequence[str]):
        """Describe each word of all texts: a sparse matrix [words, 2 ** 20]."""
        return self.hasher.transform(word_features(words, i) for words in map(str.split, texts) for i in range(len(words)))

    def __call__(self, texts: Sequence[str]) -> list[str]:
        """Write each text out, as given by `dictated`; one without words stays empty."""
        if not any(map(str.split, texts)):
            return [""] * len(texts)
        seen = self._features(texts)
        labels = zip(self.forms.predict(seen), self.marks.predict(seen), strict=True)
        return [
            " ".join(FORMS.get(how, str)(word) + mark for word, (how, mark) in zip(text.split(), labels, strict=False))
            for text in texts
        ]


def word_features(words: Sequence[str], i: int) -> list[str]:
    """Describe the word at `i` by itself, its neighbours and its place, as the names of what is true of it."""
    padded = ["-"] * 3 + list(words) + ["-"] * 3
    near = padded[i : i + 7]  # the word stands at 3
    features = [f"{place}={word}" for place, word in enumerate(near)]
    features += [f"{place} ends {near[place][-3:]}" for place in (2, 3, 4)]
    features += [f"{place} ends {near[place][-2:]}" for place in (3, 4)]
    features += [f"{place},{place + 1}={near[place]} {near[place + 1]}" for place in (2, 3, 4)]
    return [*features, f"from start {min(i, 4)}", f"to end {min(len(words) - 1 - i, 4)}", f"opened {words[0]} {min(i, 8)}"]


def compare_written(expected: Sequence[Sentence], answers: Sequence[str]) -> pd.DataFrame:
    """Compare answers with what was written, one row a sentence.

    exact: the same text, white space aside.  harder: see `harder`.  kept: share of the words that are there unchanged, in
    order, of the longer of both.  right, wanted, given: marks at the right word, marks in the sentence, marks in the answer.
    """
    rows = []
    for sentence, answer in zip(expected, answers, strict=True):
        one, other = sentence.text.split(), answer.split()
        bare, said = ([word.strip(MARKS).lower() for word in text] for text in (one, other))
        blocks = SequenceMatcher(None, bare, said, autojunk=False).get_matching_blocks()
        pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
        right = sum(mark_of(one[i]) == mark_of(other[j]) != "" for i, j in pairs)
        wanted, given = (sum(mark_of(word) != "" for word in text) for text in (one, other))
        kept = len(pairs) / max(1, len(one), len(other))
        rows.append((sentence.text, answer, one == other, harder(sentence), kept, right, wanted, given))
    return pd.DataFrame(rows, columns=["expected", "answer", "exact", "harder", "kept", "right", "wanted", "given"])


def mark_of(word: str) -> str:
    """Return the marks behind a word."""
    return word[len(word.rstrip(MARKS)) :]


def marks_f1(table: pd.DataFrame) -> float:
    """Compute F1 of the marks over all rows of a `compare_written`: 1 where all are right, none missing, none added."""
    return float(2 * table.right.sum() / max(1, table.wanted.sum() + table.given.sum()))


def writing_scores(table: pd.DataFrame) -> dict[str, str]:
    """Say in words how a contender wrote: see `compare_written`."""
    parts = {"exact, harder": table["exact"][table["harder"]], "exact, others": table["exact"][~table["harder"]]}
    return {
        "exact": str(interval(table["exact"])),
        **{name: f"{part.mean():.0%}" if len(part) else "none" for name, part in parts.items()},
        "marks, F1": f"{marks_f1(table):.2f}",
        "words kept": f"{table['kept'].mean():.1%}",
    }


def checked(heard: Sequence[str], answers: Sequence[str], instead: Callable[[Sequence[str]], list[str]]) -> list[str]:
    """Keep an answer that has the words that were dictated; where one was changed, write the sentence by `instead`."""
    return [
        answer if dictated(answer) == text else other
        for text, answer, other in zip(heard, answers, instead(heard), strict=True)
    ]


def weighed(rule: np.ndarray, tuned: np.ndarray, hard: np.ndarray) -> str:
    """Say by how much rule and finetune lead where, and from which share of harder sentences on the finetune is ahead.

    rule, tuned: whether each sentence is exact, as 0 or 1.  hard: which are harder.
    """
    if hard.all() or not hard.any():
        return "The sentences asked are all of one kind, harder or not: there is nothing to weigh."
    lead, gain = (rule - tuned)[~hard].mean(), (tuned - rule)[hard].mean()
    even = max(lead, 0) / (max(lead, 0) + max(gain, 0) or 1)
    return (
        f"On the others the rule leads by **{100 * lead:.0f} points**, "
        f"on the harder ones the finetune by **{100 * gain:.0f}**: "
        f"it beats the rule where over **{even:.0%}** are harder. How many of yours are?"
    )
