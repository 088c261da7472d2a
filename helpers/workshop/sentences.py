"""Sentences: written English that every learner has, read in place out of installed packages, or texts of one's own.

Only what two people would write alike is kept: plain prose, usual spellings, commas where most would set them.
"""

import ast
import inspect
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer

from helpers.data import draw
from helpers.machine.limits import check_count
from helpers.machine.walk import files_below, text_of
from helpers.text.messages import DataError

TRAIN: tuple[str, ...] = (
    "torch",
    "transformers",
    "sympy",
    "pandas",
    "scipy",
    "sklearn",
    "networkx",
    "IPython",
    "huggingface_hub",
)
TRAIN += ("fontTools", "tornado", "prompt_toolkit", "pydantic", "jupyter_server", "anyio", "jedi", "bs4")
DEVELOPMENT = ("nltk", "PIL", "joblib", "jupyter_client", "aiohttp", "traitlets")
TEST = ("matplotlib", "numpy", "datasets", "jinja2", "ipywidgets", "nbconvert", "mpmath", "accelerate")
SKIPPED = {"tests", "testing", "vendor", "_vendor", "externals"}  # folders: tests, and the code of others

MARKS = ",.?"  # what may stand behind a word
WORD = "[A-Za-z]+(?:['-][A-Za-z]+)*"
PROSE = re.compile(rf"(?=[A-Z]){WORD}(?:,? {WORD})+[.?]")
BREAK = re.compile(r"(?<=[.?!:])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bal\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\betc\.)\s+(?=[A-Z])")
CODE = re.compile(r"\b(?:None|True|False)\b|(?<!['-])\b[B-HJ-Zb-z]\b(?!['-])|(?<!^)\bA\b")  # values and variables of one letter
# How a word may be written, and how to write it so.
FORMS: dict[str, Callable[[str], str]] = {"small": str.lower, "Title": str.capitalize, "CAPITALS": str.upper}
UNSURE = re.compile(  # where two people would not agree on a comma: sentences without it are left out
    r"\w, (?:[\w'-]+ ){1,3}(?:and|or) "  # before the last of a list: this, that, and those
    r"|^(?:If|When|While|Since|Because|Although|After|Once|Unless)\b[^,]*$"  # after a clause that comes first
    r"|^(?:By default|For example|In particular|In this case|However|Otherwise|Therefore|Thus|Hence|Finally)\b(?!,)"
    r"|\b(?!(?:in|on|of|at|by|for|from|to|with|over|under|through)\b)[a-z]+ which\b"  # before which
)


@dataclass(frozen=True)
class Sentence:
    """One written sentence, and the package, or the file, that it comes from."""

    text: str
    package: str

    @property
    def dictated(self) -> str:
        """What a speech recogniser hands over."""
        return dictated(self.text)


@dataclass(frozen=True)
class Parts:
    """Sentences to learn from, to choose settings on, and to test with: of different packages, or files."""

    train: list[Sentence]
    development: list[Sentence]
    test: list[Sentence]


def words(text: str) -> list[str]:
    """Split a text at white space and take the marks off the ends of the words."""
    return [bare for word in text.split() if (bare := word.strip(MARKS + ";:!\"'"))]


def dictated(text: str) -> str:
    """What a speech recogniser hands over: words in small letters, without marks; apostrophes and hyphens are spelling."""
    return " ".join(words(text)).lower()


def form(word: str) -> str:
    """Tell how a word is written: "small", "Title" or "CAPITALS", or "" for neither, as names in programs are."""
    return next((name for name, write in FORMS.items() if write(word) == word), "")


def sentences_of(text: str) -> list[str]:
    """Take the sentences of plain prose out of a text, of 6 to 25 words: nothing that is code, mathematics or a list.

    A printer's apostrophe, as word processors write it, becomes the one that keyboards have.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text.replace("\u2019", "'"))):
        if not re.search(r"^\s", paragraph, re.MULTILINE):  # a part that is indented explains a parameter, or is code
            found += [piece for piece in BREAK.split(" ".join(paragraph.split())) if _is_plain(piece)]
    return found


def _is_plain(text: str) -> bool:
    """Tell whether a piece of text is one plain sentence, with its commas where most would write them."""
    if not 6 <= len(text.split()) <= 25 or not PROSE.fullmatch(text) or CODE.search(text) or UNSURE.search(text):
        return False
    return all(form(word) for word in words(text))


def _docstrings(code: str) -> Iterator[str]:
    """Yield the docstrings of a module, its classes and its functions, however deep. Nothing of it runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of others' code nobody here needs to hear
        waiting: list = [ast.parse(code)]
    while waiting:
        node = waiting.pop()
        if text := ast.get_docstring(node, clean=False):
            yield text
        waiting += [inner for inner in node.body if isinstance(inner, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)]


def _of_package(package: str, seed: int) -> Iterator[str]:
    """Yield the sentences of a package's docstrings, its files in an order that is drawn."""
    spec = util.find_spec(package)
    folders = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]  # none: a module of one file
    found = ((folder, path) for folder in folders for path in sorted(folder.rglob("*.py")) if path.is_file())
    paths = [path for folder, path in found if not SKIPPED & set(path.relative_to(folder).parts)]
    for path in draw(f"files of {package}", seed).sample(paths, len(paths)):
        code = path.read_text("utf-8", errors="replace")
        if code.count('"""') * 1000 > len(code):  # files that are mostly code would take longest, for few sentences
            try:
                docstrings = list(_docstrings(code))
            except SyntaxError:  # a template
                continue
            yield from (sentence for text in docstrings for sentence in sentences_of(text))


def sentences(packages: Iterable[str], per_package: int = 800, seed: int = 0) -> list[Sentence]:
    """Collect sentences from the docstrings of installed packages, at most so many of each; one that is missing is named."""
    packages = list(packages)
    missing = [package for package in packages if util.find_spec(package) is None]
    if missing:
        print(f"Not installed, so left out: {', '.join(missing)}.")
    found: dict[str, Sentence] = {}
    for package in (package for package in packages if package not in missing):
        before = len(found)
        for text in _of_package(package, seed):
            found.setdefault(_key(text), Sentence(text, package))
            if len(found) == before + per_package:
                break
    return list(found.values())


def sentences_of_folder(folder: str | Path) -> list[Sentence]:
    """Collect the sentences of a learner's own texts: all .txt and .md files in a folder, and in its folders.

    Raises DataError for a folder without such files, and for a file that is no text in UTF-8.
    """
    paths = files_below(folder, (".txt", ".md"))
    if not paths:
        raise DataError(f"{folder}: no .txt or .md file is in this folder. Put texts of yours there, or name another folder.")
    found: dict[str, Sentence] = {}
    for path in paths:
        for text in sentences_of(text_of(path)):
            found.setdefault(_key(text), Sentence(text, str(path.relative_to(folder))))
    return list(found.values())


def _key(text: str) -> str:
    """Reduce a sentence to the beginnings of its longer words: equal for one that says the same in almost the same words."""
    return " ".join(sorted({word[:5] for word in dictated(text).split() if len(word) > 3}))


def of_packages(per_package: int = 800, seed: int = 0) -> Parts:
    """Collect the course's own sentences: TRAIN, DEVELOPMENT and TEST are different packages."""
    return apart(*(sentences(packages, per_package, seed) for packages in (TRAIN, DEVELOPMENT, TEST)))


def of_folder(folder: str | Path, seed: int = 0) -> Parts:
    """Collect the sentences of a folder, and draw a quarter of its files for the test and a quarter for development."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder. Check the path.")
    found = sentences_of_folder(folder)
    files = sorted({sentence.package for sentence in found})
    if len(files) < 4:
        raise DataError(
            f"{folder}: sentences stand in {len(files)} file(s), and at least 4 are needed. Add texts, or cut one up."
        )
    drawn, quarter = draw("files to test with", seed).sample(files, len(files)), len(files) // 4
    test, development = drawn[:quarter], drawn[quarter : 2 * quarter]
    part = {**dict.fromkeys(test, 2), **dict.fromkeys(development, 1)}
    parts = apart(*([sentence for sentence in found if part.get(sentence.package, 0) == number] for number in range(3)))
    if empty := [name for name, left in vars(parts).items() if not left]:
        raise DataError(f"{folder}: its files are too short or too much alike: no sentence is left for {empty[0]}. Add texts.")
    return parts


def apart(train: list[Sentence], development: list[Sentence], test: list[Sentence]) -> Parts:
    """Keep what all would write alike, see `usual`, and of no two parts nearly the same sentence, see `unlike`."""
    common = usual([*train, *development, *test])
    train, development, test = ([sentence for sentence in part if sentence in common] for part in (train, development, test))
    development = unlike(development, test)
    return Parts(unlike(train, test + development), development, test)


def usual(found: Sequence[Sentence], share: float = 0.75, least: int = 3) -> set[Sentence]:
    """Choose the sentences whose words are all written as they mostly are: the same way in so large a share of its places.

    What opens a sentence tells nothing of a word and is not counted. A capital further on has to be seen `least` times.
    """
    spelt: dict[str, Counter] = defaultdict(Counter)
    texts = [sentence.text for sentence in found]
    for text in texts:
        for word in words(text)[1:]:
            spelt[word.lower()][word] += 1

    def as_mostly(word: str) -> bool:
        count, seen = spelt[word.lower()][word], spelt[word.lower()].total()
        return count >= share * seen and (word.islower() or word == "I" or count >= least)

    return {
        sentence
        for sentence, (first, *others) in zip(found, map(words, texts), strict=True)
        if all(map(as_mostly, others)) and (form(first) == "Title" or as_mostly(first))
    }


def unlike(found: Sequence[Sentence], others: Sequence[Sentence], most: float = 0.6) -> list[Sentence]:
    """Leave out the sentences that share more than so much of all their words with one of the others (Jaccard)."""
    if not found or not others:
        return list(found)
    counter = CountVectorizer(binary=True, token_pattern=r"\S+")
    one = counter.fit_transform([sentence.dictated for sentence in found])
    other = counter.transform([sentence.dictated for sentence in others])
    shared = (one @ other.T).toarray().astype(np.float32)  # words in both: [found, others]
    sizes = one.sum(axis=1).A1[:, None] + np.array([len(set(sentence.dictated.split())) for sentence in others])
    return [
        sentence
        for sentence, most_alike in zip(found, (shared / (sizes - shared)).max(axis=1), strict=True)
        if most_alike <= most
    ]


def sources(parts: Parts) -> pd.DataFrame:
    """Table where sentences come from: the part, the package, its version and licence, and how many sentences it gave.

    A file of a learner's own has neither version nor licence.
    """
    owners = metadata.packages_distributions()
    rows = []
    for part, found in vars(parts).items():
        for package, count in Counter(sentence.package for sentence in found).most_common():
            about = metadata.metadata(owners[package][0]) if package in owners else None
            rows.append((part, package, about["Version"] if about else "-", _licence(about) if about else "-", count))
    return pd.DataFrame(rows, columns=["part", "package", "version", "licence", "sentences"])


def _licence(about: metadata.PackageMetadata) -> str:
    """Find a package's licence: its expression, its classifier, or the first line of what it says."""
    classified = [line.split(" :: ")[-1] for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    said = (about["License"] or "not said").strip().splitlines()[0]
    return about["License-Expression"] or ", ".join(classified) or said


def harder(sentence: Sentence) -> bool:
    """Tell whether a sentence needs more than a first capital and a full stop at its end."""
    return sentence.text != sentence.dictated.capitalize() + "."


def mixed(found: Sequence[Sentence], count: int, purpose: str, seed: int = 0) -> list[Sentence]:
    """Draw sentences at random, half of them harder ones, or all there are where these are too few."""
    check_count(count, purpose)
    rng = draw(f"dictation, {purpose}", seed)
    hard, easy = ([sentence for sentence in found if harder(sentence) == wanted] for wanted in (True, False))
    chosen = rng.sample(hard, min(count // 2, len(hard)))
    chosen += rng.sample(easy, min(count - len(chosen), len(easy)))
    return rng.sample(chosen, len(chosen))
