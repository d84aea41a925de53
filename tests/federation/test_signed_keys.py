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
    parse_cross_signing_key,
    parse_device_keys,
    parse_one_time_key,
)
from tests.support.keys import SIGNED, CrossSigning, Device

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
