import socket

import numpy as np
import pytest

from helpers.data import read
from helpers.machine.loading import ModelError
from helpers.machine.network import refuse_network
from helpers.machine.paths import DATA
from helpers.retrieval.search import Index, Passage, embed, fuse, hit_rate, is_hit, prompt_with, read_passages
from helpers.text.messages import DataError

PAGES = {
    "bees.md": "# Bees\n\nBees live in a hive.\n\n## Honey\n\nThey make honey from nectar. It keeps for years.\n",
    "deep/boats.txt": "A ferry leaves at noon. It carries forty cars.",
}


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr("helpers.machine.cache.made_folder", lambda: tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def folder(tmp_path):
    for name, text in PAGES.items():
        path = tmp_path / "pages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path / "pages"


def test_passages_keep_file_and_heading(folder):
    assert read_passages(folder) == [
        Passage("bees.md", "Bees", "Bees live in a hive."),
        Passage("bees.md", "Bees: Honey", "They make honey from nectar. It keeps for years."),
        Passage("deep/boats.txt", "boats", "A ferry leaves at noon. It carries forty cars."),
    ]


def test_passages_overlap_by_sentences_and_stay_within_their_words(folder):
    (folder / "long.txt").write_text("One two three. Four five. Six seven eight. " + "word " * 12, encoding="utf-8")
    texts = [passage.text for passage in read_passages(folder, words=5) if passage.file == "long.txt"]
    assert texts[:2] == ["One two three. Four five.", "Four five. Six seven eight."]
    assert max(len(text.split()) for text in texts) == 5 and " ".join(texts).count("word") == 12
    apart = [p.text for p in read_passages(folder, words=5, overlap=0) if p.file == "long.txt"]
    assert apart[:2] == ["One two three. Four five.", "Six seven eight."]


def test_a_heading_inside_a_code_block_is_none(tmp_path):
    (tmp_path / "a.md").write_text("# Page\n\n```\n# a comment\n```\nText.\n", encoding="utf-8")
    assert [passage.heading for passage in read_passages(tmp_path)] == ["Page"]


def test_the_whole_handbook_is_in_its_passages():
    passages = read_passages(DATA / "handbook")
    assert len({passage.file for passage in passages}) == 38
    assert max(len(passage.text.split()) for passage in passages) <= 60
    for example in read(DATA / "evaluation/dev/facts.jsonl"):
        assert is_hit(passages, example.values), example.id


def test_folders_that_cannot_be_read_say_why(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(DataError, match="no text in it"):
            read_passages(folder)
    (tmp_path / "empty.md").write_text("\n\n# Only a heading\n", encoding="utf-8")
    with pytest.raises(DataError, match="no text in it"):
        read_passages(tmp_path)
    (tmp_path / "photo.txt").write_bytes(b"\x89PNG\xff\x00")
    with pytest.raises(DataError, match=r"photo.txt: byte 0 is not UTF-8"):
        read_passages(tmp_path)
    (tmp_path / "photo.txt").write_bytes(b"abc\x00def")
    with pytest.raises(DataError, match=r"photo.txt: this is a binary file"):
        read_passages(tmp_path)


def test_known_passages_are_found_without_a_network(folder, cached):
    with refuse_network() as refused:
        index = Index(read_passages(folder))
        found = {m: index.search(["Who makes honey?", "When does the boat go?"], 1, m) for m in ("words", "meaning", "both")}
    assert not refused and socket.socket
    assert [hits[0].heading for hits in found["both"]] == ["Bees: Honey", "boats"]
    assert [hits[0].heading for hits in found["meaning"]] == ["Bees: Honey", "boats"]
    assert found["words"][0][0].heading == "Bees: Honey"


def test_a_question_without_words_is_searched_by_meaning_alone(folder, cached):
    index = Index(read_passages(folder))
    assert index.search(["?!", "zzyzx"], 2, "words") == [[], []]
    assert [len(hits) for hits in index.search(["?!", ""], 2)] == [2, 2]
    assert index.search([], 2) == []
    with pytest.raises(ValueError, match="method is 'magic'"):
        index.search(["?"], method="magic")
    with pytest.raises(ValueError, match=r"k is -1; .* at least 1"):
        index.search(["?"], -1)


def test_an_index_of_nothing_new_is_the_same_and_one_of_nothing_at_all_is_refused(folder, cached):
    index = Index(read_passages(folder))
    again = index.updated(index.passages)
    assert again.passages == index.passages and (again.vectors == index.vectors).all()
    with pytest.raises(ValueError, match="no passages to search"):
        index.updated([])
    with pytest.raises(ValueError, match="None of these texts has a word"):
        index.updated([Passage("a.md", "", "?")])


def test_ranks_are_fused_as_by_hand():
    # 7 is second and first: 1/62 + 1/61; 5 is first and third: 1/61 + 1/63; 9 is third in one; 8 second in the other
    assert fuse([[5, 7, 9], [7, 8, 5]]) == [7, 5, 8, 9]
    assert fuse([[3, 1]]) == [3, 1] and fuse([]) == []


def test_embeddings_have_length_one_and_ignore_their_company():
    texts = ["A kettle.", "The price of the large blue kettle, in euros, is on the shelf.", ""]
    together = embed(texts)
    assert together.shape == (3, 384) and np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert np.allclose(together, np.concatenate([embed([text]) for text in texts]), atol=1e-5)


def test_a_hit_needs_all_its_parts_in_one_passage_as_whole_words():
    found = [Passage("a", "The Heron kettle", "It costs 59 euros."), Passage("b", "The Raven bell", "It costs 5 euros.")]
    assert is_hit(found, ["59 euros", "heron"]) and not is_hit(found, ["59 euros", "raven"])
    assert not is_hit(found[:1], ["9 euros"]) and not is_hit([], ["59 euros"])
    lists, parts = [found, found, []], [["heron"], ["raven"], ["heron"]]
    assert [hit_rate(lists, parts, k) for k in (1, 2)] == [1 / 3, 2 / 3]


def test_the_prompt_stays_within_its_budget(embedded):
    _, tokenizer = embedded
    found = [Passage("a", f"Page {i}", f"Sentence {i} " * 20) for i in range(5)]

    def size(text):
        return len(tokenizer(text, add_special_tokens=False).input_ids)

    sizes = {budget: size(prompt_with(tokenizer, "How much?", found, budget)) for budget in (40, 80, 200, 400, 2000)}
    assert all(used <= budget for budget, used in sizes.items())
    assert prompt_with(tokenizer, "How much?", found, 2000).count("Page") == 5
    whole = prompt_with(tokenizer, "How much?", found, 200)
    assert 1 <= whole.count("Page") < 5 and whole.endswith("Question: How much?")
    assert "Sentence 0" in prompt_with(tokenizer, "How much?", found, 60)  # the first passage alone is too long: it is cut
    with pytest.raises(ValueError, match="the budget is 10"):
        prompt_with(tokenizer, "How much?", found, 10)


def test_a_missing_encoder_is_told(monkeypatch):
    monkeypatch.setattr("helpers.retrieval.search.ENCODER", "no_such_package")
    from helpers.retrieval.search import find_encoder

    with pytest.raises(ModelError, match=r"requirements-model\.txt"):
        find_encoder()
