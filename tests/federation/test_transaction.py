"""Transactions. Spec: server-server-api/#transactions"""

from __future__ import annotations

import pytest

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.edus import parse_edu
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import (
    PART_BYTES_MAX,
    InvalidTransaction,
    decode_part,
    decode_transaction,
    encode_transaction,
    find_room,
    parse_transaction,
    sort_parts,
)

ORIGIN = ServerName("example.org")
TYPING = {"room_id": "!r:b", "user_id": "@a:b", "typing": True}
BODY = {"origin": "example.org", "origin_server_ts": 1532991320875, "pdus": [{"type": "m.room.message"}]}


def test_built_transactions_round_trip() -> None:
    edu = canonical_json.encode({"edu_type": "m.typing", "content": TYPING})
    body = encode_transaction(ORIGIN, 5, [b'{"type":"x"}'], [edu])
    assert body == canonical_json.encode(canonical_json.decode(body))
    transaction = parse_transaction(canonical_json.decode(body))
    assert transaction.origin == "example.org"
    assert transaction.origin_server_ts == 5
    assert transaction.pdus == [{"type": "x"}]
    assert [parse_edu(edu) for edu in transaction.edus] == [("m.typing", TYPING)]


def test_edus_may_be_omitted() -> None:
    assert encode_transaction(ORIGIN, 5, []) == b'{"origin":"example.org","origin_server_ts":5,"pdus":[]}'
    assert parse_transaction(BODY).edus == []


def test_unknown_fields_are_ignored() -> None:
    assert parse_transaction(BODY | {"previous_ids": []}).origin == "example.org"


def test_the_maximum_number_of_pdus_and_edus_is_accepted() -> None:
    transaction = parse_transaction(BODY | {"pdus": [{}] * 50, "edus": [{}] * 100})
    assert (len(transaction.pdus), len(transaction.edus)) == (50, 100)


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {key: value for key, value in BODY.items() if key != "origin"},
        {key: value for key, value in BODY.items() if key != "pdus"},
        BODY | {"origin": "not a name"},
        BODY | {"origin_server_ts": "now"},
        BODY | {"origin_server_ts": -1},
        BODY | {"pdus": {}},
        BODY | {"pdus": [{}] * 51},
        BODY | {"edus": {}},
        BODY | {"edus": [{}] * 101},
    ],
)
def test_malformed_transactions_are_errors(body: object) -> None:
    with pytest.raises(InvalidTransaction):
        parse_transaction(body)


def test_malformed_pdus_do_not_invalidate_the_transaction() -> None:
    assert parse_transaction(BODY | {"pdus": ["event", {}, None]}).pdus == ["event", {}, None]


def test_an_oversized_transaction_cannot_be_built() -> None:
    with pytest.raises(InvalidTransaction):
        encode_transaction(ORIGIN, 5, [b"{}"] * 51)
    with pytest.raises(InvalidTransaction):
        encode_transaction(ORIGIN, 5, [], [b"{}"] * 101)


# Large ones are taken apart, and their parts decoded one at a time


def large(*pdus: bytes, more: bytes = b"") -> bytes:
    """The text of a transaction with these PDUs and one that makes it large."""
    filler = b'{"filler":"%b"}' % (b"x" * 200_000)
    return b'{"origin":"example.org","origin_server_ts":5,"pdus":[%b]%b}' % (b",".join([*pdus, filler]), more)


@pytest.mark.parametrize(
    "pdu",
    [b"{}", b'{"room_id":"!a:b","a":[1.5,null,"[{,"]}', b"5", b'"text"', b"[" * 600 + b"]" * 600, b'{"a":1e9}'],
)
def test_large_transactions_are_parsed_like_small_ones(pdu: bytes) -> None:
    taken_apart = parse_transaction(decode_transaction(large(pdu, more=b',"edus":[ %b ]' % pdu)))
    as_a_whole = canonical_json.decode_parts(pdu)
    assert (taken_apart.origin, taken_apart.origin_server_ts) == (ORIGIN, 5)
    assert taken_apart.pdus[0] == taken_apart.edus[0] == pdu
    assert decode_part(taken_apart.pdus[0]) == as_a_whole
    assert find_room(pdu) == (find_room(as_a_whole) or "" if isinstance(as_a_whole, dict) else None)


def test_malformed_and_oversized_parts_have_no_value() -> None:
    transaction = parse_transaction(decode_transaction(large(b"nonsense", b'"%b"' % (b"x" * PART_BYTES_MAX), b"7")))
    assert [decode_part(pdu) for pdu in transaction.pdus[:3]] == [None, None, 7]
    assert [find_room(pdu) for pdu in transaction.pdus[:3]] == [None, None, None]


@pytest.mark.parametrize(
    "text", [large()[:-1], large() + b"}", large(more=b',"pdus":[]'), large(more=b',"origin":"b"'), large(more=b",")]
)
def test_a_large_transaction_that_is_not_json_is_an_error(text: bytes) -> None:
    with pytest.raises(NotCanonical):
        decode_transaction(text)


@pytest.mark.parametrize(
    "text",
    [large(*[b"0"] * 50), large(more=b',"edus":[%b]' % b",".join([b"0"] * 101)), large(more=b',"edus":5')],
)
def test_a_malformed_large_transaction_is_an_error(text: bytes) -> None:
    with pytest.raises(InvalidTransaction):
        parse_transaction(decode_transaction(text))


def test_small_transactions_are_decoded_as_a_whole() -> None:
    assert decode_transaction(b'{"origin":"example.org","pdus":[{"type":"x"}]}')["pdus"] == [{"type": "x"}]


def test_the_parts_of_a_transaction_are_sorted_without_decoding_them() -> None:
    canonical = encode_transaction(ORIGIN, 5, [b'{"type":"x"}'], [b"{}"])
    assert sort_parts(canonical) == canonical
    assert sort_parts(b'{"pdus": [{"b": 1,"a":2}] ,"edus":[]}') == b'{"edus":[],"pdus":[{"b": 1,"a":2}]}'
    deep = b"[" * (1 << 20)
    for other in (b"", b"[]", b"{", b'{"x":1}', deep, b'{"pdus":' + deep, b'{"pdus":[}'):
        assert sort_parts(other) is None
