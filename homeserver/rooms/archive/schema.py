"""The tables of the archive: which event is in which block. Owned by `homeserver/rooms/archive/`."""

from __future__ import annotations

from homeserver.database import Schema, Step

SCHEMA = Schema(
    name="archive",
    steps=(
        Step(
            "001_create",
            """
            -- Blocks of archived events, see `archive/`. The spans of the blocks of a room do not overlap. blob: the
            -- key in the blob storage; checksum: its SHA-256; bytes: its length. first_ts, last_ts: the earliest and
            -- the latest timestamp. sealed: the number of the key that seals the blob, 0 if it is not sealed.
            CREATE TABLE archive_blocks (
                block INTEGER PRIMARY KEY,
                room_nid INTEGER NOT NULL,
                first_ordering INTEGER NOT NULL,
                last_ordering INTEGER NOT NULL,
                first_ts INTEGER NOT NULL,
                last_ts INTEGER NOT NULL,
                events INTEGER NOT NULL,
                bytes INTEGER NOT NULL,
                checksum BLOB NOT NULL,
                blob TEXT NOT NULL,
                sealed INTEGER NOT NULL
            );
            CREATE INDEX archive_blocks_in_room ON archive_blocks (room_nid, first_ordering);
            CREATE UNIQUE INDEX archive_blocks_by_blob ON archive_blocks (blob);
            -- What remains here of an archived event: its ID, as a digest that is keyed with the secret, and its place.
            CREATE TABLE archived_ids (digest INTEGER PRIMARY KEY, position INTEGER NOT NULL);
            CREATE TABLE archive_secret (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL);
            -- The positions of a block among 1,024 positions of the stream: 16-bit offsets, or a bitmap of 128 bytes.
            CREATE TABLE archived_positions (
                bucket INTEGER NOT NULL,
                block INTEGER NOT NULL,
                positions BLOB NOT NULL,
                PRIMARY KEY (bucket, block)
            ) WITHOUT ROWID;
            -- Transaction IDs of archived events of the last days, as digests. ts: the timestamp of the event.
            CREATE TABLE archived_txns (
                digest INTEGER PRIMARY KEY,
                position INTEGER NOT NULL,
                event_ts INTEGER NOT NULL
            );
            -- Blocks in which an event has changed since. The row of that event is in `events` again.
            CREATE TABLE archive_stale (block INTEGER PRIMARY KEY);
            -- Blobs to be deleted: of blocks that were replaced, and of those that are being written, in case that
            -- this is interrupted. due_ms: when.
            CREATE TABLE archive_garbage (
                blob TEXT PRIMARY KEY,
                due_ms INTEGER NOT NULL
            );
            """,
        ),
        Step(
            "002_live_ts",
            """
            -- The earliest timestamp of the events that can expire, NULL if there are none: see rooms/retention.py.
            ALTER TABLE archive_blocks ADD COLUMN live_ts INTEGER;
            UPDATE archive_blocks SET live_ts = first_ts;
            """,
        ),
    ),
)
