"""The archive and retention: moves old messages into the blob storage, and deletes what is kept no longer. Not in the
spec.

How archived events are stored and read is in `homeserver/rooms/archive/`. Here is only what runs in the background, and
the API of administration. `homeserver archive …` does the same by hand.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.blobs import BlobError
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject, Worklist
from homeserver.federation.identifiers import RoomID
from homeserver.limits import HOUSEKEEPING_DELAY_S
from homeserver.resources import Resources
from homeserver.rooms.archive.blocks import (
    STALE_KEY,
    BlockRow,
    delete_garbage,
    delete_txns,
    list_blocks,
    list_garbage,
    list_stale,
    url_of,
)
from homeserver.rooms.archiving import TXN_KEPT_MS, Wanted, archive, list_rooms, rewrite
from homeserver.rooms.expiring import Purged
from homeserver.rooms.heads import find_head
from homeserver.rooms.purging import purge_room
from homeserver.rooms.retention import find_deadline

_log = logging.getLogger(__name__)

DAY_MS = 24 * 60 * 60 * 1000
# How often we look for messages that have become old enough. Nobody waits for it.
INTERVAL_S = 6 * 60 * 60
# Rows of a room that are moved at once as soon as they are old enough: some 150 messages. Fewer wait until they are
# twice as old, so that a quiet room's block is not rewritten every day.
ROWS_BYTES_USUAL = 64 << 10
# How long the clock is watched before anything is deleted for good, and how much it may be corrected in that time.
_CLOCK_WATCHED_S = 60 * 60
_CLOCK_DRIFT_MS_MAX = 10 * 60 * 1000
# Rows and blobs deleted by one step, so that others wait for a few milliseconds at most.
_DELETED_AT_ONCE = 500

routes = Routes()


@routes.get("/_homeserver/admin/v1/rooms/{room_id}/archive")
async def get_room_archive(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    blocks = await hs.database.read(_list_blocks, room_id)
    if blocks is None:
        raise not_found("This server does not know that room.")
    return {"blocks": [describe_block(hs, row) for row in blocks]}


def describe_block(hs: Resources, row: BlockRow) -> JsonObject:
    """Returns what administrators see of a block."""
    return {
        "url": url_of(hs.config, row.blob),
        "first_ts": row.first_ts,
        "last_ts": row.last_ts,
        "events": row.events,
        "bytes": row.size_bytes,
        "sealed": bool(row.sealed),
        "checksum": row.checksum.hex(),
    }


def _list_blocks(tx: Transaction, room_id: RoomID) -> list[BlockRow] | None:
    head = find_head(tx, room_id)
    return None if head is None else list_blocks(tx, head.room_nid)


# --- in the background ---


async def archive_forever(hs: Resources) -> None:
    """Runs as long as the server does.

    What has expired is gone for good, so a wrong clock must not decide that: nothing is deleted in the first hour, in
    which time servers put a clock right, and not before the time of day has gone on steadily since the last look.
    """
    steady = Steadiness(hs.now_ms)
    await trio.sleep(HOUSEKEEPING_DELAY_S)
    while True:
        await archive_old(hs)
        await delete_leftovers(hs)
        await trio.sleep(_CLOCK_WATCHED_S)
        if steady.is_kept():
            await expire_old(hs)
            await delete_leftovers(hs)
        else:
            _log.warning("the clock was changed, so old messages are not deleted before the next look")
        await trio.sleep(INTERVAL_S - _CLOCK_WATCHED_S)


class Steadiness:
    """Whether the time of day goes on as the time that passes, which no clock can change."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._difference_ms = self._measure()

    def is_kept(self) -> bool:
        """Returns whether nobody has changed the clock since the last call, or since the beginning."""
        before, self._difference_ms = self._difference_ms, self._measure()
        return abs(self._difference_ms - before) <= _CLOCK_DRIFT_MS_MAX

    def _measure(self) -> float:
        return self._now_ms() - trio.current_time() * 1000


async def expire_old(hs: Resources) -> None:
    """Deletes messages that are older than their rooms keep them."""
    for room_nid in await hs.database.read(list_rooms):
        purged = Purged()
        try:
            before_ms = await hs.database.read(find_deadline, room_nid)
            if before_ms is not None:
                await purge_room(hs, room_nid, before_ms, purged)
        except DatabaseDamaged as error:  # the other rooms have deadlines, too
            _log.error("old messages are not deleted", extra={"room_nid": room_nid, "damage": str(error)})
        if purged.rooms:
            found = {"room_nid": room_nid, "events": purged.events, "files": purged.files}
            _log.info("old messages were deleted", extra=found)


async def archive_old(hs: Resources) -> None:
    """Moves what has become old enough."""
    after_ms = hs.config.archive.after_days * DAY_MS
    if not after_ms:
        return
    rooms = await hs.database.read(list_rooms)
    for wanted in (Wanted(hs.now_ms() - 2 * after_ms), Wanted(hs.now_ms() - after_ms, ROWS_BYTES_USUAL)):
        moved = await archive(hs, rooms, wanted)
        if moved.events:
            _log.info("old messages were archived", extra={"events": moved.events, "blocks": moved.blocks})


async def delete_leftovers(hs: Resources) -> None:
    """Deletes blobs of blocks that were replaced or never completed, and transaction IDs that nobody sends again."""
    while await hs.database.write(delete_txns, hs.now_ms() - TXN_KEPT_MS, _DELETED_AT_ONCE) == _DELETED_AT_ONCE:
        pass
    while blobs := await hs.database.read(list_garbage, _DELETED_AT_ONCE):
        for blob in blobs:
            await hs.blobs.delete(blob)
        await hs.database.write(delete_garbage, blobs)


async def rewrite_stale(hs: Resources, block: int) -> None:
    """Rewrites a block in which an event was redacted, and deletes the old one."""
    await rewrite(hs, block)
    try:
        await delete_leftovers(hs)
    except BlobError as error:  # it is deleted later
        _log.warning("blobs not deleted", extra={"reason": str(error)})


FEATURE = Feature(
    name="archive",
    spec="",
    routes=routes,
    worklists=[Worklist("archived_redactions", list_stale, rewrite_stale, wake_key=STALE_KEY)],
    background=[archive_forever],
)
