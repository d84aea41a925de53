"""Turns: how declared writes of several nodes run at the same time on PostgreSQL, and still commit in order.

Theory of operation. A write that names the keys it keeps within (`Database.write(…, within=…)`) excludes only writes
with one of these keys, and those that name none. All the others may run meanwhile. What they do is ordered like this:

1. A declared batch takes the writers' lock shared, then the locks of all its keys, in the order of their numbers. A
   batch that names no keys takes the writers' lock alone, so it has the database to itself.
2. It draws a block of positions, and locks its turn: an advisory lock whose number contains the end of the block. Both
   happen under a lock that is held for some microseconds, so a batch that has drawn holds its turn. Because the
   locks of keys come first, positions rise within each key.
3. It does its work, beside others.
4. At its end it waits for all earlier turns, which it finds in `pg_locks`. Then it stores its last position, announces
   it and commits, all in one message. So transactions commit in the order of their positions, and a snapshot that shows
   a position shows all positions before it, as on SQLite.

Nobody waits in a circle: keys are locked in order, and before the draw; after it a batch waits only for those that drew
earlier, which have their keys. If two batches meet in a row that belongs to no common key, PostgreSQL may find a
deadlock. It ends one of them, which then runs again with the database to itself. For the same reason declared writes
intern strings in small transactions of their own (`PostgresSession.intern`), in which nobody waits for anybody.

The positions of a block that are not used stay unused. A connection that is lost loses its locks, its turn as well.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import blake2b

import msgspec

# The lock of write transactions, and the one under which positions are drawn. The numbers are arbitrary.
WRITE_LOCK = 7053162
_DRAW_LOCK = 7053165
# The highest byte says what a lock is for. A position has 43 bits, see `rooms/storage.py::ORDERING_SHIFT`.
_KEYS = 75 << 56
_TURNS = 77 << 56

CREATE_NUMBERS = "CREATE SEQUENCE IF NOT EXISTS stream_numbers MINVALUE 0 START 0"
ARE_NUMBERS_MISSING = "SELECT to_regclass('stream_numbers') IS NULL"

# One round trip. Each statement sees what was committed before it began, so the last sees what the lock waited for.
BEGIN_ALONE = f"""
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SELECT pg_advisory_xact_lock({WRITE_LOCK});
    SELECT GREATEST(p.position, n.last_value) FROM stream_position p, stream_numbers n WHERE p.id = 1
""".encode()

_BEGIN_BESIDE = """
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SELECT pg_advisory_xact_lock_shared({write_lock});
    SELECT {keys};
    SELECT pg_advisory_lock({draw_lock});
    SELECT setval('stream_numbers', GREATEST(n.last_value, p.position, {taken}) + {count})
        FROM stream_numbers n, stream_position p WHERE p.id = 1;
    SELECT pg_advisory_xact_lock({turns} + last_value) FROM stream_numbers;
    SELECT last_value, pg_advisory_unlock({draw_lock}) FROM stream_numbers
"""

_AWAIT_TURN = """
    SELECT count(pg_advisory_xact_lock_shared(turn)) FROM (
        SELECT (classid::bigint << 32) | objid::bigint AS turn FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND mode = 'ExclusiveLock' AND granted
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS locks WHERE turn >= {turns} AND turn < {turns} + {end};
"""
_KEEP_NUMBERS = """
    SELECT setval('stream_numbers', GREATEST(last_value, {position})) FROM stream_numbers;
"""
# The first statement announces where the stream was and is, see `listener.py`; the last one says where it was.
_STORE_AND_COMMIT = """
    WITH before AS (SELECT position FROM stream_position WHERE id = 1),
        stored AS (UPDATE stream_position SET position = {position} WHERE id = 1)
        SELECT set_config('homeserver.since', position::text, false), pg_notify({channel}, {head} || position || {tail})
        FROM before;
    COMMIT;
    SELECT current_setting('homeserver.since')
"""


class Within(msgspec.Struct, frozen=True):
    """What a declared batch keeps within. count: how many positions it may take."""

    keys: Collection[str]
    count: int


def begin_beside(within: Within, taken: int) -> bytes:
    """Returns what begins a declared batch. Its result is the last position of its block. taken: see `Batch`."""
    locks = ", ".join(f"pg_advisory_xact_lock({number})" for number in sorted({_number(key) for key in within.keys}))
    return _BEGIN_BESIDE.format(
        write_lock=WRITE_LOCK, keys=locks, draw_lock=_DRAW_LOCK, taken=taken, count=within.count, turns=_TURNS
    ).encode()


def store_and_commit(position: int, end: int | None, channel: str, head: str, tail: str) -> bytes:
    """Returns what stores the last position of a batch, announces it, and commits: when its turn has come.

    end: the end of the batch's block, None if it has the database to itself. The other arguments are quoted SQL: the
    announcement consists of `head`, the position before, and `tail`. The result is this position.
    """
    first = _KEEP_NUMBERS.format(position=position) if end is None else _AWAIT_TURN.format(turns=_TURNS, end=end)
    return (first + _STORE_AND_COMMIT.format(position=position, channel=channel, head=head, tail=tail)).encode()


def _number(key: str) -> int:
    return _KEYS | int.from_bytes(blake2b(key.encode(), digest_size=7).digest())
