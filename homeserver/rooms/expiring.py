"""Expiry: reduces the messages of a room whose time is over, in rows and in blocks. Safe to interrupt anywhere.

Each write reduces some rows, or replaces a block by one in which they are reduced (`archiving.py`). What is left is
found again by the next run. `retention.py` says what becomes of a message.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from homeserver.database import DatabaseDamaged, Row, Transaction
from homeserver.database.compression import as_it_is
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.blocks import (
    BlockRow,
    find_expiring_block,
    list_block_rows,
    list_expiring_blocks,
    load_block,
)
from homeserver.rooms.archive.format import CONTENT
from homeserver.rooms.archiving import Archivist, Plan, make_plan, move
from homeserver.rooms.retention import EXPIRED_PER_WRITE, expire_rows, without_local
from homeserver.rooms.storage import can_expire, count_expiring, list_expiring, list_rows, stored_events
from homeserver.rooms.timeline import START

_log = logging.getLogger(__name__)


class Purged(msgspec.Struct):
    """What a run has deleted, or would delete. text_bytes: contents of messages, as they are stored."""

    rooms: int = 0
    events: int = 0
    text_bytes: int = 0
    files: int = 0
    file_bytes: int = 0


def find_expiry(tx: Transaction, row: BlockRow, before_ms: int, keeps_local: bool = False) -> Plan | None:
    """Returns how a block is rewritten in which messages have expired; None while its room is being forgotten."""
    block = load_block(tx, row)
    expiring = without_local(tx, _list_expiring_in(tx, block, before_ms), keeps_local)
    rows = [(*each[:CONTENT], as_it_is(each[CONTENT])) for each in expiring]
    return make_plan(tx, row.room_nid, list_rows(tx, block.positions, archived=False), [row], stored_events(tx, rows))


def _list_expiring_in(tx: Transaction, block: Block, before_ms: int) -> list[Row]:
    plain = [block.row(index) for index in range(len(block)) if block.timestamp(index) < before_ms]
    return [row for row in plain if can_expire(tx, row)]


async def expire(
    hs: Archivist,
    room_nid: int,
    before_ms: int,
    tell: Callable[[int], object] = lambda count: None,
    *,
    keeps_local: bool = False,
) -> tuple[int, int]:
    """Reduces all messages of a room that are older than a time, except those of lost blocks. tell(count): called after
    each write. keeps_local: not the messages of this server's users.

    Returns how many, and how many bytes their contents took.
    """
    count, text_bytes, after = 0, 0, (START, 0)
    while expiring := await hs.database.read(list_expiring, room_nid, before_ms, after, EXPIRED_PER_WRITE):
        positions = [position for _, position in expiring]
        expired, size_bytes = await hs.database.write(expire_rows, positions, keeps_local)
        count, text_bytes, after = count + expired, text_bytes + size_bytes, expiring[-1]
        tell(count)
    async with hs.database.hold("archive"):
        block_start = START
        while row := await hs.database.read(find_expiring_block, room_nid, before_ms, block_start):
            try:
                plan = await hs.database.read(find_expiry, row, before_ms, keeps_local)
            except DatabaseDamaged as error:
                _log.error("old messages are not deleted", extra={"room_nid": room_nid, "damage": str(error)})
                block_start = row.first_ordering
                continue
            if plan is None:
                break
            if keeps_local:  # the block keeps messages that could expire, and is not found again
                block_start = row.last_ordering
                if not plan.expired:
                    continue
            if await move(hs, plan):
                count += len(plan.expired)
                text_bytes += sum(len(event.content_json) for event in plan.expired)
                tell(count)
    return count, text_bytes


async def estimate_expiry(hs: Archivist, room_nid: int, before_ms: int) -> tuple[int, int]:
    """Returns how many messages `expire` would reduce, and how many bytes their contents take. Reads their blocks."""
    count, size_bytes = await hs.database.read(count_expiring, room_nid, before_ms)
    for row in await hs.database.read(list_expiring_blocks, room_nid, before_ms):
        found, text_bytes = await hs.database.read(_count_in, row.block, before_ms)
        count, size_bytes = count + found, size_bytes + text_bytes
    return count, size_bytes


def _count_in(tx: Transaction, number: int, before_ms: int) -> tuple[int, int]:
    blocks = [load_block(tx, row) for row in list_block_rows(tx, (number,))]  # none if it was replaced meanwhile
    rows = [row for block in blocks for row in _list_expiring_in(tx, block, before_ms)]
    return len(rows), sum(len(row[CONTENT]) for row in rows)
