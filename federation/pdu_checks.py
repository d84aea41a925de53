"""The checks on a PDU from another server. Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu

Theory of operation. A PDU goes through six checks in this order; each has its own consequence if it fails:

1. `event.parse_event`: is it a valid event of its room version? Otherwise it is dropped.
2. `check_signatures`, with the keys that `signing_keys_of` lists: is it properly signed? Otherwise it is dropped.
3. `check_hash`: is its content hash right? Otherwise its redacted copy is processed instead.
4. `auth_rules.check_auth_events`, and `auth_rules.check` with its auth events as the state: otherwise it is rejected.
5. `auth_rules.check` with the state before the event (see `state_resolution.resolve`): otherwise it is rejected.
6. `auth_rules.check` with the current state of the room: otherwise it is soft failed.

A rejected event may be cited by others, but it does not change the state and is never shown to clients. A soft failed
event changes the state as usual, but it is not shown to clients and none of our events cites it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from homeserver.federation import canonical_json
from homeserver.federation.auth_events import StateKey
from homeserver.federation.auth_state import Rejection, domain_of
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.hashing import content_hash, signed_part
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, parse_server_name
from homeserver.federation.policy import POLICY_KEY_ID
from homeserver.federation.power_levels import is_user_id
from homeserver.federation.redaction import redact
from homeserver.federation.server_keys import VerifyKey
from homeserver.federation.signing import decode_base64, verify_bytes

Keys = Mapping[ServerName, Mapping[str, VerifyKey]]
"""Servers' keys by key ID, as `server_keys.merge_keys` gives them."""


def required_signatures(event: Event) -> frozenset[ServerName]:
    """Returns the servers that must have signed the event.

    Spec: server-server-api/#validating-hashes-and-signatures-on-received-events
    """
    servers = set()
    # unless the event is a 3rd party invite, only the signature(s) from the originating server (the server the sender
    # belongs to) are required. One whose hash is wrong may be a plain invite without its proof, once it is redacted.
    if not is_third_party_invite(event) or not is_third_party_invite(check_hash(event)):
        servers.add(ServerName(domain_of(event.sender)))
    # v1-v2: also require that a signature is present from the domain in the event_id
    if event.version.event_id_domain_must_sign:
        servers.add(ServerName(domain_of(event.event_id)))
    # v8-: If content has a join_authorised_via_users_server key: If the event is not validly signed by the homeserver
    # of the user ID denoted by the key, reject. (`membership_rules` rejects a value that is not a user ID.)
    if event.version.join_authorised_signature_checked and event.type == "m.room.member":
        authorised_via = event.content.get("join_authorised_via_users_server")
        if isinstance(authorised_via, str) and is_user_id(authorised_via):
            servers.add(ServerName(domain_of(authorised_via)))
    return frozenset(servers)


def is_third_party_invite(event: Event) -> bool:
    """Returns whether the event is an invite whose sender signed the m.room.third_party_invite event instead of it."""
    return event.membership == "invite" and isinstance(event.content.get("third_party_invite"), dict)


def signing_keys_of(event: Event) -> frozenset[tuple[ServerName, str]]:
    """Returns the keys, as (server, key ID), with which the required servers signed the event as it claims."""
    return frozenset(
        (server, key_id)
        for server in required_signatures(event)
        if _is_server_name(server)
        for key_id in _signatures_of(event, server)
    )


def check_signatures(event: Event, keys: Keys) -> Rejection | None:
    """Returns None if all required servers have signed the event. `keys` may contain too many keys or too few."""
    try:
        covered = canonical_json.encode(
            signed_part(event.pdu, event.version), strict=event.version.canonical_json_strict
        )
    except NotCanonical as error:
        return Rejection(str(error))
    for server in sorted(required_signatures(event)):
        found = keys.get(server, {})
        # If a signature is from an unknown or expired key, it is skipped.
        usable = {
            key_id: signature
            for key_id, signature in _signatures_of(event, server).items()
            if key_id in found and _is_valid_at(found[key_id], event)
        }
        if not usable:
            return Rejection(f"The event is not signed with any valid key of {server}.")
        # If all signatures from known unexpired keys from the originating server(s) are found to be valid, […]
        for key_id, signature in usable.items():
            if not verify_bytes(covered, signature, found[key_id].key_base64):
                return Rejection(f"The signature of {server} with {key_id} is wrong.")
    return None


def check_hash(event: Event) -> Event:
    """Returns the event, or its redacted copy if its content hash is wrong: then we only have a redacted version."""
    hashes = event.pdu.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    try:
        if decode_base64(claimed) == decode_base64(content_hash(event.pdu, event.version)):
            return event
    except ValueError:  # not base64, or not canonical JSON
        pass
    return trusted_event(redact(event.pdu, event.version), event.version, event.event_id)


def state_of(events: Iterable[Event]) -> dict[StateKey, Event]:
    """Returns the state events by key. From an event's auth events this makes the state for step 4."""
    return {event.key: event for event in events if event.is_state}


def _is_valid_at(key: VerifyKey, event: Event) -> bool:
    # v5-: servers MUST enforce the valid_until_ts property from a key request is at least as large as the
    # origin_server_ts for the event being validated. (In v1-v4 expired keys still count: rooms of these versions are
    # full of events signed with them.)
    return not event.version.signing_key_validity_enforced or key.is_valid_at(event.origin_server_ts)


def _signatures_of(event: Event, server: ServerName) -> dict[str, str]:
    signatures = event.pdu.get("signatures")
    by_key = signatures.get(server) if isinstance(signatures, dict) else None
    if not isinstance(by_key, dict):
        return {}
    # the policy server key is not expected to be published and therefore should be skipped at this stage.
    if POLICY_KEY_ID not in by_key:
        return by_key
    return {key_id: signature for key_id, signature in by_key.items() if key_id != POLICY_KEY_ID}


def _is_server_name(name: str) -> bool:
    try:
        parse_server_name(name)
    except InvalidIdentifier:
        return False
    return True
