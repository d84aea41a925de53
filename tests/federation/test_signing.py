"""Signing JSON. Spec: appendices/#signing-json, appendices/#cryptographic-test-vectors"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.signing import (
    InvalidSigningKey,
    SigningKey,
    decode_base64,
    encode_base64,
    format_signing_key,
    parse_signing_key,
    sign_json,
    signed_bytes,
    verify_bytes,
    verify_json,
    with_signature,
)
from tests.federation.json_values import KEY, PROPERTY, nested, strict_objects, texts

SPEC_KEY = SigningKey("1", decode_base64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1"))
VERIFY_KEY = "XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI"


def test_vectors_of_the_specification() -> None:
    assert SPEC_KEY.key_id == "ed25519:1"
    assert sign_json({}, "domain", SPEC_KEY) == {
        "signatures": {
            "domain": {
                "ed25519:1": "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
            }
        }
    }
    assert sign_json({"one": 1, "two": "Two"}, "domain", SPEC_KEY) == {
        "one": 1,
        "signatures": {
            "domain": {
                "ed25519:1": "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"
            }
        },
        "two": "Two",
    }


def test_unpadded_base64_examples_of_the_specification() -> None:
    words = {b"": "", b"f": "Zg", b"fo": "Zm8", b"foo": "Zm9v", b"foob": "Zm9vYg", b"fooba": "Zm9vYmE"}
    for data, text in words.items():
        assert encode_base64(data) == text
        assert decode_base64(text) == data


def test_base64_is_read_with_or_without_padding_in_both_alphabets() -> None:
    assert decode_base64("Zg==") == decode_base64("Zg") == b"f"
    assert decode_base64("+/+/") == decode_base64("-_-_") == decode_base64("+_-/") == b"\xfb\xff\xbf"


@pytest.mark.parametrize("text", ["Z", "Zm9vY", "Zg=g", "Z g", "Zg\n", "Zgé", "Zg===", "*", None, 1, b"Zg"])
def test_malformed_base64_is_refused(text: Any) -> None:
    with pytest.raises(ValueError, match="ase64"):
        decode_base64(text)


@PROPERTY
@given(st.binary(max_size=40))
def test_base64_round_trip(data: bytes) -> None:
    assert decode_base64(encode_base64(data)) == data
    assert "=" not in encode_base64(data)


def test_signing_key_file_round_trip() -> None:
    key = parse_signing_key("ed25519 a_XyZ 	YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n")
    assert (key.key_id, key.verify_key_base64) == ("ed25519:a_XyZ", VERIFY_KEY)
    assert format_signing_key(key) == "ed25519 a_XyZ YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0\n"
    assert parse_signing_key(format_signing_key(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519 1",
        "rsa 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1",
        "ed25519 a:b YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1",
        "ed25519 é YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1",
        "ed25519 1 !!!SECRET",
        "ed25519 1 c2hvcnRTRUNSRVQ",
        "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1 more",
    ],
)
def test_a_malformed_signing_key_is_refused_without_revealing_it(text: str) -> None:
    with pytest.raises(InvalidSigningKey) as refusal:
        parse_signing_key(text)
    assert "SECRET" not in str(refusal.value) and "YJDB" not in str(refusal.value)


def test_the_secret_does_not_appear_in_repr() -> None:
    shown = repr(SPEC_KEY)
    assert "ed25519:1" in shown
    assert repr(SPEC_KEY.seed)[2:-1] not in shown and encode_base64(SPEC_KEY.seed) not in shown


def test_signing_adds_to_the_signatures_and_changes_nothing() -> None:
    obj = {"a": 1, "unsigned": {"age": 5}, "signatures": {"domain": {"ed25519:0": "x"}, "other": {"ed25519:1": "y"}}}
    before = deepcopy(obj)
    signed = sign_json(obj, "domain", SPEC_KEY)
    assert obj == before
    assert signed["unsigned"] == {"age": 5}
    assert signed["signatures"]["domain"] == {"ed25519:0": "x", "ed25519:1": sign_one("domain", {"a": 1})}
    assert signed["signatures"]["other"] == {"ed25519:1": "y"}


def sign_one(name: str, obj: dict[str, Any]) -> str:
    signature: str = sign_json(obj, name, SPEC_KEY)["signatures"][name]["ed25519:1"]
    return signature


def test_malformed_signatures_are_replaced_by_a_new_one() -> None:
    for signatures in (None, [], "x", {"domain": 1}):
        assert with_signature({"signatures": signatures}, "domain", "ed25519:1", "s") == {
            "signatures": {"domain": {"ed25519:1": "s"}}
        }


def test_values_without_json_cannot_be_signed() -> None:
    for value in (float("nan"), "\ud800", b"", nested(200)):
        with pytest.raises(NotCanonical):
            sign_json({"a": value}, "domain", SPEC_KEY)


def test_objects_of_old_room_versions_can_be_signed() -> None:
    signed = sign_json({"level": 50.0, "big": 2**70}, "domain", SPEC_KEY)
    assert signed_bytes(signed) == b'{"big":1180591620717411303424,"level":50.0}'
    assert verify_json(signed, "domain", "ed25519:1", VERIFY_KEY)


@PROPERTY
@given(strict_objects, texts)
def test_signed_objects_verify(obj: dict[str, Any], name: str) -> None:
    signed = sign_json(obj, name, KEY)
    assert verify_json(signed, name, KEY.key_id, KEY.verify_key_base64)
    assert verify_json({**signed, "unsigned": {"new": 1}}, name, KEY.key_id, KEY.verify_key_base64)
    decoded = canonical_json.decode(canonical_json.encode(signed))
    assert verify_json(decoded, name, KEY.key_id, KEY.verify_key_base64)


@PROPERTY
@given(st.binary(max_size=60), st.data())
def test_any_changed_byte_invalidates_the_signature(message: bytes, data: st.DataObject) -> None:
    whole = KEY.sign(message) + message
    at = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    assert verify_bytes(message, encode_base64(whole[:64]), KEY.verify_key_base64)
    assert not verify_bytes(bytes(changed[64:]), encode_base64(bytes(changed[:64])), KEY.verify_key_base64)


@PROPERTY
@given(strict_objects, texts, strict_objects)
def test_any_changed_member_invalidates_the_signature(obj: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    signed = sign_json(obj, "domain", KEY)
    changed = {**signed, key: {"changed": value}}
    same = changed == signed or key in ("unsigned", "signatures")
    assert same or not verify_json(changed, "domain", KEY.key_id, KEY.verify_key_base64)


def test_signatures_by_another_name_or_key_do_not_count() -> None:
    signed = sign_json({"a": 1}, "domain", SPEC_KEY)
    assert verify_json(signed, "domain", "ed25519:1", VERIFY_KEY)
    assert not verify_json(signed, "other", "ed25519:1", VERIFY_KEY)
    assert not verify_json(signed, "domain", "ed25519:2", VERIFY_KEY)
    assert not verify_json(signed, "domain", "ed25519:1", KEY.verify_key_base64)


@pytest.mark.parametrize(
    "obj",
    [
        None,
        [],
        "signatures",
        {},
        {"signatures": None},
        {"signatures": {"domain": None}},
        {"signatures": {"domain": {"ed25519:1": None}}},
        {"signatures": {"domain": {"ed25519:1": 5}}},
        {"signatures": {"domain": {"ed25519:1": ["x"]}}},
        {"signatures": {"domain": {"ed25519:1": "not base64!"}}},
        {"signatures": {"domain": {"ed25519:1": "c2hvcnQ"}}},
        {"signatures": {"domain": {"ed25519:1": "A" * 86}}, "a": "\ud800"},
        {"signatures": {"domain": {"ed25519:1": "A" * 86}}, "a": nested(500)},
        {"signatures": {"domain": {"ed25519:1": "A" * 86}}, 5: 6},
        {"signatures": {"domain": {"ed25519:1": "A" * 86}}},
    ],
)
def test_malformed_objects_do_not_verify(obj: object) -> None:
    assert verify_json(obj, "domain", "ed25519:1", VERIFY_KEY) is False


@pytest.mark.parametrize("verify_key", ["", "c2hvcnQ", "é", "A" * 43, "A" * 86, None, 5])
def test_malformed_verify_keys_verify_nothing(verify_key: Any) -> None:
    assert verify_json(sign_json({}, "domain", SPEC_KEY), "domain", "ed25519:1", verify_key) is False
