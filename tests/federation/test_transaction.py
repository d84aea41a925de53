"""Transactions. Spec: server-server-api/#transactions"""

from __future__ import annotations

import pytest

from homeserver.federation import canonical_json
from homeserver.federation.edus import TypingContent, build_edu
from homeserver.federation.identifiers import ServerName
from homeserver.federation.transaction import InvalidTransaction, encode_transaction, parse_edus, parse_transaction

ORIGIN = ServerName("example.org")
TYPING = TypingContent(room_id="!r:b", user_id="@a:b", typing=True)
BODY = {"origin": "example.org", "origin_server_ts": 1532991320875, "pdus": [{"type": "m.room.message"}]}


def test_a_built_transaction_is_read_back() -> None:
    edu = canonical_json.encode(build_edu("m.typing", TYPING))
    body = encode_transaction(ORIGIN, 5, [b'{"type":"x"}'], [edu])
    assert body == canonical_json.encode(canonical_json.decode(body))
    transaction = parse_transaction(canonical_json.decode(body))
    assert transaction.origin == "example.org"
    assert transaction.origin_server_ts == 5
    assert transaction.pdus == [{"type": "x"}]
    assert parse_edus(transaction.edus) == [("m.typing", TYPING)]


def test_edus_may_be_omitted() -> None:
    assert encode_transaction(ORIGIN, 5, []) == b'{"origin":"example.org","origin_server_ts":5,"pdus":[]}'
    assert parse_transaction(BODY).edus == []


def test_a_malformed_edu_is_dropped_alone() -> None:
    good = build_edu("m.typing", TYPING)
    edus = [{"edu_type": "m.typing"}, good, None, {"edu_type": "m.typing", "content": {}}, good]
    transaction = parse_transaction(BODY | {"edus": edus})
    assert parse_edus(transaction.edus) == [("m.typing", TYPING), ("m.typing", TYPING)]


def test_unknown_fields_are_ignored() -> None:
    assert parse_transaction(BODY | {"previous_ids": []}).origin == "example.org"


def test_as_many_as_are_allowed() -> None:
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


def test_pdus_are_judged_one_by_one_later() -> None:
    assert parse_transaction(BODY | {"pdus": ["event", {}, None]}).pdus == ["event", {}, None]


def test_too_large_a_transaction_is_not_built() -> None:
    with pytest.raises(InvalidTransaction):
        encode_transaction(ORIGIN, 5, [b"{}"] * 51)
    with pytest.raises(InvalidTransaction):
        encode_transaction(ORIGIN, 5, [], [b"{}"] * 101)
