"""Transactions: how PDUs and EDUs travel. Spec: server-server-api/#transactions

A malformed transaction is an error, since its sender would think it delivered. A malformed PDU or EDU in a good
transaction is dropped alone: PDUs are parsed one by one by `federation.event`, which knows their room's version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from homeserver.federation import canonical_json
from homeserver.federation.edus import EduContent, InvalidEdu, NaturalInt, parse_edu
from homeserver.federation.identifiers import ServerName, parse_server_name

PDUS_MAX = 50
EDUS_MAX = 100


class InvalidTransaction(ValueError):
    """The body is not a transaction; the message says why."""


class Transaction(Struct, frozen=True, kw_only=True):
    """The body of a transaction. `pdus` and `edus` are as they came: see `parse_edus` for the latter."""

    origin: ServerName
    origin_server_ts: NaturalInt
    pdus: Annotated[list[Any], Meta(max_length=PDUS_MAX)]
    edus: Annotated[list[Any], Meta(max_length=EDUS_MAX)] = []

    def __post_init__(self) -> None:
        parse_server_name(self.origin)


class _Parts(Struct, forbid_unknown_fields=True):
    """The text of each part, in the order of canonical JSON."""

    edus: msgspec.Raw = msgspec.Raw()
    origin: msgspec.Raw = msgspec.Raw()
    origin_server_ts: msgspec.Raw = msgspec.Raw()
    pdus: msgspec.Raw = msgspec.Raw()


def sort_parts(text: bytes) -> bytes | None:
    """The text of a transaction with its parts in the order of canonical JSON, which some servers do not keep.

    It costs little, however large the transaction is, since the parts themselves are not decoded. None if `text` is
    something else.
    """
    try:
        parts = msgspec.json.decode(text, type=_Parts)
    except (msgspec.DecodeError, RecursionError):
        return None
    named = ((name.encode(), bytes(getattr(parts, name))) for name in _Parts.__struct_fields__)
    return b"{" + b",".join(b'"%b":%b' % (name, part) for name, part in named if part) + b"}"


def parse_transaction(body: object) -> Transaction:
    """The transaction in a decoded request body. Raises InvalidTransaction."""
    try:
        return msgspec.convert(body, Transaction)
    except msgspec.ValidationError as error:
        raise InvalidTransaction(str(error)) from None


def parse_edus(edus: Iterable[object]) -> list[tuple[str, EduContent]]:
    """The EDU types and contents in their order, without those that are malformed."""
    parsed = []
    for edu in edus:
        try:
            parsed.append(parse_edu(edu))
        except InvalidEdu:
            continue
    return parsed


def encode_transaction(
    origin: ServerName, origin_server_ts: int, pdus: Sequence[bytes], edus: Sequence[bytes] = ()
) -> bytes:
    """The canonical JSON of the body to send, made of the canonical JSON of its parts.

    Raises InvalidTransaction if it has more PDUs or EDUs than a transaction may have.
    """
    if len(pdus) > PDUS_MAX or len(edus) > EDUS_MAX:
        raise InvalidTransaction(f"A transaction holds at most {PDUS_MAX} PDUs and {EDUS_MAX} EDUs.")
    head = canonical_json.encode({"origin": origin, "origin_server_ts": origin_server_ts})
    listed_edus = b'"edus":[' + b",".join(edus) + b"]," if edus else b""
    return b"{" + listed_edus + head[1:-1] + b',"pdus":[' + b",".join(pdus) + b"]}"
