"""The words by which people are found in the user directory, in any script. Pure functions.

Names and search terms are folded alike: compatibility forms (NFKC), case, and the accents of Latin, Greek and Cyrillic
letters make no difference. Words are separated by spaces and punctuation. Scripts without spaces between words get a
word at every character, so that a given name is found behind a family name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

# A longer word is found by its beginning. It is part of an index.
WORD_CHARACTERS_MAX = 40
# A display name may have 256 characters, most names have two words.
WORDS_PER_NAME_MAX = 40

_ACCENTS = re.compile("[\u0300-\u036f]")
# Punctuation, spaces and control characters; symbols except pictures such as emoji.
_SEPARATORS = frozenset(
    {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk"}
)
# Thai, Lao, Myanmar, Khmer; kana, Chinese characters.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]"
)


def words_of(text: str) -> list[str]:
    """Returns the folded words of a search term, in order."""
    folded = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold())).casefold()
    folded = unicodedata.normalize("NFKC", folded)
    separated = "".join(" " if unicodedata.category(char) in _SEPARATORS else char for char in folded)
    return [word[:WORD_CHARACTERS_MAX] for word in separated.split()]


def words_of_person(localpart: str, display_name: str | None) -> set[str]:
    """Returns the words by whose beginnings a person is found."""
    found: dict[str, None] = {}
    for word in [*words_of(localpart)[:WORDS_PER_NAME_MAX], *words_of(display_name or "")]:
        found.setdefault(word)
        for match in _UNSPACED.finditer(word, 1):
            found.setdefault(word[match.start() :])
    return set(list(found)[: 2 * WORDS_PER_NAME_MAX])


def are_found(searched: Collection[str], words: Collection[str]) -> bool:
    """Returns whether each of the searched words begins one of a person's words."""
    return all(any(word.startswith(prefix) for word in words) for prefix in searched)
