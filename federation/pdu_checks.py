"""What to do with a PDU that another server sent. Spec: server-server-api/#checks-performed-on-receipt-of-a-pdu

1. `event.parse_event`: is it a valid event of its room version? Otherwise it is dropped.
2. `check_signatures`, with the keys that `signing_keys_of` names: does it pass signature checks? Otherwise dropped.
3. `check_hash`: does it pass hash checks? Otherwise it is redacted before being processed further.
4. `auth_rules.check_auth_events`, and `auth_rules.check` with its auth events as the state: otherwise it is rejected.
5. `auth_rules.check` with the state before the event (see `state_resolution.resolve`): otherwise it is rejected.
6. `auth_rules.check` with the current state of the room: otherwise it is soft failed.

A rejected event may be cited, but the state after it is the state before, and nobody is shown it. A soft failed one is
handled as usual, except that clients are not shown it and that no event of ours cites it.
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
from homeserver.federation.power_levels import is_user_id
from homeserver.federation.redaction import redact
from homeserver.federation.server_keys import VerifyKey
from homeserver.federation.signing import decode_base64, verify_bytes

Keys = Mapping[ServerName, Mapping[str, VerifyKey]]
"""Servers' keys by key ID, as `server_keys.merge_keys` gives them."""


def required_signatures(event: Event) -> frozenset[ServerName]:
    """The servers that have to have signed the event. Spec: …/#validating-hashes-and-signatures-on-received-events"""
    servers = set()
    # unless the event is a 3rd party invite, only the signature(s) from the originating server (the server the sender
    # belongs to) are required
    if not is_third_party_invite(event):
        servers.add(ServerName(domain_of(event.sender)))
    # v1-v2: also require that a signature is present from the domain in the event_id
    if event.version.event_id_domain_must_sign:
        servers.add(ServerName(domain_of(event.event_id)))
    # v8-: If content has a join_authorised_via_users_server key: If the event is not validly signed by the homeserver
    # of the user ID denoted by the key, reject. (A value that is no user ID is rejected by `membership_rules`.)
    if event.version.join_authorised_signature_checked and event.type == "m.room.member":
        authorised_via = event.content.get("join_authorised_via_users_server")
        if isinstance(authorised_via, str) and is_user_id(authorised_via):
            servers.add(ServerName(domain_of(authorised_via)))
    return frozenset(servers)


def is_third_party_invite(event: Event) -> bool:
    """Whether the event is an invite whose sender has signed the m.room.third_party_invite instead."""
    return event.membership == "invite" and isinstance(event.content.get("third_party_invite"), dict)


def signing_keys_of(event: Event) -> frozenset[tuple[ServerName, str]]:
    """The keys, by server and key ID, with which the event says that the required servers signed it."""
    return frozenset(
        (server, key_id)
        for server in required_signatures(event)
        if _is_server_name(server)
        for key_id in _signatures_of(event, server)
    )


def check_signatures(event: Event, keys: Keys) -> Rejection | None:
    """Whether all the required servers have signed the event; None if so. `keys` may hold too many or too few."""
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
    """The event, or its redacted copy if its content hash is wrong: then we were given but a redacted version of it."""
    hashes = event.pdu.get("hashes")
    claimed = hashes.get("sha256") if isinstance(hashes, dict) else None
    try:
        if decode_base64(claimed) == decode_base64(content_hash(event.pdu, event.version)):
            return event
    except ValueError:  # not base64, or not canonical JSON
        pass
    return trusted_event(redact(event.pdu, event.version), event.version, event.event_id)


def state_of(events: Iterable[Event]) -> dict[StateKey, Event]:
    """The state events among the events by key: an event's auth events as the state that step 4 checks it against."""
    return {event.key: event for event in events if event.is_state}


def _is_valid_at(key: VerifyKey, event: Event) -> bool:
    # v5-: servers MUST enforce the valid_until_ts property from a key request is at least as large as the
    # origin_server_ts for the event being validated. (In v1-v4, keys that expired count on: their rooms are full of
    # events signed so.)
    return not event.version.signing_key_validity_enforced or key.is_valid_at(event.origin_server_ts)


def _signatures_of(event: Event, server: ServerName) -> dict[str, str]:
    signatures = event.pdu.get("signatures")
    by_key = signatures.get(server) if isinstance(signatures, dict) else None
    return by_key if isinstance(by_key, dict) else {}


def _is_server_name(name: str) -> bool:
    try:
        parse_server_name(name)
    except InvalidIdentifier:
        return False
    return True
