"""Splits text into words that can be searched, in any script. Pure functions.

Theory of operation. Text is normalised (NFKC) and cut into runs:

- Scripts without spaces between words, and Korean, whose words take endings, are indexed by pairs of characters: 東京都
  has the words 東京, 京都 and 都. So any part of a run is found as a sequence of pairs, and a single character as the
  beginning of a pair.
- Other letters and digits are words, cut where letters meet digits and where capitals begin a part: `qwen3.6` has the
  words qwen, 3 and 6, `getUserName` has get, user and name. Parts that are joined, also by "-", "_" or "'", are a word
  together as well (getusername), so that they are found however they are written.
- Pictures such as emoji are words.

Words are folded: case and the accents of Latin, Greek and Cyrillic letters make no difference. Each word has a
position; parts of a run have consecutive ones, and the words of joined parts have that of the first part.

`stems_of` returns what inflected forms of a word have in common, in English and in German.
"""

from __future__ import annotations

import re
import unicodedata
import warnings
from collections.abc import Iterator
from typing import NamedTuple

# A longer word is found by its beginning. The longest German words have some 60 letters.
WORD_CHARACTERS_MAX = 64
# Words of one text that are indexed: twice as many as fit into the largest event of ordinary language.
WORDS_MAX = 20_000
STEM_CHARACTERS_MIN = 4

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
)
# Marks that are part of letters in scripts other than Latin, Greek and Cyrillic: vowels, for example.
_MARKS = (
    "\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0f18-\u0fbc\u1a00-\u1aaf\u1b00-\u1cff"
)
_PICTURES = "\u2600-\u27bf\U0001f000-\U0001faff"
_RUN = re.compile(f"([{_UNSPACED}]+)|((?:[^\\W_{_UNSPACED}]|[{_MARKS}])+)|([{_PICTURES}])")
_UNSPACED_RUN, _LETTERS_OR_DIGITS = 1, 2  # groups of _RUN
_PART = re.compile(r"\d+|\D+")
_CAPITALS = re.compile(r"(?<=[a-z\u00df-\u00ff])(?=[A-Z\u00c0-\u00de])|(?<=[A-Z])(?=[A-Z][a-z]{2})")
_ACCENTS = re.compile("[\u0300-\u036f]")
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "æ": "ae", "œ": "oe", "þ": "th", "ı": "i"})
_JOINTS = frozenset("-_'’")
_UNSPACED_START = re.compile(f"[{_UNSPACED}]")


class Word(NamedTuple):
    """A word of a text: folded, its position among the words, and where it is in the normalised text.

    after: the position of the word that follows it.
    """

    text: str
    position: int
    after: int
    start: int
    end: int


def normalize(text: str) -> str:
    """Returns the text in the form in which `words_of` counts characters."""
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def fold(text: str) -> str:
    """Returns the text without differences of case and accent."""
    if text.isascii():
        return text.lower()
    plain = _ACCENTS.sub("", unicodedata.normalize("NFD", text.casefold())).casefold()
    return unicodedata.normalize("NFC", plain).translate(_LETTERS)


def words_of(text: str) -> list[Word]:
    """Returns the words of a normalised text, at most WORDS_MAX."""
    words: list[Word] = []
    position = 0
    joined: list[Word] = []  # the pieces of the current word, in so many parts: letters or digits
    parts = 0
    for run in _RUN.finditer(text):
        start, end = run.span()
        if not (joined and run.lastindex == _LETTERS_OR_DIGITS and _is_joint(text, joined[-1].end, start)):
            if parts > 1:
                _add_joined(words, joined)
            joined, parts = [], 0
        if run.lastindex == _LETTERS_OR_DIGITS:
            for part in _PART.finditer(run.group()):
                pieces = _pieces(part.group(), start + part.start(), position)
                words += pieces
                joined += pieces
                parts += 1
                position += len(pieces)
                _add_joined(words, pieces)
        elif run.lastindex == _UNSPACED_RUN:
            words += _pairs(fold(run.group()), position, start, end)
            position += end - start
        else:
            words.append(Word(run.group(), position, position + 1, start, end))
            position += 1
        if len(words) >= WORDS_MAX:
            break
    if parts > 1:
        _add_joined(words, joined)
    return words[:WORDS_MAX]


def is_unspaced(word: str) -> bool:
    """Returns whether the word belongs to a script that is indexed by pairs of characters."""
    return _UNSPACED_START.match(word) is not None


def _is_joint(text: str, start: int, end: int) -> bool:
    return end - start == 1 and text[start] in _JOINTS


def _pieces(part: str, start: int, position: int) -> list[Word]:
    """Returns the words of letters, or of digits. Long ones are not language, and have one piece."""
    cuts = [0]
    if len(part) <= WORD_CHARACTERS_MAX and not (part.islower() or part.isupper() or part.isdigit()):
        cuts += [cut.start() for cut in _CAPITALS.finditer(part)]
    folded = [fold(part[begin:end])[:WORD_CHARACTERS_MAX] for begin, end in zip(cuts, [*cuts[1:], None], strict=True)]
    return [
        Word(text, position + number, position + number + 1, start + begin, start + end)
        for number, (text, begin, end) in enumerate(zip(folded, cuts, [*cuts[1:], len(part)], strict=True))
    ]


def _pairs(run: str, position: int, start: int, end: int) -> Iterator[Word]:
    exact = len(run) == end - start
    for index in range(len(run)):
        where = (start + index, min(start + index + 2, end)) if exact else (start, end)
        yield Word(run[index : index + 2], position + index, position + index + 1, *where)


def _add_joined(words: list[Word], pieces: list[Word]) -> None:
    """Adds the word that several pieces are together."""
    if len(pieces) > 1:
        text = "".join(piece.text for piece in pieces)
        if len(text) <= WORD_CHARACTERS_MAX:
            words.append(Word(text, pieces[0].position, pieces[-1].after, pieces[0].start, pieces[-1].end))


class Stemmers:
    """The stems of words. Keeps those that it has computed: most words of a text are common ones."""

    def __init__(self, kept_max: int = 20_000) -> None:
        with warnings.catch_warnings():  # see `whoosh_files`; imported here, because few processes ever search
            warnings.simplefilter("ignore")
            from whoosh.lang.snowball.english import EnglishStemmer
            from whoosh.lang.snowball.german import GermanStemmer

        self._stemmers = (EnglishStemmer(), GermanStemmer())
        self._kept: dict[str, frozenset[str]] = {}
        self._kept_max = kept_max

    def stems_of(self, word: str) -> frozenset[str]:
        """Returns the English and the German stem of a folded word; nothing for short words and other alphabets."""
        stems = self._kept.get(word)
        if stems is None:
            if len(self._kept) >= self._kept_max:
                self._kept.clear()
            stems = self._kept[word] = self._compute(word)
        return stems

    def _compute(self, word: str) -> frozenset[str]:
        if len(word) < STEM_CHARACTERS_MIN or not (word.isascii() and word.isalpha()):
            return frozenset()
        return frozenset(stem for stemmer in self._stemmers if len(stem := stemmer.stem(word).lower()) > 2)
