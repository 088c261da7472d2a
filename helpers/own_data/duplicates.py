"""Duplicates: rows that say the same, word for word or nearly, and training rows that ask what a test asks."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence

import regex
from datasketch import MinHash, MinHashLSH

from helpers.data import Example
from helpers.machine.progress import bar_if_long
from helpers.text.messages import asked_keys
from helpers.text.normalise import comparable

SHINGLE, PERMUTATIONS, BANDS, BAND = 4, 128, 16, 8  # 16 bands of 8 numbers find pairs that are 80% alike, or more
POLITE = re.compile(r"\b(?:(?:many )?thanks|thank you|cheers|please|kindly|hi(?: there)?|hello|hey|dear|sorry)\b")
LITTLE_WORDS = "a an the of to is are was were be do does did i you me my your it its for on in at and or tell say who what"
LITTLE = frozenset(LITTLE_WORDS.split())
_ALONE = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
UNSPACED = regex.compile(rf"[{_ALONE}]|[^{_ALONE}]+")  # writing without spaces: each character says something
READ = 20_000  # characters of a text that are compared


def shingles(text: str) -> set[str]:
    """Cut a text into all its pieces of four characters."""
    return {text[start : start + SHINGLE] for start in range(max(1, min(len(text), READ) - SHINGLE + 1))}


def minhash(text: str) -> MinHash:
    """Return a signature of 128 numbers; the share of them that two texts have in common is about their `likeness`.

    DataSource: Broder 1997, On the resemblance and containment of documents.
    """
    signature = MinHash(PERMUTATIONS, hashfunc=zlib.crc32)
    signature.update_batch([piece.encode() for piece in shingles(text)])
    return signature


def likeness(one: str, other: str) -> float:
    """Return the share of shingles that two texts have in common (Jaccard's index); 0 when they hold different numbers.

    "It costs 59 euros" and "It costs 95 euros" look alike and say different things.
    """
    if sorted(re.findall(r"\d+", one)) != sorted(re.findall(r"\d+", other)):
        return 0.0
    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def _typo(one: str, other: str, known: Counter) -> bool:
    """Tell whether two letters of a word changed places, and the word stands nowhere else; "head" and "heads" are two words."""
    places = [place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    if len(one) != len(other) or len(places) != 2 or min(known[one], known[other]) > 1:
        return False
    first, second = places
    return (
        second == first + 1 and one[first] == other[second] and one[second] == other[first] and one[first] != one[first].upper()
    )


def _content(text: str, empty: frozenset[str]) -> list[str]:
    """Cut a normalised text into the words that say something; where no spaces part words, each character is one."""
    words = POLITE.sub(" ", text).split()
    return [part for word in words if word not in empty for part in (UNSPACED.findall(word) or [word])]


def same_content(one: str, other: str, known: Counter, ordered: bool) -> bool:
    """Tell whether two normalised texts say the same but for greetings, thanks and words mistyped.

    known: how many texts a word stands in.  ordered: word for word; otherwise in any order, and little words count for
    nothing: such texts ask the same in another way.
    """
    first, second = (_content(text, frozenset() if ordered else LITTLE) for text in (one, other))
    if not ordered:
        shared = set(first) & set(second)
        first, second = (sorted(set(words) - shared) for words in (first, second))
    pairs = zip(first, second, strict=False)
    return len(first) == len(second) and all(a == b or _typo(a, b, known) for a, b in pairs)


def matches(
    texts: Sequence[str], similar: float = 0.85, against: Sequence[str] | None = None, ordered: bool = True
) -> dict[int, int]:
    """Find for each text, by index, the first earlier one that it repeats; with `against`, the first of those.

    Texts match when they are equal after `normalise`, or else when they are at least so similar (1: equal only) and have the
    same content: see `same_content`, also for `ordered`.
    Only texts whose signatures agree in a whole band are compared. So, by chance, 1 in 20 of the pairs that are 80% alike
    is missed, and 1 in 150 of those that are 85% alike.
    """
    asked = [comparable(text) for text in against or ()]
    everything = asked + [comparable(text) for text in texts]
    known = Counter(word for text in set(everything) for word in set(text.split())) if similar < 1 else Counter()
    bands = MinHashLSH(num_perm=PERMUTATIONS, params=(BANDS, BAND))
    found: dict[int, int] = {}
    exact: dict[str, int] = {}
    signatures: dict[int, MinHash] = {}
    for index, text in enumerate(bar_if_long(everything, 1, "comparing", "text")):
        original, signature = exact.get(text), None
        if original is None and similar < 1:
            signature = minhash(text)
            likely = (
                other for other in sorted(bands.query(signature)) if signatures[other].jaccard(signature) > similar - 0.15
            )
            original = next(
                (
                    other
                    for other in likely
                    if likeness(text, everything[other]) >= similar and same_content(text, everything[other], known, ordered)
                ),
                None,
            )
        if index >= len(asked) and original is not None:
            found[index - len(asked)] = original
        elif index < len(asked) or against is None:
            exact.setdefault(text, index)
            if signature is not None:
                signatures[index] = signature
                bands.insert(index, signature)
    return found


def deduplicate(examples: Sequence[Example], similar: float = 0.85) -> tuple[list[Example], list[tuple[Example, Example]]]:
    """Keep the first of rows that say the same; return those kept, and each removed row with the one that it repeats."""
    found = matches([example.text for example in examples], similar)
    kept = [example for index, example in enumerate(examples) if index not in found]
    return kept, [(examples[copy], examples[original]) for copy, original in found.items()]


def contaminated(train: Sequence[Example], test: Sequence[Example], similar: float = 0.85) -> list[Example]:
    """Return the training rows that ask a test question, word for word or nearly: with them a test measures memory.

    A conversation asks at each of its turns.
    """
    asked = [(index, key) for index, example in enumerate(train) for key in sorted(asked_keys(example.turns))]
    found = matches([key for _, key in asked], similar, [example.key for example in test], ordered=False)
    return [train[index] for index in sorted({asked[place][0] for place in found})]
