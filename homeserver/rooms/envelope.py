"""The stored form of a PDU in the `events` table. `pack` and `unpack` are inverse: the PDU is restored as signed.

Fields that have columns are left out. Hashes and signatures are stored as bytes, references as positions. The envelope
of a message takes about 130 bytes, nearly all of it hash and signature.
"""

from __future__ import annotations

import re
from base64 import b64encode
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping
from typing import Any

import msgspec

from homeserver.database import DatabaseDamaged
from homeserver.federation import canonical_json
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, server_name_of

_TO_URLSAFE = bytes.maketrans(b"+/", b"-_")
_FROM_URLSAFE = str.maketrans("-_", "+/")
# Two bits of the last character are unused. An ID in which they are set would be restored wrongly, so it is excluded.
_HASH_ID = re.compile(r"\$[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]", re.ASCII)
_COLUMNS = frozenset({"type", "sender", "content", "origin_server_ts", "room_id", "state_key", "event_id"})
_PACKED = frozenset({"depth", "prev_events", "auth_events", "hashes", "signatures", "unsigned"})
_ELSEWHERE = _COLUMNS | _PACKED
_GRAPH = frozenset({"prev_events", "auth_events", "hashes", "signatures"})
# Begins a stored envelope of which a part is sealed, see sealed_rows.py. No MessagePack array begins with it.
_SPLIT = b"\xfe"
_SPLIT_START = 5


class Envelope(msgspec.Struct, array_like=True):
    """prev_events, auth_events: positions of stored events, or event keys of unknown ones; None if `rest` contains them
    unchanged. signature: (key ID, signature) of the sender's server, if that is the only signature. irregular: the
    fields with integers beyond 64 bits, as JSON; only rooms of versions below 6 accept them."""

    depth: int
    prev_events: list[int | bytes] | None
    auth_events: list[int | bytes] | None
    sha256: bytes | None
    signature: tuple[str, bytes] | None
    rest: dict[str, Any]
    irregular: bytes | None = None


encode_envelope = msgspec.msgpack.Encoder().encode
"""Returns the stored form of an Envelope; `unpack` is its inverse."""
_decode = msgspec.msgpack.Decoder(Envelope).decode


def event_key(event_id: str) -> bytes:
    """Returns the stored form of an event ID: the 32 bytes of a URL-safe reference hash, or the text of other IDs."""
    if _HASH_ID.fullmatch(event_id) is not None:
        return a2b_base64(event_id[1:].translate(_FROM_URLSAFE) + "=")
    text = event_id.encode()
    return text + b"\0" if len(text) == 32 else text


def event_id_of_key(key: bytes) -> EventID:
    """Returns the event ID for a stored key. Raises DatabaseDamaged if the key is not one."""
    if len(key) == 32:
        return EventID("$" + b2a_base64(key, newline=False)[:43].translate(_TO_URLSAFE).decode())
    try:
        return EventID(key.rstrip(b"\0").decode())
    except UnicodeDecodeError as error:
        raise DatabaseDamaged(f"The event id {key!r:.100} is damaged: it is not text.") from error


def pack(event: Event, positions: Mapping[EventID, int]) -> bytes:
    """Returns the envelope of `event`. `positions`: of its prev_events and auth_events as far as they are stored."""
    pdu = event.pdu
    rest = {name: pdu[name] for name in pdu.keys() - _ELSEWHERE}
    prev_events = auth_events = None
    if not event.version.references_with_hashes:  # in room versions 1 and 2 each reference includes a hash
        prev_events = [positions.get(event_id) or event_key(event_id) for event_id in event.prev_events]
        auth_events = [positions.get(event_id) or event_key(event_id) for event_id in event.auth_events]
    sha256 = _pack_sha256(pdu["hashes"])
    signature = _pack_signature(pdu.get("signatures"), event.sender)
    for name, packed in (
        ("prev_events", prev_events),
        ("auth_events", auth_events),
        ("hashes", sha256),
        ("signatures", signature),
    ):
        if packed is None and name in pdu:
            rest[name] = pdu[name]
    try:
        return encode_envelope(Envelope(event.depth, prev_events, auth_events, sha256, signature, rest))
    except OverflowError:
        irregular = {name: rest.pop(name) for name, value in tuple(rest.items()) if _is_irregular(value)}
        packed = canonical_json.encode(irregular, strict=False)
        return encode_envelope(Envelope(event.depth, prev_events, auth_events, sha256, signature, rest, packed))


def _is_irregular(value: Any) -> bool:
    try:
        msgspec.msgpack.encode(value)
    except OverflowError:
        return True
    return False


def unpack(blob: bytes) -> Envelope:
    """Returns the decoded envelope; of one that was split the part that is not sealed. Raises DatabaseDamaged."""
    try:
        return _decode(bare_part(blob))
    except msgspec.DecodeError as error:
        raise DatabaseDamaged(f"The envelope of an event is damaged: {error}.") from error


def split(blob: bytes) -> bytes | None:
    """Returns the envelope without the fields that only the event's readers need: what has no column, and is not part
    of the graph. None if it has no such fields.
    """
    whole = _decode(blob)
    kept = {name: value for name, value in whole.rest.items() if name in _GRAPH}
    if len(kept) == len(whole.rest) and whole.irregular is None:
        return None
    return encode_envelope(msgspec.structs.replace(whole, rest=kept, irregular=None))


def join(bare: bytes, sealed: bytes) -> bytes:
    """Returns the stored form of an envelope that was split. sealed: the whole envelope, sealed."""
    return _SPLIT + len(bare).to_bytes(4, "big") + bare + sealed


def sealed_part(blob: bytes) -> bytes | None:
    """Returns the sealed part of a stored envelope, None if it was not split."""
    if blob[:1] != _SPLIT:
        return None
    return blob[_SPLIT_START + int.from_bytes(blob[1:_SPLIT_START], "big") :]


def bare_part(blob: bytes) -> bytes:
    """Returns the part of a stored envelope that is not sealed."""
    if blob[:1] != _SPLIT:
        return blob
    return blob[_SPLIT_START : _SPLIT_START + int.from_bytes(blob[1:_SPLIT_START], "big")]


def references(envelope: Envelope) -> list[int]:
    """Returns the positions in the envelope, for looking up their event IDs."""
    both = [*(envelope.prev_events or ()), *(envelope.auth_events or ())]
    return [reference for reference in both if isinstance(reference, int)]


def restore(envelope: Envelope, columns: dict[str, Any], event_ids: Mapping[int, EventID]) -> dict[str, Any]:
    """Returns the PDU. `columns`: the fields from the row's columns. `event_ids`: those of all `references`."""
    pdu = {**columns, "depth": envelope.depth, **envelope.rest}
    if envelope.irregular is not None:
        pdu.update(canonical_json.decode(envelope.irregular))
    if envelope.prev_events is not None:
        pdu["prev_events"] = _unpack_references(envelope.prev_events, event_ids)
    if envelope.auth_events is not None:
        pdu["auth_events"] = _unpack_references(envelope.auth_events, event_ids)
    if envelope.sha256 is not None:
        pdu["hashes"] = {"sha256": unpadded_base64(envelope.sha256)}
    if envelope.signature is not None:
        key_id, signature = envelope.signature
        pdu["signatures"] = {server_name_of(columns["sender"]): {key_id: unpadded_base64(signature)}}
    return pdu


def _unpack_references(packed: list[int | bytes], event_ids: Mapping[int, EventID]) -> list[EventID]:
    return [event_ids[reference] if isinstance(reference, int) else event_id_of_key(reference) for reference in packed]


def _pack_sha256(hashes: Mapping[str, str]) -> bytes | None:
    return exact_bytes(hashes["sha256"], 32) if hashes.keys() == {"sha256"} else None


def _pack_signature(signatures: Any, sender: str) -> tuple[str, bytes] | None:
    if not isinstance(signatures, dict) or signatures.keys() != {server_name_of(sender)}:
        return None
    (keys,) = signatures.values()
    if not isinstance(keys, dict) or len(keys) != 1:
        return None
    ((key_id, text),) = keys.items()
    signature = exact_bytes(text, 64)
    return None if signature is None else (key_id, signature)


def exact_bytes(text: Any, length: int) -> bytes | None:
    """Returns the bytes of `text`, or None if encoding them again would give a different text."""
    if not isinstance(text, str) or not text.isascii():
        return None
    try:
        raw = a2b_base64(text + "=" * (-len(text) % 4))
    except (Base64Error, ValueError):
        return None
    return raw if len(raw) == length and unpadded_base64(raw) == text else None


def unpadded_base64(raw: bytes) -> str:
    """Returns the text that stands for these bytes in PDUs."""
    return b64encode(raw).decode().rstrip("=")
