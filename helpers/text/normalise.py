"""Normalising: what counts as the same text."""

import re
import unicodedata

import regex

_CHARACTER = r"[\p{L}\p{M}\p{N}]"  # letters with their marks, as the vowels of Hindi and Arabic, and digits
_TOKEN = regex.compile(
    r"(?<=\p{Nd} ?)[+*/^:\u00d7\u00f7](?= ?\p{Nd})"  # 7+3 is not 7-3
    r"|(?<=\p{Nd})-(?=\p{Nd})|(?<=\p{Nd} ?)-(?= \p{Nd})"  # and "7, -3" has a sign, so "7 -3" too
    rf"|(?:(?<!{_CHARACTER})-(?=\p{{Nd}}))?{_CHARACTER}+(?:(?<=\p{{Nd}})\.(?=\p{{Nd}}){_CHARACTER}+)*(?:(?<=\p{{L}})[+#]+)?"
    r"|[<>=\u2264\u2265\u2260\u00b1\u221a%\u00b0]|\p{Sc}"
)

# Emojis and other small pictures, and the marks of feet and inches behind a number: they may be all that differs.
_SIGN = regex.compile(r"[\p{Emoji_Presentation}\u2600-\u27bf]|(?<=\p{Nd})['\"\u2032\u2033](?!\w)")


def normalise(text: str) -> str:
    """Lower-case, drop marks that carry no meaning, squeeze spaces: texts that are equal after this count as the same.

    What carries meaning stays: the sign and the decimals of a number, operators between numbers, C++ and C#, currencies, %,
    and combining marks. A comma before three digits parts thousands, any other between digits is a decimal point.
    """
    if not text.isascii():
        text = regex.sub(r"\p{Cf}", "", unicodedata.normalize("NFC", text))
        text = regex.sub(r"(?<=\d)[\u2013\u2014](?=\d)|(?<!\d ?)\u2212 |\u2212", "-", text)
        text = regex.sub(r"(?<=\d)[\u00a0\u2009\u202f](?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"\s+", " ", text.casefold()))
    return " ".join(_TOKEN.findall(re.sub(r"(?<=\d),(?=\d)", ".", text)))


def comparable(text: str) -> str:
    """Make a text what is compared to find the same: normalised, with its signs; one of marks alone stays as it is."""
    return " ".join([normalise(text), *_SIGN.findall(text)]).strip() or text
