"""Power levels. Spec: client-server-api/#mroompower_levels, rooms/v1/#deprecated-event-content-schemas"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.power_levels import (
    CREATOR_LEVEL,
    parse_level,
    read_power_levels,
    room_creator,
    room_creators,
)
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from tests.federation.json_values import PROPERTY, lenient_values
from tests.federation.json_values import versions as any_version
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, CAROL, Room, new_room, versions

V1, V6, V9, V10, V12 = (ROOM_VERSIONS[version] for version in ("1", "6", "9", "10", "12"))


@pytest.mark.parametrize("version", ALL)
def test_integers_are_levels(version: RoomVersion) -> None:
    assert [parse_level(value, version) for value in (0, -7, 2**53 - 1)] == [0, -7, 2**53 - 1]


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("value", [None, True, False, [], {}, [50], float("inf"), float("nan"), 10**400, "", "-", "x"])
def test_malformed_levels_are_refused(version: RoomVersion, value: object) -> None:
    assert parse_level(value, version) is None


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("100", 100),
        ("000100", 100),
        ("+100", 100),
        ("-100", -100),
        (" 100 ", 100),
        (" 00100 ", 100),
        (" +100 ", 100),
        ("\t-100\n", -100),
        ("0", 0),
        ("-000", 0),
        ("0" * 60_000 + "7", 7),
    ],
)
def test_strings_are_levels_before_version_10(text: str, level: int) -> None:
    assert all(parse_level(text, version) == level for version in versions(1, 9))
    assert all(parse_level(text, version) is None for version in versions(10))


@pytest.mark.parametrize(
    "text", ["50.0", "5e1", "1 0", "--1", "+-1", "1_000", "٣", "５０", "9" * 310, "9" * 5000, "0" * 60_000 + "x"]
)
def test_strings_that_are_not_integers_are_refused(text: str) -> None:
    assert all(parse_level(text, version) is None for version in ALL)


def test_floats_before_version_6_are_truncated() -> None:
    for version in versions(1, 5):
        assert parse_level(50.57, version) == 50
        assert parse_level(5.114698e4, version) == 51146
        assert parse_level(-0.9, version) == 0
    assert all(parse_level(50.0, version) is None for version in versions(6))


def levels_of(room: Room) -> Any:
    return read_power_levels(
        room.state[("m.room.create", "")], room.state.get(("m.room.power_levels", "")), room.version
    )


@pytest.mark.parametrize("version", ALL)
def test_without_a_power_levels_event_the_creator_has_100(version: RoomVersion) -> None:
    levels = levels_of(new_room(version, join_rule=None))
    assert levels.user_level(ALICE) == (CREATOR_LEVEL if version is V12 else 100)
    assert levels.user_level(BOB) == 0
    assert levels.event_level("m.room.topic", True) == 50
    assert levels.event_level("m.room.message", False) == 0
    assert (levels.ban_level, levels.kick_level, levels.redact_level, levels.invite_level) == (50, 50, 50, 0)
    assert levels.notification_level("room") == 50


@pytest.mark.parametrize("version", ALL)
def test_levels_are_read_from_the_event(version: RoomVersion) -> None:
    room = new_room(version, join_rule=None)
    room.set_levels(
        users={BOB: 40},
        users_default=3,
        events={"m.room.topic": 60, "org.example.thing": 20},
        events_default=10,
        state_default=30,
        ban=1,
        kick=2,
        redact=4,
        invite=5,
        notifications={"room": 6},
    )
    levels = levels_of(room)
    assert (levels.user_level(BOB), levels.user_level(CAROL)) == (40, 3)
    assert levels.event_level("m.room.topic", True) == 60
    assert levels.event_level("org.example.thing", False) == 20
    assert levels.event_level("m.room.name", True) == 30
    assert levels.event_level("m.room.message", False) == 10
    assert (levels.ban_level, levels.kick_level, levels.redact_level, levels.invite_level) == (1, 2, 4, 5)
    assert (levels.notification_level("room"), levels.notification_level("other")) == (6, 50)
    # Who is not in it has the default, the creator like anybody; but privileged creators are above all.
    assert levels.user_level(ALICE) == (CREATOR_LEVEL if version is V12 else 3)


def test_all_creators_of_version_12_are_above_every_level() -> None:
    room = new_room(V12, additional_creators=[BOB])
    levels = levels_of(room)
    assert levels.user_level(ALICE) == levels.user_level(BOB) == CREATOR_LEVEL > 2**53
    assert levels.user_level(CAROL) == 0


def test_creators_are_recognised() -> None:
    create = new_room(V9).state[("m.room.create", "")]
    assert room_creator(create) == ALICE
    assert room_creators(create) == {ALICE}
    twelve = new_room(V12, additional_creators=[BOB, CAROL]).state[("m.room.create", "")]
    assert room_creator(twelve) == ALICE
    assert room_creators(twelve) == {ALICE, BOB, CAROL}
    eleven = new_room(ROOM_VERSIONS["11"], additional_creators=[BOB]).state[("m.room.create", "")]
    assert room_creators(eleven) == {ALICE}


def test_a_creator_that_is_not_a_string_is_ignored() -> None:
    room = Room(V9)
    room.room_id = new_room(V9).room_id
    create = room.build(ALICE, "m.room.create", {"creator": [ALICE]}, "")
    assert room_creator(create) is None
    assert room_creators(create) == frozenset()


@PROPERTY
@given(any_version, st.dictionaries(st.sampled_from(["users", "events", "ban", "users_default"]), lenient_values))
def test_reading_levels_never_fails(version: RoomVersion, content: dict[str, Any]) -> None:
    room = new_room(version, join_rule=None)
    create = room.state[("m.room.create", "")]
    hostile = room.build(ALICE, "m.room.power_levels", {}, "")
    hostile.content = content
    levels = read_power_levels(create, hostile, version)
    numbers = (levels.user_level(BOB), levels.event_level("users", True), levels.ban_level)
    assert all(type(number) is int for number in numbers)


def test_information_separators_around_levels_are_not_whitespace() -> None:
    """The separators U+001C to U+001F are whitespace to `str.strip`, but to no one who reads an integer."""
    version = ROOM_VERSIONS["9"]
    assert parse_level("\t 50\v\f\r\n", version) == 50
    assert parse_level("\u00a050\u2003", version) == 50
    assert parse_level("\x1c50", version) is None
    assert parse_level("50\x1f", version) is None
