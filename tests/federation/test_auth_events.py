"""Which part of the state goes into auth_events. Spec: server-server-api/#auth-events-selection"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.auth_events import select_auth_keys, select_auth_keys_of
from homeserver.federation.room_versions import RoomVersion
from tests.federation.json_values import PROPERTY, lenient_values
from tests.federation.json_values import versions as any_version
from tests.federation.rooms_for_tests import ALICE, ALL, BOB, CAROL, new_room, versions

CREATE, LEVELS, RULES = ("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.join_rules", "")


def member(user_id: str) -> tuple[str, str]:
    return ("m.room.member", user_id)


def selected(version: RoomVersion, sender: str, state_key: str, **content: Any) -> set[tuple[str, str]]:
    """For an m.room.member event, without the three that all events have."""
    keys = select_auth_keys("m.room.member", sender, state_key, content, version)
    assert len(keys) == len(set(keys))
    return set(keys) - {CREATE, LEVELS, member(sender)}


@pytest.mark.parametrize("version", ALL)
def test_a_create_event_has_no_auth_events(version: RoomVersion) -> None:
    assert select_auth_keys("m.room.create", ALICE, "", {}, version) == []


@pytest.mark.parametrize("version", versions(1, 11))
def test_every_event_cites_the_room_and_its_sender(version: RoomVersion) -> None:
    assert select_auth_keys("m.room.message", ALICE, None, {}, version) == [CREATE, LEVELS, member(ALICE)]


@pytest.mark.parametrize("version", versions(12))
def test_the_create_event_must_not_be_selected_in_version_12(version: RoomVersion) -> None:
    assert select_auth_keys("m.room.topic", ALICE, "", {}, version) == [LEVELS, member(ALICE)]


@pytest.mark.parametrize("version", ALL)
def test_memberships_cite_join_rules_and_the_target(version: RoomVersion) -> None:
    assert selected(version, ALICE, ALICE, membership="join") == {RULES}
    assert selected(version, ALICE, ALICE, membership="knock") == {RULES}
    assert selected(version, ALICE, BOB, membership="invite") == {RULES, member(BOB)}
    assert selected(version, ALICE, BOB, membership="leave") == {member(BOB)}
    assert selected(version, ALICE, BOB, membership="ban") == {member(BOB)}
    assert selected(version, ALICE, BOB) == {member(BOB)}


@pytest.mark.parametrize("version", ALL)
def test_a_third_party_invite_cites_its_token_event(version: RoomVersion) -> None:
    invite = {"signed": {"token": "abc"}}
    token = ("m.room.third_party_invite", "abc")
    assert token in selected(version, ALICE, BOB, membership="invite", third_party_invite=invite)
    assert token not in selected(version, ALICE, BOB, membership="join", third_party_invite=invite)


def test_a_restricted_join_cites_the_authorising_member() -> None:
    for version in ALL:
        keys = selected(version, BOB, BOB, membership="join", join_authorised_via_users_server=ALICE)
        assert (member(ALICE) in keys) == (int(version.id) >= 8)
        keys = selected(version, BOB, CAROL, membership="invite", join_authorised_via_users_server=ALICE)
        assert member(ALICE) not in keys
        keys = selected(version, BOB, BOB, membership="join", join_authorised_via_users_server=BOB)
        assert keys == {RULES}


def test_an_event_without_a_state_key_is_not_a_membership() -> None:
    version = ALL[-1]
    keys = select_auth_keys("m.room.member", ALICE, None, {"membership": "join"}, version)
    assert keys == [LEVELS, member(ALICE)]


@pytest.mark.parametrize("version", ALL)
def test_auth_events_are_selected_for_a_whole_event(version: RoomVersion) -> None:
    room = new_room(version)
    joined = room.member(BOB, "join")
    assert set(joined.auth_events) == {
        room.state[key].event_id for key in select_auth_keys_of(joined) if key != member(BOB)
    }


@PROPERTY
@given(
    any_version,
    st.dictionaries(
        st.sampled_from(["membership", "third_party_invite", "join_authorised_via_users_server"]),
        lenient_values
        | st.sampled_from(["join", "invite", "knock"])
        | st.fixed_dictionaries({"signed": lenient_values | st.fixed_dictionaries({"token": lenient_values})}),
    ),
)
def test_malformed_content_selects_only_strings(version: RoomVersion, content: dict[str, Any]) -> None:
    for key in select_auth_keys("m.room.member", ALICE, BOB, content, version):
        assert all(isinstance(part, str) for part in key)
