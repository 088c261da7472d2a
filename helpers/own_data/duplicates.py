"""Duplicates: rows that say the same, word for word or nearly, and training rows that ask what a test asks."""

import re
import zlib
from collections.abc import Sequence

from datasketch import MinHash, MinHashLSH

from helpers.data import Example
from helpers.machine.progress import bar_if_long
from helpers.text.messages import asked_keys
from helpers.text.normalise import normalise

SHINGLE, PERMUTATIONS, BANDS, BAND = 4, 128, 16, 8  # 16 bands of 8 numbers find pairs that are 80% alike, or more
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


def matches(texts: Sequence[str], similar: float = 0.85, against: Sequence[str] | None = None) -> dict[int, int]:
    """Find for each text, by index, the first earlier one that it repeats; with `against`, the first of those.

    Texts match when they are equal after `normalise`, or else when they are at least so similar (1: equal only).
    Only texts whose signatures agree in a whole band are compared. So, by chance, 1 in 20 of the pairs that are 80% alike
    is missed, and 1 in 150 of those that are 85% alike.
    """
    known = [normalise(text) or text for text in against or ()]
    everything = known + [normalise(text) or text for text in texts]
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
            original = next((other for other in likely if likeness(text, everything[other]) >= similar), None)
        if index >= len(known) and original is not None:
            found[index - len(known)] = original
        elif index < len(known) or against is None:
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
    found = matches([key for _, key in asked], similar, [example.key for example in test])
    return [train[index] for index in sorted({asked[place][0] for place in found})]
