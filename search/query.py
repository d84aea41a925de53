"""What a person types into a search field, and whether a text matches it. Pure functions.

    qwen release        texts with both words, in any order; inflected forms match too (release, released, releases)
    "blue kettle"       these words, one after the other, in exactly these forms
    kett*               words that begin so
    qwen3.6  東京都     the parts one after the other, however they are written: `qwen 3.6`, `qwen-3-6`

A query is a list of units that must all match. A unit is a list of alternatives, and an alternative is a sequence of
terms.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from homeserver.search.words import Stemmers, Word, is_unspaced, normalize, words_of

# Longer texts are not searched for but pasted by mistake.
QUERY_CHARACTERS_MAX = 512
# Each is looked up in each slice of the index: some 0.1 ms.
UNITS_MAX = 24
# Each may stand for a thousand words of a slice: 0.1 s.
PREFIXES_MAX = 3
# Shorter ones begin a great part of all words.
PREFIX_CHARACTERS_MIN = 2

_CHUNK = re.compile(r'"([^"]*)"?|(\S+)')
STEM_MARK = "~"
# More occurrences of a word in one text make no difference to its rank, and a frequency takes one byte.
FREQUENCY_MAX = 255


class InvalidQuery(ValueError):
    """The query is too long. The message is for the person who typed it."""


class Term(NamedTuple):
    """A term as an index has it: a word, or with STEM_MARK a stem. gap: the words between it and the term before it."""

    text: str
    gap: int = 0
    is_prefix: bool = False


class Query(msgspec.Struct, frozen=True):
    """A parsed query. It matches a text if each unit does, and a unit matches if one of its alternatives does."""

    units: Sequence[Sequence[Sequence[Term]]]

    def find(self, text: str, stemmers: Stemmers) -> set[str] | None:
        """Returns the words of the text that match, as they are written there; None if the text does not match."""
        shown = normalize(text)
        words = words_of(shown)
        by_text: dict[str, list[Word]] = {}
        for word in words:
            by_text.setdefault(word.text, []).append(word)
        found: set[str] = set()
        for unit in self.units:
            matched = [word for sequence in unit for word in _find_sequence(sequence, by_text, stemmers)]
            if not matched:
                return None
            found.update(shown[word.start : word.end] for word in matched)
        return found


def parse_query(text: str, stemmers: Stemmers) -> Query:
    """Parses what a person has typed. Raises InvalidQuery. A query without any word has no units."""
    if len(text) > QUERY_CHARACTERS_MAX:
        raise InvalidQuery(f"A search may have at most {QUERY_CHARACTERS_MAX} characters.")
    units: list[Sequence[Sequence[Term]]] = []
    for chunk in _CHUNK.finditer(normalize(text)):
        quoted, plain = chunk.groups()
        unit = _parse_quoted(quoted) if plain is None else _parse_plain(plain, stemmers)
        if unit and unit not in units:
            units.append(unit)
    if len(units) > UNITS_MAX:
        raise InvalidQuery(f"A search may have at most {UNITS_MAX} words.")
    if sum(any(term.is_prefix for sequence in unit for term in sequence) for unit in units) > PREFIXES_MAX:
        raise InvalidQuery(f"A search may have at most {PREFIXES_MAX} beginnings of words.")
    return Query(units)


def index_terms_of(text: str, stemmers: Stemmers) -> tuple[dict[str, int], int]:
    """Returns the terms under which a text is indexed, each with its frequency, and the number of words.

    A term that occurs more often than FREQUENCY_MAX counts as often as that.
    """
    frequencies: dict[str, int] = {}
    words = words_of(normalize(text))
    for word in words:
        frequencies[word.text] = frequencies.get(word.text, 0) + 1
        for stem in stemmers.stems_of(word.text):
            if stem != word.text:
                marked = STEM_MARK + stem
                frequencies[marked] = frequencies.get(marked, 0) + 1
    if len(words) > FREQUENCY_MAX:
        frequencies = {term: min(count, FREQUENCY_MAX) for term, count in frequencies.items()}
    return frequencies, len(words)


def _parse_quoted(text: str) -> list[list[Term]]:
    sequence = _sequence_of(_without_joined(words_of(text)))
    return [sequence] if sequence else []


def _parse_plain(text: str, stemmers: Stemmers) -> list[list[Term]]:
    words = words_of(text)
    if not words:
        return []
    pieces = _without_joined(words)
    sequence = _sequence_of(pieces)
    if text.endswith("*") and (len(pieces[-1].text) >= PREFIX_CHARACTERS_MIN):
        return [[*sequence[:-1], sequence[-1]._replace(is_prefix=True)]]
    if len(sequence) == 1:
        return [[term] for term in _forms_of(sequence[0], stemmers)]
    whole = max(words, key=lambda word: word.end - word.start)
    if whole not in pieces and whole.start == pieces[0].start and whole.end == pieces[-1].end:
        return [sequence, [Term(whole.text)]]
    return [sequence]


def _without_joined(words: Sequence[Word]) -> list[Word]:
    """Returns the words without those that are several others together."""
    by_position: dict[int, Word] = {}
    for word in words:
        known = by_position.get(word.position)
        if known is None or word.end - word.start < known.end - known.start:
            by_position[word.position] = word
    return list(by_position.values())


def _sequence_of(words: Sequence[Word]) -> list[Term]:
    """Returns the terms of a sequence. The last character of an unspaced run is part of the pair before it."""
    terms: list[Term] = []
    last: Word | None = None
    for word in words:
        is_single = len(word.text) == 1 and is_unspaced(word.text)
        if is_single and last is not None and last.after == word.position and last.text[1:] == word.text:
            continue
        terms.append(Term(word.text, 0 if last is None else word.position - last.after, is_single))
        last = word
    return terms


def _forms_of(term: Term, stemmers: Stemmers) -> list[Term]:
    """Returns the term, and the stems that its inflected forms have."""
    if term.is_prefix or not (term.text.isascii() and term.text.isalpha()):
        return [term]
    stems = stemmers.stems_of(term.text)
    marked = [Term(STEM_MARK + stem) for stem in sorted({*stems, term.text})]
    return [term, *(Term(stem) for stem in sorted(stems - {term.text})), *marked]


def _find_sequence(sequence: Sequence[Term], by_text: Mapping[str, Sequence[Word]], stemmers: Stemmers) -> list[Word]:
    """Returns the words of all places where the sequence is."""
    first = _find_term(sequence[0], by_text, stemmers)
    if len(sequence) == 1 or not first:
        return list(first)
    ending: dict[int, list[Word]] = {word.after: [word] for word in first}  # what was found, by where it ends
    for term in sequence[1:]:
        ending = {
            word.after: [*ending[word.position - term.gap], word]
            for word in _find_term(term, by_text, stemmers)
            if word.position - term.gap in ending
        }
    return [word for words in ending.values() for word in words]


def _find_term(term: Term, by_text: Mapping[str, Sequence[Word]], stemmers: Stemmers) -> Collection[Word]:
    if term.is_prefix:
        return [word for text, words in by_text.items() if text.startswith(term.text) for word in words]
    if not term.text.startswith(STEM_MARK):
        return by_text.get(term.text, ())
    stem = term.text[len(STEM_MARK) :]
    # Stems differ from their word at its end, so most words need not be stemmed.
    return [
        word
        for text, words in by_text.items()
        if text.startswith(stem[:2]) and text != stem and stem in stemmers.stems_of(text)
        for word in words
    ]
