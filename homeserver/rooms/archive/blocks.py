"""Which archived event is in which block, and the decoded blocks of a transaction.

Finding a block costs no block: `archive_blocks` has the span of the timeline of each, which never overlap in a room;
`archived_positions` has the positions of the stream in buckets, with the positions of each block in it; `archived_ids`
has a digest of each event ID. Digests are keyed with a secret of this database, so that nobody can make event IDs whose
digests are equal; 64 bits are enough for chance.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Hashable, Iterable, Sequence
from hashlib import blake2b

import msgspec

from homeserver.config import Config
from homeserver.database import DatabaseDamaged, Needed, Row, Transaction
from homeserver.moments import latest
from homeserver.process.sealing import SealingKey
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.format import EVENT_ID, POSITION
from homeserver.rooms.keys import find_key

BLOCKS_CACHED_BYTES_MAX = 32 << 20  # some 30 blocks of 1,000 messages: what people page through at the same time
STALE_KEY = "archive.stale"  # woken when a block is to be rewritten
WRITING_MS_MAX = 60 * 60 * 1000  # a block that took longer to be written was interrupted, and is deleted
BUCKET_SHIFT = 10  # a look-up reads the rows of all rooms with archived events among 1,024 positions of the stream
_BITMAP_BYTES = (1 << BUCKET_SHIFT) // 8


class BlockRow(msgspec.Struct, frozen=True):
    """A row of `archive_blocks`. blob: its key in the blob storage. checksum: SHA-256 of the blob.

    first_ts, last_ts: the earliest and the latest `origin_server_ts`. sealed: the number of a key, or 0.
    live_ts: the earliest of the events that can expire, see `homeserver/rooms/retention.py`; None if there is none.
    """

    block: int
    room_nid: int
    first_ordering: int
    last_ordering: int
    first_ts: int
    last_ts: int
    events: int
    size_bytes: int
    checksum: bytes
    blob: str
    sealed: int
    live_ts: int | None


GivenBlocks = dict[Hashable, object]
"""What a transaction is given for blocks that it needs: each a `Block`, or the DatabaseDamaged that says why not."""


def url_of(config: Config, blob: str) -> str:
    """Returns where a blob is, for people."""
    kind, _, path = config.blobs.url.partition(":")
    return f"file:{config.data_path(path)}/{blob}" if kind == "file" else f"{config.blobs.url.rstrip('/')}/{blob}"


class BlocksNeeded(Needed):
    """Raised by a read or write that needs blocks of the archive, each with the key that it is sealed with, if any."""

    def __init__(self, wanted: Iterable[tuple[BlockRow, SealingKey | None]]) -> None:
        self.wanted = tuple(wanted)
        super().__init__(tuple(_given_key(row.block) for row, _ in self.wanted))


def _given_key(block: int) -> tuple[str, int]:
    return ("archive block", block)


def given_block(row: BlockRow, block: Block | DatabaseDamaged) -> GivenBlocks:
    """Returns what a transaction is given for one block."""
    return {_given_key(row.block): block}


def need_blocks(tx: Transaction, rows: Sequence[BlockRow]) -> None:
    """Raises BlocksNeeded for those of the blocks that are not here yet, all at once."""
    cache = tx.sized_cache("archive_blocks", BLOCKS_CACHED_BYTES_MAX)
    missing = [row for row in rows if _given_key(row.block) not in tx.given and cache.get(row.block) is None]
    wanted = [(row, key) for row in missing if (key := find_block_key(tx, row)) is not None or not row.sealed]
    if wanted:
        raise BlocksNeeded(wanted)


def find_block_key(tx: Transaction, row: BlockRow) -> SealingKey | None:
    """Returns the key that seals a block; None if it is not sealed, or if the key is forgotten."""
    return find_key(tx, row.sealed, row.room_nid) if row.sealed else None


def load_block(tx: Transaction, row: BlockRow) -> Block:
    """Returns the block. Raises BlocksNeeded if it is not here yet, DatabaseDamaged if it cannot be read."""
    if row.sealed and find_block_key(tx, row) is None:
        raise DatabaseDamaged(f"The archived block {row.blob} cannot be read: the key of its room was forgotten.")
    cache = tx.sized_cache("archive_blocks", BLOCKS_CACHED_BYTES_MAX)
    found = cache.get(row.block)
    if found is None:
        found = tx.given.get(_given_key(row.block))
    if found is None:
        need_blocks(tx, (row,))
    if isinstance(found, DatabaseDamaged):
        raise DatabaseDamaged(str(found))
    assert isinstance(found, Block)
    cache.put(row.block, found, found.size_bytes)
    return found


def load_blocks(tx: Transaction, rows: Sequence[BlockRow]) -> list[Block]:
    """Returns the blocks, of which the missing ones are needed all at once. Raises like `load_block`."""
    need_blocks(tx, rows)
    return [load_block(tx, row) for row in rows]


# --- reads ---


def _to_rows(rows: Sequence[Row]) -> list[BlockRow]:
    return [BlockRow(*row) for row in rows]


def list_blocks(tx: Transaction, room_nid: int) -> list[BlockRow]:
    """Returns all blocks of a room, oldest first."""
    rows = tx.all(
        "SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob,"
        " sealed, live_ts FROM archive_blocks WHERE room_nid = ? ORDER BY first_ordering",
        room_nid,
    )
    return _to_rows(rows)


def list_blocks_after(tx: Transaction, block: int, limit: int) -> list[BlockRow]:
    """Returns the first blocks of all rooms, in the order of their numbers, after `block`."""
    rows = tx.all(
        "SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob,"
        " sealed, live_ts FROM archive_blocks WHERE block > ? ORDER BY block LIMIT ?",
        block, limit,
    )  # fmt: skip
    return _to_rows(rows)


def list_blocks_between(
    tx: Transaction, room_nid: int, low: int, high: int, limit: int, *, forwards: bool = False
) -> list[BlockRow]:
    """Returns the blocks that may have events with low < ordering ≤ high, newest first, or oldest if `forwards`."""
    sql = _SELECT_FORWARDS if forwards else _SELECT_BACKWARDS
    return _to_rows(tx.all(sql, room_nid, high, low, limit))


_SELECT_FORWARDS = """
    SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob, sealed,
    live_ts FROM archive_blocks
    WHERE room_nid = ? AND first_ordering <= ? AND last_ordering > ? ORDER BY first_ordering LIMIT ?
"""
_SELECT_BACKWARDS = """
    SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob, sealed,
    live_ts FROM archive_blocks
    WHERE room_nid = ? AND first_ordering <= ? AND last_ordering > ? ORDER BY first_ordering DESC LIMIT ?
"""


def list_blocks_at_time(tx: Transaction, room_nid: int, ts: int, limit: int, *, forwards: bool) -> list[BlockRow]:
    """Returns the blocks that have events at ≥ `ts` ("forwards") or ≤ `ts`, those with the nearest first."""
    return _to_rows(tx.all(_SELECT_LATER if forwards else _SELECT_EARLIER, room_nid, ts, limit))


_SELECT_LATER = """
    SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob, sealed,
    live_ts FROM archive_blocks WHERE room_nid = ? AND last_ts >= ? ORDER BY first_ts LIMIT ?
"""
_SELECT_EARLIER = """
    SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob, sealed,
    live_ts FROM archive_blocks WHERE room_nid = ? AND first_ts <= ? ORDER BY last_ts DESC LIMIT ?
"""


def find_expiring_block(tx: Transaction, room_nid: int, before_ms: int, after: int) -> BlockRow | None:
    """Returns the first block of the room, `after` an ordering, with events from before a time that can expire."""
    rows = tx.all(
        "SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob,"
        " sealed, live_ts FROM archive_blocks WHERE room_nid = ? AND live_ts < ? AND first_ordering > ?"
        " ORDER BY first_ordering LIMIT 1",
        room_nid, before_ms, after,
    )  # fmt: skip
    return next(iter(_to_rows(rows)), None)


def list_expiring_blocks(tx: Transaction, room_nid: int, before_ms: int) -> list[BlockRow]:
    """Returns all such blocks."""
    rows = tx.all(
        "SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob,"
        " sealed, live_ts FROM archive_blocks WHERE room_nid = ? AND live_ts < ? ORDER BY first_ordering",
        room_nid, before_ms,
    )  # fmt: skip
    return _to_rows(rows)


def find_archived(tx: Transaction, keys: Collection[bytes]) -> dict[bytes, int]:
    """Returns the positions of those events that are archived, by event key."""
    secret = _find_secret(tx) if keys else None
    if secret is None:
        return {}
    digests = {_digest(secret, key): key for key in keys}
    rows = tx.all_in("SELECT digest, position FROM archived_ids WHERE digest IN (?*)", list(digests))
    return {digests[digest]: position for digest, position in rows}


def list_blocks_of(tx: Transaction, positions: Collection[int]) -> dict[int, list[int]]:
    """Returns the blocks that have events at some of the positions, and which."""
    wanted: dict[int, set[int]] = {}
    for position in positions:
        wanted.setdefault(position >> BUCKET_SHIFT, set()).add(position)
    rows = tx.all_in("SELECT bucket, block, positions FROM archived_positions WHERE bucket IN (?*)", sorted(wanted))
    found: dict[int, list[int]] = {}
    for bucket, block, packed in rows:
        here = wanted[bucket].intersection(_unpack_positions(bucket, bytes(packed)))
        if here:
            found.setdefault(block, []).extend(here)
    return found


def list_archived_positions(tx: Transaction, since: int, upto: int) -> list[tuple[int, list[int]]]:
    """Returns the blocks with events in since < position ≤ upto, and which."""
    rows = tx.all(
        "SELECT bucket, block, positions FROM archived_positions WHERE bucket >= ? AND bucket <= ?",
        since >> BUCKET_SHIFT,
        upto >> BUCKET_SHIFT,
    )
    found: dict[int, list[int]] = {}
    for bucket, block, packed in rows:
        here = [each for each in _unpack_positions(bucket, bytes(packed)) if since < each <= upto]
        if here:
            found.setdefault(block, []).extend(here)
    return list(found.items())


def find_archived_txn(tx: Transaction, txn: Sequence[object]) -> int | None:
    """Returns the position of the archived event with this transaction ID, see `digest_txn`; None if there is none."""
    secret = _find_secret(tx)
    row = (
        None
        if secret is None
        else tx.one("SELECT position FROM archived_txns WHERE digest = ?", _digest_txn(secret, txn))
    )
    return None if row is None else int(row[0])


def list_stale(tx: Transaction) -> list[int]:
    """Returns the blocks in which an event has changed."""
    return tx.values("SELECT block FROM archive_stale ORDER BY block")


def list_block_rows(tx: Transaction, blocks: Collection[int]) -> list[BlockRow]:
    """Returns the rows of those of the blocks that exist."""
    rows = tx.all_in(
        "SELECT block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes, checksum, blob,"
        " sealed, live_ts FROM archive_blocks WHERE block IN (?*)",
        blocks,
    )
    return _to_rows(rows)


def get_block_rows(tx: Transaction, blocks: Collection[int]) -> list[BlockRow]:
    """Returns the rows of these blocks. Raises DatabaseDamaged if one is missing."""
    rows = list_block_rows(tx, blocks)
    if len(rows) < len(blocks):
        lost = min({*blocks} - {row.block for row in rows})
        raise DatabaseDamaged(f"The row of the archived block {lost} is missing.")
    return rows


# --- writes ---


def insert_block(tx: Transaction, row: BlockRow, rows: Sequence[Row]) -> None:
    """Stores that these events are in a block from now on."""
    tx.run(
        "INSERT INTO archive_blocks (block, room_nid, first_ordering, last_ordering, first_ts, last_ts, events, bytes,"
        " checksum, blob, sealed, live_ts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        row.block, row.room_nid, row.first_ordering, row.last_ordering, row.first_ts, row.last_ts, row.events,
        row.size_bytes, row.checksum, row.blob, row.sealed, row.live_ts,
    )  # fmt: skip
    secret = _find_secret(tx) or _insert_secret(tx)
    digests = sorted((_digest(secret, bytes(each[EVENT_ID])), each[POSITION]) for each in rows)
    tx.many("INSERT INTO archived_ids (digest, position) VALUES (?, ?)", digests)
    buckets: dict[int, list[int]] = {}
    for each in rows:
        buckets.setdefault(each[POSITION] >> BUCKET_SHIFT, []).append(each[POSITION])
    tx.many(
        "INSERT INTO archived_positions (bucket, block, positions) VALUES (?, ?, ?)",
        [(bucket, row.block, _pack_positions(positions)) for bucket, positions in sorted(buckets.items())],
    )


def insert_txns(tx: Transaction, txns: Sequence[tuple[Sequence[object], int, int]]) -> None:
    """Stores transaction IDs of archived events, each with the position and the timestamp of its event."""
    secret = _find_secret(tx)
    assert secret is not None
    tx.many(
        "INSERT INTO archived_txns (digest, position, event_ts) VALUES (?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        [(_digest_txn(secret, txn), position, ts) for txn, position, ts in txns],
    )


def delete_txns(tx: Transaction, before_ms: int, limit: int) -> int:
    """Deletes transaction IDs of events from before a time, a limited number at once; returns how many."""
    return tx.run(
        "DELETE FROM archived_txns WHERE digest IN (SELECT digest FROM archived_txns WHERE event_ts < ? LIMIT ?)",
        before_ms,
        limit,
    )


def note_stale(tx: Transaction, position: int) -> None:
    """Notes that the block of an event is to be rewritten, because the event has changed."""
    for block in list_blocks_of(tx, (position,)):
        tx.run("INSERT INTO archive_stale (block) VALUES (?) ON CONFLICT DO NOTHING", block)
    tx.next_position(STALE_KEY)


def note_unsealed(tx: Transaction) -> None:
    """Notes that all blocks that are not sealed are to be rewritten."""
    if tx.run(
        "INSERT INTO archive_stale (block) SELECT block FROM archive_blocks WHERE sealed = 0 ON CONFLICT DO NOTHING"
    ):
        tx.next_position(STALE_KEY)


def count_unsealed(tx: Transaction) -> int:
    """Returns how many blocks are not sealed."""
    (count,) = tx.values("SELECT COUNT(*) FROM archive_blocks WHERE sealed = 0")
    return int(count)


def delete_block(tx: Transaction, row: BlockRow, keys: Collection[bytes], positions: Collection[int]) -> None:
    """Deletes what is stored of a block and of its events, because they are elsewhere or gone."""
    secret = _find_secret(tx)
    assert secret is not None
    tx.run("DELETE FROM archive_blocks WHERE block = ?", row.block)
    tx.run("DELETE FROM archive_stale WHERE block = ?", row.block)
    tx.many("DELETE FROM archived_ids WHERE digest = ?", [(_digest(secret, key),) for key in keys])
    tx.many(
        "DELETE FROM archived_positions WHERE bucket = ? AND block = ?",
        [(bucket, row.block) for bucket in sorted({position >> BUCKET_SHIFT for position in positions})],
    )


def delete_lost_block(tx: Transaction, row: BlockRow) -> None:
    """Deletes what is stored of a block whose blob cannot be read. The digests of its event IDs stay."""
    tx.run("DELETE FROM archive_blocks WHERE block = ?", row.block)
    tx.run("DELETE FROM archive_stale WHERE block = ?", row.block)
    tx.run("DELETE FROM archived_positions WHERE block = ?", row.block)


# --- blobs ---


def insert_garbage(tx: Transaction, blobs: Iterable[str], due_ms: int) -> None:
    """Stores that these blobs are to be deleted at a time, unless `delete_garbage` is called before."""
    tx.many(
        "INSERT INTO archive_garbage (blob, due_ms) VALUES (?, ?)"
        " ON CONFLICT (blob) DO UPDATE SET due_ms = excluded.due_ms",
        [(blob, due_ms) for blob in blobs],
    )


def list_garbage(tx: Transaction, limit: int) -> list[str]:
    """Returns some blobs that are to be deleted now."""
    return tx.values(
        "SELECT blob FROM archive_garbage WHERE due_ms <= ? OR due_ms > ? ORDER BY blob LIMIT ?",
        tx.now_ms,
        latest(tx.now_ms, WRITING_MS_MAX),
        limit,
    )


def delete_garbage(tx: Transaction, blobs: Collection[str]) -> int:
    """Stores that these blobs are not to be deleted any more. Returns how many of them were."""
    return sum(tx.run("DELETE FROM archive_garbage WHERE blob = ?", blob) for blob in blobs)


def _find_secret(tx: Transaction) -> bytes | None:
    cache = tx.cache("archive_secret", 1)
    secret: bytes | None = cache.get(0)
    if secret is None:
        row = tx.one("SELECT secret FROM archive_secret WHERE id = 1")
        secret = None if row is None else bytes(row[0])
        if secret is not None and not tx.is_write:
            cache.put(0, secret)
    return secret


def _insert_secret(tx: Transaction) -> bytes:
    secret = secrets.token_bytes(16)
    tx.run("INSERT INTO archive_secret (id, secret) VALUES (1, ?)", secret)
    return secret


def _digest(secret: bytes, key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8, key=secret).digest(), "big", signed=True)


def _digest_txn(secret: bytes, txn: Sequence[object]) -> int:
    return _digest(secret, repr(tuple(txn)).encode())


def _pack_positions(positions: Sequence[int]) -> bytes:
    """Packs the positions of one bucket: as 16-bit numbers, or as a bitmap if that is shorter."""
    offsets = sorted(position & ((1 << BUCKET_SHIFT) - 1) for position in positions)
    if 2 * len(offsets) < _BITMAP_BYTES:
        return b"".join(offset.to_bytes(2, "little") for offset in offsets)
    return sum(1 << offset for offset in offsets).to_bytes(_BITMAP_BYTES, "little")


def _unpack_positions(bucket: int, packed: bytes) -> list[int]:
    base = bucket << BUCKET_SHIFT
    if len(packed) == _BITMAP_BYTES:
        bits = int.from_bytes(packed, "little")
        return [base + offset for offset in range(1 << BUCKET_SHIFT) if bits >> offset & 1]
    return [base + low + (high << 8) for low, high in zip(packed[::2], packed[1::2], strict=True)]
