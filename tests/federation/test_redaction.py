"""Redaction of every room version. Spec: rooms/v1/#redactions, rooms/v6, v8, v9, v11"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import ROOM_VERSIONS
from tests.federation.json_values import PROPERTY, pdu_of, pdus, versions

ALL = list(ROOM_VERSIONS)


def redacted_content(version: str, event_type: str, content: Any) -> Any:
    return redact({"type": event_type, "content": content}, ROOM_VERSIONS[version])["content"]


def since(first: int) -> list[str]:
    return [version for version in ALL if int(version) >= first]


def before(first: int) -> list[str]:
    return [version for version in ALL if int(version) < first]


@pytest.mark.parametrize("version", ALL)
def test_a_redacted_message_keeps_its_place_and_loses_its_content(version: str) -> None:
    pdu = pdu_of(ROOM_VERSIONS[version], unsigned={"age": 1}, redacts="$x", extra=1)
    kept = {name: value for name, value in pdu.items() if name not in ("unsigned", "redacts", "extra")}
    assert redact(pdu, ROOM_VERSIONS[version]) == {**kept, "content": {}}


@pytest.mark.parametrize("version", ALL)
def test_origin_membership_and_prev_state_are_kept_below_version_11(version: str) -> None:
    legacy = {"origin": "example.org", "membership": "join", "prev_state": []}
    redacted = redact({"type": "m.x", "content": {"a": 1}, **legacy}, ROOM_VERSIONS[version])
    assert redacted == {"type": "m.x", "content": {}} | (legacy if int(version) < 11 else {})


@pytest.mark.parametrize("version", ALL)
def test_member_keeps_membership_and_from_version_9_the_authorising_user(version: str) -> None:
    content = {"membership": "join", "join_authorised_via_users_server": "@a:b", "displayname": "A", "reason": "x"}
    kept = {"membership"} | ({"join_authorised_via_users_server"} if int(version) >= 9 else set())
    assert set(redacted_content(version, "m.room.member", content)) == kept


@pytest.mark.parametrize("version", ALL)
def test_member_keeps_the_signed_part_of_a_third_party_invite_from_version_11(version: str) -> None:
    content = {"membership": "invite", "third_party_invite": {"display_name": "b...", "signed": {"token": "t"}}}
    expected: dict[str, Any] = {"membership": "invite"}
    if int(version) >= 11:
        expected["third_party_invite"] = {"signed": {"token": "t"}}
    assert redacted_content(version, "m.room.member", content) == expected


@pytest.mark.parametrize("version", since(11))
def test_an_empty_third_party_invite_is_kept_and_a_malformed_one_removed(version: str) -> None:
    """The specification leaves it open; the servers in use agree, and event IDs depend on it."""
    assert redacted_content(version, "m.room.member", {"third_party_invite": {"x": 1}}) == {"third_party_invite": {}}
    for malformed in (None, "x", [], 1):
        assert redacted_content(version, "m.room.member", {"third_party_invite": malformed}) == {}


@pytest.mark.parametrize("version", ALL)
def test_create_keeps_its_creator_and_from_version_11_everything(version: str) -> None:
    content = {"creator": "@a:b", "m.federate": False, "room_version": version}
    expected = content if int(version) >= 11 else {"creator": "@a:b"}
    assert redacted_content(version, "m.room.create", content) == expected


@pytest.mark.parametrize("version", ALL)
def test_join_rules_keep_the_rule_and_from_version_8_its_allow_list(version: str) -> None:
    content = {"join_rule": "restricted", "allow": [{"type": "m.room_membership"}], "other": 1}
    kept = {"join_rule"} | ({"allow"} if int(version) >= 8 else set())
    assert set(redacted_content(version, "m.room.join_rules", content)) == kept


@pytest.mark.parametrize("version", ALL)
def test_power_levels_keep_all_levels_but_invite_only_from_version_11(version: str) -> None:
    kept = {"ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"}
    content = dict.fromkeys([*kept, "invite", "notifications", "other"], 50)
    kept |= {"invite"} if int(version) >= 11 else set()
    assert set(redacted_content(version, "m.room.power_levels", content)) == kept


@pytest.mark.parametrize("version", ALL)
def test_aliases_are_kept_below_version_6(version: str) -> None:
    expected = {"aliases": ["#a:b"]} if int(version) < 6 else {}
    assert redacted_content(version, "m.room.aliases", {"aliases": ["#a:b"], "other": 1}) == expected


@pytest.mark.parametrize("version", ALL)
def test_history_visibility_is_kept(version: str) -> None:
    content = {"history_visibility": "shared", "other": 1}
    assert redacted_content(version, "m.room.history_visibility", content) == {"history_visibility": "shared"}


@pytest.mark.parametrize("version", ALL)
def test_a_redaction_keeps_its_target_from_version_11(version: str) -> None:
    expected = {"redacts": "$x"} if int(version) >= 11 else {}
    assert redacted_content(version, "m.room.redaction", {"redacts": "$x", "reason": "spam"}) == expected


@pytest.mark.parametrize("version", ALL)
def test_malformed_events_are_redacted_too(version: str) -> None:
    assert redact({}, ROOM_VERSIONS[version]) == {"content": {}}
    assert redact({"type": ["m.room.member"], "content": {"membership": "join"}}, ROOM_VERSIONS[version]) == {
        "type": ["m.room.member"],
        "content": {},
    }
    for content in (None, [], "x", 5):
        assert redacted_content(version, "m.room.create", content) == {}


@PROPERTY
@given(st.data())
def test_redaction_is_idempotent_and_does_not_modify_its_input(data: st.DataObject) -> None:
    version = data.draw(versions)
    pdu = data.draw(pdus(version))
    before_redaction = deepcopy(pdu)
    once = redact(pdu, version)
    assert pdu == before_redaction
    assert redact(once, version) == once
    assert set(once) <= set(pdu) and set(once["content"]) <= set(pdu["content"])


@pytest.mark.parametrize("version", ["11", "12"])
def test_redacted_third_party_invite_stays_an_object(version: str) -> None:
    """An event ID depends on it: of a `third_party_invite` without `signed`, the empty object survives."""
    pdu = {"type": "m.room.member", "content": {"membership": "invite", "third_party_invite": {"display_name": "x"}}}
    assert redact(pdu, ROOM_VERSIONS[version])["content"] == {"membership": "invite", "third_party_invite": {}}
    pdu = {"type": "m.room.member", "content": {"membership": "invite", "third_party_invite": "x"}}
    assert redact(pdu, ROOM_VERSIONS[version])["content"] == {"membership": "invite"}
