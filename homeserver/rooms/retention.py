"""How long messages are kept, and what becomes of those whose time is over. Spec: MSC1763 (m.room.retention)

An expired message is reduced to what a redaction leaves, as if it had redacted itself: `redacted_by` is its own
position. So its content is gone for good, while the graph stays whole, and other servers can still get the event in a
form whose signature is valid. Clients are not shown it any more (`storage.without_withheld`). State events and
redactions do not expire: they are what the room consists of.

Each write that reduces messages takes a position of the stream, at which `expired_events` says which they were, so that
the search index removes their words. Files that only expired messages show are deleted (`media_references.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate, pairwise

import msgspec

from homeserver.config import Retention
from homeserver.database import Row, Transaction
from homeserver.federation import canonical_json
from homeserver.federation.event import trusted_event
from homeserver.federation.identifiers import RoomID, server_name_of
from homeserver.federation.redaction import redact
from homeserver.limits import TIMESTAMP_MS_MAX
from homeserver.resources import ForgetFiles
from homeserver.rooms import envelope
from homeserver.rooms.archive.format import SENDER
from homeserver.rooms.events import forget_auth_event, to_events
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.media_references import delete_expired, list_expired_files
from homeserver.rooms.relations import delete_relation
from homeserver.rooms.resealing import is_any_left
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.storage import (
    StoredEvent,
    can_expire,
    find_positions,
    list_rows,
    replace_content,
    stored_events,
)

DAY_MS = 24 * 60 * 60 * 1000
EXPIRED_PER_WRITE = 100  # each takes about a tenth of a millisecond, for which other writes wait
_FILES_PER_WRITE = 100
_FILES_ESTIMATED_MAX = 100_000  # of one room, so that an estimate needs little memory

_encode_positions = msgspec.msgpack.Encoder().encode
_decode_positions = msgspec.msgpack.Decoder(list[int]).decode


def find_deadline(tx: Transaction, room_nid: int) -> int | None:
    """Returns the time before which messages of a room have expired; None if they are kept for ever."""
    head = find_head(tx, RoomID(tx.name(room_nid)))
    if head is None:
        return None
    content = state_content(tx, head.state_root, "m.room.retention") or {}
    lifetime_ms = lifetime(content.get("max_lifetime"), tx.server.config.retention)
    return None if lifetime_ms is None else tx.now_ms - lifetime_ms


def lifetime(max_lifetime: object, retention: Retention) -> int | None:
    """Returns how many milliseconds messages are kept in a room with this max_lifetime; None for ever."""
    # In old room versions the number may have any length, and then be too long for the database.
    wanted = min(max_lifetime, TIMESTAMP_MS_MAX) if type(max_lifetime) is int and max_lifetime >= 0 else None
    if wanted is None:
        wanted = retention.default_days * DAY_MS or None
    if retention.max_days:
        longest = retention.max_days * DAY_MS
        wanted = longest if wanted is None else min(wanted, longest)
    return None if wanted is None else max(wanted, retention.min_days * DAY_MS)


def expire_rows(tx: Transaction, positions: Collection[int], keeps_local: bool = False) -> tuple[int, int]:
    """Reduces those of these messages that have a row and have not expired yet.

    keeps_local: not those of this server's users. Returns how many, and how many bytes their contents took.
    """
    rows = [row for row in list_rows(tx, positions, archived=False) if can_expire(tx, row)]
    rows = without_local(tx, rows, keeps_local)
    stored = stored_events(tx, rows)
    for before, event in zip(stored, to_events(tx, stored), strict=True):
        redacted = trusted_event(redact(event.pdu, event.version), event.version, event.event_id)
        replace_content(tx, before.position, redacted, before.position)
        forget_expired(tx, before)
    note_expired(tx, [event.position for event in stored])
    return len(rows), sum(len(row[-1]) for row in rows)


def without_local(tx: Transaction, rows: list[Row], keeps_local: bool) -> list[Row]:
    """Returns the rows, with `keeps_local` without those of events of this server's users."""
    if not keeps_local:
        return rows
    return [row for row in rows if server_name_of(tx.name(row[SENDER])) != tx.server.name]


def reduced_row(tx: Transaction, event: StoredEvent) -> Row:
    """Returns what remains of an event that expires, as a row with plain content."""
    (whole,) = to_events(tx, [event])
    redacted = trusted_event(redact(whole.pdu, whole.version), whole.version, whole.event_id)
    known = find_positions(tx, {*redacted.prev_events, *redacted.auth_events})
    return (
        event.position, envelope.event_key(event.event_id), tx.find(event.room_id), event.ordering,
        tx.find(event.type), None, tx.find(event.sender), event.origin_server_ts, event.status, event.position,
        event.state_before, None, None, envelope.pack(redacted, known),
        canonical_json.encode(redacted.content, strict=False),
    )  # fmt: skip


def forget_expired(tx: Transaction, event: StoredEvent) -> None:
    """Deletes what else is stored of an event that expires. `event`: as it was before."""
    delete_relation(tx, event)
    forget_auth_event(tx, event.position)
    note_rewrite(tx, tx.find(event.room_id))


def note_expired(tx: Transaction, positions: Collection[int]) -> None:
    """Notes that these messages have expired, for those who have copies: see `list_expired`."""
    if positions:
        packed = _encode_positions(_differences(sorted(positions)))
        tx.run("INSERT INTO expired_events (position, events) VALUES (?, ?)", tx.next_position(), packed)


def list_expired(tx: Transaction, since: int, upto: int) -> list[int]:
    """Returns the positions of the messages that have expired at since < position of the stream ≤ upto."""
    rows = tx.values("SELECT events FROM expired_events WHERE position > ? AND position <= ?", since, upto)
    return [position for packed in rows for position in accumulate(_decode_positions(bytes(packed)))]


def _differences(positions: Sequence[int]) -> list[int]:
    """Returns the first position, and the distance of each other one from the one before it."""
    return [*positions[:1], *(after - before for before, after in pairwise(positions))]


# --- files ---


def forget_expired_files(
    tx: Transaction, room_nid: int, before_ms: int, forgetters: Sequence[ForgetFiles]
) -> tuple[bool, int, int]:
    """Deletes some of the files that only expired messages of this room show.

    Returns whether there may be more, and how many files with how many bytes were deleted.
    """
    if is_any_left(tx):
        return False, 0, 0  # it is not yet known which files other rooms refer to
    number, files = delete_expired(tx, room_nid, before_ms, _FILES_PER_WRITE)
    freed = [forget(tx, files, False) for forget in forgetters]
    return number == _FILES_PER_WRITE, sum(each[0] for each in freed), sum(each[1] for each in freed)


def estimate_files(
    tx: Transaction, room_nid: int, before_ms: int, forgetters: Sequence[ForgetFiles]
) -> tuple[int, int]:
    """Returns how many files with how many bytes would be deleted."""
    files = list_expired_files(tx, room_nid, before_ms, _FILES_ESTIMATED_MAX)
    freed = [forget(tx, files, True) for forget in forgetters]
    return sum(each[0] for each in freed), sum(each[1] for each in freed)
