"""Service: an index as the object of a process of its own. Arguments and results are plain values, see `Document`.

The folder has a folder for each index, and a file that names the current one. So a new index can be built beside it by
another process, and take its place while searches go on (`switch`). Whatever no process uses is removed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from homeserver.search.documents import Deleted, Document, Hit, IndexDamaged, Wanted
from homeserver.search.engines import WHOOSH, Engine, engine_of, merge, open_index
from homeserver.search.folders import IndexInUse, is_in_use, synchronise_folder
from homeserver.search.manifest import CURRENT, find_current
from homeserver.search.query import parse_query
from homeserver.search.words import Stemmers

# A process whose server has ended writes what it has in memory, and exits.
LOCK_SECONDS_MAX = 5.0


def new_index_folder(folder: Path) -> Path:
    """Returns the folder of a new index, which is not the current one."""
    return folder / f"index-{secrets.token_hex(8)}"


def switch(folder: Path, index: Path) -> None:
    """Makes an index the current one, at once and for all processes."""
    new = folder / f"{CURRENT}.new"
    new.write_text(index.name)
    descriptor = os.open(new, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    new.replace(folder / CURRENT)
    synchronise_folder(folder)


class Service:
    """The index in a folder. Every method may be called from another process."""

    def __init__(self, folder: str, engine: str = WHOOSH) -> None:
        """engine: see `engines`. An index of the other engine is replaced by a new one."""
        self._folder = Path(folder)
        self._engine = engine
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._stemmers = Stemmers()
        self._key: bytes | None = None
        self._index: Engine | None = None
        self._path: Path | None = None

    def unlock(self, key: bytes | None) -> None:
        """Takes the key that seals the index, see `engines.open_index`. Comes before everything else."""
        self._key = key

    def begin(self, history: str) -> list[Any]:
        """Returns history, position and beginning of the index, and why it was reset since the last call, if it was."""
        index = self._open()
        damage, index.damage = index.damage, ""
        return [index.history, index.position, index.since, damage]

    def set_history(self, history: str) -> None:
        """Notes that the index belongs to this history too."""
        self._open().set_history(history)

    def reset(self, why: str, history: str) -> None:
        """Removes everything."""
        self._open().reset(why, history)

    def add(self, since: int, upto: int, documents: Sequence[Sequence[Any]], deleted: Sequence[Sequence[int]]) -> bool:
        """Adds the documents of a span, if the index is at its beginning. Returns whether it was."""
        index = self._open()
        if index.position != since:
            return False
        numbers, groups, authors = (frozenset(each) for each in deleted)
        try:
            index.add([Document(*each) for each in documents], Deleted(numbers, groups, authors), upto)
        except IndexDamaged as error:
            index.reset(str(error), index.history)
            return False
        return True

    def start_at(self, position: int) -> None:
        """Begins an empty index with what comes after a position."""
        self._open().start_at(position)

    def add_older(self, since: int, before: int, documents: Sequence[Sequence[Any]]) -> bool:
        """Adds the documents of since < position ≤ before, if that is what the index lacks. Returns whether it was."""
        index = self._open()
        if index.since != before:
            return False
        index.add_older([Document(*each) for each in documents], since)
        return True

    def search(self, text: str, wanted: dict[str, Any], seconds: float) -> list[Any] | None:
        """Returns hits, each with score, time and number, and where to continue, or None. Raises ValueError.

        wanted: the fields of `Wanted` but the query. Returns None if the index is damaged: it was reset.
        """
        before = wanted.pop("before", None)
        for name in ("groups", "authors", "not_authors"):
            if wanted.get(name) is not None:
                wanted[name] = frozenset(wanted[name])
        query = parse_query(text, self._stemmers)
        index = self._open()
        try:
            found = index.search(Wanted(query, before=None if before is None else Hit(*before), **wanted), seconds)
        except IndexDamaged as error:
            index.reset(str(error), index.history)
            return None
        return [[list(hit) for hit in found.hits], None if found.reached is None else list(found.reached)]

    def plan_merge(self, deletions: bool) -> list[str]:
        """Returns the folder of the index and the slices to merge next; nothing if there is nothing to merge."""
        names = self._open().plan_merge(deletions=deletions)
        return [str(self._path), *names] if names else []

    def merge(self, folder: str, names: Sequence[str]) -> dict[str, Any]:
        """Merges slices. It takes long: it is meant for another process than the one that searches."""
        return merge(Path(folder), names, self._key)

    def adopt(self, folder: str, names: Sequence[str], merged: dict[str, Any] | None) -> None:
        """Replaces the slices by what was made of them, None if that has failed."""
        index = self._open()
        if str(self._path) == folder:
            index.adopt(names, merged)

    def status(self) -> dict[str, Any]:
        """Returns how large the index is."""
        return self._open().status()

    def store(self) -> None:
        """Writes what is only in memory."""
        self._open().store()

    def close(self) -> None:
        """Writes what is only in memory, and closes the index."""
        if self._index is not None:
            self._index.close()
            self._index = None

    def _open(self) -> Engine:
        """Returns the current index. Raises IndexInUse if another process has it open."""
        current = find_current(self._folder)
        if current is not None and current != self._path and self._is_of_another_engine(current):
            current = None
        if self._index is None or current != self._path:
            self.close()
            path = new_index_folder(self._folder) if current is None else current
            self._index = self._wait_for(path)
            self._path = path
            if current is None:
                switch(self._folder, path)
            self._remove_others()
        return self._index

    def _is_of_another_engine(self, index: Path) -> bool:
        return index.exists() and engine_of(index) != self._engine

    def _wait_for(self, path: Path) -> Engine:
        """Opens an index. The process of a server that was just killed may still have it open."""
        deadline = time.monotonic() + LOCK_SECONDS_MAX
        while True:
            try:
                return open_index(self._engine, path, self._stemmers, self._key)
            except IndexInUse:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _remove_others(self) -> None:
        """Removes indexes that were replaced, or never finished."""
        for path in self._folder.glob("index-*"):
            if path != self._path and not is_in_use(path):
                shutil.rmtree(path, ignore_errors=True)
