"""Building and signing events. Spec: server-server-api/#signing-events, appendices/#event-signing"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation import canonical_json
from homeserver.federation.build import Draft, build_event, build_proto_event, countersign, reference_to, sign_event
from homeserver.federation.event import PDU_BYTES_MAX, Event, InvalidEvent, parse_event
from homeserver.federation.hashing import content_hash, event_id_of, reference_hash, signed_part
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import SigningKey, decode_base64, encode_base64, verify_json
from tests.federation.json_values import KEY, PROPERTY, nested, strict_objects, texts, versions
from tests.federation.spec_events import MINIMAL, REDACTABLE

SERVER = ServerName("example.org")
ALICE = UserID("@alice:example.org")
SPEC_KEY = SigningKey("1", decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"))
OTHER_KEY = SigningKey("other", bytes(32))
EVERY_VERSION = pytest.mark.parametrize("version", ROOM_VERSIONS.values(), ids=repr)


def create_of(version: RoomVersion) -> Event:
    room_id = None if version.room_id_is_create_event_id else RoomID("!room:example.org")
    draft = Draft(room_id, ALICE, "m.room.create", {"room_version": version.id}, state_key="")
    return build_event(
        draft, version, prev_events=[], auth_events=[], depth=1, server_name=SERVER, key=KEY, event_id_opaque="create"
    )


def build(version: RoomVersion, event_type: str, content: dict[str, Any], depth: int = 2, **fields: Any) -> Event:
    """An event right after the create event."""
    create = create_of(version)
    return build_event(
        Draft(create.room_id, ALICE, event_type, content, **fields),
        version,
        prev_events=[reference_to(create)],
        auth_events=[create],
        depth=depth,
        server_name=SERVER,
        key=KEY,
        event_id_opaque="next",
    )


def is_signed(event: Event, server_name: str = SERVER, key: SigningKey = KEY) -> bool:
    covered = {**signed_part(event.pdu, event.version), "signatures": event.pdu["signatures"]}
    return verify_json(covered, server_name, key.key_id, key.verify_key_base64)


def test_example_events_are_signed_as_in_the_specification() -> None:
    signatures = [
        "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
        "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
    ]
    hashes = ["5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos", "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g"]
    for event, signature, sha256 in zip((MINIMAL, REDACTABLE), signatures, hashes, strict=True):
        before = deepcopy(event)
        signed = sign_event(event, ROOM_VERSIONS["1"], ServerName("domain"), SPEC_KEY)
        expected = {**event, "hashes": {"sha256": sha256}, "signatures": {"domain": {"ed25519:1": signature}}}
        assert signed == expected
        assert event == before


@EVERY_VERSION
def test_a_built_event_is_valid_hashed_and_signed(version: RoomVersion) -> None:
    event = build(version, "m.room.message", {"body": "hello"}, origin_server_ts=1_700_000_000_000)
    assert event.pdu["hashes"] == {"sha256": content_hash(event.pdu, version)}
    assert event.event_id == event_id_of(event.pdu, version)
    assert is_signed(event)
    parsed = parse_event(event.pdu, version)
    assert all(getattr(parsed, name) == getattr(event, name) for name in Event.__slots__)
    assert (event.content, event.depth, event.origin_server_ts) == ({"body": "hello"}, 2, 1_700_000_000_000)
    assert not event.is_state


@EVERY_VERSION
def test_an_event_cites_its_predecessors_and_auth_events(version: RoomVersion) -> None:
    create = create_of(version)
    event = build(version, "m.room.name", {}, state_key="")
    assert event.prev_events == event.auth_events == (create.event_id,)
    if version.references_with_hashes:
        digest = encode_base64(reference_hash(create.pdu, version))
        assert event.pdu["prev_events"] == event.pdu["auth_events"] == [[create.event_id, {"sha256": digest}]]
    else:
        assert event.pdu["prev_events"] == event.pdu["auth_events"] == [create.event_id]


@EVERY_VERSION
def test_a_room_begins_with_its_create_event(version: RoomVersion) -> None:
    create = create_of(version)
    assert ("room_id" in create.pdu) is not version.room_id_is_create_event_id
    expected = "!" + create.event_id[1:] if version.room_id_is_create_event_id else "!room:example.org"
    assert create.room_id == build(version, "m.room.name", {}, state_key="").room_id == expected
    assert create.key == ("m.room.create", "")


@EVERY_VERSION
def test_events_contain_their_room_id_if_required(version: RoomVersion) -> None:
    draft = Draft(None, ALICE, "m.room.message", {})
    with pytest.raises(InvalidEvent):
        build_event(
            draft, version, prev_events=[], auth_events=[], depth=1, server_name=SERVER, key=KEY, event_id_opaque="x"
        )


def test_a_create_event_of_version_12_has_no_room_id() -> None:
    draft = Draft(RoomID("!" + "r" * 43), ALICE, "m.room.create", {}, state_key="")
    with pytest.raises(InvalidEvent):
        build_event(
            draft, ROOM_VERSIONS["12"], prev_events=[], auth_events=[], depth=1, server_name=SERVER, key=KEY
        )  # fmt: skip


@pytest.mark.parametrize("version_id", ["1", "2"])
def test_event_ids_of_versions_1_and_2_have_our_domain(version_id: str) -> None:
    version = ROOM_VERSIONS[version_id]
    assert create_of(version).event_id == "$create:example.org"
    for opaque in ("", "a:b", "x" * 255, "nul\0"):
        with pytest.raises(InvalidEvent):
            build_event(
                Draft(RoomID("!room:example.org"), ALICE, "m.x", {}),
                version,
                prev_events=[],
                auth_events=[],
                depth=1,
                server_name=SERVER,
                key=KEY,
                event_id_opaque=opaque,
            )


@EVERY_VERSION
def test_a_redaction_has_its_target_where_the_version_requires_it(version: RoomVersion) -> None:
    content = {"reason": "spam"}
    event = build(version, "m.room.redaction", content, redacts=EventID("$victim:example.org"))
    assert event.redacts == "$victim:example.org"
    assert content == {"reason": "spam"}
    if version.redacts_in_content:
        assert event.content == {"reason": "spam", "redacts": "$victim:example.org"}
        assert "redacts" not in event.pdu
    else:
        assert event.content == {"reason": "spam"}
        assert event.pdu["redacts"] == "$victim:example.org"


@EVERY_VERSION
def test_depth_is_capped(version: RoomVersion) -> None:
    assert build(version, "m.x", {}, depth=version.depth_max + 1).depth == version.depth_max


@EVERY_VERSION
def test_an_invalid_draft_is_refused(version: RoomVersion) -> None:
    for content in ({"a": "\ud800"}, {"a": nested(100)}, {"a": float("nan")}, {"a": b""}, {5: 5}, None, []):
        with pytest.raises(InvalidEvent):
            build(version, "m.x", content)  # type: ignore[arg-type]
    for fields in ({"event_type": "x" * 256}, {"state_key": "ä" * 128}, {"event_type": "\ud800"}, {"state_key": 5}):
        with pytest.raises(InvalidEvent):
            build(version, **{"event_type": "m.x", "content": {}, **fields})


@EVERY_VERSION
def test_floats_are_refused_in_strict_versions(version: RoomVersion) -> None:
    if version.canonical_json_strict:
        with pytest.raises(InvalidEvent):
            build(version, "m.x", {"level": 50.0})
    else:
        event = build(version, "m.x", {"level": 50.0, "big": 2**70})
        assert is_signed(event)
        assert parse_event(event.pdu, version).event_id == event.event_id


@EVERY_VERSION
def test_an_event_larger_than_the_limit_is_refused(version: RoomVersion) -> None:
    room = PDU_BYTES_MAX - len(canonical_json.encode(build(version, "m.x", {"body": ""}).pdu))
    event = build(version, "m.x", {"body": "x" * room})
    assert len(canonical_json.encode(event.pdu)) == PDU_BYTES_MAX
    assert parse_event(event.pdu, version)
    with pytest.raises(InvalidEvent):
        build(version, "m.x", {"body": "x" * (room + 1)})


@PROPERTY
@given(st.data())
def test_every_built_event_is_valid(data: st.DataObject) -> None:
    version = data.draw(versions)
    event = build(version, data.draw(texts), data.draw(strict_objects), state_key=data.draw(st.none() | texts))
    parsed = parse_event(canonical_json.decode(canonical_json.encode(event.pdu)), version)
    assert (parsed.event_id, parsed.pdu) == (event.event_id, event.pdu)
    assert event.pdu["hashes"]["sha256"] == content_hash(event.pdu, version)
    assert is_signed(parsed)


@EVERY_VERSION
def test_a_template_becomes_an_event_by_signing(version: RoomVersion) -> None:
    """make_join: the resident server answers with a template, the joining server completes and signs it."""
    create = create_of(version)
    bob = UserID("@bob:example.com")
    template = build_proto_event(
        Draft(create.room_id, bob, "m.room.member", {"membership": "join"}, state_key=bob),
        version,
        prev_events=[reference_to(create)],
        auth_events=[create],
        depth=2,
    )
    assert not {"hashes", "signatures", "event_id"} & set(template)
    template["origin_server_ts"] = 5
    if not version.event_id_is_reference_hash:
        template["event_id"] = "$join:example.com"
    signed = sign_event(template, version, ServerName("example.com"), OTHER_KEY)
    event = parse_event(signed, version)
    assert is_signed(event, "example.com", OTHER_KEY)
    assert (event.membership, event.room_id, event.origin_server_ts) == ("join", create.room_id, 5)
    assert event.pdu["hashes"]["sha256"] == content_hash(event.pdu, version)


def test_signing_replaces_previous_hashes_and_signatures() -> None:
    event = build(ROOM_VERSIONS["11"], "m.x", {"a": 1})
    changed = {**event.pdu, "content": {"a": 2}, "hashes": {"sha256": "stale", "md5": "x"}}
    signed = sign_event(changed, ROOM_VERSIONS["11"], ServerName("example.com"), OTHER_KEY)
    assert set(signed["signatures"]) == {"example.com"}
    assert signed["hashes"] == {"sha256": content_hash(changed, ROOM_VERSIONS["11"])}


@EVERY_VERSION
def test_any_template_can_be_signed_or_is_refused(version: RoomVersion) -> None:
    """Another server wrote it; whether it is an event is seen by parsing the outcome."""
    assert sign_event({"content": 5, "type": []}, version, SERVER, KEY)["signatures"]
    for template in ({"a": "\ud800"}, {"a": nested(200)}, {5: 5}, {"a": float("nan")}):
        with pytest.raises(InvalidEvent):
            sign_event(template, version, SERVER, KEY)


@EVERY_VERSION
def test_a_second_server_can_add_its_signature(version: RoomVersion) -> None:
    event = build(version, "m.room.member", {"membership": "invite"}, state_key="@bob:example.com")
    before = deepcopy(event.pdu)
    signed = countersign(event, ServerName("example.com"), OTHER_KEY)
    assert event.pdu == before
    assert is_signed(signed) and is_signed(signed, "example.com", OTHER_KEY)
    assert signed.event_id == event.event_id
    assert signed.pdu["hashes"] == event.pdu["hashes"]
