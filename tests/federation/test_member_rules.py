"""Member events: whose membership they may be about, and which signatures of third-party invites count."""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.auth_rules import Rejection, check
from homeserver.federation.event import trusted_event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.federation.signing import SigningKey, sign_json


def test_third_party_invite_signatures_of_other_algorithms_are_ignored() -> None:
    """The key ID says the algorithm: a signature of another algorithm does not count as an Ed25519 signature."""
    version = ROOM_VERSIONS["12"]
    create = trusted_event(pdu_of("m.room.create", {"room_version": "12"}), version, EventID("$" + "A" * 43))
    key = SigningKey("0", b"\0" * 32)
    invite = trusted_event(
        pdu_of("m.room.third_party_invite", {"public_key": key.verify_key_base64}, "token"),
        version,
        EventID("$" + "B" * 43),
    )
    signed = sign_json({"mxid": "@bob:test", "token": "token"}, "identity.test", key)
    state = {create.key: create, invite.key: invite}

    def verdict(signatures: dict[str, str]) -> Rejection | None:
        proof = {"signed": signed | {"signatures": {"identity.test": signatures}}}
        content = {"membership": "invite", "third_party_invite": proof}
        return check(
            trusted_event(pdu_of("m.room.member", content, "@bob:test"), version, EventID("$" + "C" * 43)), state
        )

    signature = signed["signatures"]["identity.test"]["ed25519:0"]
    assert verdict({"ed25519:0": signature}) is None
    assert verdict({"ed448:0": signature}) is not None
    assert verdict({"0": signature}) is not None


def pdu_of(event_type: str, content: dict[str, Any], state_key: str = "") -> dict[str, Any]:
    """A PDU that is only looked into."""
    return {
        "type": event_type,
        "room_id": "!" + "A" * 43,
        "sender": "@alice:test",
        "state_key": state_key,
        "content": content,
        "depth": 1,
        "origin_server_ts": 1,
        "prev_events": [],
        "auth_events": [],
    }


@pytest.mark.parametrize("version", ["1", "12"])
def test_the_target_of_a_membership_must_be_a_user_id(version: str) -> None:
    """The rules do not say so, but other servers reject a state_key that is not a user ID."""
    of = ROOM_VERSIONS[version]
    content = {"room_version": version, "creator": "@alice:test"}
    create = trusted_event(pdu_of("m.room.create", content), of, EventID("$" + "A" * 43))
    join = trusted_event(pdu_of("m.room.member", {"membership": "join"}, "@alice:test"), of, EventID("$" + "B" * 43))
    state = {create.key: create, join.key: join}
    for state_key, allowed in (("@bob:test", True), ("bob", False), ("", False), ("@bob:", False)):
        ban = pdu_of("m.room.member", {"membership": "ban"}, state_key)
        assert (check(trusted_event(ban, of, EventID("$" + "C" * 43)), state) is None) == allowed
