"""Forgetting: makes everything that a room's key has sealed unreadable, for ever.

Theory of operation. Afterwards the room looks as if each of its events had been redacted, except those that protect it:
that it is encrypted, and which servers are banned. What a redaction leaves is
what the room needs to go on: memberships, power levels, join rules. Messages lose everything; signatures and event IDs
stay valid, because they cover only what a redaction leaves. So clients and other servers get valid events.

    step                 in one write                                             if the process ends there
    `note_forgetting`    the room gets a new key; the row in `forgotten_rooms`    the command or the next start goes on
    `forget_block`       the events of one archived block are redacted, and rows  the same
                         again; the archive moves no events of the room meanwhile
    `forget_events`      some events of which a redaction leaves something, and   the same: `reached` says how far it is
                         all that the old key has not sealed, are redacted and
                         sealed with the new key; relations are deleted
    `note_forgotten`  what outsiders are shown is redacted; each feature       nothing is left to do
                         deletes its part (`Feature.forget_room`); the old key
                         is deleted; the caches are emptied

The sealed messages themselves are not touched. The last step takes a position of the stream and wakes `FORGOTTEN`:
servers on other nodes empty their caches, and the search index removes the room's texts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.errors import not_found
from homeserver.federation.event import trusted_event
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import RoomVersion
from homeserver.process.sealing import beginning_of, is_sealed
from homeserver.rooms import envelope
from homeserver.rooms.archive.blocks import delete_block, insert_garbage, list_blocks_between, load_block
from homeserver.rooms.events import to_events
from homeserver.rooms.keys import find_number, forget_old_keys, set_out_of_use
from homeserver.rooms.membership import read_stripped, replace_stripped
from homeserver.rooms.relations import forget_relations
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.sealed_rows import NOTHING, open_stripped, pack_reduced
from homeserver.rooms.storage import list_stored, replace_content
from homeserver.rooms.timeline import END
from homeserver.rooms.versions import get_room_version

FORGOTTEN = "forgotten-rooms"
"""The stream key that is woken when a room is forgotten."""

_log = logging.getLogger(__name__)

# A room must not become less safe: no client may take it for unencrypted, and no banned server may come back.
_KEPT_WHOLE = frozenset({"m.room.encryption", "m.room.server_acl"})
EVENTS_PER_WRITE = 200  # a redaction costs 0.2 ms; other writes wait meanwhile
_POSITIONS_PER_WRITE = 20_000  # a row that is passed over costs a microsecond


def note_forgetting(tx: Transaction, room_id: RoomID) -> int:
    """Begins to forget everything up to now, or continues an unfinished attempt. Returns the room's number.

    Raises MatrixError 404 if this server knows nothing of the room.
    """
    room_nid = tx.find(room_id)
    if room_nid is None or tx.one("SELECT 1 FROM rooms WHERE room_nid = ?", room_nid) is None:
        raise not_found(f"This server knows no room {room_id}.")
    row = tx.one("SELECT is_done FROM forgotten_rooms WHERE room_nid = ?", room_nid)
    if row is not None and not row[0]:
        return room_nid
    set_out_of_use(tx, room_nid)
    tx.run(
        "INSERT INTO forgotten_rooms (room_nid, upto, reached, is_done, forgotten_position) VALUES (?, ?, 0, 0, 0)"
        " ON CONFLICT (room_nid) DO UPDATE SET upto = excluded.upto, reached = 0, is_done = 0",
        room_nid, tx.position,
    )  # fmt: skip
    return room_nid


def forget_block(tx: Transaction, room_nid: int, after: int) -> int | None:
    """Redacts the events of the first archived block after an ordering. The block ends. Returns the block's last
    ordering, None if there is no block.

    A block that is lost or damaged cannot be redacted, and must not keep the key from being deleted. Its events are as
    unreadable as before; its blob, which may come back, is deleted.
    """
    rows = list_blocks_between(tx, room_nid, after, END, 1, forwards=True)
    if not rows:
        return None
    (row,) = rows
    try:
        block = load_block(tx, row)
    except DatabaseDamaged as error:
        _log.error("a lost block is forgotten as it is", extra={"blob": row.blob, "damage": str(error)})
        insert_garbage(tx, [row.blob], tx.now_ms)
        return row.last_ordering
    positions = list(block.positions)
    _redact(tx, positions)
    delete_block(tx, row, [block.key(index) for index in range(len(block))], positions)
    insert_garbage(tx, [row.blob], tx.now_ms)
    note_rewrite(tx, room_nid)
    return row.last_ordering


def forget_events(tx: Transaction, room_nid: int) -> tuple[int, int]:
    """Redacts some events. Returns how far it has come, and how far it has to go, as positions."""
    row = tx.one("SELECT reached, upto FROM forgotten_rooms WHERE room_nid = ?", room_nid)
    assert row is not None
    reached, upto = int(row[0]), int(row[1])
    end = min(reached + _POSITIONS_PER_WRITE, upto)
    rows = tx.all(  # 5 is BEGINNING_BYTES; PostgreSQL takes no 64-bit parameter there
        "SELECT position, type_nid, state_key_nid, SUBSTR(content, 1, 5) FROM events"
        " WHERE position > ? AND position <= ? AND room_nid = ? ORDER BY position",
        reached, end, room_nid,
    )  # fmt: skip
    version = get_room_version(tx, tx.name(room_nid))
    kept_types = {tx.find(name) for name in version.redaction_content_keys}
    in_use = find_number(tx, room_nid)
    stays = None if in_use is None else beginning_of(in_use)  # what resealing.py has sealed in the meantime
    positions: list[int] = []
    passed: list[int] = []
    for position, type_nid, state_key_nid, beginning in rows:
        passed.append(position)
        start = bytes(beginning) if isinstance(beginning, bytes | memoryview) else b""  # anything else is damage
        is_lost = is_sealed(start) and start != stays
        if state_key_nid is not None or type_nid in kept_types or not is_lost:
            positions.append(position)
            if len(positions) == EVENTS_PER_WRITE:
                end = position
                break
    _redact(tx, positions)
    forget_relations(tx, passed)
    note_rewrite(tx, room_nid)
    tx.run("UPDATE forgotten_rooms SET reached = ? WHERE room_nid = ?", end, room_nid)
    return end, upto


def _redact(tx: Transaction, positions: Sequence[int]) -> None:
    """Redacts events, also damaged ones: nobody can read these, and the key must not be kept for them."""
    if not positions:
        return
    try:
        stored = list_stored(tx, positions)
        events = to_events(tx, list(stored.values()))
    except DatabaseDamaged as error:
        if len(positions) == 1:
            _replace_damaged(tx, positions[0], error)
            return
        half = len(positions) // 2
        _redact(tx, positions[:half])
        _redact(tx, positions[half:])
        return
    for position, event in zip(stored, events, strict=True):
        kept = event  # sealed again, with the new key
        if event.type not in _KEPT_WHOLE:
            kept = trusted_event(redact(event.pdu, event.version), event.version, event.event_id)
        replace_content(tx, position, kept, stored[position].redacted_by)


def _replace_damaged(tx: Transaction, position: int, damage: DatabaseDamaged) -> None:
    """Does the same to an event that nobody can get whole: it refers to events of a lost block, or it is damaged."""
    try:
        event = list_stored(tx, [position])[position]
        content = event.content
        if event.type not in _KEPT_WHOLE:
            pdu = {"type": event.type, "content": content}
            content = redact(pdu, get_room_version(tx, event.room_id))["content"]
        room_nid = tx.intern(event.room_id)
        row = pack_reduced(tx, room_nid, position, event.event_id, event.envelope, content)
    except (DatabaseDamaged, msgspec.DecodeError):
        _log.error("a damaged event is forgotten", extra={"position": position, "damage": str(damage)})
        row = (_find_intact_envelope(tx, position), NOTHING)
    tx.run("UPDATE events SET envelope = ?, content = ? WHERE position = ?", *row, position)


def _find_intact_envelope(tx: Transaction, position: int) -> bytes:
    """Returns the envelope of a damaged event without what may be private; nothing if it is what is damaged."""
    row = tx.one("SELECT envelope FROM events WHERE position = ?", position)
    try:
        packed = bytes(row[0]) if row is not None and isinstance(row[0], bytes | memoryview) else b""
        whole = envelope.bare_part(packed) if envelope.sealed_part(packed) is not None else packed
        return envelope.split(whole) or whole
    except (msgspec.DecodeError, IndexError, ValueError):
        return b""


def note_forgotten(tx: Transaction, room_nid: int) -> None:
    """Deletes the old key. All events are done, see `forget_events`."""
    room_id = RoomID(tx.name(room_nid))
    _forget_stripped(tx, room_nid, get_room_version(tx, room_id))
    forget_old_keys(tx, room_nid)
    note_rewrite(tx, room_nid)
    tx.run(
        "UPDATE forgotten_rooms SET is_done = 1, forgotten_position = ? WHERE room_nid = ?",
        tx.next_position(room_id, FORGOTTEN), room_nid,
    )  # fmt: skip


def _forget_stripped(tx: Transaction, room_nid: int, version: RoomVersion) -> None:
    """Removes from what outsiders were shown of the room what redactions would remove."""
    rows = tx.all("SELECT user_nid, stripped FROM memberships WHERE room_nid = ? AND stripped IS NOT NULL", room_nid)
    names = tx.names([user_nid for user_nid, _ in rows])
    for user_nid, stripped in rows:
        kept = []
        for event in _read_stripped(tx, room_nid, user_nid, stripped):
            event.pop("unsigned", None)
            kept.append({**event, "content": redact(event, version)["content"]})
        replace_stripped(tx, room_nid, UserID(names[user_nid]), kept)


def _read_stripped(tx: Transaction, room_nid: int, user_nid: int, stripped: Any) -> list[dict[str, Any]]:
    """Returns what an outsider was shown; nothing if it is damaged."""
    try:
        return read_stripped(open_stripped(tx, room_nid, user_nid, bytes(stripped)))
    except DatabaseDamaged as error:
        _log.error("a damaged invitation is forgotten", extra={"room_id": tx.name(room_nid), "damage": str(error)})
        return []


def list_unfinished(tx: Transaction) -> list[int]:
    """Returns the rooms whose forgetting was interrupted, but not those that are being deleted as a whole."""
    return tx.values(
        "SELECT room_nid FROM forgotten_rooms WHERE is_done = 0 AND room_nid NOT IN (SELECT resource_nid FROM tasks"
        " WHERE action = 'shutdown_and_purge_room' AND status IN ('scheduled', 'active')) ORDER BY room_nid"
    )


def list_forgotten(tx: Transaction, since: int, upto: int) -> list[int]:
    """Returns the rooms that were forgotten at since < position ≤ upto."""
    return tx.values(
        "SELECT room_nid FROM forgotten_rooms WHERE forgotten_position > ? AND forgotten_position <= ?", since, upto
    )
