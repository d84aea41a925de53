"""Rows of archived events, in the form in which `homeserver/rooms/storage.py` reads them from `events`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection
from typing import Literal, NamedTuple

from homeserver.database import DatabaseDamaged, Row, Transaction
from homeserver.database.compression import as_it_is
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.blocks import (
    BlockRow,
    find_archived,
    get_block_rows,
    list_archived_positions,
    list_blocks_at_time,
    list_blocks_between,
    list_blocks_of,
    load_block,
    load_blocks,
    need_blocks,
)
from homeserver.rooms.archive.format import CONTENT, ENVELOPE, EVENT_ID, POSITION, ROOM, STATE_BEFORE, STATUS

_BLOCKS_BESIDE = 2  # a page may lie in two blocks: both are fetched at once
_BLOCKS_AT_TIME_MAX = 16  # senders choose timestamps, so any number of blocks may claim to have the nearest event


def rows_at(tx: Transaction, positions: Collection[int]) -> list[Row]:
    """Returns the archived events at these positions, in no order."""
    found = list_blocks_of(tx, positions) if positions else {}
    rows: list[Row] = []
    if found:
        listed = get_block_rows(tx, found)
        for row, block in zip(listed, load_blocks(tx, listed), strict=True):
            for position in found[row.block]:
                index = block.find_index(position)
                if index is not None:
                    rows.append(_row(block, index))
    return rows


def row_of_id(tx: Transaction, key: bytes) -> Row | None:
    """Returns the archived event with this event key, or None."""
    position = find_archived(tx, (key,)).get(key)
    rows = rows_at(tx, (position,)) if position is not None else []
    return rows[0] if rows and rows[0][EVENT_ID] == key else None


def nodes_at(tx: Transaction, positions: Collection[int]) -> list[tuple[int, int, int, bytes, bytes]]:
    """Returns position, room, status, state before and envelope of the archived events at these positions."""
    return [(row[POSITION], row[ROOM], row[STATUS], row[STATE_BEFORE], row[ENVELOPE]) for row in rows_at(tx, positions)]


def keys_at(tx: Transaction, positions: Collection[int]) -> dict[int, bytes]:
    """Returns the event keys of the archived events at these positions."""
    found = list_blocks_of(tx, positions) if positions else {}
    listed = get_block_rows(tx, found) if found else []
    blocks = load_blocks(tx, listed)
    return {
        position: block.key(index)
        for row, block in zip(listed, blocks, strict=True)
        for position in found[row.block]
        if (index := block.find_index(position)) is not None
    }


def rows_between(
    tx: Transaction, room_nid: int | None, low: int, high: int, limit: int, *, forwards: bool
) -> list[Row]:
    """Returns the first `limit` archived events with low < ordering ≤ high, newest first, or oldest if `forwards`."""
    return [_row(block, index) for block, index in _find_between(tx, room_nid, low, high, limit, forwards=forwards)]


class Brief(NamedTuple):
    """What can be said of an archived event at once, without its ID."""

    ordering: int
    position: int
    type_nid: int
    sender_nid: int


def briefs_between(
    tx: Transaction, room_nid: int | None, low: int, high: int, limit: int, *, forwards: bool = False
) -> list[Brief]:
    """Does the same as `rows_between`, at a small part of the cost."""
    return [
        Brief(block.orderings[index], block.positions[index], block.type_nid(index), block.sender_nid(index))
        for block, index in _find_between(tx, room_nid, low, high, limit, forwards=forwards)
    ]


def has_archived(tx: Transaction, room_nid: int | None, ordering: int) -> bool:
    """Returns whether an archived event of the room has this ordering."""
    return bool(_find_between(tx, room_nid, ordering - 1, ordering, 1, forwards=True))


def _find_between(
    tx: Transaction, room_nid: int | None, low: int, high: int, limit: int, *, forwards: bool
) -> list[tuple[Block, int]]:
    found: list[tuple[Block, int]] = []
    while room_nid is not None and len(found) < limit and low < high:
        listed = list_blocks_between(tx, room_nid, low, high, _BLOCKS_BESIDE, forwards=forwards)
        if not listed:
            break
        is_whole = low < listed[0].first_ordering and listed[0].last_ordering <= high
        need_blocks(tx, listed[:1] if is_whole and listed[0].events >= limit - len(found) else listed)
        for row in listed:
            block = load_block(tx, row)
            start, end = bisect_right(block.orderings, low), bisect_right(block.orderings, high)
            numbers = range(start, end) if forwards else range(start, end)[::-1]
            found += [(block, index) for index in numbers[: limit - len(found)]]
            if len(found) == limit:
                break
            if forwards:
                low = row.last_ordering
            else:
                high = row.first_ordering - 1
        if len(listed) < _BLOCKS_BESIDE:
            break
    return found


def rows_at_time(tx: Transaction, room_nid: int | None, ts: int, direction: Literal["f", "b"], limit: int) -> list[Row]:
    """Returns the archived events with a timestamp ≥ `ts` ("f") or ≤ `ts` ("b"), those with the nearest first."""
    if room_nid is None:
        return []
    forwards = direction == "f"
    listed = list_blocks_at_time(tx, room_nid, ts, _BLOCKS_AT_TIME_MAX, forwards=forwards)
    nearest: list[tuple[int, int, BlockRow, Block, int]] = []
    for row in listed:
        if len(nearest) == limit:
            worst = nearest[-1][0]
            if (row.first_ts > worst) if forwards else (row.last_ts < worst):
                break
        block = load_block(tx, row)
        times = [(block.timestamp(index), index) for index in range(len(block))]
        nearest += [
            (time, block.orderings[index], row, block, index)
            for time, index in times
            if (time >= ts if forwards else time <= ts)
        ]
        nearest.sort(key=lambda each: each[:2], reverse=not forwards)
        del nearest[limit:]
    return [_row(block, index) for _, _, _, block, index in nearest]


def list_in_span(tx: Transaction, since: int, upto: int, type_nid: int | None = None) -> list[int]:
    """Returns the positions of archived events in since < position ≤ upto, all or those of a type.

    Nobody can say which events of a lost block are of a type: they are left out, so that those who read all rooms, such
    as the search index, get past it. The loss is reported when the block is fetched.
    """
    found = list_archived_positions(tx, since, upto)
    if type_nid is None or not found:
        return [position for _, positions in found for position in positions]
    of_block = dict(found)
    listed = get_block_rows(tx, of_block)
    need_blocks(tx, listed)
    of_type: list[int] = []
    for row in listed:
        try:
            block = load_block(tx, row)
        except DatabaseDamaged:
            continue
        for position in of_block[row.block]:
            if (index := block.find_index(position)) is not None and block.type_nid(index) == type_nid:
                of_type.append(position)
    return of_type


def _row(block: Block, index: int) -> Row:
    row = list(block.row(index))
    row[CONTENT] = as_it_is(row[CONTENT])
    return tuple(row)
