"""Seals what was stored before there were keys, and notes the files that it refers to, in the background.

`sealing_backlog` has one row, which says how far this has come: events at position < stream ≤ upto are left. An
interruption loses nothing: each write stores how far it has come. If `[at_rest] events` is off, only the references are
noted.
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.database.compression import decompress
from homeserver.limits import EVENT_CONTENT_BYTES_MAX
from homeserver.process.sealing import is_sealed
from homeserver.rooms.keys import room_key
from homeserver.rooms.media_references import note_references
from homeserver.rooms.sealed_rows import seal_row, seal_stripped

EVENTS_PER_WRITE = 300  # 10 ms, for which other writes wait


def is_any_left(tx: Transaction) -> bool:
    """Returns whether something is left to be sealed."""
    return tx.one("SELECT 1 FROM sealing_backlog WHERE position < upto") is not None


def store_sealed(tx: Transaction) -> tuple[int, int]:
    """Seals some events. Returns how far it has come and has to go, as positions."""
    row = tx.one("SELECT position, upto FROM sealing_backlog WHERE id = 1")
    assert row is not None
    position, upto = int(row[0]), int(row[1])
    rows = tx.all(
        "SELECT position, room_nid, event_id, envelope, content FROM events WHERE position > ? AND position <= ?"
        " ORDER BY position LIMIT ?",
        position, upto, EVENTS_PER_WRITE,
    )  # fmt: skip
    for at, room_nid, key, packed, content in rows:
        _store_one(tx, at, room_nid, bytes(key), bytes(packed), bytes(content))
    position = rows[-1][0] if len(rows) == EVENTS_PER_WRITE else upto
    if position == upto:
        _store_stripped(tx)
    tx.run("UPDATE sealing_backlog SET position = ? WHERE id = 1", position)
    return position, upto


def _store_one(tx: Transaction, position: int, room_nid: int, key: bytes, packed: bytes, content: bytes) -> None:
    if is_sealed(content):
        return  # its references were noted when it was stored
    note_references(tx, room_nid, decompress(content, EVENT_CONTENT_BYTES_MAX))
    if tx.server.config.at_rest.events:
        tx.run(
            "UPDATE events SET envelope = ?, content = ? WHERE position = ?",
            *seal_row(room_key(tx, room_nid), position, key, packed, content), position,
        )  # fmt: skip


def _store_stripped(tx: Transaction) -> None:
    """Seals what invited and knocking users were shown."""
    rows = tx.all("SELECT user_nid, room_nid, stripped FROM memberships WHERE stripped IS NOT NULL")
    for user_nid, room_nid, stripped in rows:
        if not is_sealed(bytes(stripped)):
            tx.run(
                "UPDATE memberships SET stripped = ? WHERE user_nid = ? AND room_nid = ?",
                seal_stripped(tx, room_nid, user_nid, bytes(stripped)), user_nid, room_nid,
            )  # fmt: skip
