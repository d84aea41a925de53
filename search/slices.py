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
from itertools import accumulate, chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal

from homeserver.search.documents import Hit, IndexDamaged, Indexed, OutOfTime, Wanted, score_of
from homeserver.search.folders import synchronise_folder
from homeserver.search.postings import AllOf, AnyOf, Documents, Listed, Postings, Prefix, all_of
from homeserver.search.query import STEM_MARK, Term
from homeserver.search.sealed_files import Pages
from homeserver.search.whoosh_files import FILES, TermPostings, Terms, write_terms

# If a prefix begins more words in a slice, only the first ones count: each costs 10 µs.
PREFIX_TERMS_MAX = 1_000
# Documents that are read for a prefix at most, of its first terms: 0.1 s.
PREFIX_POSTINGS_MAX = 100_000
# The documents of a slice are compared in windows. The first has this many documents of the shortest list of the query,
# and each one is twice as long as the one before it, up to a number.
_WINDOW_MIN = 256
_WINDOW_DOCUMENTS = 64
_WINDOW_MAX = 16_384

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


def write_slice(folder: Path, key: bytes | None, entries: Sequence[Indexed]) -> None:
    """Writes a slice with these documents, at least one. When it returns, the files are on the disk.

    key: seals its terms, None if they are not sealed.
    """
    ordered = sorted(entries, key=lambda each: (each.document.time, each.document.number), reverse=True)
    postings: dict[str, tuple[list[int], dict[int, int]]] = {}
    for index, entry in enumerate(ordered):
        for term, frequency in entry.frequencies.items():
            documents, repeated = postings.setdefault(term, ([], {}))
            documents.append(index)
            if frequency > 1:
                repeated[index] = frequency
    folder.mkdir(parents=True)
    terms = sorted((term.encode(), *of_term) for term, of_term in postings.items())
    write_terms(folder, key, (TermPostings(*each) for each in terms))
    _write_columns(
        folder,
        {
            "numbers": [each.document.number for each in ordered],
            "times": [each.document.time for each in ordered],
            "groups": [each.document.group for each in ordered],
            "authors": [each.document.author for each in ordered],
            "lengths": [min(each.length, _LENGTH_MAX) for each in ordered],
            "labels": [each.document.labels for each in ordered],
        },
    )
    synchronise_folder(folder)


def merge_slices(folder: Path, key: bytes | None, sources: Sequence[Slice]) -> int:
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
    write_terms(folder, key, _merged_terms(sources, places))
    columns = ("numbers", "times", "groups", "authors", "lengths", "labels")
    _write_columns(
        folder, {name: [getattr(sources[which], name)[index] for _, _, which, index in order] for name in columns}
    )
    synchronise_folder(folder)
    return len(order)


def _merged_terms(sources: Sequence[Slice], places: Sequence[Sequence[int]]) -> Iterator[TermPostings]:
    streams = [_terms_of(source, which) for which, source in enumerate(sources)]
    for text, group in groupby(heapq.merge(*streams, key=itemgetter(0)), key=itemgetter(0)):
        documents: list[int] = []
        repeated: dict[int, int] = {}
        for _, which, postings in group:
            place_of = places[which].__getitem__
            old, frequencies = postings.read_all()
            documents += map(place_of, old)
            repeated.update((place_of(document), frequency) for document, frequency in frequencies.items())
        documents.sort()
        if documents[0] < 0:  # the place of those that were deleted
            documents = [each for each in documents if each >= 0]
            repeated.pop(-1, None)
        if documents:
            yield TermPostings(text, documents, repeated)


def _terms_of(source: Slice, which: int) -> Iterator[tuple[bytes, int, Postings]]:
    return ((text, which, postings) for text, postings in source.terms)


def _write_columns(folder: Path, columns: Mapping[str, Sequence[int]]) -> None:
    groups = columns["groups"]
    by_group = sorted(range(len(groups)), key=lambda index: (groups[index], index))
    with (folder / _COLUMNS_FILE).open("wb") as file:
        for name, code in _TYPES.items():
            values = array(code, by_group if name == "by_group" else columns[name])
            if sys.byteorder == "big":
                values.byteswap()
            file.write(values.tobytes())
        file.flush()
        os.fsync(file.fileno())


class Slice:
    """Reads a slice. deleted: the documents to leave out, by their index in the slice."""

    def __init__(
        self,
        folder: Path,
        documents: int,
        checksums: Mapping[str, int],
        deleted: set[int],
        key: bytes | None,
        pages: Pages,
    ) -> None:
        """key: with which its terms are sealed, None if they are not.

        Raises IndexDamaged if the files do not have these checksums.
        """
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
        self.terms = Terms(folder, key, pages)
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
        units = [self._unit(unit) for unit in wanted.query.units]
        if not all(unit.documents for unit in units):
            return
        lists: list[Documents] = [*units]
        if wanted.groups is not None:
            in_groups = self._list_groups(wanted.groups, min(each.documents for each in lists))
            if in_groups is not None:
                if not in_groups:
                    return
                lists.append(Listed(in_groups))
        lists.sort(key=lambda each: each.documents)
        lead, *others = lists
        width = max(_WINDOW_MIN, _WINDOW_DOCUMENTS * len(self) // lead.documents)
        low = start
        while low < len(self):
            if low > start and is_late():
                raise OutOfTime(self.times[low], self.numbers[low] + 1)
            high = min(low + width, len(self))
            found = self._accepted(all_of(lead.between(low, high), others), wanted)
            yield from self._ranked(found, units) if wanted.by_rank else self._unranked(found)
            if wanted.from_time is not None and self.times[high - 1] < wanted.from_time:
                return
            low, width = high, min(2 * width, max(width, _WINDOW_MAX))

    def _accepted(self, documents: Sequence[int], wanted: Wanted) -> list[int]:
        """Returns those of some documents that are not deleted and fulfil the conditions."""
        times, groups, authors, labels = self.times, self.groups, self.authors, self.labels
        deleted, since = self.deleted, wanted.from_time
        return [
            at
            for at in documents
            if at not in deleted
            and wanted.accepts(groups[at], authors[at], labels[at])
            and (since is None or times[at] >= since)
        ]

    def _unranked(self, documents: Sequence[int]) -> Iterator[Hit]:
        return (Hit(0.0, self.times[at], self.numbers[at]) for at in documents)

    def _ranked(self, documents: Sequence[int], units: Sequence[AnyOf]) -> Iterator[Hit]:
        frequencies = [unit.frequencies(documents) for unit in units]
        scores: dict[tuple[float, ...], float] = {}
        for at in documents:
            key = (self.lengths[at], *(each[at] for each in frequencies))
            score = scores.get(key)
            if score is None:
                score = scores[key] = score_of(key[1:], self.lengths[at])
            yield Hit(score, self.times[at], self.numbers[at])

    def _list_groups(self, wanted: frozenset[int], fewer_than: int) -> list[int] | None:
        """Returns the documents of some groups; None unless they are fewer than the documents that a query has."""
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
        return sorted(chain.from_iterable(self._by_group[start:end] for start, end in chosen))

    def _unit(self, unit: Sequence[Sequence[Term]]) -> AnyOf:
        """Returns the documents that have one of some sequences."""
        return AnyOf([found for sequence in unit if (found := self._find_sequence(sequence)) is not None])

    def _find_sequence(self, sequence: Sequence[Term]) -> AllOf | None:
        """Returns the documents that have all terms of a sequence; None if there are none."""
        terms: list[Documents] = []
        for term in sequence:
            found = self._find_prefix(term.text) if term.is_prefix else self.terms.find(term.text)
            if found is None:
                return None
            terms.append(found)
        return AllOf(terms, weight=0.5 if sequence[0].text.startswith(STEM_MARK) else 1.0)

    def _find_prefix(self, prefix: str) -> Prefix | None:
        terms = self.terms.list_from(prefix, PREFIX_TERMS_MAX)
        sums = [*accumulate(each.documents for each in terms)]
        return Prefix(terms[: bisect_left(sums, PREFIX_POSTINGS_MAX) + 1]) if terms else None
