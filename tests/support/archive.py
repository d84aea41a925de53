"""Archives for tests: `await archive_all(hs)` moves everything that can be moved into blocks.

With TEST_ARCHIVE=1 that happens after every write of the servers and rooms of tests, so that any test can be run on
archived history.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, TypeVarTuple

from homeserver.blobs import Blobs
from homeserver.database import Database, Needed, Transaction
from homeserver.process.workers import Workers
from homeserver.rooms.archive.blocks import BlocksNeeded, GivenBlocks, list_stale
from homeserver.rooms.archive.fetching import fetch_blocks
from homeserver.rooms.archiving import Archivist, Moved, Wanted, archive, list_rooms, rewrite

IS_EVERYTHING_ARCHIVED = bool(os.environ.get("TEST_ARCHIVE"))

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@dataclass
class Archive:
    """What archiving needs, without a server."""

    database: Database
    blobs: Blobs
    workers: Workers

    async def get_needed(self, needed: Needed) -> GivenBlocks:
        assert isinstance(needed, BlocksNeeded)
        return await fetch_blocks(self.blobs, self.workers, needed.wanted)


def archive_of(database: Database) -> Archive:
    """Returns an archive in memory for a database without a server, which reads from it from now on."""
    archive = Archive(database, Blobs("memory:", inline=True), Workers(inline=True))
    database.get_needed_by(archive.get_needed)
    prepare_archive(archive)
    return archive


async def archive_all(hs: Archivist) -> Moved:
    """Moves all events that the heads do not need, however few they are, and rewrites blocks that have changed."""
    rooms = await hs.database.read(list_rooms)
    moved = await archive(hs, rooms, Wanted(1 << 60, rows_bytes_min=0))
    for block in await hs.database.read(list_stale):
        await rewrite(hs, block)
    return moved


class _ArchivingDatabase(Database):
    """Archives everything after each write."""

    archivist: Archivist
    is_archiving: bool

    async def write(self, fn: Callable[[Transaction, *Ts], T], *args: *Ts) -> T:
        result = await super().write(fn, *args)
        if not self.is_archiving:
            self.is_archiving = True
            try:
                await archive_all(self.archivist)
            finally:
                self.is_archiving = False
        return result


def prepare_archive(hs: Archivist) -> None:
    """Archives everything after each write from now on, if TEST_ARCHIVE says so."""
    if IS_EVERYTHING_ARCHIVED:
        database = hs.database
        database.__class__ = _ArchivingDatabase
        assert isinstance(database, _ArchivingDatabase)
        database.archivist, database.is_archiving = hs, False
