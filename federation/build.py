"""Builds events: from a draft to a hashed, signed event. Spec: server-server-api/#signing-events"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import (
    PDU_BYTES_MAX,
    Event,
    InvalidEvent,
    check_fields,
    check_references,
    trusted_event,
)
from homeserver.federation.hashing import content_hash, event_id_from_hash, reference_hash, signed_part
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, ServerName, UserID, server_name_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.signing import SigningKey, encode_base64, with_signature

SIGNATURE_BYTES_MAX = 512
"""The bytes that another server's signature adds to an event: its name, its key ID and 86 characters."""

Reference = tuple[EventID, str | None]
"""An event ID and, in room versions 1 and 2, that event's reference hash in unpadded base64."""


class Draft(msgspec.Struct, frozen=True):
    """An event before it gets its place in the room. The event takes over the content: do not change it afterwards."""

    room_id: RoomID | None
    """None only for an m.room.create event of a room version whose room IDs are derived from that event."""
    sender: UserID
    type: str
    content: dict[str, Any]
    state_key: str | None = None
    redacts: EventID | None = None
    """The event that an m.room.redaction redacts. It is stored where the room version keeps it."""
    origin_server_ts: int = 0
    """Milliseconds."""


def reference_to(event: Event) -> Reference:
    """Returns the entry for `prev_events` of a later event."""
    if not event.version.references_with_hashes:
        return (event.event_id, None)
    return (event.event_id, encode_base64(reference_hash(event.pdu, event.version)))


def build_event(
    draft: Draft,
    version: RoomVersion,
    *,
    prev_events: Sequence[Reference],
    auth_events: Sequence[Event],
    depth: int,
    server_name: ServerName,
    key: SigningKey,
    event_id_opaque: str = "",
) -> Event:
    """Returns the hashed and signed event. Raises InvalidEvent, before anything is signed.

    A `depth` above the version's limit is lowered to the limit. In room versions 1 and 2 `event_id_opaque` is the
    localpart of the event ID and must be unique on this server; other versions ignore it.
    """
    pdu = build_proto_event(draft, version, prev_events=prev_events, auth_events=auth_events, depth=depth)
    if not version.event_id_is_reference_hash:
        if not event_id_opaque or ":" in event_id_opaque:
            raise InvalidEvent("An event of this room version needs an opaque ID without a colon.")
        pdu["event_id"] = f"${event_id_opaque}:{server_name}"
    try:
        check_fields(pdu, version)
        check_references(pdu, version)
        # Only the content can contain anything but strings and small integers, and the signature covers the same
        # bytes as the reference hash. So one walk and three encodings are enough.
        encode = canonical_json.encode_regular
        if not canonical_json.check({"content": pdu["content"]}, strict=version.canonical_json_strict):
            encode = _encode_lenient
        pdu["hashes"] = {"sha256": b64encode(sha256(encode(pdu)).digest())[:43].decode()}
        covered = encode(signed_part(pdu, version))
        _check_size(len(encode(pdu)), server_name, key)
    except (NotCanonical, InvalidIdentifier) as error:
        raise InvalidEvent(str(error)) from None
    pdu["signatures"] = {server_name: {key.key_id: encode_base64(key.sign(covered))}}
    if not version.event_id_is_reference_hash:
        return trusted_event(pdu, version, pdu["event_id"])
    return trusted_event(pdu, version, event_id_from_hash(sha256(covered).digest(), version))


def build_proto_event(
    draft: Draft, version: RoomVersion, *, prev_events: Sequence[Reference], auth_events: Sequence[Event], depth: int
) -> dict[str, Any]:
    """Returns the event without hashes, signatures and event ID: the `event` of make_join, make_leave and make_knock.

    Raises InvalidEvent if a create event has a room ID although its room version derives the room ID from it. Checks
    nothing else.
    """
    content = draft.content
    pdu: dict[str, Any] = {
        "type": draft.type,
        "sender": draft.sender,
        "depth": min(depth, version.depth_max),
        "origin_server_ts": draft.origin_server_ts,
        "prev_events": _references(prev_events, version),
        "auth_events": _references([reference_to(event) for event in auth_events], version),
    }
    if draft.room_id is not None:
        if version.room_id_is_create_event_id and draft.type == "m.room.create":
            raise InvalidEvent("The create event of this room version must have no room_id.")
        pdu["room_id"] = draft.room_id
    if draft.state_key is not None:
        pdu["state_key"] = draft.state_key
    if draft.redacts is not None:
        if version.redacts_in_content:
            content = {**content, "redacts": draft.redacts}
        else:
            pdu["redacts"] = draft.redacts
    pdu["content"] = content
    return pdu


def check_draft(draft: Draft, version: RoomVersion) -> bytes:
    """Returns the content as JSON. Raises InvalidEvent if the draft can never become an event of a room."""
    pdu = build_proto_event(draft, version, prev_events=(), auth_events=(), depth=1)
    if not version.event_id_is_reference_hash:
        pdu["event_id"] = f"$event:{server_name_of(draft.sender)}"
    try:
        check_fields(pdu, version)
        content = canonical_json.encode(draft.content, strict=version.canonical_json_strict)
        size = len(canonical_json.encode(pdu, strict=version.canonical_json_strict))
    except (NotCanonical, InvalidIdentifier) as error:
        raise InvalidEvent(str(error)) from None
    if size > PDU_BYTES_MAX - SIGNATURE_BYTES_MAX:
        raise InvalidEvent(f"The event is larger than {PDU_BYTES_MAX} bytes.")
    return content


def sign_event(pdu: dict[str, Any], version: RoomVersion, server_name: ServerName, key: SigningKey) -> dict[str, Any]:
    """Returns a new PDU with its content hash and our signature, which replace existing ones. Raises InvalidEvent.

    It only checks that the PDU can be encoded: parse the result.
    """
    hashed = {name: value for name, value in pdu.items() if name not in ("signatures", "hashes")}
    try:
        hashed["hashes"] = {"sha256": content_hash(hashed, version)}
        return _add_signature(hashed, version, server_name, key)
    except NotCanonical as error:
        raise InvalidEvent(str(error)) from None


def countersign(event: Event, server_name: ServerName, key: SigningKey) -> Event:
    """Returns the same event with our signature added, e.g. on an invite. Its hashes stay unchanged."""
    return trusted_event(_add_signature(event.pdu, event.version, server_name, key), event.version, event.event_id)


def _add_signature(pdu: dict[str, Any], version: RoomVersion, server_name: str, key: SigningKey) -> dict[str, Any]:
    covered = canonical_json.encode(signed_part(pdu, version), strict=version.canonical_json_strict)
    return with_signature(pdu, server_name, key.key_id, encode_base64(key.sign(covered)))


def _references(references: Sequence[Reference], version: RoomVersion) -> list[Any]:
    if version.references_with_hashes:
        return [[event_id, {"sha256": digest}] for event_id, digest in references]
    return [event_id for event_id, _ in references]


def _encode_lenient(value: object) -> bytes:
    return canonical_json.encode(value, strict=False)


def _check_size(bare_bytes: int, server_name: str, key: SigningKey) -> None:
    """`bare_bytes` is the size without signatures; what the signature will add is known before it is made."""
    signatures = f',"signatures":{{"{server_name}":{{"{key.key_id}":"{"-" * 86}"}}}}'
    if bare_bytes + len(signatures) > PDU_BYTES_MAX:
        raise InvalidEvent(f"The event is larger than {PDU_BYTES_MAX} bytes.")
