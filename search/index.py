"""Index: documents in a folder, in slices of time.

Theory of operation. New documents are kept in memory. When there are enough, they are written as a slice, and the
*manifest* is replaced: one file with the list of slices, and how far the index has come in the stream of documents of
its caller, its *position*. Replacing it is atomic, so whenever a process is killed, the index is as of its last
manifest, and the caller adds what came after that position again. Slices that no manifest lists are leftovers, and are
removed.

    documents → in memory (WRITE_AT) → small slices → merged into medium ones → merged once more into a closed slice

A closed slice has SLICE_DOCUMENTS or more documents and is merged again only to remove deleted ones. Merging needs no
lock: another process writes the new slice (`merge`), and `adopt` puts it in the place of the old ones.

A search visits the slices from the newest on, and stops when it has enough. Slices may overlap in time, if documents of
the past are added; then the search merges them. Deleted documents are left out at once, and leave the files with the
next merge of their slice.

With a key, the terms of each slice are sealed; those of slices from before there was a key are sealed by a merge. Not
sealed are times, groups and authors: the caller's database has them in the clear as well.

If the manifest or a slice is damaged, the index is reset: it starts empty, and says why.
"""

from __future__ import annotations

import heapq
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from homeserver.search.documents import (
    Deleted,
    Document,
    Found,
    Hit,
    IndexDamaged,
    Indexed,
    OutOfTime,
    Wanted,
    score_of,
)
from homeserver.search.folders import lock_folder, synchronise_folder
from homeserver.search.manifest import MANIFEST, format_manifest, parse_manifest
from homeserver.search.query import STEM_MARK, Query, Term, index_terms_of
from homeserver.search.sealed_files import Pages
from homeserver.search.slices import Slice, checksums_of, merge_slices, write_slice
from homeserver.search.words import Stemmers

# Writing this many documents takes 0.1 s, for which searches wait. They are the memory that a kill loses.
WRITE_AT = 500
# Or documents with this many words or terms, if they are long: 10 MB, and a second or two.
WRITE_AT_TERMS = 100_000
# Slices below this number of documents are small, and so many of them are merged. A search visits each.
SMALL_DOCUMENTS = 4_000
SMALL_SLICES_MAX = 8
# A closed slice: merging it takes some 10 s of another process. A million messages are 15 of them.
SLICE_DOCUMENTS = 64_000
MEDIUM_SLICES_MAX = 16
# Slices with more deleted documents than this part of all are merged to be rid of them; with fewer, after a while.
DELETED_SHARE_MAX = 0.1
NUMBER_MAX = 1 << 62
# Matches that are ranked at most, the newest first: 14 µs each.
RANKED_MAX = 5_000


class _Entry(msgspec.Struct):
    """A slice as the manifest has it. first, last: its lowest and highest number. oldest, newest: times.

    is_sealed: whether its terms are sealed.
    """

    name: str
    documents: int
    first: int
    last: int
    oldest: int
    newest: int
    bytes: int
    checksums: dict[str, int]
    is_sealed: bool
    deleted: list[int] = msgspec.field(default_factory=list)
    opened: Slice | None = None

    def to_json(self) -> dict[str, Any]:
        deleted = sorted(self.opened.deleted) if self.opened is not None else self.deleted
        return {
            "name": self.name, "documents": self.documents, "first": self.first, "last": self.last,
            "oldest": self.oldest, "newest": self.newest, "bytes": self.bytes, "checksums": self.checksums,
            "is_sealed": self.is_sealed, "deleted": deleted,
        }  # fmt: skip


class Index:
    """An index in a folder, which is created if it does not exist. Used by one thread of one process at a time.

    Raises IndexInUse if another process has it open. key: 32 bytes that seal the terms, None if they are not sealed.

    damage: why the index was reset when it was opened, empty if it was not. history, position: what the caller said
    last: which stream of documents this is, and up to where the index has it. since: from where on it has it; 0 unless
    a first index, which begins with the newest documents, is not complete yet.
    """

    def __init__(self, folder: Path, stemmers: Stemmers, key: bytes | None = None) -> None:
        self.damage = ""
        self.history = ""
        self.position = 0
        self.since = 0
        self.folder = folder
        self._stemmers = stemmers
        self._key = key
        self._pages = Pages()
        self._entries: list[_Entry] = []
        self._recent: list[Indexed] = []
        self._recent_terms = 0
        self._is_stored = True
        self._merging: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = lock_folder(folder)
        try:
            self._read_manifest()
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.reset(f"the manifest is damaged: {error}")
        self._remove_leftovers()

    def slice_names(self) -> list[str]:
        """Returns the names of the slices."""
        return [entry.name for entry in self._entries]

    # --- what is in it ---

    def add(self, documents: Sequence[Document], deleted: Deleted, position: int) -> None:
        """Removes documents, adds others, and notes that the index has come to `position`.

        Documents up to the position that it had already are ignored.
        """
        if position <= self.position:
            return
        if deleted:
            self._delete(deleted)
        self.position = position
        self._take(documents)

    def start_at(self, position: int) -> None:
        """Begins an empty index at a position: what came before is added later, by `add_older`."""
        self.position = self.since = position
        self._is_stored = False
        self.store()

    def add_older(self, documents: Sequence[Document], since: int) -> None:
        """Adds the documents after `since` that the index lacks, and notes that it has them."""
        if since < self.since:
            self.since = since
            self._take(documents)

    def _take(self, documents: Sequence[Document]) -> None:
        for document in documents:
            frequencies, length = index_terms_of(document.text, self._stemmers)
            self._recent.append(Indexed(document, frequencies, length))
            self._recent_terms += len(frequencies)
        self._is_stored = False
        if len(self._recent) >= WRITE_AT or self._recent_terms >= WRITE_AT_TERMS:
            self.store()

    def store(self) -> None:
        """Writes what is only in memory."""
        if self._is_stored:
            return
        if self._recent:
            name = _new_name()
            write_slice(self.folder / name, self._key, self._recent)
            self._entries.append(self._describe(name, [each.document for each in self._recent]))
        self._write_manifest()
        self._recent.clear()
        self._recent_terms = 0

    def reset(self, why: str, history: str = "") -> None:
        """Removes everything. The position is 0 again."""
        self.damage = why
        self._close_slices()
        self._entries, self._recent, self._merging = [], [], set()
        self._recent_terms = 0
        self.history, self.position, self.since = history, 0, 0
        self._write_manifest()
        self._remove_leftovers()

    def set_history(self, history: str) -> None:
        """Notes that the stream of documents has a new name. What the index has is in it too."""
        if history != self.history:
            self.history = history
            self._is_stored = False

    def close(self) -> None:
        """Writes what is only in memory, and closes the files. Closing it again does nothing."""
        if self._lock is None:
            return
        try:
            self.store()
        finally:
            self._close_slices()
            os.close(self._lock)
            self._lock = None

    def status(self) -> dict[str, Any]:
        """Returns how large the index is."""
        return {
            "position": self.position,
            "since": self.since,
            "documents": len(self._recent) + sum(each.documents - len(_deleted(each)) for each in self._entries),
            "deleted": sum(len(_deleted(each)) for each in self._entries),
            "slices": len(self._entries),
            "bytes": sum(each.bytes for each in self._entries),
        }

    def _delete(self, deleted: Deleted) -> None:
        self._recent = [
            each
            for each in self._recent
            if not deleted.concerns(each.document.number, each.document.group, each.document.author)
        ]
        is_by_number = not (deleted.groups or deleted.authors)
        for entry in self._entries:
            if is_by_number and not any(entry.first <= number <= entry.last for number in deleted.numbers):
                continue
            opened = self._open(entry)
            columns = zip(opened.numbers, opened.groups, opened.authors, strict=True)
            opened.deleted.update(at for at, document in enumerate(columns) if deleted.concerns(*document))

    # --- searching ---

    def search(self, wanted: Wanted, seconds: float) -> Found:
        """Returns documents that may match. Stops after `seconds`; then `reached` says how far it has come.

        Raises IndexDamaged if files are damaged; the caller should reset it.
        """
        if not wanted.query.units:
            return Found([], None)
        deadline = time.monotonic() + seconds
        stream = self._stream(wanted, lambda: time.monotonic() > deadline)
        return _ranked(wanted, stream) if wanted.by_rank else _recent(wanted, stream)

    def _stream(self, wanted: Wanted, is_late: Callable[[], bool]) -> Iterator[Hit]:
        """Yields all matches, the newest first. Slices are opened when it is their turn. Raises OutOfTime."""
        start: tuple[int, int] | None = None
        if wanted.before is not None and not wanted.by_rank:
            start = wanted.before.time, wanted.before.number
        if wanted.to_time is not None:
            start = min(start or (wanted.to_time, 0), (wanted.to_time, 0))
        waiting = sorted(self._entries, key=lambda entry: entry.newest)
        heads: list[tuple[int, int, int, Hit, Iterator[Hit]]] = []  # the next hit of each stream
        stream: Iterator[Hit] | None = self._search_recent(wanted, start)
        while True:
            try:
                hit = None if stream is None else next(stream, None)
                if hit is not None and stream is not None:
                    heapq.heappush(heads, (-hit.time, -hit.number, id(stream), hit, stream))
                stream = None
                if waiting and (not heads or waiting[-1].newest >= heads[0][3].time):
                    entry = waiting.pop()
                    if wanted.from_time is None or entry.newest >= wanted.from_time:
                        place = entry.newest, NUMBER_MAX
                        if (start is None or place < start) and is_late():  # the next call starts with this slice
                            raise OutOfTime(*place)
                        opened = self._open(entry)
                        stream = opened.search(wanted, 0 if start is None else opened.find_first(*start), is_late)
                    continue
            except OutOfTime as late:
                left = [(late.time, late.number), *((head[3].time, head[3].number + 1) for head in heads)]
                if waiting:  # unless that is where this search began: it must get on
                    left += [place for place in [(waiting[-1].newest, NUMBER_MAX)] if start is None or place < start]
                raise OutOfTime(*max(left)) from None
            if not heads:
                return
            *_, hit, stream = heapq.heappop(heads)
            yield hit

    def _search_recent(self, wanted: Wanted, start: tuple[int, int] | None) -> Iterator[Hit]:
        found: list[Hit] = []
        for each in self._recent:
            number, moment, group, author, labels, _ = each.document
            if (start is not None and (moment, number) >= start) or not wanted.accepts(group, author, labels):
                continue
            if wanted.from_time is not None and moment < wanted.from_time:
                continue
            frequencies = _frequencies_in(wanted.query, each.frequencies)
            if all(frequencies):
                score = score_of(frequencies, min(each.length, (1 << 16) - 1)) if wanted.by_rank else 0.0
                found.append(Hit(score, moment, number))
        found.sort(key=lambda hit: (hit.time, hit.number), reverse=True)
        yield from found

    # --- merging ---

    def plan_merge(self, *, deletions: bool = False) -> list[str]:
        """Returns the slices to merge next, none if there is nothing to do. Another process may `merge` them.

        deletions: also merge slices with few deleted documents, so that what was deleted leaves the files.
        """
        free = [entry for entry in self._entries if entry.name not in self._merging]
        chosen = _choose(free, deletions=deletions)
        if not chosen and self._key is not None:
            chosen = [entry for entry in free if not entry.is_sealed][:1]
        self._merging.update(entry.name for entry in chosen)
        if chosen:
            self.store()  # so that the manifest says what has been deleted
        return [entry.name for entry in chosen]

    def adopt(self, sources: Sequence[str], merged: dict[str, Any] | None) -> None:
        """Replaces slices by what `merge` made of them. None: it failed.

        Does nothing if the result is gone: a process that starts after a kill takes it for a leftover.
        """
        self._merging.difference_update(sources)
        old = [entry for entry in self._entries if entry.name in set(sources)]
        if len(old) < len(sources):
            return  # the index was reset meanwhile
        entry = None
        if merged is not None and merged["documents"]:
            entry = _Entry(**merged)
            deleted = {opened.numbers[at] for opened in map(self._open, old) for at in opened.deleted}
            try:
                opened = self._open(entry)
            except IndexDamaged:
                return
            opened.deleted.update(at for at, number in enumerate(opened.numbers) if number in deleted)
        elif merged is None:
            return
        for each in old:
            if each.opened is not None:
                each.opened.close()
        self._entries = [each for each in self._entries if each not in old] + ([] if entry is None else [entry])
        self._is_stored = False
        self.store()
        self._remove_leftovers()

    # --- files ---

    def _describe(self, name: str, documents: Sequence[Document]) -> _Entry:
        numbers = [document.number for document in documents]
        times = [document.time for document in documents]
        return _Entry(
            name, len(documents), min(numbers), max(numbers), min(times), max(times), _size_of(self.folder / name),
            checksums_of(self.folder / name), self._key is not None,
        )  # fmt: skip

    def _open(self, entry: _Entry) -> Slice:
        if entry.opened is None:
            entry.opened = _open_slice(self.folder, entry, self._key, self._pages)
        return entry.opened

    def _close_slices(self) -> None:
        for entry in self._entries:
            if entry.opened is not None:
                entry.opened.close()
                entry.deleted, entry.opened = sorted(entry.opened.deleted), None

    def _read_manifest(self) -> None:
        manifest = parse_manifest((self.folder / MANIFEST).read_text())
        self._entries = [_Entry(**entry) for entry in manifest["slices"]]
        self.history, self.position = manifest["history"], manifest["position"]
        self.since = manifest.get("since", 0)  # indexes of before had everything

    def _write_manifest(self) -> None:
        manifest = {
            "history": self.history,
            "position": self.position,
            "since": self.since,
            "slices": [entry.to_json() for entry in self._entries],
        }
        new = self.folder / f"{MANIFEST}.new"
        with new.open("w") as file:
            file.write(format_manifest(manifest))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.folder / MANIFEST)
        synchronise_folder(self.folder)
        self._is_stored = True

    def _remove_leftovers(self) -> None:
        """Removes slices that are not listed: of a process that was killed, or that have been merged."""
        listed = {entry.name for entry in self._entries}
        for path in self.folder.iterdir():
            if path.is_dir() and path.name not in listed and not (self._merging and path.name.startswith("merging-")):
                shutil.rmtree(path, ignore_errors=True)


def merge(folder: Path, names: Sequence[str], key: bytes | None = None) -> dict[str, Any]:
    """Merges slices into a new one, in any process. Returns what `adopt` needs. Raises IndexDamaged."""
    manifest = parse_manifest((folder / MANIFEST).read_text())
    entries = {entry["name"]: _Entry(**entry) for entry in manifest["slices"]}
    merged = [entries[each] for each in names]
    pages = Pages()
    sources = [_open_slice(folder, entry, key, pages) for entry in merged]
    name = f"merging-{_new_name()}"
    try:
        documents = merge_slices(folder / name, key, sources)
        if not documents:
            return {"documents": 0}
        return {
            "name": name, "documents": documents, "bytes": _size_of(folder / name),
            "first": min(entry.first for entry in merged), "last": max(entry.last for entry in merged),
            "oldest": min(entry.oldest for entry in merged), "newest": max(entry.newest for entry in merged),
            "checksums": checksums_of(folder / name), "is_sealed": key is not None,
        }  # fmt: skip
    finally:
        for source in sources:
            source.close()


def _recent(wanted: Wanted, stream: Iterator[Hit]) -> Found:
    hits: list[Hit] = []
    try:
        for hit in stream:
            if len(hits) == wanted.limit:
                return Found(hits, hits[-1])
            hits.append(hit)
    except OutOfTime as late:
        return Found(hits, Hit(0.0, late.time, late.number))
    return Found(hits, None)


def _ranked(wanted: Wanted, stream: Iterator[Hit]) -> Found:
    """Ranks the newest RANKED_MAX matches, or those that there was time for."""
    matches: list[Hit] = []
    with suppress(OutOfTime):
        matches.extend(islice(stream, RANKED_MAX))
    if wanted.before is not None:
        matches = [hit for hit in matches if hit < wanted.before]
    hits = heapq.nlargest(wanted.limit, matches)
    return Found(hits, hits[-1] if len(matches) > len(hits) else None)


def _choose(entries: Sequence[_Entry], *, deletions: bool) -> list[_Entry]:
    small = [entry for entry in entries if entry.documents < SMALL_DOCUMENTS]
    if len(small) >= SMALL_SLICES_MAX:
        return small
    medium = [entry for entry in entries if SMALL_DOCUMENTS <= entry.documents < SLICE_DOCUMENTS]
    if len(medium) >= MEDIUM_SLICES_MAX or sum(entry.documents for entry in medium) >= SLICE_DOCUMENTS:
        return medium
    for entry in entries:
        share = len(_deleted(entry)) / entry.documents
        if share > DELETED_SHARE_MAX or (deletions and share > 0):
            return [entry]
    return []


def _deleted(entry: _Entry) -> Sequence[int] | set[int]:
    return entry.deleted if entry.opened is None else entry.opened.deleted


def _open_slice(folder: Path, entry: _Entry, key: bytes | None, pages: Pages) -> Slice:
    """Raises IndexDamaged."""
    if entry.is_sealed and key is None:
        raise IndexDamaged(f"{folder / entry.name} is sealed, and there is no key")
    slice_key = key if entry.is_sealed else None
    return Slice(folder / entry.name, entry.documents, entry.checksums, set(entry.deleted), slice_key, pages)


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _new_name() -> str:
    return f"slice-{secrets.token_hex(16)}"


def _frequencies_in(query: Query, frequencies: dict[str, int]) -> list[float]:
    """Returns how often a document has each unit of a query, as a slice counts it; 0 if it has not."""
    return [max((_frequency_of(sequence, frequencies) for sequence in unit), default=0.0) for unit in query.units]


def _frequency_of(sequence: Sequence[Term], frequencies: dict[str, int]) -> float:
    weight = 0.5 if sequence[0].text.startswith(STEM_MARK) else 1.0
    return weight * min(
        (1 if any(text.startswith(term.text) for text in frequencies) else 0)
        if term.is_prefix
        else frequencies.get(term.text, 0)
        for term in sequence
    )
