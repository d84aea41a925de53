"""The index on SQLite's FTS5: the second engine, with the interface and the rules of `index`.

Theory of operation. One database in the folder has two tables. `terms` is an FTS5 index whose tokens are the words that
`query.index_terms_of` finds in a text, so both engines propose the same documents. (FTS5's own trigram tokenizer finds
parts of words, but its index is four times as large as the text, and a word of common trigrams takes 50 times as long.)
`documents` has what belongs to each, and the text, because FTS5 needs it again to delete a document.

The key of a document is its *place*: its time, then the lowest bits of its number. FTS5 lists documents by key, so a
search walks from the newest on and stops when it has enough. Documents of the same millisecond are sorted afterwards.
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

from homeserver.search.documents import Deleted, Document, Found, Hit, IndexDamaged, OutOfTime, Wanted, score_of
from homeserver.search.folders import lock_folder
from homeserver.search.query import STEM_MARK, Query, Term, index_terms_of
from homeserver.search.words import Stemmers

DATABASE = "index.sqlite"
FORMAT = 1
# Matches that are ranked at most, the newest first.
RANKED_MAX = 5_000
# Times beyond these, which only forgers claim, have the same place.
_TIME_MAX = (1 << 42) - 1
_NUMBER_BITS = 20
# Groups are searched by their tokens if there are at most so many, with at most this part of all documents.
_GROUPS_MAX = 300
_SELECTIVE = 8
_AUTHORS_MAX = 20
_STEPS_BETWEEN_CHECKS = 256  # of the clock
# Deleted documents are merged away if they are more than this part of all; or if somebody asks for it.
_DELETED_SHARE_MAX = 0.1
_MERGED_PAGES = 500  # in one transaction, for which `add` waits: some 20 ms
_LENGTH_MAX = (1 << 16) - 1
_CACHE_KIB = 32 * 1024
_BUSY_SECONDS = 30.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    place INTEGER PRIMARY KEY,
    number INTEGER NOT NULL,
    time INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    author INTEGER NOT NULL,
    labels INTEGER NOT NULL,
    length INTEGER NOT NULL,
    repeated TEXT,
    text TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS documents_number ON documents (number);
CREATE TABLE IF NOT EXISTS groups (grp INTEGER PRIMARY KEY, documents INTEGER NOT NULL);
CREATE VIRTUAL TABLE IF NOT EXISTS terms USING fts5 (
    text, content = '', detail = none, tokenize = "ascii tokenchars '~@#'"
);
"""


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
            place = self._free_place(document)
            frequencies, length = index_terms_of(document.text, self._stemmers)
            repeated = {term: count for term, count in frequencies.items() if count > 1}
            self._database.execute(
                "INSERT INTO documents (place, number, time, grp, author, labels, length, repeated, text)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    place, document.number, document.time, document.group, document.author, document.labels,
                    min(length, _LENGTH_MAX), json.dumps(repeated) if repeated else None, document.text,
                ),
            )  # fmt: skip
            tokens = _tokens_of(frequencies, document.group, document.author)
            self._database.execute("INSERT INTO terms (rowid, text) VALUES (?, ?)", (place, tokens))
            counts[document.group] = counts.get(document.group, 0) + 1
        self._count(counts)

    def _free_place(self, document: Document) -> int:
        moment = max(-_TIME_MAX, min(document.time, _TIME_MAX))
        low = document.number & ((1 << _NUMBER_BITS) - 1)
        while True:
            place = (moment << _NUMBER_BITS) | low
            taken = self._database.execute("SELECT 1 FROM documents WHERE place = ?", (place,)).fetchone()
            if taken is None:
                return place
            low = (low + 1) & ((1 << _NUMBER_BITS) - 1)

    def _delete(self, deleted: Deleted) -> None:
        places: set[int] = set()
        for number in deleted.numbers:
            places.update(_values(self._database, "SELECT place FROM documents WHERE number = ?", number))
        tokens = [_group_token(group) for group in deleted.groups] + [_author_token(each) for each in deleted.authors]
        for token in tokens:
            places.update(_values(self._database, "SELECT rowid FROM terms WHERE terms MATCH ?", f'"{token}"'))
        counts: dict[int, int] = {}
        for place in places:
            row = self._database.execute("SELECT grp, author, text FROM documents WHERE place = ?", (place,)).fetchone()
            if row is None:
                continue
            group, author, text = row
            frequencies, _ = index_terms_of(text, self._stemmers)
            self._database.execute(
                "INSERT INTO terms (terms, rowid, text) VALUES ('delete', ?, ?)",
                (place, _tokens_of(frequencies, group, author)),
            )
            self._database.execute("DELETE FROM documents WHERE place = ?", (place,))
            counts[group] = counts.get(group, 0) - 1
        self._count(counts)
        if counts:
            self._note("deleted", _read(self._database, "deleted", 0) - sum(counts.values()))

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
        with _damage():
            rows = self._stream(wanted, lambda: time.monotonic() > deadline)
            return self._ranked(wanted, rows) if wanted.by_rank else _recent(wanted, rows)

    def _stream(self, wanted: Wanted, is_late: Callable[[], bool]) -> Iterator[_Row]:
        """Yields all matches, the newest first. Raises OutOfTime between two milliseconds of documents."""
        before = None if wanted.by_rank or wanted.before is None else (wanted.before.time, wanted.before.number)
        if wanted.to_time is not None:
            before = min(before or (wanted.to_time, 0), (wanted.to_time, 0))
        lowest, highest = -(1 << 63), (1 << 63) - 1
        if before is not None:
            highest = (_clamped(before[0]) + 1) << _NUMBER_BITS
        if wanted.from_time is not None:
            lowest = _clamped(wanted.from_time) << _NUMBER_BITS
        found = self._database.execute(
            "SELECT place, number, time, grp, author, labels, length, repeated"
            " FROM terms CROSS JOIN documents ON place = terms.rowid"
            " WHERE terms MATCH ? AND terms.rowid < ? AND terms.rowid >= ? ORDER BY terms.rowid DESC",
            (self._expression(wanted), highest, lowest),
        )
        steps = 0
        with closing(found):
            for _, rows in groupby(map(_Row._make, found), key=lambda row: row.place >> _NUMBER_BITS):
                same = sorted(rows, key=lambda row: (row.time, row.number), reverse=True)
                if steps >= _STEPS_BETWEEN_CHECKS:
                    steps = 0
                    if is_late():
                        raise OutOfTime(same[0].time, same[0].number + 1)
                steps += len(same)
                for row in same:
                    if before is not None and (row.time, row.number) >= before:
                        continue
                    if wanted.from_time is not None and row.time < wanted.from_time:
                        continue
                    if wanted.accepts(row.group, row.author, row.labels):
                        yield row

    def _expression(self, wanted: Wanted) -> str:
        parts = [_expression_of(wanted.query)]
        if wanted.groups is not None and len(wanted.groups) <= _GROUPS_MAX and self._is_selective(wanted.groups):
            parts.append(_any_of([_group_token(each) for each in wanted.groups]))
        if wanted.authors is not None and len(wanted.authors) <= _AUTHORS_MAX:
            parts.append(_any_of([_author_token(each) for each in wanted.authors]))
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
                max(_frequency(sequence, repeated) if places is None or row.place in places else 0.0
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
        expression = f"({self._expression(wanted)}) AND ({_expression_of_sequence(sequence)})"
        sql = "SELECT rowid FROM terms WHERE terms MATCH ? AND rowid BETWEEN ? AND ?"
        return set(_values(self._database, sql, expression, rows[-1].place, rows[0].place | ((1 << _NUMBER_BITS) - 1)))

    # --- merging ---

    def plan_merge(self, *, deletions: bool = False) -> list[str]:
        """Returns what to merge to be rid of deleted documents, nothing if there are few. FTS5 does the rest itself."""
        deleted = _read(self._database, "deleted", 0)
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
        database = _connect(self.folder)
        try:
            database.executescript(_SCHEMA)
            if _read(database, "format", FORMAT) != FORMAT:
                raise ValueError("it has another format")
            database.execute("INSERT OR IGNORE INTO about (name, value) VALUES ('format', ?)", (FORMAT,))
            self.history, self.position = _read(database, "history", ""), _read(database, "position", 0)
            self.since = _read(database, "since", 0)
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
        with _damage():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:  # whatever it is, nothing of the transaction remains
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def merge(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Merges everything, in any process, in small transactions. Raises IndexDamaged."""
    with _damage(), closing(_connect(folder)) as database:
        deleted = _read(database, "deleted", 0)
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
        with closing(_connect(folder)) as database:
            return _status_of(database, folder)
    except sqlite3.DatabaseError as error:
        raise ValueError(str(error)) from None


def _status_of(database: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    (documents,) = database.execute("SELECT COALESCE(SUM(documents), 0) FROM groups").fetchone()
    sizes = [path.stat().st_size for path in folder.glob(f"{DATABASE}*")]
    return {
        "position": _read(database, "position", 0), "since": _read(database, "since", 0), "documents": documents,
        "deleted": _read(database, "deleted", 0), "slices": 1 if documents else 0, "bytes": sum(sizes),
    }  # fmt: skip


@contextmanager
def _damage() -> Iterator[None]:
    """Raises IndexDamaged for what SQLite calls damage."""
    try:
        yield
    except sqlite3.OperationalError:
        raise  # a full disk, or a lock: neither is damage
    except sqlite3.DatabaseError as error:
        raise IndexDamaged(f"the database is damaged: {error}") from error


def _connect(folder: Path) -> sqlite3.Connection:
    database = sqlite3.connect(folder / DATABASE, isolation_level=None, timeout=_BUSY_SECONDS)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",  # a power failure may lose the last transactions: they are added again
        "secure_delete = ON",
        f"cache_size = -{_CACHE_KIB}",
        "temp_store = MEMORY",
    ):
        database.execute(f"PRAGMA {pragma}").fetchall()
    return database


def _read(database: sqlite3.Connection, name: str, otherwise: Any) -> Any:
    row = database.execute("SELECT value FROM about WHERE name = ?", (name,)).fetchone()
    return otherwise if row is None else row[0]


def _values(database: sqlite3.Connection, sql: str, *args: Any) -> list[int]:
    return [row[0] for row in database.execute(sql, args)]


def _clamped(moment: int) -> int:
    return max(-_TIME_MAX, min(moment, _TIME_MAX))


def _tokens_of(terms: dict[str, int], group: int, author: int) -> str:
    return " ".join((*terms, _group_token(group), _author_token(author)))


def _group_token(group: int) -> str:
    return f"@{group}"


def _author_token(author: int) -> str:
    return f"#{author}"


def _any_of(tokens: Sequence[str]) -> str:
    return " OR ".join(f'"{token}"' for token in tokens) or '"@"'


def _expression_of(query: Query) -> str:
    """Returns a query in the language of FTS5."""
    return " AND ".join(
        f"({' OR '.join(f'({_expression_of_sequence(each)})' for each in unit)})" for unit in query.units
    )


def _expression_of_sequence(sequence: Sequence[Term]) -> str:
    return " AND ".join(f'"{term.text}" *' if term.is_prefix else f'"{term.text}"' for term in sequence)


def _frequency(sequence: Sequence[Term], repeated: dict[str, int]) -> float:
    """Returns how often a document that has a sequence has it at most."""
    weight = 0.5 if sequence[0].text.startswith(STEM_MARK) else 1.0
    return weight * min(1 if term.is_prefix else repeated.get(term.text, 1) for term in sequence)


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
