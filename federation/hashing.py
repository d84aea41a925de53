"""Content hash, reference hash and event ID. Spec: server-server-api/#signing-events"""

from __future__ import annotations

from base64 import b64encode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from homeserver.federation import canonical_json
from homeserver.federation.identifiers import EventID
from homeserver.federation.redaction import redact
from homeserver.federation.room_versions import RoomVersion

_NOT_HASHED = ("unsigned", "signatures", "hashes")


def content_hash(pdu: Mapping[str, Any], version: RoomVersion, *, is_checked: bool = False) -> str:
    """Returns the hash of everything but `unsigned`, `signatures` and `hashes`, as unpadded base64 of SHA-256.

    is_checked: the PDU was hashed before, so it has canonical JSON. Otherwise it may raise NotCanonical.
    """
    hashed = {key: value for key, value in pdu.items() if key not in _NOT_HASHED}
    return b64encode(sha256(_encode(hashed, version, is_checked)).digest())[:43].decode()


def reference_hash(pdu: Mapping[str, Any], version: RoomVersion, *, is_checked: bool = False) -> bytes:
    """Returns the SHA-256 of the redacted event without its signatures: 32 bytes. is_checked: see `content_hash`."""
    return sha256(_encode(signed_part(pdu, version), version, is_checked)).digest()


def _encode(value: dict[str, Any], version: RoomVersion, is_checked: bool) -> bytes:
    if is_checked and version.canonical_json_strict:  # in older versions a number may be irregular
        return canonical_json.encode_regular(value)
    return canonical_json.encode(value, strict=version.canonical_json_strict)


def signed_part(pdu: Mapping[str, Any], version: RoomVersion) -> dict[str, Any]:
    """Returns the part that signatures and reference hash cover: the redacted event without signatures and unsigned."""
    redacted = redact(pdu, version)
    redacted.pop("signatures", None)
    redacted.pop("unsigned", None)
    return redacted


def event_id_of(pdu: Mapping[str, Any], version: RoomVersion) -> EventID:
    """Returns the event ID: from the reference hash, or from the PDU in room versions 1 and 2.

    May raise NotCanonical.
    """
    if not version.event_id_is_reference_hash:
        return EventID(pdu["event_id"])
    return event_id_from_hash(reference_hash(pdu, version), version)


def event_id_from_hash(digest: bytes, version: RoomVersion) -> EventID:
    """Returns the event ID for a reference hash, in the base64 alphabet of the version."""
    encode = urlsafe_b64encode if version.event_id_urlsafe else b64encode
    return EventID("$" + encode(digest)[:43].decode())
