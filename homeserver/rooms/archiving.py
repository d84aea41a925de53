"""Moves events into blocks, and rewrites blocks. Safe to interrupt anywhere.

Theory of operation. One block is written in these steps:

1. a read plans it (`find_plan`): the oldest rows of the room that may be moved, with the blocks that they are merged
   with. Rows in the span of a block are merged with it, so spans never overlap; a few rows are merged with the block
   before them, so blocks do not become small;
2. the blocks are encoded, and decoded again to see that every row comes back;
3. their blobs are noted as garbage, in case that what follows is interrupted, stored, and read back;
4. one write (`store_moved`) checks that nothing planned has changed meanwhile, stores the blocks, deletes the rows, and
   makes the blobs of replaced blocks garbage instead.

What may be moved: events of the timeline that are not state events, except the newest event, extremities, and events
with a gap before them. They are what new events and backfill need, and no other server can make us wait for a blob by
sending events that follow on the head.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from hashlib import sha256
from typing import Protocol

import msgspec

from homeserver.blobs import BlobDamaged, Blobs
from homeserver.database import Database, DatabaseDamaged, Row, Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.process.sealing import SealingKey
from homeserver.process.workers import Workers
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.blocks import (
    WRITING_MS_MAX,
    BlockRow,
    delete_block,
    delete_garbage,
    find_block_key,
    insert_block,
    insert_garbage,
    insert_txns,
    list_block_rows,
    list_blocks_between,
    load_block,
    load_blocks,
)
from homeserver.rooms.archive.codec import RoomOfBlock, decode, encode
from homeserver.rooms.archive.fetching import fetch_block, sealed_where
from homeserver.rooms.archive.format import (
    CONTENT,
    DEVICE,
    ENVELOPE,
    EVENT_ID,
    ORDERING,
    POSITION,
    ROOM,
    SENDER,
    STATE_KEY,
    TS,
    TXN,
    TYPE,
)
from homeserver.rooms.envelope import event_key, references, unpack
from homeserver.rooms.heads import find_head
from homeserver.rooms.keys import find_forgotten, room_key
from homeserver.rooms.retention import forget_expired, note_expired, reduced_row
from homeserver.rooms.storage import (
    StoredEvent,
    can_expire,
    count_older,
    delete_rows,
    list_event_ids,
    list_older,
    list_rows,
    stored_events,
)
from homeserver.rooms.timeline import END, START
from homeserver.rooms.versions import get_room_version

_log = logging.getLogger(__name__)

BLOCK_EVENTS_MAX = 1024  # decoding a block takes some milliseconds; the more events, the smaller each becomes
BLOCK_ROWS_BYTES_MAX = 4 << 20
BLOCK_ROWS_BYTES_MIN = 4 << 10  # fewer rows stay in the database: a blob takes a page of the disk, or a request
SMALL_BLOCK_EVENTS = 256  # what is merged with the block before it, if both fit into one
TXN_KEPT_MS = 7 * 24 * 60 * 60 * 1000  # how long after a message a client may send it again
ROW_BYTES = 180  # of a row and its entries in indexes, besides envelope and content


class Archivist(Protocol):
    """What moving needs of `Resources`."""

    @property
    def database(self) -> Database:
        """Where the rows are."""
        ...

    @property
    def blobs(self) -> Blobs:
        """Where the blocks go."""
        ...

    @property
    def workers(self) -> Workers:
        """Threads for compressing them."""
        ...


class Unverified(Exception):
    """These rows do not come back from a block as they are, so they must stay rows. positions: where they are."""

    def __init__(self, positions: Collection[int]) -> None:
        super().__init__(f"{len(positions)} events do not come back from a block, the first at {min(positions)}")
        self.positions = positions


class Wanted(msgspec.Struct, frozen=True):
    """What a run moves: what is older than `before_ms`, but no fewer rows of a room than take `rows_bytes_min`."""

    before_ms: int
    rows_bytes_min: int = BLOCK_ROWS_BYTES_MIN


class Plan(msgspec.Struct, frozen=True):
    """Rows of one room that become blocks. rows: as they are in `events`. old: the blocks that are replaced.

    parts: what each new block has, with contents as plain JSON, in the order of the timeline.
    forgotten: see `find_forgotten`.
    expired: events that are reduced to what a redaction leaves, as they were before.
    """

    room: RoomOfBlock
    rows: Sequence[Row]
    old: Sequence[tuple[BlockRow, Block]]
    parts: Sequence[Sequence[Row]]
    names: dict[int, str]
    event_keys: dict[int, bytes]
    forgotten: int
    expired: Sequence[StoredEvent] = ()

    @property
    def freed_bytes(self) -> int:
        """About how many bytes the rows take in the database."""
        return sum(map(_row_bytes, self.rows))


class NewBlock(msgspec.Struct, frozen=True):
    """A block whose blob is stored."""

    blob: str
    data: bytes
    rows: Sequence[Row]
    key_number: int


def _row_bytes(row: Row) -> int:
    return ROW_BYTES + len(row[ENVELOPE]) + len(row[CONTENT])


# --- 1. planning ---


def list_rooms(tx: Transaction) -> list[int]:
    """Returns all rooms that have events, as interned room IDs."""
    return tx.values("SELECT room_nid FROM rooms ORDER BY room_nid")


def find_plan(
    tx: Transaction, room_nid: int, wanted: Wanted, after: int = START, kept: Collection[int] = ()
) -> Plan | None:
    """Returns what becomes of the oldest rows with after < ordering that are wanted, except `kept`; None if nothing."""
    rows = _list_movable(tx, room_nid, wanted.before_ms, after, kept)
    if not rows:
        return None
    first = rows[0][ORDERING]
    around = list_blocks_between(tx, room_nid, first - 1, END, 1, forwards=True)
    if around and around[0].first_ordering <= first:  # they belong into its span
        return make_plan(tx, room_nid, [row for row in rows if row[ORDERING] <= around[0].last_ordering], around)
    if around:
        rows = [row for row in rows if row[ORDERING] < around[0].first_ordering]
    if len(rows) > BLOCK_EVENTS_MAX + SMALL_BLOCK_EVENTS:
        return make_plan(tx, room_nid, rows[:BLOCK_EVENTS_MAX], ())
    old: list[BlockRow] = []
    if len(rows) < SMALL_BLOCK_EVENTS:
        beside = [*list_blocks_between(tx, room_nid, START, first - 1, 1), *around]
        fitting = [block for block in beside if block.events + len(rows) <= BLOCK_EVENTS_MAX]
        old = (fitting or around)[:1]
    if not old and sum(map(_row_bytes, rows)) < wanted.rows_bytes_min:
        return None
    return make_plan(tx, room_nid, rows, old)


def find_rewrite(tx: Transaction, block: int) -> Plan | None:
    """Returns how a block is rewritten with the changed rows in its span; None if the block is gone."""
    rows = list_block_rows(tx, (block,))
    if not rows:
        return None
    (row,) = rows
    loaded = load_block(tx, row)
    changed = list_rows(tx, loaded.positions, archived=False)
    return make_plan(tx, row.room_nid, changed, [row])


def _list_movable(tx: Transaction, room_nid: int, before_ms: int, after: int, kept: Collection[int]) -> list[Row]:
    head = find_head(tx, RoomID(tx.name(room_nid)))
    if head is None:
        return []
    needed = {*kept, *head.extremities, head.last_position}
    rows = list_older(tx, room_nid, before_ms, after, 2 * BLOCK_EVENTS_MAX + len(needed))
    return [row for row in rows if row[POSITION] not in needed]


def make_plan(
    tx: Transaction,
    room_nid: int,
    rows: Sequence[Row],
    old: Sequence[BlockRow],
    expired: Sequence[StoredEvent] = (),
) -> Plan | None:
    """Returns how these rows, which are not archived, and the old blocks become new blocks. None if the room is being
    forgotten.
    """
    forgotten = find_forgotten(tx, room_nid)
    if forgotten is None:
        return None  # otherwise its contents could get into a block that is sealed with the room's next key
    blocks = load_blocks(tx, old)
    forgotten_ms = tx.now_ms - TXN_KEPT_MS
    by_position: dict[int, Row] = {}
    for block in blocks:
        by_position |= {row[POSITION]: row for row in map(block.row, range(len(block)))}
    by_position |= {event.position: reduced_row(tx, event) for event in expired}
    for row, event in zip(rows, stored_events(tx, rows), strict=True):
        by_position[event.position] = (
            event.position, bytes(row[EVENT_ID]), *row[2:10], event.state_before, *row[11:13], event.envelope,
            event.content_json,
        )  # fmt: skip
    merged = [
        (*row[:DEVICE], None, None, *row[ENVELOPE:]) if row[TS] < forgotten_ms else row
        for row in sorted(by_position.values(), key=lambda row: row[ORDERING])
    ]
    cited = {position for row in merged for position in references(unpack(row[ENVELOPE]))} - by_position.keys()
    event_ids = list_event_ids(tx, cited)
    if len(event_ids) < len(cited):
        raise DatabaseDamaged(f"The event at position {min(cited - event_ids.keys())} is missing.")
    nids = {nid for row in merged for nid in (row[ROOM], row[TYPE], row[SENDER], row[STATE_KEY]) if nid is not None}
    names = tx.names({*nids, room_nid})
    room_id = RoomID(names[room_nid])
    return Plan(
        RoomOfBlock(room_nid, room_id, get_room_version(tx, room_id)),
        rows,
        list(zip(old, blocks, strict=True)),
        _divide(merged),
        names,
        {position: event_key(event_id) for position, event_id in event_ids.items()},
        forgotten,
        expired,
    )


def _divide(rows: Sequence[Row]) -> list[list[Row]]:
    """Divides rows into parts of about the same size that are small enough for a block."""
    number = -(-len(rows) // (BLOCK_EVENTS_MAX + SMALL_BLOCK_EVENTS))
    events_max = -(-len(rows) // number) if number else 0
    parts: list[list[Row]] = []
    size = 0
    for row in rows:
        size += len(row[ENVELOPE]) + len(row[CONTENT])
        if not parts or len(parts[-1]) == events_max or size > BLOCK_ROWS_BYTES_MAX:
            parts.append([])
            size = len(row[ENVELOPE]) + len(row[CONTENT])
        parts[-1].append(row)
    return parts


# --- 2. and 3.: writing blobs ---


async def move(hs: Archivist, plan: Plan) -> bool:
    """Carries out a plan. Returns False if something planned has changed meanwhile, so that nothing was moved.

    Raises Unverified, or BlobError if the storage fails.
    """
    blobs = [_choose_blob() for _ in plan.parts]
    key = await hs.database.write(_prepare, plan.room.nid, blobs)
    new = [
        NewBlock(blob, await hs.workers.run(_encode, plan, part, blob, key), part, 0 if key is None else key.number)
        for blob, part in zip(blobs, plan.parts, strict=True)
    ]
    for each in new:
        await hs.blobs.put(each.blob, each.data)
        if await hs.blobs.get(each.blob, expected_bytes=len(each.data)) != each.data:
            raise BlobDamaged(f"The block {each.blob} does not come back from the blob storage as it was stored.")
    return await hs.database.write(store_moved, plan, new)


def _choose_blob() -> str:
    name = secrets.token_hex(16)
    return f"archive/{name[:2]}/{name[2:]}"


def _prepare(tx: Transaction, room_nid: int, blobs: Sequence[str]) -> SealingKey | None:
    """Notes that the blobs are being written. Returns the key to seal them with, None if they are not sealed."""
    insert_garbage(tx, blobs, tx.now_ms + WRITING_MS_MAX)
    return room_key(tx, room_nid) if tx.server.config.at_rest.archive else None


def _encode(plan: Plan, rows: Sequence[Row], blob: str, key: SealingKey | None) -> bytes:
    keys = plan.event_keys | {row[POSITION]: row[EVENT_ID] for part in plan.parts for row in part}
    data = encode(plan.room, rows, plan.names, keys)
    block = decode(data)
    wrong = [row[POSITION] for index, row in enumerate(rows) if block.row(index) != row]
    if wrong:
        raise Unverified(wrong)
    return data if key is None else key.seal(sealed_where(blob), data)


# --- 4. the write ---


def store_moved(tx: Transaction, plan: Plan, new: Sequence[NewBlock]) -> bool:
    """Stores the blocks, and deletes their rows and the blocks that they replace. False if something has changed."""
    positions = [row[POSITION] for row in plan.rows]
    if sorted(list_rows(tx, positions, archived=False)) != sorted(plan.rows):
        return False
    if find_forgotten(tx, plan.room.nid) != plan.forgotten:
        return False  # the room was forgotten meanwhile
    old = [row for row, _ in plan.old]
    if len(list_block_rows(tx, [row.block for row in old])) < len(old):
        return False
    if delete_garbage(tx, [each.blob for each in new]) < len(new):
        return False  # it has taken so long that the blobs may have been deleted
    for row, block in plan.old:
        delete_block(tx, row, [block.key(index) for index in range(len(block))], block.positions)
    for each in new:
        insert_block(tx, _to_row(tx, plan.room.nid, each), each.rows)
    insert_txns(tx, [_txn(row) for each in new for row in each.rows if row[TXN] is not None])
    insert_garbage(tx, [row.blob for row in old], tx.now_ms)
    delete_rows(tx, positions)
    for event in plan.expired:
        forget_expired(tx, event)
    note_expired(tx, [event.position for event in plan.expired])
    return True


def _to_row(tx: Transaction, room_nid: int, new: NewBlock) -> BlockRow:
    orderings, times = [row[ORDERING] for row in new.rows], [row[TS] for row in new.rows]
    kept = [row[TS] for row in new.rows if can_expire(tx, row)]
    return BlockRow(
        tx.next_position(), room_nid, orderings[0], orderings[-1], min(times), max(times), len(new.rows),
        len(new.data), sha256(new.data).digest(), new.blob, new.key_number, min(kept, default=None),
    )  # fmt: skip


def _txn(row: Row) -> tuple[tuple[object, ...], int, int]:
    return (row[SENDER], row[TXN], row[DEVICE], row[ROOM], row[TYPE]), row[POSITION], row[TS]


# --- everything ---

Show = Callable[[int, int], None]


class Moved(msgspec.Struct):
    """What a run has done, or would do."""

    rooms: int = 0
    events: int = 0
    blocks: int = 0
    freed_bytes: int = 0


async def archive(hs: Archivist, room_nids: Sequence[int], wanted: Wanted, show: Show = lambda done, of: None) -> Moved:
    """Moves events of these rooms into blocks. show: is told how many events of how many are done."""
    moved = Moved()
    counts = {nid: (await hs.database.read(count_older, nid, wanted.before_ms))[0] for nid in room_nids}
    total, done = sum(counts.values()), 0
    async with hs.database.hold("archive"):
        for room_nid in room_nids:
            before = moved.events
            async for plan in _plans(hs, room_nid, wanted):
                moved.events += len(plan.rows)
                moved.blocks += len(plan.parts)
                moved.freed_bytes += plan.freed_bytes
                show(done + moved.events - before, total)
            moved.rooms += moved.events > before
            done += counts[room_nid]
            show(done, total)
    return moved


async def _plans(hs: Archivist, room_nid: int, wanted: Wanted) -> AsyncIterator[Plan]:
    """Carries out one plan after the other for a room, and yields it. Events that cannot be moved stay."""
    kept: set[int] = set()
    after = START
    try:
        while plan := await hs.database.read(find_plan, room_nid, wanted, after, frozenset(kept)):
            try:
                if await move(hs, plan):
                    yield plan
                    after = plan.rows[-1][ORDERING]
            except Unverified as error:
                _log.error("events stay in the database", extra={"room": plan.room.room_id, "reason": str(error)})
                kept.update(error.positions)
    except DatabaseDamaged as error:  # the other rooms can be archived anyway
        _log.error("a room is not archived", extra={"room_nid": room_nid, "damage": str(error)})


async def estimate(hs: Archivist, room_nids: Sequence[int], wanted: Wanted) -> Moved:
    """Returns about what `archive` would do."""
    moved = Moved()
    for room_nid in room_nids:
        events, size_bytes = await hs.database.read(count_older, room_nid, wanted.before_ms)
        if events and size_bytes >= wanted.rows_bytes_min:
            moved.rooms += 1
            moved.events += events
            moved.blocks += -(-events // BLOCK_EVENTS_MAX)
            moved.freed_bytes += size_bytes + ROW_BYTES * events
    return moved


async def rewrite(hs: Archivist, block: int) -> None:
    """Rewrites a block with the events that have changed."""
    async with hs.database.hold("archive"):
        plan = await hs.database.read(find_rewrite, block)
        while plan is not None and not await move(hs, plan):
            plan = await hs.database.read(find_rewrite, block)


async def verify_block(hs: Archivist, row: BlockRow) -> bool:
    """Reads a block from the blob storage and checks it; returns False if it has been replaced meanwhile.

    Raises DatabaseDamaged if it is lost, damaged or sealed with a key that was forgotten.
    """
    key = await hs.database.read(find_block_key, row)
    try:
        if row.sealed and key is None:
            raise DatabaseDamaged(f"The archived block {row.blob} cannot be read: the key of its room was forgotten.")
        block = await fetch_block(hs.blobs, hs.workers, row, key)
        await hs.workers.run(_compute_all, block)
    except DatabaseDamaged:
        if not await hs.database.read(list_block_rows, (row.block,)):
            return False
        raise
    return True


def _compute_all(block: Block) -> None:
    for index in range(len(block)):
        block.key(index)
