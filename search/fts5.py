"""The index on SQLite's FTS5: the second engine, with the interface and the rules of `index`.

Theory of operation. One database in the folder has two tables. `terms` is an FTS5 index whose tokens are the words that
`query.index_terms_of` finds in a text, so both engines propose the same documents. (FTS5's own trigram tokenizer finds
parts of words, but its index is four times as large as the text, and a word of common trigrams takes 50 times as long.)
`documents` has what belongs to each, and the text, because FTS5 needs it again to delete a document.

The key of a document is its *place*: its second, then the lowest bits of its number. FTS5 lists documents by key, so a
search walks from the newest on and stops when it has enough. Documents of one second are sorted afterwards. (FTS5
stores the distances between keys: keys with milliseconds would make the index a quarter larger.) Documents for which a
second has no place left, and documents of impossible times, get places elsewhere: a search reads all of these first.
Groups and authors are tokens, too: a search in one of many rooms reads the documents of that room only.

Each `add` is one transaction, which also stores the position; SQLite takes care of kills. Deleted documents are not
found from that transaction on. What FTS5 keeps of them leaves the file when its segments are merged (`merge`).

If SQLite reports damage, the index is reset: it starts empty, and says why.
"""

from __future__ import annotations

import heapq
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from homeserver.search.documents import Deleted, Document, Found, Hit, OutOfTime, Wanted, score_of
from homeserver.search.folders import lock_folder
from homeserver.search.fts5_database import DATABASE, SCHEMA, connect, damage, read_about, values
from homeserver.search.fts5_terms import (
    any_of,
    author_token,
    expression_of,
    expression_of_sequence,
    frequency_of,
    group_token,
    tokens_of,
)
from homeserver.search.query import Term, index_terms_of
from homeserver.search.words import Stemmers

FORMAT = 2
# Matches that are ranked at most, the newest first.
RANKED_MAX = 5_000
# A second has 1,024 milliseconds here, and as many places.
_SECOND_BITS = 10
_PLACE_BITS = 10
# Times beyond these are claimed by forgers only.
_TIME_MAX = (1 << 42) - 1
# From here on are the places of documents that have none in their second.
_OUTSIDE = 1 << 56
# Groups are searched by their tokens if there are at most so many, with at most this part of all documents.
_GROUPS_MAX = 300
_SELECTIVE = 8
_AUTHORS_MAX = 20
_STEPS_BETWEEN_CHECKS = 256  # of the clock
# Deleted documents are merged away if they are more than this part of all; or if somebody asks for it.
_DELETED_SHARE_MAX = 0.1
_MERGED_PAGES = 500  # in one transaction, for which `add` waits: some 20 ms
_LENGTH_MAX = (1 << 16) - 1


class _Row(NamedTuple):
    place: int
    number: int
    time: int
    group: int
    author: int
    labels: int
    length: int
    repeated: str | None


class FtsIndex:
    """An index in a folder, see `index.Index`, whose methods and attributes it has."""

    def __init__(self, folder: Path, stemmers: Stemmers) -> None:
        self.damage = ""
        self.history = ""
        self.position = 0
        self.since = 0
        self.folder = folder
        self._stemmers = stemmers
        self._is_merging = False
        folder.mkdir(parents=True, exist_ok=True)
        self._lock: int | None = lock_folder(folder)
        try:
            self._database = self._connect()
        except (sqlite3.DatabaseError, ValueError) as error:
            self._database = sqlite3.connect(":memory:")
            self.reset(f"the database is damaged: {error}")

    # --- what is in it ---

    def add(self, documents: Sequence[Document], deleted: Deleted, position: int) -> None:
        """Removes documents, adds others, and notes that the index has come to `position`, durably at once."""
        if position <= self.position:
            return
        with self._write():
            if deleted:
                self._delete(deleted)
            self._insert(documents)
            self._note("position", position)
        self.position = position

    def start_at(self, position: int) -> None:
        """Begins an empty index at a position: what came before is added later, by `add_older`."""
        with self._write():
            self._note("position", position)
            self._note("since", position)
        self.position = self.since = position

    def add_older(self, documents: Sequence[Document], since: int) -> None:
        """Adds the documents after `since` that the index lacks, and notes that it has them."""
        if since >= self.since:
            return
        with self._write():
            self._insert(documents)
            self._note("since", since)
        self.since = since

    def store(self) -> None:
        """Does nothing: what was added is stored."""

    def reset(self, why: str, history: str = "") -> None:
        """Removes everything. The position is 0 again."""
        self.damage = why
        self._database.close()
        for suffix in ("", "-wal", "-shm"):
            (self.folder / f"{DATABASE}{suffix}").unlink(missing_ok=True)
        self._database = self._connect()
        self.set_history(history)

    def set_history(self, history: str) -> None:
        """Notes that the stream of documents has a new name. What the index has is in it too."""
        if history != self.history:
            with self._write():
                self._note("history", history)
            self.history = history

    def close(self) -> None:
        """Closes the files. Closing it again does nothing."""
        if self._lock is not None:
            self._database.close()
            os.close(self._lock)
            self._lock = None

    def status(self) -> dict[str, Any]:
        """Returns how large the index is."""
        return _status_of(self._database, self.folder)

    def slice_names(self) -> list[str]:
        """Returns the one name for what is merged: everything."""
        return [DATABASE]

    def _insert(self, documents: Sequence[Document]) -> None:
        counts: dict[int, int] = {}
        for document in documents:
            place = self._find_place(document)
            frequencies, length = index_terms_of(document.text, self._stemmers)
            repeated = json.dumps({term: count for term, count in frequencies.items() if count > 1})
            self._database.execute(
                "INSERT INTO documents (place, number, time, grp, author, labels, length, repeated, text)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    place, document.number, _stored_time(place, document.time), document.group, document.author,
                    document.labels, min(length, _LENGTH_MAX), None if repeated == "{}" else repeated, document.text,
                ),
            )  # fmt: skip
            tokens = tokens_of(frequencies, document.group, document.author)
            self._database.execute("INSERT INTO terms (rowid, text) VALUES (?, ?)", (place, tokens))
            counts[document.group] = counts.get(document.group, 0) + 1
        self._count(counts)

    def _find_place(self, document: Document) -> int:
        """Returns a free place for a document."""
        if abs(document.time) <= _TIME_MAX:
            second = _second_of(document.time) << _PLACE_BITS
            mask = (1 << _PLACE_BITS) - 1
            place = second | (document.number & mask)
            if not self._is_taken(place):
                return place
            sql = "SELECT place FROM documents WHERE place BETWEEN ? AND ?"
            taken = set(values(self._database, sql, second, second | mask))
            if len(taken) <= mask:
                return next(each for each in range(second, second + mask + 1) if each not in taken)
        (last,) = self._database.execute("SELECT MAX(place) FROM documents").fetchone()
        return max(_OUTSIDE, (last or 0) + 1)

    def _is_taken(self, place: int) -> bool:
        return self._database.execute("SELECT 1 FROM documents WHERE place = ?", (place,)).fetchone() is not None

    def _delete(self, deleted: Deleted) -> None:
        places: set[int] = set()
        for number in deleted.numbers:
            places.update(values(self._database, "SELECT place FROM documents WHERE number = ?", number))
        tokens = [group_token(group) for group in deleted.groups] + [author_token(each) for each in deleted.authors]
        for token in tokens:
            places.update(values(self._database, "SELECT rowid FROM terms WHERE terms MATCH ?", f'"{token}"'))
        counts: dict[int, int] = {}
        for place in places:
            row = self._database.execute("SELECT grp, author, text FROM documents WHERE place = ?", (place,)).fetchone()
            if row is None:
                continue
            group, author, text = row
            frequencies, _ = index_terms_of(text, self._stemmers)
            self._database.execute(
                "INSERT INTO terms (terms, rowid, text) VALUES ('delete', ?, ?)",
                (place, tokens_of(frequencies, group, author)),
            )
            self._database.execute("DELETE FROM documents WHERE place = ?", (place,))
            counts[group] = counts.get(group, 0) - 1
        self._count(counts)
        if counts:
            self._note("deleted", read_about(self._database, "deleted", 0) - sum(counts.values()))

    def _count(self, counts: dict[int, int]) -> None:
        self._database.executemany(
            "INSERT INTO groups (grp, documents) VALUES (?, ?)"
            " ON CONFLICT (grp) DO UPDATE SET documents = documents + excluded.documents",
            list(counts.items()),
        )

    # --- searching ---

    def search(self, wanted: Wanted, seconds: float) -> Found:
        """Returns documents that may match. Stops after `seconds`; then `reached` says how far it has come.

        Raises IndexDamaged if files are damaged; the caller should reset it.
        """
        if not wanted.query.units:
            return Found([], None)
        deadline = time.monotonic() + seconds
        with damage():
            rows = self._stream(wanted, lambda: time.monotonic() > deadline)
            return self._ranked(wanted, rows) if wanted.by_rank else _recent(wanted, rows)

    def _stream(self, wanted: Wanted, is_late: Callable[[], bool]) -> Iterator[_Row]:
        """Yields all matches, the newest first. Raises OutOfTime between two milliseconds of documents."""
        before = None if wanted.by_rank or wanted.before is None else (wanted.before.time, wanted.before.number)
        if wanted.to_time is not None:
            before = min(before or (wanted.to_time, 0), (wanted.to_time, 0))

        def is_wanted(row: _Row) -> bool:
            return (
                (before is None or (row.time, row.number) < before)
                and (wanted.from_time is None or row.time >= wanted.from_time)
                and wanted.accepts(row.group, row.author, row.labels)
            )

        lowest, highest = -_OUTSIDE, _OUTSIDE
        if before is not None:
            highest = min(highest, (_second_of(before[0]) + 1) << _PLACE_BITS)
        if wanted.from_time is not None:
            lowest = max(lowest, _second_of(wanted.from_time) << _PLACE_BITS)
        expression = self._expression(wanted)
        outside = sorted(filter(is_wanted, self._find(expression, _OUTSIDE, (1 << 63) - 1)), key=_moment, reverse=True)
        steps = 0
        for _, rows in groupby(self._find(expression, lowest, highest), key=lambda row: row.place >> _PLACE_BITS):
            same = sorted(rows, key=_moment, reverse=True)
            if steps >= _STEPS_BETWEEN_CHECKS:
                steps = 0
                if is_late():
                    raise OutOfTime(same[0].time, same[0].number + 1)
            steps += len(same)
            for row in filter(is_wanted, same):
                while outside and _moment(outside[0]) > _moment(row):
                    yield outside.pop(0)
                yield row
        yield from outside

    def _find(self, expression: str, lowest: int, highest: int) -> Iterator[_Row]:
        """Yields the documents that match, with lowest ≤ place < highest, the highest place first."""
        found = self._database.execute(
            "SELECT place, number, time, grp, author, labels, length, repeated"
            " FROM terms CROSS JOIN documents ON place = terms.rowid"
            " WHERE terms MATCH ? AND terms.rowid < ? AND terms.rowid >= ? ORDER BY terms.rowid DESC",
            (expression, highest, lowest),
        )
        with closing(found):
            for row in map(_Row._make, found):
                # The place has the beginning of the time already.
                yield row if row.place >= _OUTSIDE else row._replace(time=row.time + _begin_of(row.place))

    def _expression(self, wanted: Wanted) -> str:
        parts = [expression_of(wanted.query)]
        if wanted.groups is not None and len(wanted.groups) <= _GROUPS_MAX and self._is_selective(wanted.groups):
            parts.append(any_of([group_token(each) for each in wanted.groups]))
        if wanted.authors is not None and len(wanted.authors) <= _AUTHORS_MAX:
            parts.append(any_of([author_token(each) for each in wanted.authors]))
        return " AND ".join(f"({part})" for part in parts)

    def _is_selective(self, groups: frozenset[int]) -> bool:
        """Returns whether groups have so few of the documents that these should be searched by their tokens."""
        marks = ",".join("?" * len(groups))
        sql = f"SELECT COALESCE(SUM(documents), 0) FROM groups WHERE grp IN ({marks})"
        (inside,) = self._database.execute(sql, tuple(groups)).fetchone()
        (total,) = self._database.execute("SELECT COALESCE(SUM(documents), 0) FROM groups").fetchone()
        return bool(inside * _SELECTIVE < total)

    def _ranked(self, wanted: Wanted, stream: Iterator[_Row]) -> Found:
        """Ranks the newest RANKED_MAX matches, or those that there was time for."""
        rows: list[_Row] = []
        with suppress(OutOfTime):
            rows.extend(islice(stream, RANKED_MAX))
        if not rows:
            return Found([], None)
        units = [
            [(sequence, self._having(wanted, unit, sequence, rows)) for sequence in unit] for unit in wanted.query.units
        ]
        matches: list[Hit] = []
        for row in rows:
            repeated: dict[str, int] = json.loads(row.repeated) if row.repeated else {}
            frequencies = [
                max(frequency_of(sequence, repeated) if places is None or row.place in places else 0.0
                    for sequence, places in unit)
                for unit in units
            ]  # fmt: skip
            matches.append(Hit(score_of(frequencies, row.length), row.time, row.number))
        if wanted.before is not None:
            matches = [hit for hit in matches if hit < wanted.before]
        hits = heapq.nlargest(wanted.limit, matches)
        return Found(hits, hits[-1] if len(matches) > len(hits) else None)

    def _having(
        self, wanted: Wanted, unit: Sequence[Sequence[Term]], sequence: Sequence[Term], rows: Sequence[_Row]
    ) -> set[int] | None:
        """Returns which matches have a sequence; None if all of them have, because the unit has no other."""
        if len(unit) == 1:
            return None
        expression = f"({self._expression(wanted)}) AND ({expression_of_sequence(sequence)})"
        sql = "SELECT rowid FROM terms WHERE terms MATCH ? AND rowid BETWEEN ? AND ?"
        places = [row.place for row in rows]
        return set(values(self._database, sql, expression, min(places), max(places)))

    # --- merging ---

    def plan_merge(self, *, deletions: bool = False) -> list[str]:
        """Returns what to merge to be rid of deleted documents, nothing if there are few. FTS5 does the rest itself."""
        deleted = read_about(self._database, "deleted", 0)
        if self._is_merging or not deleted:
            return []
        (total,) = self._database.execute("SELECT COALESCE(SUM(documents), 0) FROM groups").fetchone()
        if not deletions and deleted <= _DELETED_SHARE_MAX * (total + deleted):
            return []
        self._is_merging = True
        return self.slice_names()

    def adopt(self, sources: Sequence[str], merged: dict[str, Any] | None) -> None:
        """Notes that a merge has ended. None: it failed."""
        self._is_merging = False
        if merged is not None:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    # --- the database ---

    def _connect(self) -> sqlite3.Connection:
        database = connect(self.folder)
        try:
            database.executescript(SCHEMA)
            if read_about(database, "format", FORMAT) != FORMAT:
                raise ValueError("it has another format")
            database.execute("INSERT OR IGNORE INTO about (name, value) VALUES ('format', ?)", (FORMAT,))
            self.history, self.position = read_about(database, "history", ""), read_about(database, "position", 0)
            self.since = read_about(database, "since", 0)
        except BaseException:  # whatever it is, the file is closed
            database.close()
            raise
        return database

    def _note(self, name: str, value: Any) -> None:
        self._database.execute(
            "INSERT INTO about (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (name, value),
        )

    @contextmanager
    def _write(self) -> Iterator[None]:
        with damage():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:  # whatever it is, nothing of the transaction remains
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def merge(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Merges everything, in any process, in small transactions. Raises IndexDamaged."""
    with damage(), closing(connect(folder)) as database:
        deleted = read_about(database, "deleted", 0)
        pages = -_MERGED_PAGES  # negative: begin to merge everything into one segment
        while True:
            before = database.total_changes
            database.execute("INSERT INTO terms (terms, rank) VALUES ('merge', ?)", (pages,))
            if database.total_changes - before < 2:
                break
            pages = _MERGED_PAGES
        database.execute("UPDATE about SET value = MAX(0, value - ?) WHERE name = 'deleted'", (deleted,))
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return {"documents": 0}


def find_status(folder: Path) -> dict[str, Any]:
    """Returns how large the index in a folder is, without opening it for good. Raises ValueError if it is damaged."""
    try:
        with closing(connect(folder)) as database:
            return _status_of(database, folder)
    except sqlite3.DatabaseError as error:
        raise ValueError(str(error)) from None


def _status_of(database: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    (documents,) = database.execute("SELECT COALESCE(SUM(documents), 0) FROM groups").fetchone()
    sizes = [path.stat().st_size for path in folder.glob(f"{DATABASE}*")]
    return {
        "position": read_about(database, "position", 0), "since": read_about(database, "since", 0),
        "documents": documents, "deleted": read_about(database, "deleted", 0),
        "slices": 1 if documents else 0, "bytes": sum(sizes),
    }  # fmt: skip


def _second_of(moment: int) -> int:
    return max(-_TIME_MAX, min(moment, _TIME_MAX)) >> _SECOND_BITS


def _begin_of(place: int) -> int:
    """Returns the time at which the second of a place begins."""
    return place >> _PLACE_BITS << _SECOND_BITS


def _stored_time(place: int, moment: int) -> int:
    return moment if place >= _OUTSIDE else moment - _begin_of(place)


def _moment(row: _Row) -> tuple[int, int]:
    return row.time, row.number


def _recent(wanted: Wanted, stream: Iterator[_Row]) -> Found:
    hits: list[Hit] = []
    try:
        for row in stream:
            if len(hits) == wanted.limit:
                return Found(hits, hits[-1])
            hits.append(Hit(0.0, row.time, row.number))
    except OutOfTime as late:
        return Found(hits, Hit(0.0, late.time, late.number))
    return Found(hits, None)
