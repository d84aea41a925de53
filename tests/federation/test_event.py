"""Event: the PDU schema of every room version. Spec: rooms/v1 to v12, client-server-api/#size-limits"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation import canonical_json
from homeserver.federation.event import (
    AUTH_EVENTS_MAX,
    PDU_BYTES_MAX,
    PREV_EVENTS_MAX,
    InvalidEvent,
    parse_event,
    trusted_event,
)
from homeserver.federation.hashing import event_id_of
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.federation.json_values import (
    PROPERTY,
    event_id_like,
    lenient_values,
    nested,
    pdu_of,
    pdus,
    reference_of,
    strict_values,
    versions,
)

EVERY_VERSION = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=repr)
LENIENT = pytest.mark.parametrize("version", list(ROOM_VERSIONS.values())[:5], ids=repr)
STRICT = pytest.mark.parametrize("version", list(ROOM_VERSIONS.values())[5:], ids=repr)
HASH = "Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"


def refuse(pdu: Any, version: RoomVersion) -> None:
    with pytest.raises(InvalidEvent):
        parse_event(pdu, version)


@EVERY_VERSION
def test_a_valid_event_is_parsed(version: RoomVersion) -> None:
    pdu = pdu_of(version)
    event = parse_event(pdu, version)
    assert event.pdu == pdu
    assert event.version is version
    assert event.event_id == event_id_of(pdu, version)
    assert (event.type, event.sender, event.room_id) == ("m.room.message", "@alice:example.org", pdu["room_id"])
    assert event.content == {"msgtype": "m.text", "body": "hello"}
    assert event.prev_events == (event_id_like(version, "prev"),)
    assert event.auth_events == (event_id_like(version, "create"), event_id_like(version, "member"))
    assert (event.depth, event.origin_server_ts, event.redacts) == (7, 1_700_000_000_000, None)
    assert (event.is_state, event.state_key, event.membership) == (False, None, None)
    assert repr(event) == f"<Event {event.event_id} m.room.message in {event.room_id}>"


@EVERY_VERSION
def test_a_state_event_has_a_key(version: RoomVersion) -> None:
    event = parse_event(pdu_of(version, type="m.room.name", state_key=""), version)
    assert event.is_state
    assert event.key == ("m.room.name", "")
    with pytest.raises(ValueError, match="state event"):
        assert parse_event(pdu_of(version), version).key


@EVERY_VERSION
def test_a_member_event_has_a_membership(version: RoomVersion) -> None:
    def membership(**fields: Any) -> str | None:
        pdu = pdu_of(version, **{"type": "m.room.member", "state_key": "@bob:example.org"} | fields)
        return parse_event(pdu, version).membership

    assert membership(content={"membership": "join"}) == "join"
    assert membership(content={"membership": 5}) is None
    assert membership(content={}) is None
    assert membership(content={"membership": "join"}, type="m.room.name") is None


@EVERY_VERSION
def test_a_redaction_redacts_an_event(version: RoomVersion) -> None:
    """At the top level below version 11, in the content since."""
    inside, outside = {"content": {"redacts": "$in:x"}}, {"content": {}, "redacts": "$out:x"}
    expected = ("$in:x", None) if version.redacts_in_content else (None, "$out:x")
    for fields, redacts in zip((inside, outside), expected, strict=True):
        assert parse_event(pdu_of(version, type="m.room.redaction", **fields), version).redacts == redacts
        assert parse_event(pdu_of(version, **fields), version).redacts is None
    assert parse_event(pdu_of(version, type="m.room.redaction", content={"redacts": 5}), version).redacts is None


@EVERY_VERSION
def test_unsigned_data_is_dropped(version: RoomVersion) -> None:
    """Nobody signed it, and it differs by the way an event came."""
    pdu = pdu_of(version, unsigned={"age": 5, "big": "x" * PDU_BYTES_MAX})
    before = deepcopy(pdu)
    event = parse_event(pdu, version)
    assert "unsigned" not in event.pdu
    assert pdu == before


@STRICT
def test_only_a_create_event_of_version_12_lacks_a_room_id(version: RoomVersion) -> None:
    pdu = pdu_of(version, type="m.room.create", state_key="", room_id=..., prev_events=[], auth_events=[])
    if not version.room_id_is_create_event_id:
        return refuse(pdu, version)
    event = parse_event(pdu, version)
    assert event.room_id == "!" + event.event_id[1:]
    with_room_id = parse_event({**pdu, "room_id": "!" + HASH}, version)
    assert with_room_id.room_id == "!" + with_room_id.event_id[1:], "for the authorisation rules to reject"
    return None


@EVERY_VERSION
def test_room_ids_have_the_format_of_the_version(version: RoomVersion) -> None:
    with_domain, without = "!room:example.org", "!" + HASH
    valid, invalid = (without, with_domain) if version.room_id_is_create_event_id else (with_domain, without)
    assert parse_event(pdu_of(version, room_id=valid), version).room_id == valid
    refuse(pdu_of(version, room_id=invalid), version)


REQUIRED = [
    "type",
    "sender",
    "room_id",
    "content",
    "depth",
    "origin_server_ts",
    "prev_events",
    "auth_events",
    "hashes",
    "signatures",
]
MALFORMED = {
    "type": [None, 5, [], {}, "x" * 256, "ä" * 128, "\ud800"],
    "state_key": [None, 5, [], {}, "x" * 256, "ä" * 128, "\ud800"],
    "sender": [None, 5, [], "", "alice", "@alice", "@alice:", "@a:bad_server", "!a:b", "@" + "a" * 255 + ":b"],
    "room_id": [None, 5, [], "", "room", "!room", "!room:", "!room:bad_server", "!" + "r" * 255 + ":example.org"],
    "content": [None, 5, [], "x"],
    "depth": [None, "1", 1.5, True, [], -1, 2**63],
    "origin_server_ts": [None, "1", 1.5, True, [], 2**63, -(2**63)],
    "prev_events": [None, {}, "$x", [None], [5], [["$x"]], [{}], ["x"], [[]]],
    "auth_events": [None, {}, "$x", [None], [5], [["$x"]], [{}], ["x"], [[]]],
    "hashes": [None, [], "x", {}, {"sha256": None}, {"sha256": 5}, {"md5": "x"}],
    "signatures": [None, [], "x", {"a": None}, {"a": "x"}, {"a": {"b": None}}, {"a": {}, "b": {"c": 5}}],
    "unsigned": [None, [], "x", 5],
    "extra": ["\ud800", b"bytes", nested(100), float("nan"), float("inf"), {5: 5}],
}  # fmt: skip


@EVERY_VERSION
@pytest.mark.parametrize("field", REQUIRED)
def test_required_fields_are_required(version: RoomVersion, field: str) -> None:
    refuse(pdu_of(version, **{field: ...}), version)


@EVERY_VERSION
@pytest.mark.parametrize("field", MALFORMED)
def test_malformed_fields_are_refused(version: RoomVersion, field: str) -> None:
    for value in MALFORMED[field]:
        refuse(pdu_of(version, **{field: value}), version)


@EVERY_VERSION
@pytest.mark.parametrize("pdu", [None, 5, "x", [], {}, [{}], {5: 5}], ids=repr)
def test_values_that_are_not_objects_are_refused(version: RoomVersion, pdu: Any) -> None:
    refuse(pdu, version)


@pytest.mark.parametrize("version_id", ["1", "2"])
def test_versions_1_and_2_have_an_event_id_with_a_domain(version_id: str) -> None:
    version = ROOM_VERSIONS[version_id]
    assert parse_event(pdu_of(version, event_id="$any:example.com:80"), version).event_id == "$any:example.com:80"
    for event_id in (..., None, 5, "", "$", "$" + HASH, "$x:", "$x:bad_server", "x:b", "$" + "x" * 255 + ":b"):
        refuse(pdu_of(version, event_id=event_id), version)


@pytest.mark.parametrize("version_id", ["1", "2"])
def test_versions_1_and_2_refer_to_events_with_their_hashes(version_id: str) -> None:
    version = ROOM_VERSIONS[version_id]
    for reference in ("$x:b", ["$x:b"], ["$x:b", "hash"], ["$x:b", None], ["$x:b", {}, {}], [5, {}], [None, {}]):
        refuse(pdu_of(version, prev_events=[reference]), version)
        refuse(pdu_of(version, auth_events=[reference]), version)


@pytest.mark.parametrize("version_id", list(ROOM_VERSIONS)[2:])
def test_later_versions_refer_to_events_by_their_id_alone(version_id: str) -> None:
    version = ROOM_VERSIONS[version_id]
    refuse(pdu_of(version, prev_events=[["$x:b", {"sha256": "x"}]]), version)
    refuse(pdu_of(version, auth_events=[["$x:b", {"sha256": "x"}]]), version)


@EVERY_VERSION
def test_the_number_of_cited_events_is_limited(version: RoomVersion) -> None:
    """Duplicates are not refused here: the authorisation rules have their say about them."""
    for field, most in (("prev_events", PREV_EVENTS_MAX), ("auth_events", AUTH_EVENTS_MAX)):
        parse_event(pdu_of(version, **{field: []}), version)
        parse_event(pdu_of(version, **{field: [reference_of(version, "same")] * most}), version)
        refuse(pdu_of(version, **{field: [reference_of(version, "same")] * (most + 1)}), version)


@EVERY_VERSION
def test_an_event_has_at_most_65536_bytes_with_its_signatures(version: RoomVersion) -> None:
    room = PDU_BYTES_MAX - len(canonical_json.encode(pdu_of(version, content={"body": ""})))
    assert parse_event(pdu_of(version, content={"body": "x" * room}), version)
    refuse(pdu_of(version, content={"body": "x" * (room + 1)}), version)
    refuse(pdu_of(version, content={"body": "ä" * (room // 2 + 1)}), version)


@EVERY_VERSION
def test_types_and_state_keys_have_at_most_255_bytes(version: RoomVersion) -> None:
    for text in ("x" * 255, "ä" * 127):
        event = parse_event(pdu_of(version, type=text, state_key=text), version)
        assert event.key == (text, text)


@EVERY_VERSION
def test_depth_has_a_limit(version: RoomVersion) -> None:
    assert parse_event(pdu_of(version, depth=0), version).depth == 0
    assert parse_event(pdu_of(version, depth=version.depth_max), version).depth == version.depth_max
    refuse(pdu_of(version, depth=version.depth_max + 1), version)


@LENIENT
@pytest.mark.parametrize("number", [1.5, 50.0, 2**53, -(2**80)])
def test_any_numbers_are_valid_before_version_6(version: RoomVersion, number: Any) -> None:
    event = parse_event(pdu_of(version, content={"level": number}), version)
    assert event.content == {"level": number}
    assert event.event_id == event_id_of(event.pdu, version)


@STRICT
@pytest.mark.parametrize("number", [1.5, 50.0, 2**53, -(2**80)])
def test_only_integers_of_53_bits_are_valid_from_version_6(version: RoomVersion, number: Any) -> None:
    refuse(pdu_of(version, content={"level": number}), version)
    refuse(pdu_of(version, extra=[number]), version)


@EVERY_VERSION
def test_redacted_events_are_valid(version: RoomVersion) -> None:
    event = parse_event(pdu_of(version, type="m.room.redaction", content={}), version)
    assert event.redacts is None


@EVERY_VERSION
def test_a_trusted_event_equals_the_parsed_event(version: RoomVersion) -> None:
    for fields in ({}, {"type": "m.room.create", "state_key": ""}, {"type": "m.room.redaction", "redacts": "$x:y"}):
        parsed = parse_event(pdu_of(version, **fields), version)
        trusted = trusted_event(parsed.pdu, version, parsed.event_id)
        assert all(getattr(trusted, name) == getattr(parsed, name) for name in type(parsed).__slots__)


@PROPERTY
@given(st.data())
def test_valid_events_survive_the_wire(data: st.DataObject) -> None:
    version = data.draw(versions)
    event = parse_event(data.draw(pdus(version)), version)
    again = parse_event(canonical_json.decode(canonical_json.encode(event.pdu)), version)
    assert (again.pdu, again.event_id, again.room_id) == (event.pdu, event.event_id, event.room_id)


@PROPERTY
@given(st.data())
def test_any_json_is_parsed_or_refused(data: st.DataObject) -> None:
    version = data.draw(versions)
    pdu = data.draw(lenient_values | pdus(version))
    if isinstance(pdu, dict):
        fields = st.sampled_from([*REQUIRED, "state_key", "event_id", "redacts", "unsigned", "membership"])
        pdu = pdu | data.draw(st.dictionaries(fields, strict_values | lenient_values, max_size=2))
    try:
        event = parse_event(pdu, version)
    except InvalidEvent:
        return
    assert event.event_id == event_id_of(event.pdu, version)
    assert canonical_json.encode(event.pdu, strict=version.canonical_json_strict)
