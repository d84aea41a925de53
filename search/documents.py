"""Documents, and what is asked of an index about them. Plain values, which travel between processes as lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import msgspec

from homeserver.search.query import Query


class Document(NamedTuple):
    """A text to index. number: unique, and never reused. time: sorts the answers. labels: bits that the caller uses."""

    number: int
    time: int
    group: int
    author: int
    labels: int
    text: str


class Indexed(NamedTuple):
    """A document with the terms under which it is found, how often it has each, and how many words it has."""

    document: Document
    frequencies: dict[str, int]
    length: int


class Hit(NamedTuple):
    """A document that may match. Its fields sort it. The last one of an answer is the place to continue from.

    score: how closely it matches; 0 if the most recent ones are wanted first.
    """

    score: float
    time: int
    number: int


class Wanted(msgspec.Struct, frozen=True):
    """A search. Conditions that are None accept every document.

    labels_any: of each of these masks, a document has at least one bit. before: where to continue.
    by_rank: the closest first instead of the most recent. limit: how many hits to return.
    """

    query: Query
    groups: frozenset[int] | None = None
    authors: frozenset[int] | None = None
    not_authors: frozenset[int] = frozenset()
    labels_any: Sequence[int] = ()
    from_time: int | None = None
    to_time: int | None = None
    by_rank: bool = False
    before: Hit | None = None
    limit: int = 10

    def accepts(self, group: int, author: int, labels: int) -> bool:
        """Returns whether a document fulfils the conditions, whatever its text and time."""
        return (
            (self.groups is None or group in self.groups)
            and (self.authors is None or author in self.authors)
            and author not in self.not_authors
            and all(labels & mask for mask in self.labels_any)
        )


class Deleted(msgspec.Struct, frozen=True):
    """Documents to remove: by number, by group, by author."""

    numbers: Collection[int] = ()
    groups: Collection[int] = ()
    authors: Collection[int] = ()

    def __bool__(self) -> bool:
        return bool(self.numbers or self.groups or self.authors)

    def concerns(self, number: int, group: int, author: int) -> bool:
        """Returns whether a document is to be removed."""
        return number in self.numbers or group in self.groups or author in self.authors


class IndexDamaged(Exception):
    """The files of an index are not what was written."""


class OutOfTime(Exception):
    """A search has used up its time. time, number: the place to continue from, just after what it has not looked at."""

    def __init__(self, time: int, number: int) -> None:
        super().__init__(time, number)
        self.time = time
        self.number = number


class Found(msgspec.Struct, frozen=True):
    """The answer to a search. reached: where to continue, None if there is nothing more."""

    hits: list[Hit]
    reached: Hit | None


# Frequent words count for more, up to a point, and less in long texts. The average message has ten words.
_SATURATION, _LENGTH = 1.2, 10.0


def score_of(frequencies: Sequence[float], length: int) -> float:
    """Returns how closely a text of `length` words matches, between 0 and 1, by how often it has what was searched for.

    It depends on nothing but the query and the text, so it tells nobody anything about other texts.
    """
    norm = _SATURATION * (0.25 + 0.75 * length / _LENGTH)
    return sum(frequency / (frequency + norm) for frequency in frequencies) / max(1, len(frequencies))
