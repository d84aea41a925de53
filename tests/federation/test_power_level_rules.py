"""The auth rules for changes of power levels. Spec: rooms/v12/#authorisation-rules (10) and earlier versions'"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.auth_rules import check
from homeserver.federation.event import trusted_event
from homeserver.federation.power_levels import LEVEL_DEFAULTS
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, CAROL, DAVE, Room, alice_is_admin, new_room, versions

V12 = ROOM_VERSIONS["12"]
every_version = pytest.mark.parametrize("version", ALL)
every_level = pytest.mark.parametrize("name", [*LEVEL_DEFAULTS])


def levels_of(version: RoomVersion, **content: Any) -> dict[str, Any]:
    """ALICE has 100, BOB and CAROL have 50, who is 50 may change power levels."""
    users = alice_is_admin(version, **{BOB: 50, CAROL: 50, **content.pop("users", {})})["users"]
    users = {user_id: level for user_id, level in users.items() if level is not ...}
    return {"users": users, "events": {"m.room.power_levels": 50, **content.pop("events", {})}, **content}


def moderated(version: RoomVersion, **content: Any) -> Room:
    """A room with these power levels that BOB and CAROL are in."""
    room = new_room(version)
    room.member(BOB, "join")
    room.member(CAROL, "join")
    room.set_levels(**levels_of(version, **content))
    return room


def changes(room: Room, sender: str = BOB, **content: Any) -> bool:
    return room.allows_levels(sender, **levels_of(room.version, **content))


# What they may hold


@every_level
@pytest.mark.parametrize("value", ["50", " 50 ", "x", 50.5, None, True, [], {}])
def test_levels_must_be_integers_from_version_10(name: str, value: object) -> None:
    for version in versions(10):
        room = new_room(version, join_rule=None)
        assert room.allows_levels(**{name: 50})
        event = room.build(ALICE, "m.room.power_levels", {}, "")
        hostile = trusted_event({**event.pdu, "content": {name: value}}, version, event.event_id)
        assert check(hostile, room.state) is not None


@pytest.mark.parametrize("name", ["events", "notifications"])
@pytest.mark.parametrize("value", [[], 50, None, "x", {"m.room.name": "50"}, {"m.room.name": None}, {"x": {}}])
def test_entries_must_be_integers_from_version_10(name: str, value: object) -> None:
    for version in versions(10):
        room = new_room(version, join_rule=None)
        assert room.allows_levels(**{name: {"room": 7}})
        assert not room.allows_levels(**{name: value})


@every_version
@pytest.mark.parametrize(
    "users", [[], None, 5, "x", {"bob": 5}, {"@bob": 5}, {BOB: None}, {BOB: "x"}, {BOB: []}, {"@b:not a name": 5}]
)
def test_keys_of_users_must_be_user_ids(version: RoomVersion, users: object) -> None:
    room = new_room(version, join_rule=None)
    assert room.allows_levels()
    assert room.allows_levels(users={})
    assert not room.allows_levels(users=users)


def test_levels_of_users_may_be_strings_before_version_10() -> None:
    for version in ALL:
        room = new_room(version, join_rule=None)
        assert room.allows_levels(users={BOB: " +07 "}) == (int(version.id) < 10)


def test_levels_of_users_may_be_floats_in_old_versions() -> None:
    for version in versions(1, 5):
        assert new_room(version, join_rule=None).allows_levels(users={BOB: 7.9})


@pytest.mark.parametrize("user_id", [ALICE, BOB])
def test_creators_have_no_level_in_version_12(user_id: str) -> None:
    room = new_room(V12, additional_creators=[BOB])
    assert not room.allows_levels(users={user_id: 100})
    assert room.allows_levels(users={CAROL: 2**53 - 1})


def test_the_first_levels_may_contain_anything_else_before_version_10() -> None:
    for version in ALL:
        room = new_room(version, join_rule=None)
        assert room.allows_levels(ban="x", events=[]) == (int(version.id) < 10)


# How they may change


@every_version
def test_unchanged_levels_are_allowed(version: RoomVersion) -> None:
    assert changes(moderated(version, ban=70), ban=70)


@every_version
@every_level
def test_levels_above_the_senders_cannot_be_changed(version: RoomVersion, name: str) -> None:
    # `users_default` and so on above 50 would give the power to change them, so ALICE puts it there.
    room = moderated(version, **{name: 51})
    sender = BOB if name != "users_default" else CAROL
    if name == "users_default":
        room.set_levels(ALICE, **levels_of(version, users_default=51))
    assert changes(room, sender, **{name: 51})
    assert not changes(room, sender, **{name: 50})
    assert not changes(room, sender)
    assert changes(room, ALICE, **{name: 50})


@every_version
@every_level
def test_levels_cannot_be_raised_above_the_senders(version: RoomVersion, name: str) -> None:
    room = moderated(version)
    assert changes(room, **{name: 50})
    assert changes(room, **{name: -1})
    assert not changes(room, **{name: 51})
    assert changes(room, ALICE, **{name: 51})


@every_version
def test_levels_of_events_follow_the_same_rules(version: RoomVersion) -> None:
    room = moderated(version, events={"m.room.name": 51, "m.room.topic": 50})
    kept = {"m.room.name": 51}
    assert changes(room, events=kept)
    assert changes(room, events={**kept, "m.room.topic": 10})
    assert changes(room, events={**kept, "org.example.new": 50})
    assert not changes(room, events={"m.room.name": 50})
    assert not changes(room)
    assert not changes(room, events={**kept, "m.room.topic": 51})
    assert not changes(room, events={**kept, "org.example.new": 51})


def test_notification_levels_are_checked_from_version_6() -> None:
    for version in ALL:
        room = moderated(version, notifications={"room": 51})
        early = int(version.id) < 6
        assert changes(room, notifications={"room": 51, "other": 50})
        assert changes(room, notifications={"room": 50}) == early
        assert changes(room) == early
        assert changes(room, notifications={"room": 51, "other": 51}) == early


@every_version
def test_levels_of_users_follow_the_same_rules(version: RoomVersion) -> None:
    room = moderated(version, users={DAVE: 49})
    # those below oneself, up to one's own level
    assert changes(room, users={DAVE: 50})
    assert changes(room)
    assert changes(room, users={DAVE: 49, "@erin:epsilon.test": 50})
    assert not changes(room, users={DAVE: 51})
    assert not changes(room, users={DAVE: 49, "@erin:epsilon.test": 51})
    # one's equals not, oneself downwards only
    assert not changes(room, users={DAVE: 49, CAROL: 49})
    assert not changes(room, users={DAVE: 49, CAROL: ...})
    assert changes(room, users={DAVE: 49, BOB: 0})
    assert changes(room, users={DAVE: 49, BOB: ...})
    assert not changes(room, users={DAVE: 49, BOB: 51})


@pytest.mark.parametrize("version", versions(1, 11))
def test_levels_of_equal_or_higher_users_cannot_be_changed(version: RoomVersion) -> None:
    room = moderated(version)
    assert not changes(room, users={ALICE: 0})
    assert not changes(room, users={ALICE: ...})
    assert changes(room, ALICE, users={ALICE: 0})


def test_another_spelling_of_a_level_is_not_a_change() -> None:
    for version in versions(1, 9):
        room = moderated(version, ban="70", users={DAVE: "60"})
        assert changes(room, ban=70, users={DAVE: 60})
        assert not changes(room, ban=69, users={DAVE: 60})
    assert changes(moderated(ROOM_VERSIONS["1"], ban=70.5), ban=70)


def test_changes_cannot_introduce_malformed_levels() -> None:
    for version in versions(1, 9):
        room = moderated(version)
        assert not changes(room, ALICE, ban="x")
        assert not changes(room, ALICE, events={"m.room.name": "x"})
        content = levels_of(version)
        assert not room.allows_levels(ALICE, **{**content, "events": []})
        # One that is there since the beginning may stay, go, or become a level.
        start = new_room(version, join_rule=None)
        start.set_levels(users={ALICE: 100}, ban="x", events=[])
        assert start.allows_levels(users={ALICE: 100}, ban="x", events=[])
        assert start.allows_levels(users={ALICE: 100}, ban=7, events={"m.room.name": 3})
        assert start.allows_levels(users={ALICE: 100})


@every_version
def test_creators_in_version_12_may_change_everything(version: RoomVersion) -> None:
    room = moderated(version, ban=100)
    top = 2**53 - 1
    assert changes(room, ALICE, ban=top, users={BOB: top}) == (version is V12)
