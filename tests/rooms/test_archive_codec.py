"""A block gives back every event that was put into it, byte by byte, in every room version."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import DatabaseDamaged, Row
from homeserver.federation import canonical_json
from homeserver.federation.event import Event, parse_event, trusted_event
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.rooms import envelope
from homeserver.rooms.archive.block import Block
from homeserver.rooms.archive.codec import RoomOfBlock, decode, encode
from homeserver.rooms.archive.format import SPAN
from homeserver.rooms.envelope import event_key
from tests.federation.json_values import contents
from tests.federation.rooms_for_tests import ALICE, BOB, Room, new_room
from tests.rooms.test_envelope import extra_keys, odd_hashes, odd_signatures, references

versions = st.sampled_from(list(ROOM_VERSIONS.values()))


class Rows:
    """Events of a room as rows, and what the encoder must be told."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.nids: dict[str, int] = {}
        self.positions = {event_id: 10 + 3 * number for number, event_id in enumerate(room.events)}
        self.rows: list[Row] = []

    def nid(self, value: str) -> int:
        return self.nids.setdefault(value, len(self.nids) + 100)

    def add(self, event: Event, **columns: Any) -> None:
        position = self.positions.setdefault(event.event_id, 10 + 3 * len(self.positions))
        row = {
            "position": position, "event_id": event_key(event.event_id), "room": 7, "ordering": position << 20,
            "type": self.nid(event.type), "state_key": None, "sender": self.nid(event.sender),
            "ts": event.origin_server_ts, "status": 0, "redacted_by": None, "state_before": b"r" * 16, "device": None,
            "txn": None, "envelope": envelope.pack(event, self.positions),
            "content": canonical_json.encode(event.content, strict=False),
        }  # fmt: skip
        self.rows.append(tuple((row | columns).values()))

    def encode(self) -> bytes:
        names = {nid: value for value, nid in self.nids.items()}
        keys = {position: event_key(event_id) for event_id, position in self.positions.items()}
        return encode(RoomOfBlock(7, self.room.room_id, self.room.version), self.rows, names, keys)


def check(rows: Rows, block: Block) -> None:
    """Every row comes back, and none needs another one to be read first."""
    assert [block.row(index) for index in range(len(block))] == rows.rows
    data = rows.encode()
    for index in range(len(block)):
        assert decode(data).row(index) == rows.rows[index]


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=lambda version: version.id)
def test_a_block_gives_back_a_conversation_of_every_version(version: RoomVersion) -> None:
    room = new_room(version)
    rows = Rows(room)
    for number in range(2 * SPAN + 5):
        sender = (ALICE, BOB)[number % 2]
        event = room.append(room.build(sender, "m.room.message", {"msgtype": "m.text", "body": f"message {number}"}))
        if number % 7 == 3:
            event = trusted_event(redact(event.pdu, version), version, event.event_id)
            rows.add(event, redacted_by=9_000_000)
        else:
            rows.add(event, device="PHONE" if number % 5 else None, txn=f"m{number}" if number % 5 else None)
    data = rows.encode()
    check(rows, decode(data))
    if version.event_id_is_reference_hash:
        assert len(data) < 140 * len(rows.rows)


@given(st.data())
def test_a_block_gives_back_any_event(data: st.DataObject) -> None:
    room = new_room(data.draw(versions))
    rows = Rows(room)
    for _ in range(data.draw(st.integers(1, 4))):
        pdu = deepcopy(dict(room.build(ALICE, "m.room.message", data.draw(contents())).pdu))
        pdu = {**data.draw(extra_keys), **pdu}
        if data.draw(st.booleans()):
            pdu["signatures"] = data.draw(odd_signatures)
        if data.draw(st.booleans()):
            pdu["hashes"] = data.draw(odd_hashes)
        for field in ("prev_events", "auth_events"):
            if data.draw(st.booleans()):
                named = data.draw(references)
                hashed = room.version.references_with_hashes
                pdu[field] = [[name, {"sha256": "x"}] for name in named] if hashed else named
        event = parse_event(pdu, room.version)
        if event.event_id not in rows.positions:
            rows.add(room.append(event))
    if rows.rows:
        check(rows, decode(rows.encode()))


@given(st.binary(max_size=60))
def test_junk_is_refused_as_a_block(junk: bytes) -> None:
    with pytest.raises(DatabaseDamaged):
        decode(junk)
