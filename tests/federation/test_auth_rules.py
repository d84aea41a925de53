"""The authorisation rules, except those about m.room.member and m.room.power_levels. Spec: rooms/"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.auth_rules import (
    Rejection,
    check,
    check_auth_events,
    create_event_id_of,
    may_apply_redaction,
)
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.federation.rooms_for_tests import (
    ALICE,
    ALL,
    BOB,
    CAROL,
    DAVE,
    Room,
    alice_is_admin,
    new_room,
    versions,
)

V12 = ROOM_VERSIONS["12"]


def changed(event: Event, **fields: Any) -> Event:
    """The event with other fields; `...` removes one. Unsigned, under the same ID."""
    pdu = {name: value for name, value in {**event.pdu, **fields}.items() if value is not ...}
    return trusted_event(pdu, event.version, event.event_id)


def create_of(version: RoomVersion, **content: Any) -> Event:
    create = new_room(version).state[("m.room.create", "")]
    merged = {name: value for name, value in {**create.content, **content}.items() if value is not ...}
    return changed(create, content=merged)


# If type is m.room.create


@pytest.mark.parametrize("version", ALL)
def test_a_create_event_is_allowed(version: RoomVersion) -> None:
    assert check(create_of(version), {}) is None
    assert check(create_of(version, room_version=...), {}) is None


@pytest.mark.parametrize("version", ALL)
def test_a_create_event_cannot_have_prev_events(version: RoomVersion) -> None:
    room = new_room(version)
    create = room.state[("m.room.create", "")]
    again = room.build(ALICE, "m.room.create", create.content, "")
    assert again.prev_events
    assert check(again, room.state) is not None


@pytest.mark.parametrize("version", versions(1, 11))
def test_a_create_event_must_match_the_domain_of_the_room(version: RoomVersion) -> None:
    assert check(changed(create_of(version), sender=BOB), {}) is not None


@pytest.mark.parametrize("version", versions(12))
def test_a_create_event_of_version_12_cannot_have_a_room_id(version: RoomVersion) -> None:
    assert check(changed(create_of(version), room_id="!room:alpha.test"), {}) is not None


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("room_version", ["", "13", "org.example.unknown", None, 12, ["12"], {}])
def test_a_create_event_of_an_unknown_version_is_refused(version: RoomVersion, room_version: object) -> None:
    assert check(create_of(version, room_version=room_version), {}) is not None


def test_a_create_event_needs_a_creator_before_version_11() -> None:
    assert all(check(create_of(version, creator=...), {}) is not None for version in versions(1, 10))
    assert all(check(create_of(version, creator=...), {}) is None for version in versions(11))


@pytest.mark.parametrize("value", [None, "x", {}, [1], ["bob"], ["@bob"], ["@bob:b.test", "bob:b.test"], ["@b:!"]])
def test_additional_creators_must_be_user_ids(value: object) -> None:
    assert check(create_of(V12, additional_creators=value), {}) is not None
    assert check(create_of(ROOM_VERSIONS["11"], additional_creators=value), {}) is None


def test_additional_creators_are_allowed_in_version_12() -> None:
    assert check(create_of(V12, additional_creators=[]), {}) is None
    assert check(create_of(V12, additional_creators=[BOB, CAROL]), {}) is None


# The room


@pytest.mark.parametrize("version", ALL)
def test_events_without_a_create_event_are_refused(version: RoomVersion) -> None:
    room = new_room(version)
    create = room.state.pop(("m.room.create", ""))
    event = room.build(ALICE, "m.room.topic", {}, "", auth=[])
    assert check(event, room.state) == Rejection("The room has no m.room.create event.")
    assert check(event, room.state, create=create) is None


def test_in_version_12_the_room_id_must_match_the_create_event() -> None:
    room, other = new_room(V12), new_room(V12, note="another")
    event = room.build(ALICE, "m.room.topic", {}, "")
    assert check(event, room.state) is None
    assert check(event, {**room.state, ("m.room.create", ""): other.state[("m.room.create", "")]}) is not None


@pytest.mark.parametrize("version", ALL)
def test_events_of_other_servers_are_refused_in_an_unfederated_room(version: RoomVersion) -> None:
    room = new_room(version, **{"m.federate": False})
    assert room.allows_member(DAVE, "join")
    assert not room.allows_member(BOB, "join")
    open_room = new_room(version, **{"m.federate": True})
    assert open_room.allows_member(BOB, "join")


def test_aliases_events_need_the_senders_domain_as_state_key() -> None:
    for version in ALL:
        room = new_room(version)
        special = version.aliases_special_case
        assert special == (int(version.id) <= 5)
        # Anybody, even who is not in the room, may set those of their own server …
        assert room.allows(BOB, "m.room.aliases", {"aliases": []}, "beta.test") == special
        # … and nobody those of another; later it is an event like any other.
        assert room.allows(ALICE, "m.room.aliases", {"aliases": []}, "beta.test") == (not special)
        assert room.allows(ALICE, "m.room.aliases", {"aliases": []}) == (not special)


# Other events


@pytest.mark.parametrize("version", ALL)
def test_non_members_cannot_send_events(version: RoomVersion) -> None:
    room = new_room(version)
    assert not room.allows(BOB, "m.room.message", {})
    room.member(BOB, "join")
    assert room.allows(BOB, "m.room.message", {})
    room.member(BOB, "leave")
    assert not room.allows(BOB, "m.room.message", {})


@pytest.mark.parametrize("version", ALL)
def test_third_party_invite_needs_the_invite_level(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    room.set_levels(**alice_is_admin(version), invite=10, events={"m.room.third_party_invite": 0})
    assert not room.allows(BOB, "m.room.third_party_invite", {}, "token")
    # state_default does not count
    room.set_levels(**alice_is_admin(version), invite=0, events={"m.room.third_party_invite": 100})
    assert room.allows(BOB, "m.room.third_party_invite", {}, "token")


@pytest.mark.parametrize("version", ALL)
def test_events_need_the_required_power_level(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    assert not room.allows(BOB, "m.room.topic", {"topic": "x"}, "")
    assert room.allows(BOB, "m.room.topic", {"topic": "not a state event"})
    room.set_levels(**alice_is_admin(version), events={"m.room.topic": 0, "m.room.message": 1})
    assert room.allows(BOB, "m.room.topic", {"topic": "x"}, "")
    assert not room.allows(BOB, "m.room.message", {})
    assert room.allows(ALICE, "m.room.message", {})


@pytest.mark.parametrize("version", ALL)
def test_a_state_key_cannot_be_another_user(version: RoomVersion) -> None:
    room = new_room(version)
    assert room.allows(ALICE, "org.example.status", {}, ALICE)
    assert not room.allows(ALICE, "org.example.status", {}, BOB)
    assert not room.allows(ALICE, "org.example.status", {}, "@nobody")
    assert room.allows(ALICE, "org.example.status", {}, "bob")


# The auth events


def verdict(room: Room, event: Event, auth_events: list[Event], *rejected: EventID) -> Rejection | None:
    return check_auth_events(event, auth_events, frozenset(rejected))


def cited_by(room: Room, event: Event) -> list[Event]:
    return [room.events[event_id] for event_id in event.auth_events]


@pytest.mark.parametrize("version", ALL)
def test_correct_auth_events_are_accepted(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    for event in room.events.values():
        assert verdict(room, event, cited_by(room, event)) is None


@pytest.mark.parametrize("version", ALL)
def test_duplicate_auth_events_are_refused(version: RoomVersion) -> None:
    room = new_room(version)
    first = room.state[("m.room.power_levels", "")]
    second = room.set_levels(**alice_is_admin(version), ban=60)
    others = [each for each in cited_by(room, room.build(ALICE, "m.room.topic", {}, "")) if each is not second]
    for double in ([first, second], [second, second]):
        event = room.build(ALICE, "m.room.topic", {}, "", auth=[*others, *double])
        assert verdict(room, event, [*others, *double]) is not None
    # however often the caller names it
    assert verdict(room, event, [*others, second]) is not None


@pytest.mark.parametrize("version", ALL)
def test_auth_events_of_the_wrong_kind_are_refused(version: RoomVersion) -> None:
    room = new_room(version)
    message = room.send(ALICE, "m.room.message", {})
    topic = room.send(ALICE, "m.room.topic", {}, "")
    for wrong in (message, topic, room.state[("m.room.join_rules", "")]):
        usual = cited_by(room, topic)
        event = room.build(ALICE, "m.room.name", {}, "", auth=[*usual, wrong])
        assert verdict(room, event, [*usual, wrong]) is not None


@pytest.mark.parametrize("version", ALL)
def test_rejected_auth_events_are_refused(version: RoomVersion) -> None:
    room = new_room(version)
    event = room.send(ALICE, "m.room.topic", {}, "")
    levels = room.state[("m.room.power_levels", "")]
    assert verdict(room, event, cited_by(room, event), levels.event_id) is not None
    assert verdict(room, event, cited_by(room, event), event.event_id) is None


@pytest.mark.parametrize("version", ALL)
def test_the_create_event_is_cited_only_before_version_12(version: RoomVersion) -> None:
    room = new_room(version)
    create = room.state[("m.room.create", "")]
    event = room.send(ALICE, "m.room.topic", {}, "")
    others = [each for each in cited_by(room, event) if each is not create]
    assert (verdict(room, event, [*others, create]) is None) == (version is not V12)
    assert (verdict(room, event, others) is None) == (version is V12)


def test_a_rejected_create_event_of_version_12_is_refused() -> None:
    room = new_room(V12)
    create = room.state[("m.room.create", "")]
    event = room.send(ALICE, "m.room.topic", {}, "")
    assert create_event_id_of(event.room_id) == create.event_id
    assert verdict(room, event, cited_by(room, event), create.event_id) is not None


@pytest.mark.parametrize("version", ALL)
def test_auth_events_of_another_room_are_refused(version: RoomVersion) -> None:
    room, other = new_room(version), new_room(version, note="other")
    levels = other.state[("m.room.power_levels", "")]
    foreign = changed(levels, room_id="!" + "o" * 43 if version is V12 else "!other:alpha.test")
    event = room.build(ALICE, "m.room.topic", {}, "")
    cited = [foreign if each.type == levels.type else each for each in cited_by(room, event)]
    assert verdict(room, event, cited) is not None


@pytest.mark.parametrize("version", ALL)
def test_a_create_event_cannot_have_auth_events(version: RoomVersion) -> None:
    create = create_of(version)
    assert check_auth_events(create, [], frozenset()) is None


# Redactions


@pytest.fixture(params=ALL, ids=repr)
def moderated(request: pytest.FixtureRequest) -> Room:
    """BOB and CAROL have joined, CAROL and ALICE may redact."""
    room = new_room(request.param)
    room.member(BOB, "join")
    room.member(CAROL, "join")
    room.set_levels(**alice_is_admin(request.param, **{CAROL: 50}))
    return room


def test_redactions_need_power_or_the_same_domain(moderated: Room) -> None:
    by_alice, by_bob = (moderated.send(user, "m.room.message", {}) for user in (ALICE, BOB))
    early = int(moderated.version.id) <= 2
    for sender, target, applies in (
        (ALICE, by_bob, True),
        (CAROL, by_alice, True),
        (BOB, by_bob, True),
        (BOB, by_alice, False),
    ):
        redaction = moderated.build(sender, "m.room.redaction", {}, redacts=target.event_id)
        allowed = check(redaction, moderated.state) is None
        # In versions 1 and 2 the rules decide; later whether it takes effect is another question.
        assert allowed == (applies or not early)
        if allowed:
            assert may_apply_redaction(redaction, target, moderated.state) == applies


def test_a_redaction_may_need_a_level_to_be_sent(moderated: Room) -> None:
    target = moderated.send(BOB, "m.room.message", {})
    moderated.set_levels(**alice_is_admin(moderated.version), events={"m.room.redaction": 10})
    assert not moderated.allows(BOB, "m.room.redaction", {}, redacts=target.event_id)


def test_a_redaction_of_another_event_or_room_does_not_apply(moderated: Room) -> None:
    target, other = (moderated.send(BOB, "m.room.message", {}) for _ in range(2))
    redaction = moderated.send(ALICE, "m.room.redaction", {}, redacts=target.event_id)
    assert may_apply_redaction(redaction, target, moderated.state)
    assert not may_apply_redaction(redaction, other, moderated.state)
    assert not may_apply_redaction(redaction, changed(target, room_id="!other:alpha.test"), moderated.state)


def test_the_right_to_redact_can_be_checked_without_a_state() -> None:
    room = new_room(V12)
    room.member(BOB, "join")
    target = room.send(BOB, "m.room.message", {})
    redaction = room.send(ALICE, "m.room.redaction", {}, redacts=target.event_id)
    create = room.state.pop(("m.room.create", ""))
    assert not may_apply_redaction(redaction, target, room.state)
    assert may_apply_redaction(redaction, target, room.state, create=create)


@pytest.mark.parametrize("version", versions(1, 2))
def test_ids_without_a_domain_give_no_right_to_redact(version: RoomVersion) -> None:
    room = new_room(version)
    room.member(BOB, "join")
    redaction = room.build(BOB, "m.room.redaction", {}, redacts=EventID("$nothing"))
    assert check(redaction, room.state) is not None
    assert check(changed(redaction, event_id="$nothing"), room.state) is not None
    nothing = trusted_event({**redaction.pdu, "redacts": "$x"}, version, EventID("$y"))
    assert check(nothing, room.state) is not None
    assert not room.allows(BOB, "m.room.redaction", {})
