"""Third-party invites: which keys prove that a user is the one who was invited by email address or phone number.

An m.room.third_party_invite event has the public keys of an identity server. That server signs the event's token
together with the user ID of the owner of the address (`content.third_party_invite.signed` of an m.room.member).
Spec: client-server-api/#third-party-invites, server-server-api/#verifying-the-invite
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

import msgspec

from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.signing import signed_bytes, verify_bytes

INVITE_VERIFICATIONS_MAX = 256
"""Pairs of a signature and a key that a third-party invite is checked against. A real one has a few; two events full of
them would make some hundred thousand, each 50 µs of CPU."""


class InviteKey(msgspec.Struct, frozen=True):
    """A public key of an m.room.third_party_invite, and the URL that says whether it is still valid, if it has one."""

    public_key: str
    validity_url: str | None


def find_proving_keys(signed: Mapping[str, Any], invite: Mapping[str, Any]) -> Iterator[InviteKey]:
    """Yields the keys of an invite that have signed the object, as they are found.

    signed: the `signed` object of a third_party_invite. invite: the content of the m.room.third_party_invite event.
    """
    try:
        message = signed_bytes(signed)
    except NotCanonical:
        return
    pairs = product(_list_keys(invite), _list_signatures(signed))
    for key, signature in islice(pairs, INVITE_VERIFICATIONS_MAX):
        if verify_bytes(message, signature, key.public_key):
            yield key


def _list_keys(invite: Mapping[str, Any]) -> Iterator[InviteKey]:
    # The public keys are in content of m.room.third_party_invite as: a single public key in the public_key property,
    if isinstance(invite.get("public_key"), str):
        yield InviteKey(invite["public_key"], _read_url(invite))
    # a list of public keys in the public_keys property.
    public_keys = invite.get("public_keys")
    for entry in public_keys if isinstance(public_keys, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("public_key"), str):
            yield InviteKey(entry["public_key"], _read_url(entry))


def _read_url(entry: Mapping[str, Any]) -> str | None:
    # If this URL is absent, the key must be considered valid indefinitely. Nothing at all is a valid URL of no string.
    if "key_validity_url" not in entry:
        return None
    return entry["key_validity_url"] if isinstance(entry["key_validity_url"], str) else ""


def _list_signatures(signed: Mapping[str, Any]) -> list[str]:
    # Sorted, so that every server checks the same signatures if there are too many.
    signatures = signed.get("signatures")
    by_server = sorted(signatures.items()) if isinstance(signatures, dict) else ()
    return [
        signature
        for _, by_key in by_server
        if isinstance(by_key, dict)
        for key_id, signature in sorted(by_key.items())
        if key_id.startswith("ed25519:") and isinstance(signature, str)
    ]
