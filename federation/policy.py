"""Policy servers: a room's m.room.policy names a server whose signature recommends events for the room.

The signature stands beside those of servers, but its key is in the room's state and not among the keys of any server.
It does not matter to the authorisation rules. Spec: server-server-api/#policy-servers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver.federation.event import Event, InvalidEvent, parse_event
from homeserver.federation.hashing import signed_part
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name
from homeserver.federation.signing import verify_json, with_signature

POLICY_TYPE = "m.room.policy"
POLICY_KEY_ID = "ed25519:policy_server"


class PolicyServer(msgspec.Struct, frozen=True):
    """The policy server that a room names. public_key: base64, perhaps of nothing valid."""

    name: ServerName
    public_key: str


def parse_policy(content: Mapping[str, Any]) -> PolicyServer | None:
    """Returns the policy server that the content of m.room.policy names, None if it is not valid."""
    public_keys = content.get("public_keys")
    public_key = public_keys.get("ed25519") if isinstance(public_keys, dict) else None
    if not isinstance(public_key, str):
        return None
    try:
        return PolicyServer(parse_server_name(content.get("via")), public_key)
    except InvalidIdentifier:
        return None


def needs_recommendation(event: Event) -> bool:
    """Returns whether the policy server is asked about the event: about all but the m.room.policy of the room."""
    return event.key != (POLICY_TYPE, "") if event.is_state else True


def is_recommended(event: Event, policy: PolicyServer) -> bool:
    """Returns whether the event has a valid signature of the policy server."""
    signatures = event.pdu.get("signatures")
    if not isinstance(signatures, dict) or policy.name not in signatures:
        return False
    covered = {**signed_part(event.pdu, event.version), "signatures": signatures}
    return verify_json(covered, policy.name, POLICY_KEY_ID, policy.public_key)


def with_recommendation(event: Event, policy: PolicyServer, answer: object) -> Event | None:
    """Returns the event with the signature in the answer of a policy server, None if there is no valid one.

    All other signatures of the event are kept, and nothing else of the answer is used.
    """
    theirs = answer.get(policy.name) if isinstance(answer, dict) else None
    signature = theirs.get(POLICY_KEY_ID) if isinstance(theirs, dict) else None
    if not isinstance(signature, str):
        return None
    try:
        signed = parse_event(with_signature(event.pdu, policy.name, POLICY_KEY_ID, signature), event.version)
    except InvalidEvent:  # it has no room for another signature
        return None
    return signed if is_recommended(signed, policy) else None
