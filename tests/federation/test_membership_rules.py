"""Auth rules of m.room.member events. Spec: rooms/v12/#authorisation-rules (5), and those of earlier versions"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.auth_rules import check
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.federation.signing import SigningKey, sign_json
from homeserver.federation.third_party_invites import INVITE_VERIFICATIONS_MAX
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
every_version = pytest.mark.parametrize("version", ALL)


def room_with(version: RoomVersion, join_rule: str = "public", **users: int) -> Room:
    """BOB and CAROL have joined; further arguments give them power levels."""
    room = new_room(version)
    room.member(BOB, "join")
    room.member(CAROL, "join")
    names = {"bob": BOB, "carol": CAROL, "dave": DAVE}
    room.set_levels(**alice_is_admin(version, **{names[name]: level for name, level in users.items()}))
    if join_rule != "public":
        room.join_rule(join_rule)
    return room


# Any membership


@every_version
def test_a_membership_needs_a_state_key_and_a_membership(version: RoomVersion) -> None:
    room = new_room(version)
    assert not room.allows(BOB, "m.room.member", {"membership": "join"})
    assert not room.allows(BOB, "m.room.member", {}, BOB)


@every_version
@pytest.mark.parametrize("membership", ["", "JOIN", "joined", None, 1, ["join"], {"join": True}])
def test_unknown_memberships_are_refused(version: RoomVersion, membership: object) -> None:
    assert not new_room(version).allows(BOB, "m.room.member", {"membership": membership}, BOB)


def test_the_authorising_user_must_be_a_user_id() -> None:
    for version in ALL:
        room = room_with(version)
        for value in ("bob", "", None, 7, {}, [ALICE]):
            leaves = room.allows_member(BOB, "leave", join_authorised_via_users_server=value)
            assert leaves == (int(version.id) < 8)


# join


@every_version
def test_the_creator_joins_first(version: RoomVersion) -> None:
    room = new_room(version)
    create = room.state[("m.room.create", "")]
    fresh = {create.key: create}
    join = room.build(ALICE, "m.room.member", {"membership": "join"}, ALICE, prev=[create], auth=[])
    assert check(join, fresh) is None
    later = room.build(ALICE, "m.room.member", {"membership": "join"}, ALICE, auth=[])
    assert check(later, fresh) is not None
    another = room.build(BOB, "m.room.member", {"membership": "join"}, BOB, prev=[create], auth=[])
    assert check(another, fresh) is not None


def test_additional_creators_cannot_join_first() -> None:
    room = new_room(V12, additional_creators=[BOB])
    create = room.state[("m.room.create", "")]
    join = room.build(BOB, "m.room.member", {"membership": "join"}, BOB, prev=[create], auth=[])
    assert check(join, {create.key: create}) is not None


def test_before_version_11_the_creator_in_the_content_joins_first() -> None:
    for version in ALL:
        room = new_room(version)
        create = room.state[("m.room.create", "")]
        pdu = {**create.pdu, "content": {**create.content, "creator": DAVE}}
        create = trusted_event(pdu, version, create.event_id)
        join = room.build(DAVE, "m.room.member", {"membership": "join"}, DAVE, prev=[create], auth=[])
        assert (check(join, {create.key: create}) is None) == (int(version.id) <= 10)


@every_version
def test_users_can_join_only_themselves(version: RoomVersion) -> None:
    room = room_with(version)
    assert room.allows_member(DAVE, "join")
    assert not room.allows_member(ALICE, "join", DAVE)


@every_version
@pytest.mark.parametrize("rule", ["public", "invite", "knock", "restricted", "knock_restricted"])
def test_banned_users_cannot_join(version: RoomVersion, rule: str) -> None:
    room = room_with(version, rule)
    room.member(ALICE, "ban", BOB)
    assert not room.allows_member(BOB, "join", join_authorised_via_users_server=ALICE)


JOINABLE = {"public": 1, "invite": 1, "knock": 7, "restricted": 8, "knock_restricted": 10}
"""Join rules by the first version that knows them."""


@every_version
@pytest.mark.parametrize("rule", [*JOINABLE, "private", "INVITE", None, 5, ["public"], {"public": 1}])
def test_join_rules_decide_who_may_join(version: RoomVersion, rule: Any) -> None:
    room = room_with(version)
    room.member(ALICE, "invite", DAVE)
    room.send(ALICE, "m.room.join_rules", {"join_rule": rule}, "")
    known = isinstance(rule, str) and rule in JOINABLE and int(version.id) >= JOINABLE[rule]
    # who is invited; who changes their profile; who comes from outside
    assert room.allows_member(DAVE, "join") == known
    assert room.allows_member(BOB, "join", displayname="Bobby") == known
    assert room.allows_member("@erin:epsilon.test", "join") == (rule == "public")


@every_version
def test_the_default_join_rule_is_invite(version: RoomVersion) -> None:
    room = new_room(version, join_rule=None)
    assert not room.allows_member(BOB, "join")
    room.member(ALICE, "invite", BOB)
    assert room.allows_member(BOB, "join")
    room.send(ALICE, "m.room.join_rules", {}, "")
    assert room.allows_member(BOB, "join")
    assert not room.allows_member(CAROL, "join")


@pytest.mark.parametrize("version", versions(8))
@pytest.mark.parametrize("rule", ["restricted", "knock_restricted"])
def test_a_restricted_join_cites_the_authorising_member(version: RoomVersion, rule: str) -> None:
    room = room_with(version, rule, bob=10)
    room.set_levels(**alice_is_admin(version, **{BOB: 10, DAVE: 100}), invite=10)
    known = int(version.id) >= JOINABLE[rule]
    erin = "@erin:epsilon.test"
    assert room.allows_member(erin, "join", join_authorised_via_users_server=ALICE) == known
    assert room.allows_member(erin, "join", join_authorised_via_users_server=BOB) == known
    # CAROL may not invite; DAVE is not in the room
    assert not room.allows_member(erin, "join", join_authorised_via_users_server=CAROL)
    assert not room.allows_member(erin, "join", join_authorised_via_users_server=DAVE)
    assert not room.allows_member(erin, "join")


@pytest.mark.parametrize("version", versions(1, 7))
def test_restricted_is_unknown_before_version_8(version: RoomVersion) -> None:
    room = room_with(version, "restricted")
    assert not room.allows_member(DAVE, "join", join_authorised_via_users_server=ALICE)


# invite


@every_version
def test_inviting_needs_membership_and_power(version: RoomVersion) -> None:
    room = room_with(version, "invite")
    assert room.allows_member(BOB, "invite", DAVE)
    assert not room.allows_member(DAVE, "invite", "@erin:epsilon.test")
    assert not room.allows_member(BOB, "invite", CAROL)
    room.member(ALICE, "ban", CAROL)
    assert not room.allows_member(BOB, "invite", CAROL)
    room.set_levels(**alice_is_admin(version), invite=1)
    assert not room.allows_member(BOB, "invite", DAVE)
    assert room.allows_member(ALICE, "invite", DAVE)


IDENTITY = SigningKey("0", bytes(range(32)))
OTHER = SigningKey("0", bytes(range(1, 33)))


def invite_by_email(version: RoomVersion, **content: Any) -> Room:
    """BOB has invited somebody by e-mail, who turns out to be DAVE."""
    room = room_with(version, "invite", bob=50)
    content = content or {"public_key": IDENTITY.verify_key_base64}
    room.send(BOB, "m.room.third_party_invite", {"display_name": "d...", **content}, "token")
    return room


def proof(key: SigningKey = IDENTITY, **fields: Any) -> dict[str, Any]:
    """Returns the part that the identity server has signed."""
    signed = {name: value for name, value in {"mxid": DAVE, "token": "token", **fields}.items() if value is not ...}
    return sign_json(signed, "identity.test", key)


def allows_proof(room: Room, signed: object, sender: str = BOB) -> bool:
    return room.allows_member(sender, "invite", DAVE, third_party_invite={"display_name": "d...", "signed": signed})


@every_version
def test_a_third_party_invite_cites_its_token_event(version: RoomVersion) -> None:
    room = invite_by_email(version)
    assert allows_proof(room, proof())
    # even once the one who invited has left
    room.member(BOB, "leave")
    assert allows_proof(room, proof())


@every_version
def test_banned_users_cannot_be_invited_by_third_party_invites(version: RoomVersion) -> None:
    room = invite_by_email(version)
    room.member(ALICE, "ban", DAVE)
    assert not allows_proof(room, proof())


@every_version
@pytest.mark.parametrize("third_party_invite", [None, 1, "signed", [], {}, {"signed": None}, {"signed": "x"}])
def test_a_third_party_invite_must_be_signed(version: RoomVersion, third_party_invite: object) -> None:
    room = invite_by_email(version)
    assert not room.allows_member(BOB, "invite", DAVE, third_party_invite=third_party_invite)


@every_version
@pytest.mark.parametrize(
    "fields", [{"mxid": ...}, {"token": ...}, {"mxid": 1}, {"token": []}, {"mxid": CAROL}, {"token": "another"}]
)
def test_a_third_party_invite_must_match_its_target_and_token(version: RoomVersion, fields: dict[str, Any]) -> None:
    assert not allows_proof(invite_by_email(version), proof(**fields))


@every_version
def test_a_third_party_invite_must_come_from_its_sender(version: RoomVersion) -> None:
    assert not allows_proof(invite_by_email(version), proof(), sender=ALICE)


@every_version
def test_a_third_party_invite_signed_by_another_key_is_refused(version: RoomVersion) -> None:
    room = invite_by_email(version)
    assert not allows_proof(room, proof(OTHER))
    assert allows_proof(room, sign_json(proof(OTHER), "other.test", IDENTITY))


@every_version
def test_any_public_key_of_a_third_party_invite_may_sign(version: RoomVersion) -> None:
    entries = ["x", {}, {"public_key": 1}, {"public_key": IDENTITY.verify_key_base64}]
    assert allows_proof(invite_by_email(version, public_keys=entries), proof())
    assert allows_proof(invite_by_email(version, public_key=OTHER.verify_key_base64, public_keys=entries), proof())
    assert not allows_proof(invite_by_email(version, public_keys={"public_key": IDENTITY.verify_key_base64}), proof())
    assert not allows_proof(invite_by_email(version, public_key=[IDENTITY.verify_key_base64]), proof())


@every_version
@pytest.mark.parametrize("signatures", [None, [], {"a": None}, {"a": {"ed25519:0": 1}}, {"a": {"ed25519:0": "?"}}])
def test_malformed_signatures_of_a_third_party_invite_are_ignored(version: RoomVersion, signatures: object) -> None:
    assert not allows_proof(invite_by_email(version), {**proof(), "signatures": signatures})


def hostile_invite(version: RoomVersion, signed: dict[str, Any], **content: Any) -> tuple[Event, Room]:
    """The invite and its room, past all limits that parsing puts."""
    room = invite_by_email(version)
    invite = room.state[("m.room.third_party_invite", "token")]
    room.state[invite.key] = trusted_event({**invite.pdu, "content": content}, version, invite.event_id)
    event = room.build(BOB, "m.room.member", {"membership": "invite"}, DAVE)
    content = {"membership": "invite", "third_party_invite": {"signed": signed}}
    return trusted_event({**event.pdu, "content": content}, version, event.event_id), room


def test_the_number_of_signatures_tried_is_limited() -> None:
    rubbish = {f"ed25519:{number:04}": "A" * 86 for number in range(INVITE_VERIFICATIONS_MAX)}
    signatures = {"a.test": rubbish, **proof()["signatures"]}
    event, room = hostile_invite(V12, {**proof(), "signatures": signatures}, public_key=IDENTITY.verify_key_base64)
    assert check(event, room.state) is not None
    del rubbish["ed25519:0000"]
    assert check(event, room.state) is None


def test_a_signed_part_without_canonical_json_is_refused() -> None:
    event, room = hostile_invite(V12, {**proof(), "name": "\ud800"}, public_key=IDENTITY.verify_key_base64)
    assert check(event, room.state) is not None


# leave


@every_version
def test_members_can_leave(version: RoomVersion) -> None:
    room = room_with(version)
    assert room.allows_member(BOB, "leave")
    assert not room.allows_member(DAVE, "leave")
    room.member(ALICE, "invite", DAVE)
    assert room.allows_member(DAVE, "leave")
    room.member(ALICE, "ban", BOB)
    assert not room.allows_member(BOB, "leave")


def test_knocks_can_be_withdrawn() -> None:
    for version in versions(7):
        room = room_with(version, "knock")
        room.member(DAVE, "knock")
        assert room.allows_member(DAVE, "leave")


@every_version
def test_kicking_needs_the_kick_level_and_more_power(version: RoomVersion) -> None:
    room = room_with(version, bob=50, carol=50)
    assert room.allows_member(ALICE, "leave", BOB)
    # not one's equals, nor those above
    assert not room.allows_member(BOB, "leave", CAROL)
    assert not room.allows_member(BOB, "leave", ALICE)
    room.set_levels(**alice_is_admin(version, **{BOB: 50}), kick=60)
    assert not room.allows_member(BOB, "leave", CAROL)
    room.set_levels(**alice_is_admin(version, **{BOB: 60}), kick=60)
    assert room.allows_member(BOB, "leave", CAROL)
    # invites too can be withdrawn
    room.member(ALICE, "invite", DAVE)
    assert room.allows_member(BOB, "leave", DAVE)
    room.member(BOB, "leave")
    assert not room.allows_member(BOB, "leave", CAROL)


@every_version
def test_unbanning_needs_both_levels(version: RoomVersion) -> None:
    room = room_with(version, bob=50)
    room.member(ALICE, "ban", CAROL)
    assert room.allows_member(BOB, "leave", CAROL)
    room.set_levels(**alice_is_admin(version, **{BOB: 50}), ban=51)
    assert not room.allows_member(BOB, "leave", CAROL)
    room.set_levels(**alice_is_admin(version, **{BOB: 50}), ban=50, kick=51)
    assert not room.allows_member(BOB, "leave", CAROL)


# ban


@every_version
def test_banning_needs_the_ban_level_and_more_power(version: RoomVersion) -> None:
    room = room_with(version, bob=50, carol=50)
    assert room.allows_member(ALICE, "ban", BOB)
    assert room.allows_member(BOB, "ban", DAVE)
    assert not room.allows_member(BOB, "ban", CAROL)
    assert not room.allows_member(BOB, "ban", ALICE)
    assert not room.allows_member(DAVE, "ban", "@erin:epsilon.test")
    room.set_levels(**alice_is_admin(version, **{BOB: 50}), ban=51)
    assert not room.allows_member(BOB, "ban", DAVE)


def test_creators_cannot_be_banned_in_version_12() -> None:
    room = new_room(V12, additional_creators=[BOB])
    room.member(BOB, "join")
    assert not room.allows_member(ALICE, "ban", BOB)
    assert not room.allows_member(BOB, "leave", ALICE)


# knock


def test_join_rules_decide_who_may_knock() -> None:
    for rule in ("public", "invite", "knock", "restricted", "knock_restricted"):
        for version in ALL:
            room = room_with(version, rule)
            number = int(version.id)
            possible = (rule == "knock" and number >= 7) or (rule == "knock_restricted" and number >= 10)
            assert room.allows_member(DAVE, "knock") == possible
            assert not room.allows_member(ALICE, "knock", DAVE)


def test_members_invited_and_banned_users_cannot_knock() -> None:
    for version in versions(7):
        room = room_with(version, "knock")
        assert not room.allows_member(BOB, "knock")
        room.member(ALICE, "ban", BOB)
        assert not room.allows_member(BOB, "knock")
        room.member(ALICE, "invite", DAVE)
        assert not room.allows_member(DAVE, "knock")
        room.member(CAROL, "leave")
        room.member(CAROL, "knock")
        assert room.allows_member(CAROL, "knock", reason="again")
        room.member(ALICE, "invite", CAROL)
        assert room.allows_member(CAROL, "join")
