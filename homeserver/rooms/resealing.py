"""Seals what was stored before there were keys, or while `[at_rest]` was off, and notes the files that it refers to.

`sealing_backlog` has one row, which says how far this has come: events at position < stream ≤ upto are left. An
interruption loses nothing: each write stores how far it has come. While `[at_rest] events` is off, only the references
are noted, and `plain_since` says from where on events are to be sealed once it is on again.

Blocks of the archive that are not sealed are rewritten, like blocks in which an event was redacted.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from homeserver.database import Database, Transaction
from homeserver.database.compression import decompress
from homeserver.limits import EVENT_CONTENT_BYTES_MAX
from homeserver.process.sealing import is_sealed
from homeserver.rooms.archive.blocks import count_unsealed, note_unsealed
from homeserver.rooms.keys import find_forgotten, room_key
from homeserver.rooms.media_references import note_references
from homeserver.rooms.sealed_rows import seal_row, seal_stripped

EVENTS_PER_WRITE = 300  # 10 ms, for which other writes wait


def note_setting(tx: Transaction) -> None:
    """Notes what is to be sealed, by the configuration that the server has started with."""
    row = tx.one("SELECT position, upto, plain_since FROM sealing_backlog WHERE id = 1")
    assert row is not None
    position, upto, plain_since = row
    if not tx.server.config.at_rest.events:
        if plain_since is None:
            since = position if position < upto else tx.position
            tx.run("UPDATE sealing_backlog SET plain_since = ? WHERE id = 1", since)
    elif plain_since is not None:
        since = min(position, plain_since)
        if tx.one("SELECT 1 FROM events WHERE position > ? LIMIT 1", since) is None:
            since = tx.position  # nothing was stored meanwhile, as in a new database
        tx.run("UPDATE sealing_backlog SET position = ?, upto = ?, plain_since = NULL WHERE id = 1", since, tx.position)
    if tx.server.config.at_rest.archive:
        note_unsealed(tx)


class Waiting(NamedTuple):
    """What is still to be sealed: about how many events, and how many blocks of the archive."""

    events: int
    blocks: int


def count_waiting(tx: Transaction) -> Waiting:
    """Returns what is to be sealed by the configuration, but is not yet."""
    at_rest = tx.server.config.at_rest
    row = tx.one("SELECT position, upto FROM sealing_backlog WHERE id = 1")
    assert row is not None
    events = 0
    if at_rest.events:
        (events,) = tx.values("SELECT COUNT(*) FROM events WHERE position > ? AND position <= ?", *row)
    return Waiting(int(events), count_unsealed(tx) if at_rest.archive else 0)


def is_any_left(tx: Transaction) -> bool:
    """Returns whether something is left to be sealed."""
    return tx.one("SELECT 1 FROM sealing_backlog WHERE position < upto") is not None


def store_sealed(tx: Transaction) -> tuple[int, int]:
    """Seals some events. Returns how far it has come and has to go, as positions."""
    row = tx.one("SELECT position, upto FROM sealing_backlog WHERE id = 1")
    assert row is not None
    position, upto = int(row[0]), int(row[1])
    rows = tx.all(
        "SELECT position, room_nid, event_id, envelope, content, origin_server_ts, type_nid, state_key_nid FROM events"
        " WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
        position, upto, EVENTS_PER_WRITE,
    )  # fmt: skip
    message_nid = tx.find("m.room.message")
    forgotten = {room_nid for room_nid in {row[1] for row in rows} if find_forgotten(tx, room_nid) is None}
    for at, room_nid, key, packed, content, ts, type_nid, state_key_nid in rows:
        message_ts = ts if type_nid == message_nid and state_key_nid is None else None
        if not is_sealed(content := bytes(content)):  # otherwise its references were noted when it was stored
            note_references(tx, room_nid, decompress(content, EVENT_CONTENT_BYTES_MAX), message_ts)
            if room_nid not in forgotten:  # the room's next key must not seal what is being forgotten
                _store_one(tx, at, room_nid, bytes(key), bytes(packed), content)
    position = rows[-1][0] if len(rows) == EVENTS_PER_WRITE else upto
    if position == upto:
        _store_stripped(tx)
    tx.run("UPDATE sealing_backlog SET position = ? WHERE id = 1", position)
    return position, upto


async def seal_rest(database: Database, pause_s: float) -> None:
    """Seals everything that is left. pause_s: between two writes."""
    if not await database.read(is_any_left):
        return
    position, upto = await database.write(store_sealed)
    while position < upto:
        await trio.sleep(pause_s)
        position, upto = await database.write(store_sealed)
    await database.scrub()


def _store_one(tx: Transaction, position: int, room_nid: int, key: bytes, packed: bytes, content: bytes) -> None:
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
