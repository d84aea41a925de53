"""Server keys. Spec: server-server-api/#retrieving-server-keys"""

from __future__ import annotations

from typing import Any

import pytest

from homeserver.federation.server_keys import (
    VALIDITY_MS_MAX,
    InvalidKeys,
    VerifyKey,
    add_notary_signature,
    build_key_response,
    build_notary_response,
    merge_keys,
    parse_key_response,
    parse_notary_response,
)
from homeserver.federation.signing import SigningKey, sign_json, verify_json

KEY = SigningKey("abc123", b"\1" * 32)
OLD_KEY = SigningKey("0ldK3y", b"\2" * 32)
NOTARY_KEY = SigningKey("notary", b"\3" * 32)
NOTARY_KEYS = {NOTARY_KEY.key_id: VerifyKey(NOTARY_KEY.verify_key_base64, 10_000)}
NOW_MS = 1_700_000_000_000


def response(**changes: Any) -> dict[str, Any]:
    old_keys = {OLD_KEY.key_id: VerifyKey(OLD_KEY.verify_key_base64, 500, expired_ts=500)}
    built = build_key_response("example.org", KEY, old_keys, 1000)
    if not changes:
        return built
    unsigned = {name: value for name, value in {**built, **changes}.items() if name != "signatures"}
    return sign_json(unsigned, "example.org", KEY)


def test_responses_follow_the_spec() -> None:
    built = response()
    signature = built.pop("signatures")
    assert built == {
        "server_name": "example.org",
        "verify_keys": {"ed25519:abc123": {"key": KEY.verify_key_base64}},
        "old_verify_keys": {"ed25519:0ldK3y": {"key": OLD_KEY.verify_key_base64, "expired_ts": 500}},
        "valid_until_ts": 1000,
    }
    assert list(signature) == ["example.org"]


def test_responses_round_trip() -> None:
    keys = parse_key_response(response(), "example.org", NOW_MS)
    assert keys.server_name == "example.org"
    assert keys.valid_until_ts == 1000
    assert keys.find("ed25519:abc123") == VerifyKey(KEY.verify_key_base64, 1000)
    assert keys.find("ed25519:0ldK3y") == VerifyKey(OLD_KEY.verify_key_base64, 500, expired_ts=500)
    assert keys.find("ed25519:other") is None
    assert keys.response == response()


def test_old_verify_keys_may_be_missing() -> None:
    without = {name: value for name, value in response().items() if name not in ("old_verify_keys", "signatures")}
    assert parse_key_response(sign_json(without, "example.org", KEY), "example.org", NOW_MS).old_verify_keys == {}


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {**response(), "valid_until_ts": 2000},
        {**response(), "signatures": {}},
        {**response(), "signatures": {"example.org": {KEY.key_id: "AAAA"}}},
        {name: value for name, value in response().items() if name != "signatures"},
        response(server_name="other.org"),
        response(verify_keys={}),
        response(verify_keys=[]),
        response(verify_keys={OLD_KEY.key_id: {"key": OLD_KEY.verify_key_base64}}),
        response(verify_keys={f"ed25519:k{n}": {"key": KEY.verify_key_base64} for n in range(101)}),
        response(old_verify_keys=5),
        response(valid_until_ts=-1),
        response(valid_until_ts="soon"),
        response(valid_until_ts=2**53),
    ],
)
def test_statements_not_signed_by_the_server_itself_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidKeys):
        parse_key_response(wrong, "example.org", NOW_MS)


def test_malformed_keys_do_not_affect_others() -> None:
    good = response()["verify_keys"]
    keys = parse_key_response(
        response(
            verify_keys={
                **good,
                "ed25519:no/pe": {"key": KEY.verify_key_base64},
                "rot13:abc": {"key": KEY.verify_key_base64},
                "ed25519:short": {"key": "AAAA"},
                "ed25519:text": {"key": "*"},
                "ed25519:none": {},
                "ed25519:null": None,
            },
            old_verify_keys={
                KEY.key_id: {"key": OLD_KEY.verify_key_base64, "expired_ts": 1},
                "ed25519:untimed": {"key": OLD_KEY.verify_key_base64},
                "ed25519:good": {"key": OLD_KEY.verify_key_base64, "expired_ts": 1},
            },
        ),
        "example.org",
        NOW_MS,
    )
    assert list(keys.verify_keys) == [KEY.key_id]
    assert list(keys.old_verify_keys) == ["ed25519:good"]


def test_validity_is_capped_at_seven_days() -> None:
    assert VALIDITY_MS_MAX == 7 * 86_400_000
    for_ever = parse_key_response(response(valid_until_ts=NOW_MS * 2), "example.org", NOW_MS)
    assert for_ever.valid_until_ts == NOW_MS + VALIDITY_MS_MAX
    key = for_ever.verify_keys[KEY.key_id]
    assert key.is_valid_at(NOW_MS + VALIDITY_MS_MAX)
    assert not key.is_valid_at(NOW_MS + VALIDITY_MS_MAX + 1)
    assert key.may_sign_requests(NOW_MS + VALIDITY_MS_MAX)
    assert not key.may_sign_requests(NOW_MS + VALIDITY_MS_MAX + 1)
    brief = VerifyKey("key", NOW_MS + 10)
    assert brief.is_valid_at(NOW_MS + 10)
    assert not brief.is_valid_at(NOW_MS + 11)


def test_old_keys_are_valid_for_events_of_their_time_only() -> None:
    old = VerifyKey("key", 500, expired_ts=500)
    assert old.is_valid_at(500)
    assert not old.is_valid_at(501)
    assert not old.may_sign_requests(0)
    current = VerifyKey("key", NOW_MS)
    assert current.may_sign_requests(NOW_MS)
    assert not current.may_sign_requests(NOW_MS + 1)


def test_a_notary_signs_beside_the_server() -> None:
    signed = add_notary_signature(response(), "notary.org", NOTARY_KEY)
    assert set(signed["signatures"]) == {"example.org", "notary.org"}
    assert verify_json(signed, "notary.org", NOTARY_KEY.key_id, NOTARY_KEY.verify_key_base64)
    assert parse_key_response(signed, "example.org", NOW_MS).valid_until_ts == 1000


def test_notary_responses_round_trip() -> None:
    body = build_notary_response([response(), response(valid_until_ts=5)], "notary.org", NOTARY_KEY)
    found = parse_notary_response(body, "notary.org", NOTARY_KEYS, NOW_MS)
    assert [keys.valid_until_ts for keys in found] == [1000, 5]


def test_notary_statements_need_both_signatures() -> None:
    forged = {**response(), "signatures": {}}
    body = build_notary_response([forged, response()], "notary.org", NOTARY_KEY)
    body["server_keys"] += [response(), None, {}, {"server_name": 5}]
    found = parse_notary_response(body, "notary.org", NOTARY_KEYS, NOW_MS)
    assert [keys.server_name for keys in found] == ["example.org"]


@pytest.mark.parametrize("body", [None, [], {}, {"server_keys": {}}])
def test_a_malformed_notary_response_is_an_error(body: object) -> None:
    with pytest.raises(InvalidKeys):
        parse_notary_response(body, "notary.org", NOTARY_KEYS, NOW_MS)


def test_merging_keeps_the_latest_statement_on_each_key() -> None:
    before = parse_key_response(build_key_response("example.org", OLD_KEY, {}, 600), "example.org", NOW_MS)
    forgotten = SigningKey("forgotten", b"\4" * 32)
    oldest = parse_key_response(build_key_response("example.org", forgotten, {}, 300), "example.org", NOW_MS)
    after = parse_key_response(response(), "example.org", NOW_MS)
    other = parse_key_response(build_key_response("other.org", KEY, {}, 9), "other.org", NOW_MS)
    expected = {
        "example.org": {
            KEY.key_id: VerifyKey(KEY.verify_key_base64, 1000),
            OLD_KEY.key_id: VerifyKey(OLD_KEY.verify_key_base64, 500, expired_ts=500),
            forgotten.key_id: VerifyKey(forgotten.verify_key_base64, 300),
        },
        "other.org": {KEY.key_id: VerifyKey(KEY.verify_key_base64, 9)},
    }
    assert merge_keys([after, before, other, oldest]) == expected
    assert merge_keys([oldest, before, after, other]) == expected
