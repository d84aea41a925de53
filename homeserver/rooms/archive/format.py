"""What a block of the archive consists of, see `codec.py`."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from homeserver.federation import canonical_json
from homeserver.federation.room_versions import RoomVersion

SPAN = 32  # a page of 100 events computes at most five spans, of which each stores some 32 bytes

NO_SHAPE = -1

# The columns of a row of `events`, in the order in which all readers select them.
POSITION, EVENT_ID, ROOM, ORDERING, TYPE, STATE_KEY, SENDER, TS = range(8)
STATUS, REDACTED_BY, STATE_BEFORE, DEVICE, TXN, ENVELOPE, CONTENT = range(8, 15)

ORDERING_SHIFT = 20


class Columns(msgspec.Struct, array_like=True):
    """Lists have one entry for each event; dicts, with the number of the event as key, only where there is something.

    prev_events: a positive number counts back from the event itself; others are numbers of `outside`, from 0 downwards.
    auth_events: numbers of `auth_lists`, which consist of numbers of `outside`. keys: the event keys that are stored.
    signers: numbers of `key_ids`; -1 for an event whose signatures are in `rest`.
    """

    room_nid: int
    room_id: str
    room_version: str
    names: dict[int, str]
    outside: list[tuple[int, bytes]]
    roots: list[bytes]
    auth_lists: list[list[int]]
    key_ids: list[str]
    shapes: list[list[str]]
    positions: list[int]
    orderings: list[int]
    types: list[int]
    senders: list[int]
    times: list[int]
    depths: list[int]
    state_before: list[int]
    prev_events: list[list[int] | None]
    auth_events: list[int | None]
    signers: list[int]
    shape_of: list[int]
    values: list[bytes]
    shapeless: list[bytes]
    keys: dict[int, bytes]
    hashes: dict[int, bytes | None]
    state_keys: dict[int, int]
    redacted_by: dict[int, int]
    devices: dict[int, str]
    txns: dict[int, str]
    rest: dict[int, dict[str, Any]]
    irregular: dict[int, bytes]
    unknown: dict[int, tuple[list[int | bytes] | None, list[int | bytes] | None]]


def fields_of(
    version: RoomVersion,
    room_id: str,
    event_type: str,
    sender: str,
    state_key: str | None,
    ts: int,
    content: bytes,
    event_id: str | None,
) -> dict[str, Any]:
    """Returns the fields of a PDU that have columns in `events`."""
    fields: dict[str, Any] = {
        "type": event_type,
        "sender": sender,
        "content": orjson.loads(content) if version.canonical_json_strict else canonical_json.decode(content),
        "origin_server_ts": ts,
    }
    if state_key is not None:
        fields["state_key"] = state_key
    if not (version.room_id_is_create_event_id and event_type == "m.room.create"):
        fields["room_id"] = room_id
    if event_id is not None:
        fields["event_id"] = event_id
    return fields
