"""Keys of end-to-end encryption as others send them. Spec: client-server-api/#key-algorithms"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.federation.signed_keys import (
    InvalidKey,
    InvalidKeySignature,
    check_signed_by,
    check_signed_by_device,
    is_public_key,
    parse_cross_signing_key,
    parse_device_keys,
    parse_one_time_key,
    signatures_by,
    with_signatures,
    without_signatures,
)
from tests.support.keys import SIGNED, CrossSigning, Device, curve_key

ALICE = "@alice:a.example"
DEVICE = Device(ALICE, "DEVICE")
KEYS = CrossSigning(ALICE)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=10), children, max_size=3),
    max_leaves=8,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the paths of the parts of a value."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(each for name, part in below for each in paths(part, (*path, name)))]


def changed(value: Any, path: tuple[Any, ...], part: Any) -> Any:
    """A copy of the value with another part at that place."""
    if not path:
        return part
    copy = json.loads(json.dumps(value))
    holder = copy
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = part
    return copy


CASES: list[tuple[Callable[[Any], object], Any]] = [
    (lambda value: parse_device_keys(value, ALICE, "DEVICE"), DEVICE.keys()),
    (lambda value: parse_one_time_key(f"{SIGNED}:A", value), DEVICE.one_time_key("A")),
    (lambda value: parse_cross_signing_key(value, ALICE, "master"), KEYS.master_key()),
    (lambda value: parse_cross_signing_key(value, ALICE, "self_signing"), KEYS.self_signing_key()),
]


@given(st.data())
def test_every_fault_is_explained_in_a_sentence(data: st.DataObject) -> None:
    parse, good = data.draw(st.sampled_from(CASES))
    assert parse(good)
    bad = changed(good, data.draw(st.sampled_from(paths(good))), data.draw(JSON))
    try:
        parse(bad)
    except InvalidKey as error:
        assert str(error).endswith(".")


@given(st.data())
def test_changing_any_signed_part_of_device_keys_is_noticed(data: st.DataObject) -> None:
    good = DEVICE.keys()
    path = data.draw(st.sampled_from([path for path in paths(good) if path and path[0] != "signatures"]))
    bad = changed(good, path, data.draw(JSON))
    if json.dumps(bad, sort_keys=True) != json.dumps(good, sort_keys=True):
        with pytest.raises(InvalidKey):
            parse_device_keys(bad, ALICE, "DEVICE")


def test_a_one_time_key_of_another_device_is_noticed() -> None:
    key = parse_one_time_key(f"{SIGNED}:A", DEVICE.one_time_key("A"))
    check_signed_by_device(key, ALICE, "DEVICE", DEVICE.key.public)
    for user_id, device_id, ed25519 in (
        ("@bob:a.example", "DEVICE", DEVICE.key.public),
        (ALICE, "OTHER", DEVICE.key.public),
        (ALICE, "DEVICE", Device(ALICE, "OTHER").key.public),
    ):
        with pytest.raises(InvalidKeySignature):
            check_signed_by_device(key, user_id, device_id, ed25519)


def test_a_self_signing_key_of_another_master_key_is_noticed() -> None:
    key = parse_cross_signing_key(KEYS.self_signing_key(), ALICE, "self_signing")
    check_signed_by(key, ALICE, parse_cross_signing_key(KEYS.master_key(), ALICE, "master"))
    other = parse_cross_signing_key(CrossSigning(ALICE, "other").master_key(), ALICE, "master")
    with pytest.raises(InvalidKeySignature):
        check_signed_by(key, ALICE, other)


def test_keys_of_the_identity_element_sign_nothing() -> None:
    """With a public key of small order, one signature is valid for every message."""
    small = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    signature = "AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    keys = {
        **DEVICE.keys(),
        "keys": {"ed25519:DEVICE": small},
        "signatures": {ALICE: {"ed25519:DEVICE": signature}},
    }
    with pytest.raises(InvalidKeySignature):
        parse_device_keys(keys, ALICE, "DEVICE")


def device_keys(**changes: Any) -> dict[str, Any]:
    """The device's keys with other members, signed like that. A member that is None is left out."""
    return DEVICE.sign({name: value for name, value in {**DEVICE.keys(), **changes}.items() if value is not None})


def test_device_keys_have_what_is_unsigned_left_out() -> None:
    parsed = parse_device_keys({**DEVICE.keys(), "unsigned": {"device_display_name": "phone"}}, ALICE, "DEVICE")
    assert (parsed.content, parsed.ed25519) == (DEVICE.keys(), DEVICE.key.public)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([], "The device keys must be an object."),
        (device_keys(user_id="@bob:a.example"), "The device keys must have the user_id of the user."),
        (device_keys(device_id="OTHER"), "The device keys have the device_id of another device."),
        (device_keys(algorithms="all"), "The algorithms of device keys must be an array of strings."),
        (device_keys(algorithms=["a", 1]), "The algorithms of device keys must be an array of strings."),
        (device_keys(keys=None), "The device keys must have keys, an object of strings."),
        (device_keys(keys={"ed25519:DEVICE": 1}), "The device keys must have keys, an object of strings."),
        (device_keys(keys={}), "The device keys must contain an Ed25519 key of the device."),
        (device_keys(keys={"ed25519:DEVICE": "short"}), "The device keys must contain an Ed25519 key of the device."),
        (without_signatures(DEVICE.keys()), "The device keys have no signatures."),
        (
            {**DEVICE.keys(), "signatures": {ALICE: "me"}},
            "The device keys must have signatures by user ID and key ID, which are strings.",
        ),
        (
            {**DEVICE.keys(), "org.example.number": 1.5},
            "The device keys cannot be signed: Numbers must be integers within ±(2^53-1).",
        ),
    ],
)
def test_malformed_device_keys_are_refused_with_the_reason(keys: Any, message: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        parse_device_keys(keys, ALICE, "DEVICE")
    assert (type(caught.value), str(caught.value)) == (InvalidKey, message)


@pytest.mark.parametrize("signatures", [{}, {ALICE: {}}, {ALICE: {"ed25519:OTHER": "x"}}, {"@bob:a.example": {}}])
def test_device_keys_without_a_signature_of_the_device_are_refused(signatures: dict[str, Any]) -> None:
    with pytest.raises(InvalidKeySignature, match="not signed by the device"):
        parse_device_keys({**DEVICE.keys(), "signatures": signatures}, ALICE, "DEVICE")


def test_a_one_time_key_has_an_algorithm_an_id_and_a_key() -> None:
    key = parse_one_time_key(f"{SIGNED}:A", DEVICE.one_time_key("A", fallback=True))
    assert (key.algorithm, key.key_id, key.public_key) == (SIGNED, "A", DEVICE.one_time_key("A")["key"])


def test_a_one_time_key_without_a_signature_is_a_string() -> None:
    key = parse_one_time_key("curve25519:A", curve_key("A"))
    assert key.content == key.public_key == curve_key("A")
    check_signed_by_device(key, ALICE, "DEVICE", DEVICE.key.public)  # it has no signature that could be wrong


@pytest.mark.parametrize("name", ["", "A", ":", f"{SIGNED}:", ":A", f"{SIGNED}:\0", f"{'a' * 256}:A"])
def test_a_one_time_key_with_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidKey, match="must have the form <algorithm>:<key_id>"):
        parse_one_time_key(name, DEVICE.one_time_key("A"))


@pytest.mark.parametrize(
    ("algorithm", "value", "message"),
    [
        (SIGNED, 7, "A one-time key must be a string or an object."),
        (SIGNED, DEVICE.sign({}), "A one-time key must have a key, which is a string."),
        ("x", "", "A one-time key must have a key, which is a string."),
        ("curve25519", "short", "A Curve25519 key must be 32 bytes in base64."),
        (SIGNED, DEVICE.sign({"key": "short"}), "A Curve25519 key must be 32 bytes in base64."),
        (SIGNED, curve_key("A"), "A signed_curve25519 key must be an object with a signature."),
        (SIGNED, {"key": curve_key("A")}, "A one-time key that is an object must have signatures."),
        (
            SIGNED,
            {"key": curve_key("A"), "signatures": []},
            "A one-time key must have signatures by user ID and key ID, which are strings.",
        ),
        (SIGNED, DEVICE.one_time_key("A", fallback="yes"), "The fallback property of a key must be a boolean."),
        (
            SIGNED,
            {**DEVICE.one_time_key("A"), "org.example.number": 1.5},
            "A one-time key cannot be signed: Numbers must be integers within ±(2^53-1).",
        ),
    ],
)
def test_a_malformed_one_time_key_is_refused_with_the_reason(algorithm: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        parse_one_time_key(f"{algorithm}:A", value)
    assert str(caught.value) == message


def test_a_cross_signing_key_is_called_by_its_public_key() -> None:
    key = parse_cross_signing_key({**KEYS.master_key(), "unsigned": {"x": 1}}, ALICE, "master")
    assert (key.content, key.key_id) == (KEYS.master_key(), f"ed25519:{KEYS.master.public}")


MALFORMED = "A cross-signing key must be an Ed25519 key in unpadded base64, which is also its ID."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_id": "@bob:a.example"}, "The cross-signing key must have the user_id of the user."),
        ({"usage": "master"}, "The usage of the key must be an array that contains master."),
        ({"usage": ["master", 1]}, "The usage of the key must be an array that contains master."),
        ({"usage": ["user_signing"]}, "The usage of the key must be an array that contains master."),
        ({"keys": []}, "The cross-signing key must have keys, an object of strings."),
        ({"keys": {}}, "A cross-signing key object must have exactly one key."),
        ({"keys": {"ed25519:a": "a", "ed25519:b": "b"}}, "A cross-signing key object must have exactly one key."),
        ({"keys": {"ed25519:other": KEYS.master.public}}, MALFORMED),
        ({"keys": {"ed25519:short": "short"}}, MALFORMED),
        ({"keys": {f"ed25519:{KEYS.master.public}=": f"{KEYS.master.public}="}}, MALFORMED),
    ],
)
def test_a_malformed_cross_signing_key_is_refused_with_the_reason(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidKey) as caught:
        parse_cross_signing_key({**KEYS.master_key(), **changes}, ALICE, "master")
    assert str(caught.value) == message


@pytest.mark.parametrize("text", [None, 7, "", "short", "%", DEVICE.key.public[:-1] + "%", DEVICE.key.public * 2])
def test_only_32_bytes_in_base64_are_a_public_key(text: object) -> None:
    assert is_public_key(DEVICE.key.public)
    assert not is_public_key(text)


def test_signatures_are_told_apart_by_their_user() -> None:
    key = KEYS.self_signing_key()
    assert signatures_by(key, ALICE).keys() == {f"ed25519:{KEYS.master.public}"}
    assert signatures_by(key, "@bob:a.example") == signatures_by(without_signatures(key), ALICE) == {}


def test_the_signatures_of_a_key_can_be_replaced() -> None:
    key = {**KEYS.self_signing_key(), "unsigned": {"x": 1}}
    bare = {name: key[name] for name in ("user_id", "usage", "keys")}
    assert without_signatures(key) == with_signatures(key, {}) == with_signatures(key, {ALICE: {}}) == bare
    assert with_signatures(key, {ALICE: {"ed25519:A": "x"}, "@bob:a.example": {}}) == {
        **bare,
        "signatures": {ALICE: {"ed25519:A": "x"}},
    }
