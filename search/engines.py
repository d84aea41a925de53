"""Engines: the two kinds of index, behind one interface. Both propose the same documents in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from homeserver.search import fts5
from homeserver.search.documents import Deleted, Document, Found, Wanted
from homeserver.search.fts5_database import DATABASE
from homeserver.search.words import Stemmers

WHOOSH, FTS5 = "whoosh", "fts5"


class Engine(Protocol):
    """An index in a folder; see `index.Index`, which explains each attribute and method."""

    damage: str
    history: str
    position: int
    since: int
    folder: Path

    def add(self, documents: Sequence[Document], deleted: Deleted, position: int) -> None: ...
    def start_at(self, position: int) -> None: ...
    def add_older(self, documents: Sequence[Document], since: int) -> None: ...
    def search(self, wanted: Wanted, seconds: float) -> Found: ...
    def slice_names(self) -> list[str]: ...
    def plan_merge(self, *, deletions: bool = False) -> list[str]: ...
    def adopt(self, sources: Sequence[str], merged: dict[str, Any] | None) -> None: ...
    def status(self) -> dict[str, Any]: ...
    def reset(self, why: str, history: str = "") -> None: ...
    def set_history(self, history: str) -> None: ...
    def store(self) -> None: ...
    def close(self) -> None: ...


def open_index(engine: str, folder: Path, stemmers: Stemmers, key: bytes | None = None) -> Engine:
    """Opens an index, and creates it if it does not exist. Raises IndexInUse.

    key: 32 bytes that seal it, None if it is not sealed. An index on FTS5 is never sealed: SQLite has to read it.
    """
    if engine == FTS5:
        return fts5.FtsIndex(folder, stemmers)
    from homeserver.search.index import Index  # it imports Whoosh, which the other engine does without

    return Index(folder, stemmers, key)


def merge(folder: Path, names: Sequence[str], key: bytes | None = None) -> dict[str, Any]:
    """Does what the `plan_merge` of an index has planned, in any process. Returns what `adopt` needs."""
    if engine_of(folder) == FTS5:
        return fts5.merge(folder, names)
    from homeserver.search import index  # as above

    return index.merge(folder, names, key)


def engine_of(folder: Path) -> str:
    """Returns which engine has made an index."""
    return FTS5 if (folder / DATABASE).exists() else WHOOSH
