"""Sentences: plain prose of installed packages, found without running them, and never the same one in two parts."""

import importlib
import os
import re
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from helpers.text.messages import DataError
from helpers.workshop.sentences import (
    DEVELOPMENT,
    TEST,
    TRAIN,
    Parts,
    Sentence,
    apart,
    form,
    harder,
    mixed,
    of_folder,
    sentences,
    sentences_of,
    sentences_of_folder,
    sources,
    usual,
)

ROOT = Path(__file__).parents[2]
NOUNS = [
    "river",
    "garden",
    "village",
    "winter",
    "letter",
    "window",
    "market",
    "forest",
    "station",
    "kitchen",
    "harbour",
    "mountain",
    "teacher",
    "painter",
]


def made(*texts: str, package: str = "somewhere") -> list[Sentence]:
    return [Sentence(text, package) for text in texts]


def test_a_docstring_gives_its_sentences_and_nothing_that_is_code_or_a_list():
    text = """Draw the outline of a map, one line at a time.

    The colour is taken from the style, as ever. Old files keep the colour they had, e.g.
    Those of last year do. The grid is drawn at `depth` three of the whole tree.

    Parameters
    ----------
    depth : int
        How far to go down into the tree of nodes.

    See https://example.org for more about the other ways. It takes 3 of the many rows there are.
    """
    assert sentences_of(text) == [
        "Draw the outline of a map, one line at a time.",
        "The colour is taken from the style, as ever.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Takes a DataFrame with one row for each day.",  # a name of a program
        "Returns None where no row of the table fits.",
        "The value of x is added to every row.",
        "The rows, columns and cells of the table are read.",  # two people would not agree on the comma
        "If the file is missing an error is raised.",
        "However the file is read to its very end.",
        "It reads a file which holds the words.",
        "Too short to learn from.",
        "it begins with a small letter and goes on.",
        "It has no mark at its very end",
        "It says (in brackets) what most people know.",
        "The words; two halves of them are joined here.",
    ],
)
def test_what_is_no_plain_sentence_is_left_out(text):
    assert sentences_of(text) == []


def test_sentences_with_their_commas_stay():
    kept = [
        "If the file is missing, an error is raised.",
        "The rows, columns, and cells of the table are read.",
        "However, the file is read to its very end.",
        "The file in which the words stand is read.",
        "Don't ask for well-known words of others, please.",
        "Is the first letter of the file read?",
        "A lion and I went to see the Thames.",
    ]
    assert sentences_of(" ".join(kept)) == kept


def test_an_apostrophe_of_a_word_processor_is_one():
    assert sentences_of("The baker doesn\u2019t open the shop on Monday.") == ["The baker doesn't open the shop on Monday."]


@pytest.mark.parametrize(
    ("word", "expected"),
    [("word", "small"), ("Word", "Title"), ("I", "Title"), ("GPU", "CAPITALS"), ("NumPy", ""), ("don't", "small")],
)
def test_how_a_word_is_written(word, expected):
    assert form(word) == expected


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that would fail if anything of it ran."""
    name, folder = "dictated_package", tmp_path / "dictated_package"
    (folder / "tests").mkdir(parents=True)
    docs = [f'def f{i}():\n    """The {noun} is seen by all of them."""\n' for i, noun in enumerate(NOUNS)]
    (folder / "__init__.py").write_text('"""Read all the letters of the old harbour."""\nraise SystemExit\n')
    for number, doc in enumerate(docs):
        (folder / f"part{number}.py").write_text(doc)
    (folder / "template.py").write_text('"""Begin here with some of the words."""\n{{ code }} not python\n')
    (folder / "code.py").write_text('"""Mostly there is code in this file."""\n' + "x = 1\n" * 500)
    (folder / "folder.py").mkdir()
    (folder / "part0.py").write_text(docs[0] + '"\\d"\n')  # what Python warns of
    (folder / "tests" / "test_it.py").write_text('"""Test all that is said about the harbour."""\n')
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return name


def test_packages_are_read_in_place_and_never_run(package, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sentences([package, "no_such_package_anywhere"])
    assert "left out: no_such_package_anywhere." in capsys.readouterr().out
    assert {sentence.text for sentence in found} == {
        "Read all the letters of the old harbour.",
        *(f"The {noun} is seen by all of them." for noun in NOUNS),
    }
    assert {sentence.package for sentence in found} == {package}
    assert sentences([package]) == found


def test_no_package_gives_more_than_its_share_and_the_seed_draws_which(package):
    few = sentences([package], per_package=5)
    assert len(few) == 5 and few == sentences([package], per_package=5)
    assert any(few != sentences([package], per_package=5, seed=seed) for seed in range(1, 4))


def test_a_word_is_written_as_it_mostly_is():
    often = [f"The {noun} of London is older than the tower." for noun in NOUNS]
    odd = ["We went to see the tower of london once.", "The Tower is older than most people think.", "We saw the Hudson once."]
    kept = usual(made(*often, *odd))
    assert {sentence.text for sentence in kept} == set(often)


def test_a_first_word_in_capitals_has_to_be_one_that_is_written_so():
    often = [f"The {noun} of the BBC is older than the tower." for noun in NOUNS]
    kept = usual(made(*often, "BBC news is older than the tower.", "MUST be older than the tower is."))
    assert {sentence.text for sentence in kept} == {*often, "BBC news is older than the tower."}


def test_no_two_parts_have_nearly_the_same_sentence():
    train = made("Return the name of the first file.", "Close all of the windows at night.", "The cat sat on the old mat.")
    development = made("Returns the name of the first file.", "Count how many apples are left over.")
    test = made("Close all of the windows at midnight.", "Wait for the train to come in.")
    parts = apart(train, development, test)
    assert parts == Parts(train[2:], development, test)


def test_the_written_packages_are_disjoint_and_installed_by_the_course():
    names = [*TRAIN, *DEVELOPMENT, *TEST]
    assert len(names) == len(set(names))
    pins = (ROOT / "requirements.txt").read_text() + (ROOT / "constraints.txt").read_text()
    pinned = {re.sub("[-_.]+", "-", name).lower() for name in re.findall(r"^([\w.-]+)==", pins, re.MULTILINE)}
    owners = metadata.packages_distributions()
    for name in names:
        assert re.sub("[-_.]+", "-", owners[name][0]).lower() in pinned, name


def test_the_packages_that_gave_sentences_are_named_with_version_and_licence():
    parts = Parts(made("One.", "Two.", package="numpy"), [], made("Three.", package="sklearn"))
    table = sources(parts).set_index("package")
    assert table.sentences.to_dict() == {"numpy": 2, "sklearn": 1}
    assert table.part.to_dict() == {"numpy": "train", "sklearn": "test"}
    assert table.version["sklearn"] == metadata.version("scikit-learn") and "BSD" in table.licence["sklearn"]


def test_the_texts_of_a_learner_are_parted_by_file(tmp_path):
    said = ["Nobody came to see us yesterday evening.", "Apples grow well where winters are mild."]
    said += ["She painted her kitchen in bright yellow.", "Trains to town leave every twenty minutes."]
    said += ["Our teacher forgot his umbrella again.", "Bread should rest before you cut it."]
    said += ["Please close those windows when rain begins.", "Old maps show rivers that no longer exist."]
    for number, text in enumerate(said):
        (tmp_path / f"{number}.md").write_text(f"# Heading\n\n{text}\n\n{text}\n")
    (tmp_path / "notes.csv").write_text("This file is of no kind that is read.\n")
    parts = of_folder(tmp_path)
    files = [{sentence.package for sentence in part} for part in vars(parts).values()]
    assert [len(names) for names in files] == [4, 2, 2] and len(set.union(*files)) == 8
    assert of_folder(tmp_path) == parts
    assert set(sources(parts).version) == set(sources(parts).licence) == {"-"} and sources(parts).sentences.sum() == 8


def test_a_folder_that_cannot_be_used_says_what_to_do(tmp_path):
    for missing in (tmp_path / "missing", "~/a folder that nobody has"):
        with pytest.raises(DataError, match=r"there is no such folder\. Check the path"):
            of_folder(missing)
    with pytest.raises(DataError, match=r"no \.txt or \.md file .* Put texts of yours there"):
        of_folder(tmp_path)
    (tmp_path / "one.txt").write_text("There is but one file with a sentence here.\n")
    with pytest.raises(DataError, match=r"1 file.* at least 4 are needed"):
        of_folder(tmp_path)
    for number, verb in enumerate(("saw", "heard", "bought")):
        (tmp_path / f"{number}.txt").write_text(" ".join(f"We {verb} the {noun} once again." for noun in NOUNS))
    with pytest.raises(DataError, match="too much alike: no sentence is left for train"):
        of_folder(tmp_path)
    (tmp_path / "wide.txt").write_text("There is but one file.\n", encoding="utf-16")
    with pytest.raises(DataError, match=r"wide\.txt: byte 0 is not UTF-8\. Save the file as UTF-8"):
        of_folder(tmp_path)
    (tmp_path / "wide.txt").write_text("There is but one file.\n", encoding="utf-16-le")
    with pytest.raises(DataError, match=r"wide\.txt: this is a binary file"):
        of_folder(tmp_path)
    (tmp_path / "wide.txt").unlink()
    if os.name != "nt":
        (tmp_path / "wide.txt").symlink_to("nowhere.txt")
        with pytest.raises(DataError, match=r"wide\.txt: cannot be read: No such file .* move the file away"):
            of_folder(tmp_path)


def test_only_files_that_a_learner_put_there_are_read(tmp_path):
    (tmp_path / "marked.txt").write_text("There is a file with a sentence here.\r\n", encoding="utf-8-sig")
    (tmp_path / "folder.txt").mkdir()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "licence.txt").write_text("Nobody wants to hear of that one here.\n")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
    assert sentences_of_folder(tmp_path) == made("There is a file with a sentence here.", package="marked.txt")


def test_half_of_what_is_drawn_needs_more_than_a_capital_and_a_full_stop():
    found = made(*(f"The {noun} is seen by them." for noun in NOUNS), *(f"The {noun}, they say, is seen." for noun in NOUNS))
    assert [harder(sentence) for sentence in found] == [False] * len(NOUNS) + [True] * len(NOUNS)
    chosen = mixed(found, 10, "test")
    assert len(chosen) == 10 and sum(map(harder, chosen)) == 5
    assert chosen == mixed(found, 10, "test") and chosen != mixed(found, 10, "rows")
    assert len(mixed(found[: len(NOUNS) + 2], 10, "few are hard")) == 10


def test_a_word_that_opens_a_sentence_tells_nothing_of_how_it_is_written():
    found = made("London is older than the tower is.", "We saw the gates of london once.")
    assert usual(found) == set(found)
