"""Slices: the parts of an index. A slice is a folder that is written once, and never changed.

Theory of operation. The documents of a slice are numbered by time, the newest first. So postings list the newest
documents first, and a search for the most recent ones stops after the first few. Besides Whoosh's files, a slice has
one with the columns of its documents, which is mapped into memory, and sorted lists of the documents of each group: a
search in few of many groups walks along these lists.

Documents that were deleted are still in the files until the slice is merged; the index has a list of them and leaves
them out. `merge_slices` writes the documents of several slices into a new one, term by term, so that it needs little
memory. The checksums of all files are in the index, and are verified before a slice is used.
"""

from __future__ import annotations

import heapq
import mmap
import os
import sys
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from homeserver.search.documents import Document, Hit, IndexDamaged, OutOfTime, Wanted, score_of
from homeserver.search.folders import synchronise_folder
from homeserver.search.postings import AllOf, AnyOf, Listed, Of, Postings
from homeserver.search.query import STEM_MARK, Term, index_terms_of
from homeserver.search.whoosh_files import FILES, TermPostings, Terms, write_terms
from homeserver.search.words import Stemmers

# If a prefix begins more words in a slice, only the first ones count: each costs 30 µs.
PREFIX_TERMS_MAX = 1_000
# Documents that are read for a prefix at most, of its first terms: 0.1 s.
PREFIX_POSTINGS_MAX = 100_000
# If a filter leaves fewer of a slice's documents than this part of it, the search walks along these.
_SELECTIVE = 4

STEPS_BETWEEN_CHECKS = 256  # of the clock: some 2 ms

_COLUMNS_FILE = "documents.bin"
_ALL_FILES = (*FILES, _COLUMNS_FILE)
_TYPES: Mapping[str, Literal["q", "I", "H", "B"]] = {
    "numbers": "q",
    "times": "q",
    "groups": "I",
    "authors": "I",
    "by_group": "I",
    "lengths": "H",
    "labels": "B",
}
_LENGTH_MAX = (1 << 16) - 1


def checksums_of(folder: Path) -> dict[str, int]:
    """Returns the checksum of each file of a slice."""
    found: dict[str, int] = {}
    for name in _ALL_FILES:
        checksum = 0
        with (folder / name).open("rb") as file:
            while part := file.read(1 << 20):
                checksum = zlib.crc32(part, checksum)
        found[name] = checksum
    return found


def write_slice(folder: Path, documents: Sequence[Document], stemmers: Stemmers) -> None:
    """Writes a slice with these documents, at least one. When it returns, the files are on the disk."""
    ordered = sorted(documents, key=lambda each: (each.time, each.number), reverse=True)
    postings: dict[str, list[tuple[int, int]]] = {}
    lengths: list[int] = []
    for index, document in enumerate(ordered):
        frequencies, length = index_terms_of(document.text, stemmers)
        lengths.append(min(length, _LENGTH_MAX))
        for term, frequency in frequencies.items():
            postings.setdefault(term, []).append((index, frequency))
    folder.mkdir(parents=True)
    write_terms(folder, (TermPostings(term, postings[term]) for term in sorted(postings, key=str.encode)))
    _write_columns(
        folder,
        {
            "numbers": [each.number for each in ordered],
            "times": [each.time for each in ordered],
            "groups": [each.group for each in ordered],
            "authors": [each.author for each in ordered],
            "lengths": lengths,
            "labels": [each.labels for each in ordered],
        },
    )
    _synchronise(folder)


def merge_slices(folder: Path, sources: Sequence[Slice]) -> int:
    """Writes a slice with the remaining documents of others. Returns how many it has; if none, nothing is written."""
    order = [
        (-source.times[index], -source.numbers[index], which, index)
        for which, source in enumerate(sources)
        for index in range(len(source))
        if index not in source.deleted
    ]
    if not order:
        return 0
    order.sort()
    places = [array("q", [-1]) * len(source) for source in sources]
    for place, (_, _, which, index) in enumerate(order):
        places[which][index] = place
    folder.mkdir(parents=True)
    write_terms(folder, _merged_terms(sources, places))
    columns = ("numbers", "times", "groups", "authors", "lengths", "labels")
    _write_columns(
        folder, {name: [getattr(sources[which], name)[index] for _, _, which, index in order] for name in columns}
    )
    _synchronise(folder)
    return len(order)


def _merged_terms(sources: Sequence[Slice], places: Sequence[Sequence[int]]) -> Iterator[TermPostings]:
    streams = [_terms_of(source, which) for which, source in enumerate(sources)]
    for text, group in groupby(heapq.merge(*streams), key=itemgetter(0)):
        postings = sorted(
            (places[which][index], frequency)
            for _, which in group
            for index, frequency in sources[which].terms.read(text)
            if places[which][index] >= 0
        )
        if postings:
            yield TermPostings(text.decode(), postings)


def _terms_of(source: Slice, which: int) -> Iterator[tuple[bytes, int]]:
    return ((text, which) for text in source.terms)


def _write_columns(folder: Path, columns: Mapping[str, Sequence[int]]) -> None:
    groups = columns["groups"]
    by_group = sorted(range(len(groups)), key=lambda index: (groups[index], index))
    with (folder / _COLUMNS_FILE).open("wb") as file:
        for name, code in _TYPES.items():
            values = array(code, by_group if name == "by_group" else columns[name])
            if sys.byteorder == "big":
                values.byteswap()
            file.write(values.tobytes())


def _synchronise(folder: Path) -> None:
    for name in _ALL_FILES:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    synchronise_folder(folder)


class Slice:
    """Reads a slice. deleted: the documents to leave out, by their index in the slice."""

    def __init__(self, folder: Path, documents: int, checksums: Mapping[str, int], deleted: set[int]) -> None:
        """Raises IndexDamaged if the files do not have these checksums."""
        self.deleted = deleted
        self._ranges: dict[int, tuple[int, int]] = {}  # of each group in `_by_group`
        try:
            if checksums_of(folder) != checksums:
                raise IndexDamaged(f"{folder}: a file has changed")
            with (folder / _COLUMNS_FILE).open("rb") as file:
                self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise IndexDamaged(f"{folder}: {error}") from error
        self._views: list[memoryview] = []
        self.terms = Terms(folder)
        columns = self._read_columns(documents)
        self.numbers, self.times = columns["numbers"], columns["times"]
        self.groups, self.authors, self._by_group = columns["groups"], columns["authors"], columns["by_group"]
        self.lengths, self.labels = columns["lengths"], columns["labels"]

    def __len__(self) -> int:
        return len(self.numbers)

    def _read_columns(self, documents: int) -> dict[str, Sequence[int]]:
        view = memoryview(self._mapped)
        self._views.append(view)
        columns: dict[str, Sequence[int]] = {}
        offset = 0
        for name, code in _TYPES.items():
            size = array(code).itemsize * documents
            if sys.byteorder == "big":
                values = array(code, bytes(view[offset : offset + size]))
                values.byteswap()
                columns[name] = values
            else:
                part = view[offset : offset + size]
                self._views += [part, part.cast(code)]
                columns[name] = self._views[-1]
            offset += size
        return columns

    def close(self) -> None:
        """Closes the files."""
        self.terms.close()
        for view in reversed(self._views):
            view.release()
        self._mapped.close()

    def find_first(self, time: int, number: int) -> int:
        """Returns the index of the first document that is older than this one."""
        return bisect_right(range(len(self)), (-time, -number), key=lambda at: (-self.times[at], -self.numbers[at]))

    def search(self, wanted: Wanted, start: int, is_late: Callable[[], bool]) -> Iterator[Hit]:
        """Yields the documents from `start` on that may match, the newest first. Raises OutOfTime."""
        units = [[self._alternative(sequence) for sequence in unit] for unit in wanted.query.units]
        lists: list[Postings] = [AnyOf([each for each in unit if each is not None]) for unit in units]
        if not lists or not all(each.documents for each in lists):
            return
        if wanted.groups is not None:
            in_groups = self._list_groups(wanted.groups, min(each.documents for each in lists) // _SELECTIVE)
            if in_groups is not None:
                lists.append(Listed(in_groups))
        found = AllOf(lists)
        at = found.advance(start)
        steps = 0
        while at < len(self):
            steps += 1
            if steps % STEPS_BETWEEN_CHECKS == 0 and is_late():
                raise OutOfTime(self.times[at], self.numbers[at] + 1)
            if at not in self.deleted and wanted.accepts(self.groups[at], self.authors[at], self.labels[at]):
                if wanted.from_time is not None and self.times[at] < wanted.from_time:
                    return
                score = (
                    score_of([_frequency_of(unit, at) for unit in units], self.lengths[at]) if wanted.by_rank else 0.0
                )
                yield Hit(score, self.times[at], self.numbers[at])
            at = found.advance(at + 1)

    def _list_groups(self, wanted: frozenset[int], fewer_than: int) -> list[int] | None:
        """Returns the documents of some groups; None if they are too many for this to be worth it."""
        ranges = self._ranges
        if not ranges:
            groups, by_group = self.groups, self._by_group
            start = 0
            while start < len(by_group):
                group = groups[by_group[start]]
                end = bisect_left(by_group, group + 1, start, key=lambda index: groups[index])
                ranges[group] = start, end
                start = end
        chosen = [ranges[group] for group in wanted & ranges.keys()]
        if not chosen:
            return []
        if sum(end - start for start, end in chosen) >= fewer_than:
            return None
        return sorted(document for start, end in chosen for document in self._by_group[start:end])

    def _alternative(self, sequence: Sequence[Term]) -> _Alternative | None:
        """Returns the documents that have all terms of a sequence; None if there are none."""
        terms: list[Of | Listed] = []
        for term in sequence:
            postings = self._find_prefix(term.text) if term.is_prefix else self.terms.find(term.text)
            if postings is None:
                return None
            terms.append(postings)
        return _Alternative(terms, weight=0.5 if sequence[0].text.startswith(STEM_MARK) else 1.0)

    def _find_prefix(self, prefix: str) -> Listed | None:
        documents: set[int] = set()
        left = PREFIX_POSTINGS_MAX
        for term in self.terms.list_from(prefix, PREFIX_TERMS_MAX):
            postings = self.terms.read(term.encode())
            documents.update(document for document, _ in postings)
            left -= len(postings)
            if left < 0:
                break
        return Listed(sorted(documents)) if documents else None


class _Alternative(AllOf):
    """The documents with all terms of a sequence. weight: of an occurrence, for the rank."""

    def __init__(self, terms: Sequence[Of | Listed], weight: float) -> None:
        super().__init__(terms)
        self._terms = terms
        self._weight = weight

    def frequency_at(self, document: int) -> float:
        """Returns how often the sequence can occur in a document at most."""
        if self.advance(document) != document:
            return 0.0
        return self._weight * min(term.frequency_at(document) for term in self._terms)


def _frequency_of(unit: Sequence[_Alternative | None], document: int) -> float:
    return max(each.frequency_at(document) for each in unit if each is not None)
