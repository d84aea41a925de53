"""How far imports have come, so that an interrupted one goes on and nothing comes twice."""

from __future__ import annotations

from typing import NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import EventID, RoomID, UserID

SCHEMA = Schema(
    "portability",
    (
        Step(
            "001_create",
            """
            -- folder: the SHA-256 of the manifest. keeper_nid: the user who made the room. lines: read so far.
            -- Numbers of events that were appended and left out. is_done: 1 once the room is complete.
            CREATE TABLE imports (
                folder TEXT PRIMARY KEY,
                room_nid INTEGER NOT NULL,
                keeper_nid INTEGER NOT NULL,
                lines INTEGER NOT NULL,
                appended INTEGER NOT NULL,
                left_out INTEGER NOT NULL,
                is_done INTEGER NOT NULL
            );
            -- What has become of the exported events, for what relates to them; until the import is done.
            CREATE TABLE imported_events (
                room_nid INTEGER NOT NULL,
                original TEXT NOT NULL,
                event_id TEXT NOT NULL,
                PRIMARY KEY (room_nid, original)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)


class Progress(NamedTuple):
    """How far an import has come."""

    room_id: RoomID
    keeper: UserID
    lines: int
    appended: int
    left_out: int
    is_done: bool


def find_progress(tx: Transaction, folder: str) -> Progress | None:
    """Returns how far the import of a folder has come, None if it has not begun."""
    row = tx.one(
        "SELECT room_nid, keeper_nid, lines, appended, left_out, is_done FROM imports WHERE folder = ?", folder
    )
    if row is None:
        return None
    return Progress(RoomID(tx.name(row[0])), UserID(tx.name(row[1])), row[2], row[3], row[4], bool(row[5]))


def store_progress(tx: Transaction, folder: str, progress: Progress) -> None:
    """Stores how far the import of a folder has come, in the write that appends the events."""
    tx.run(
        "INSERT INTO imports (folder, room_nid, keeper_nid, lines, appended, left_out, is_done)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (folder) DO UPDATE SET lines = excluded.lines,"
        " appended = excluded.appended, left_out = excluded.left_out, is_done = excluded.is_done",
        folder, tx.intern(progress.room_id), tx.intern(progress.keeper), progress.lines, progress.appended,
        progress.left_out, int(progress.is_done),
    )  # fmt: skip


def find_imported(tx: Transaction, room_id: RoomID, original: str) -> EventID | None:
    """Returns the event that an exported one has become."""
    row = tx.one("SELECT event_id FROM imported_events WHERE room_nid = ? AND original = ?", tx.find(room_id), original)
    return None if row is None else EventID(row[0])


def store_imported(tx: Transaction, room_id: RoomID, original: str, event_id: EventID) -> None:
    """Notes what an exported event has become. An event ID that comes twice stands for the first."""
    tx.run(
        "INSERT INTO imported_events (room_nid, original, event_id) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        tx.intern(room_id), original, event_id,
    )  # fmt: skip


def delete_imported(tx: Transaction, room_id: RoomID) -> None:
    """Deletes these notes once an import is done."""
    tx.run("DELETE FROM imported_events WHERE room_nid = ?", tx.find(room_id))
