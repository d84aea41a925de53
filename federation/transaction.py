"""Transactions: how PDUs and EDUs travel. Spec: server-server-api/#transactions

A malformed transaction is an error, because otherwise its sender would consider it delivered. A malformed PDU or EDU in
a good transaction is dropped alone: PDUs are parsed one by one by `federation.event`, which knows their room's version.

Decoding a large transaction as a whole takes up to thirty times its size, and blocks everything else meanwhile. So
`decode_transaction` only splits it, and `decode_part` decodes each part when its turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.edus import NaturalInt
from homeserver.federation.identifiers import ServerName, parse_server_name
from homeserver.federation.json_stream import Splitter

PDUS_MAX = 50
EDUS_MAX = 100
PART_BYTES_MAX = 256 * 1024
"""The limit for one PDU or EDU in a large transaction: an event of 64 KiB with escapes and `unsigned` fits."""
_WHOLE_BYTES_MAX = 128 * 1024
_SLICE_BYTES = 64 * 1024


class InvalidTransaction(ValueError):
    """The body is not a transaction; the message says why."""


class Transaction(Struct, frozen=True, kw_only=True):
    """The body of a transaction. `pdus` and `edus` are as received; pass those that are bytes to `decode_part`."""

    origin: ServerName
    origin_server_ts: NaturalInt
    pdus: Annotated[list[Any], Meta(max_length=PDUS_MAX)]
    edus: Annotated[list[Any], Meta(max_length=EDUS_MAX)] = []

    def __post_init__(self) -> None:
        parse_server_name(self.origin)


class _Parts(Struct, forbid_unknown_fields=True):
    """The undecoded text of each part, in the order of canonical JSON."""

    edus: msgspec.Raw = msgspec.Raw()
    origin: msgspec.Raw = msgspec.Raw()
    origin_server_ts: msgspec.Raw = msgspec.Raw()
    pdus: msgspec.Raw = msgspec.Raw()


def sort_parts(text: bytes) -> bytes | None:
    """Returns a transaction's text with its parts in the order of canonical JSON, which some servers do not keep.

    Returns None if `text` is not a transaction. This is cheap for large transactions too, because the parts themselves
    are not decoded.
    """
    try:
        parts = msgspec.json.decode(text, type=_Parts)
    except (msgspec.DecodeError, RecursionError):
        return None
    named = ((name.encode(), bytes(getattr(parts, name))) for name in _Parts.__struct_fields__)
    return b"{" + b",".join(b'"%b":%b' % (name, part) for name, part in named if part) + b"}"


def parse_transaction(body: object) -> Transaction:
    """Returns the transaction in a decoded request body. Raises InvalidTransaction."""
    try:
        return msgspec.convert(body, Transaction)
    except msgspec.ValidationError as error:
        raise InvalidTransaction(str(error)) from None


def decode_transaction(text: bytes) -> Any:
    """Returns the body of a transaction. PDUs and EDUs of a large one stay undecoded bytes. Raises NotCanonical."""
    if len(text) <= _WHOLE_BYTES_MAX:
        return canonical_json.decode_parts(text)
    most = {"pdus": PDUS_MAX, "edus": EDUS_MAX}
    parts: dict[str, list[bytes | None]] = {name: [] for name in most}
    splitter = Splitter(most, {"origin", "origin_server_ts", *most}, element_bytes_max=PART_BYTES_MAX)
    for at in range(0, len(text), _SLICE_BYTES):
        for name, part in splitter.feed(text[at : at + _SLICE_BYTES]):
            parts[name].append(part)
            if len(parts[name]) > most[name]:
                return {**parts, **splitter.members()}  # this will be refused, so the rest does not matter
    return {**parts, **splitter.close()}


def decode_part(part: object) -> object:
    """Returns the value of a PDU or EDU of a transaction, None if it cannot be decoded."""
    if not isinstance(part, bytes):
        return part
    try:
        return canonical_json.decode_parts(part)
    except NotCanonical:
        return None


class _Pdu(Struct):
    room_id: str = ""


def find_room(pdu: object) -> object:
    """Returns the `room_id` of a PDU of a transaction without decoding the rest; None if it has none."""
    if isinstance(pdu, dict):
        return pdu.get("room_id")
    try:
        return msgspec.json.decode(pdu, type=_Pdu).room_id if isinstance(pdu, bytes) else None
    except (ValueError, RecursionError):  # msgspec.DecodeError is a ValueError
        return None


def encode_transaction(
    origin: ServerName, origin_server_ts: int, pdus: Sequence[bytes], edus: Sequence[bytes] = ()
) -> bytes:
    """Returns the canonical JSON of the body to send, built from the canonical JSON of its parts.

    Raises InvalidTransaction if there are more PDUs or EDUs than a transaction may have.
    """
    if len(pdus) > PDUS_MAX or len(edus) > EDUS_MAX:
        raise InvalidTransaction(f"A transaction holds at most {PDUS_MAX} PDUs and {EDUS_MAX} EDUs.")
    head = canonical_json.encode({"origin": origin, "origin_server_ts": origin_server_ts})
    listed_edus = b'"edus":[' + b",".join(edus) + b"]," if edus else b""
    return b"{" + listed_edus + head[1:-1] + b',"pdus":[' + b",".join(pdus) + b"]}"
