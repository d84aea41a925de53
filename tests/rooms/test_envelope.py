"""PDUs come back from the tables exactly as they were signed, whatever else they hold."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.event import Event, parse_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.rooms import envelope
from homeserver.rooms.envelope import event_id_of_key, event_key
from tests.federation.json_values import contents
from tests.federation.rooms_for_tests import ALICE, BOB, new_room

COLUMNS = ("type", "sender", "content", "origin_server_ts", "room_id", "state_key", "event_id")


def round_trip(event: Event, stored: dict[EventID, int]) -> dict[str, Any]:
    """The PDU as it comes back, where the events of `stored` have these positions."""
    blob = envelope.pack(event, stored)
    unpacked = envelope.unpack(blob)
    columns = {name: event.pdu[name] for name in COLUMNS if name in event.pdu}
    names = {position: event_id for event_id, position in stored.items()}
    assert set(envelope.references(unpacked)) <= names.keys()
    return envelope.restore(unpacked, columns, names)


extra_keys = st.dictionaries(
    st.text(min_size=1, max_size=10).filter(lambda key: key not in (*COLUMNS, "unsigned")), contents(), max_size=4
)
odd_signatures = st.sampled_from(
    [
        {},
        {"alpha.test": {}},
        {"alpha.test": {"ed25519:1": "not base64!"}},
        {"alpha.test": {"ed25519:1": "AAAA"}},
        {"alpha.test": {"ed25519:1": "A" * 86}},
        {"alpha.test": {"ed25519:1": "A" * 85 + "B"}},
        {"alpha.test": {"ed25519:1": "A" * 86 + "=="}},
        {"alpha.test": {"ed25519:1": "A" * 86, "ed25519:2": "B" * 86}},
        {"alpha.test": {"ed25519:1": "A" * 86}, "beta.test": {"ed25519:x": "C" * 86}},
        {"beta.test": {"ed25519:1": "A" * 86}},
        {"alpha.test": {"ed25519:1": "ä" * 86}},
    ]
)
odd_hashes = st.sampled_from(
    [
        {"sha256": "A" * 43},
        {"sha256": "A" * 42 + "B"},
        {"sha256": "A" * 43 + "="},
        {"sha256": "_" * 43},
        {"sha256": ""},
        {"sha256": "short"},
        {"sha256": "A" * 43, "sha512": "more"},
    ]
)
references = st.lists(
    st.one_of(
        st.binary(min_size=32, max_size=32).map(event_id_of_key),
        st.sampled_from(
            ["$opaque:alpha.test", "$" + "a" * 43, "$" + "+" * 43, "$" + "/" + "b" * 42, "$x", "$" + "a" * 31]
        ),
    ),
    max_size=5,
)


@given(st.sampled_from(list(ROOM_VERSIONS.values())), st.data())
def test_unusual_pdus_survive_packing(version: RoomVersion, data: st.DataObject) -> None:
    room = new_room(version)
    pdu: dict[str, Any] = deepcopy(room.build(ALICE, "m.room.message", {"body": "x"}).pdu)
    pdu["signatures"] = data.draw(odd_signatures)
    pdu["hashes"] = data.draw(odd_hashes)
    extra = data.draw(extra_keys)
    pdu = {**extra, **pdu}
    if data.draw(st.booleans()):
        pdu["state_key"] = data.draw(st.sampled_from(["", ALICE, "x"]))
    for field in ("prev_events", "auth_events"):
        named = data.draw(references)
        pdu[field] = [[name, {"sha256": "x"}] for name in named] if version.references_with_hashes else named
    event = Event(pdu, version, EventID("$of:alpha.test"))
    named = list(dict.fromkeys([*event.prev_events, *event.auth_events]))
    stored = {name: number for number, name in enumerate(named, 1) if data.draw(st.booleans())}
    assert round_trip(event, stored) == pdu


@pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=str)
def test_events_of_every_version_survive_packing(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    message = room.send(BOB, "m.room.message", {"body": "hello"})
    redacts = {} if version.redacts_in_content else {"redacts": message.event_id}
    room.send(ALICE, "m.room.redaction", {"redacts": message.event_id} if not redacts else {}, **redacts)
    for event in room.events.values():
        stored = {event_id: number for number, event_id in enumerate(room.events, 1) if number % 2}
        pdu = round_trip(event, stored)
        assert pdu == event.pdu
        assert parse_event(pdu, version).event_id == event.event_id


def test_a_packed_message_takes_few_bytes() -> None:
    room = new_room(ROOM_VERSIONS["12"])
    event = room.send(ALICE, "m.room.message", {"body": "hello"})
    stored = {event_id: number for number, event_id in enumerate(room.events, 1_000_000)}
    assert len(envelope.pack(event, stored)) <= 140


@given(
    st.one_of(
        st.binary(min_size=32, max_size=32).map(event_id_of_key),
        st.text(min_size=1, max_size=60).map(lambda text: "$" + text).filter(lambda text: "\0" not in text),
    )
)
def test_event_ids_survive_packing(event_id: str) -> None:
    assert event_id_of_key(event_key(event_id)) == event_id


@given(st.lists(st.text(alphabet="abAB01-_+/=:", min_size=30, max_size=45).map(lambda text: "$" + text), max_size=20))
def test_different_event_ids_have_different_keys(event_ids: list[str]) -> None:
    assert len({event_key(event_id) for event_id in event_ids}) == len(set(event_ids))
