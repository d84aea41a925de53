"""Keeps the index up to date: a tail of the change stream.

Theory of operation. The index itself says up to which position it has the stream (`begin`), because only it knows what
survived when its process ended. Whoever needs it up to date reads the changes after that position and adds them, one
caller at a time (`catch_up`): a background task if many changes wait, or for long, and each search, so that people find
what they have just written. Nothing happens while a message is sent, and a quiet server does not start the process.

A first index of a large database begins with the newest changes. The background task adds those before them span by
span, from the newest to the oldest (`fill`). Until that is done, searches find what is there.

Every server process has an index of its own, in its data folder. The index also says to which history it belongs, as
tokens do (`homeserver.database.generations`): after a restore from a backup it may have events that never happened, and
is reset.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from typing import Any

import trio

from homeserver import limits
from homeserver.config import Config
from homeserver.database import Database, Transaction
from homeserver.database.generations import find_reach
from homeserver.features.search.sealing import get_index_key
from homeserver.features.search.texts import read_span, read_span_before
from homeserver.process.workers import Service, WorkerFailed
from homeserver.resources import Resources
from homeserver.rooms.forgetting import FORGOTTEN, list_forgotten
from homeserver.search.documents import Deleted
from homeserver.search.engines import merge as merge_slices
from homeserver.search.engines import open_index
from homeserver.search.manifest import find_status
from homeserver.search.words import Stemmers

_log = logging.getLogger(__name__)


async def catch_up(database: Database, index: Service, upto: int) -> None:
    """Adds everything up to a position of the stream to the index. Raises WorkerFailed.

    An empty index that would take long to fill starts with the newest changes, and has only these then.
    """
    async with index.lock:
        position, _ = await _begin(database, index)
        if not position and upto > limits.search.INDEX_SPAN:
            position = upto - limits.search.INDEX_SPAN
            await index.call("start_at", position)
        while position < upto:
            span = await database.read(read_span, position, min(upto, position + limits.search.INDEX_SPAN))
            deleted = [span.deleted_positions, span.deleted_rooms, span.deleted_authors]
            if await index.call("add", position, span.upto, span.documents, deleted):
                position = span.upto
            else:  # it was reset, or its process has ended and started again
                position, _ = await _begin(database, index)


async def fill(database: Database, index: Service) -> bool:
    """Adds a span of the changes before those that the index has. Returns whether it still lacks any."""
    async with index.lock:
        _, since = await _begin(database, index)
        if not since:
            return False
        span = await database.read(read_span_before, max(0, since - limits.search.INDEX_SPAN), since)
        await index.call("add_older", span.since, since, span.documents)
        return span.since > 0


async def _begin(database: Database, index: Service) -> tuple[int, int]:
    """Returns how far the index has come, and from where on it has the stream. Resets one of another history."""
    history, position, since, damage = await index.call("begin", database.generation)
    if damage:
        _log.warning("the search index is rebuilt", extra={"reason": damage})
    if history == database.generation:
        return int(position), int(since)
    if not position or await database.read(_is_same_history, history, position):
        await index.call("set_history", database.generation)
        return int(position), int(since)
    _log.warning("the search index is rebuilt", extra={"reason": "the database was restored from a backup"})
    await index.call("reset", "", database.generation)
    return 0, 0


def _is_same_history(tx: Transaction, history: str, position: int) -> bool:
    reach = find_reach(tx, history)
    return reach is not None and position <= reach


async def follow(hs: Resources) -> None:
    """Follows the stream for as long as the server is open."""
    index = hs.search
    if index is None:
        return
    known, has_deleted, is_partial = _find_known(hs)
    purge_at = trio.current_time()
    async with hs.stream.subscribe() as subscription:
        while True:
            if is_partial:
                await trio.lowlevel.checkpoint()
            else:
                with trio.move_on_at(purge_at if has_deleted else math.inf):
                    await subscription.wait(known)
                with trio.move_on_after(limits.search.INDEX_DELAY_SECONDS):
                    await subscription.wait(known + limits.search.INDEX_WAITING_MAX)
            known = hs.stream.position
            try:
                await catch_up(hs.database, index, known)
                is_partial = await fill(hs.database, index)
                is_purge_due = trio.current_time() >= purge_at
                await merge(index, deletions=is_purge_due)
                has_deleted = (await index.call("status"))["deleted"] > 0
            except WorkerFailed as error:
                _log.warning("the search index cannot be updated", extra={"reason": str(error)})
                known = 0
                await trio.sleep(limits.search.INDEX_DELAY_SECONDS)
            else:
                if is_purge_due:
                    purge_at = trio.current_time() + limits.search.INDEX_PURGE_SECONDS


async def purge_forgotten(hs: Resources) -> None:
    """Removes the texts of rooms from the files at once when their contents are forgotten. Runs like `follow`."""
    index = hs.search
    if index is None:
        return
    position, *_ = _find_known(hs)
    while True:
        upto = hs.stream.position
        if await hs.database.read(list_forgotten, position, upto):
            await remove_deleted(hs.database, index, upto)
        await hs.stream.wait((FORGOTTEN,), upto, math.inf)
        position = upto


async def remove_deleted(database: Database, index: Service, upto: int) -> None:
    """Brings the index up to a position, and removes what was deleted from its files. Raises WorkerFailed."""
    await catch_up(database, index, upto)
    await index.call("store")
    await merge(index, deletions=True)


def _find_known(hs: Resources) -> tuple[int, bool, bool]:
    """Returns how far the index has come, whether deleted texts are in its files, and whether older ones are missing.

    Does not start its process.
    """
    with contextlib.suppress(OSError, ValueError):
        status = find_status(hs.config.data_path("search"))
        if status is not None:
            return int(status["position"]), status["deleted"] > 0, status["since"] > 0
    return 0, False, False


async def merge(index: Service, *, deletions: bool = False) -> None:
    """Merges what should be merged, in another process, so that searches do not wait. Raises WorkerFailed."""
    while plan := await index.call("plan_merge", deletions):
        folder, *names = plan
        merger = index.beside()
        merged = failure = None
        try:
            merged = await merger.call("merge", folder, names, timeout_s=limits.search.INDEX_MERGE_SECONDS_MAX)
        except WorkerFailed as error:
            failure = error
        finally:
            with trio.CancelScope(shield=True):
                await merger.aclose()
        await index.call("adopt", folder, names, merged)
        if failure is not None:
            raise failure


async def rebuild(database: Database, config: Config, tell: Callable[[int, int], object]) -> dict[str, Any]:
    """Builds an index from the whole history, makes it the current one, and returns its status.

    For a process beside the server, which goes on with the old index meanwhile. tell(done, of): called for each span.
    """
    from homeserver.search.service import new_index_folder, switch

    folder, key = config.data_path("search"), await get_index_key(database, config)
    index = open_index(config.search.engine, new_index_folder(folder), Stemmers(), key)
    try:
        index.set_history(database.generation)
        while (upto := await database.read(_position)) > index.position:
            span = await database.read(read_span, index.position, min(upto, index.position + limits.search.INDEX_SPAN))
            deleted = Deleted(*map(frozenset, (span.deleted_positions, span.deleted_rooms, span.deleted_authors)))
            index.add(span.documents, deleted, span.upto)
            while names := index.plan_merge():
                index.adopt(names, merge_slices(index.folder, names, key))
            tell(span.upto, upto)
        index.store()
        switch(folder, index.folder)
        return index.status()
    finally:
        index.close()


def _position(tx: Transaction) -> int:
    return tx.position
