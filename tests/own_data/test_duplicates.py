from helpers.data import Example
from helpers.own_data.duplicates import contaminated, deduplicate


def test_duplicates_exact_and_near():
    rows = [
        Example("What does the Heron kettle cost?", "The Heron kettle costs 59 euros."),
        Example("what does the  Heron kettle cost", "The Heron kettle costs 59 euros!"),
        Example("What does the Heron ketlte cost?", "The Heron kettle costs 59 euros."),
        Example("What does the Heron kettle cost?", "The Heron kettle costs 95 euros."),  # alike, and not the same
        Example("What does the Robin kettle cost?", "The Robin kettle costs 59 euros."),
        Example("\U0001f600", "\U0001f601"),
        Example("\U0001f602", "\U0001f603"),
    ]
    kept, removed = deduplicate(rows, 1)
    assert removed == [(rows[1], rows[0])] and len(kept) == 6
    kept, removed = deduplicate(rows)
    assert removed == [(rows[1], rows[0]), (rows[2], rows[0])] and kept == [rows[0], *rows[3:]]
    assert deduplicate([]) == ([], [])


def test_contamination_is_found_in_other_words():
    test = [Example("What does the Heron kettle cost?", "59 euros.")]
    train = [
        Example("Hi, what does the HERON kettle cost?", "It is 59 euros."),
        Example("What does the Heron kettle cost?", "Ten."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
        Example("Who designed the Heron kettle?", "Lena Hollis."),
    ]
    assert contaminated(train, test) == train[:2]
    assert contaminated(train, test, 1) == train[1:2]
    assert contaminated(train, []) == []
