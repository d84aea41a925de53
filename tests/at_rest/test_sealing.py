"""What is sealed opens with its key at its place, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.process.sealing import (
    OVERHEAD_BYTES,
    MasterKey,
    MasterKeyMissing,
    MasterKeys,
    SealBroken,
    SealingKey,
    is_sealed,
    key_number,
    new_secret,
    parse_master_keys,
)

keys = st.builds(SealingKey, st.integers(0, (1 << 32) - 1), st.binary(min_size=32, max_size=32))
places = st.binary(max_size=60)


@given(key=keys, where=places, plaintext=st.binary(max_size=500))
def test_sealed_data_opens_at_its_place(key: SealingKey, where: bytes, plaintext: bytes) -> None:
    sealed = key.seal(where, plaintext)
    assert key.open(where, sealed) == plaintext
    assert is_sealed(sealed)
    assert key_number(sealed) == key.number
    assert len(sealed) == len(plaintext) + OVERHEAD_BYTES


@given(key=keys, where=places, plaintext=st.binary(min_size=12, max_size=200))
def test_sealing_twice_shares_nothing(key: SealingKey, where: bytes, plaintext: bytes) -> None:
    first, second = key.seal(where, plaintext), key.seal(where, plaintext)
    assert first[5:29] != second[5:29]
    assert first[29:] != second[29:]
    assert plaintext not in first


@given(key=keys, where=places, other=places, plaintext=st.binary(max_size=100))
def test_sealed_data_does_not_open_elsewhere(key: SealingKey, where: bytes, other: bytes, plaintext: bytes) -> None:
    sealed = key.seal(where, plaintext)
    if other != where:
        with pytest.raises(SealBroken):
            key.open(other, sealed)


@given(key=keys, other=keys, where=places)
def test_sealed_data_does_not_open_with_another_key(key: SealingKey, other: SealingKey, where: bytes) -> None:
    sealed = key.seal(where, b"words")
    if other.secret != key.secret or other.number != key.number:
        with pytest.raises(SealBroken):
            other.open(where, sealed)


@given(key=keys, plaintext=st.binary(max_size=40), at=st.integers(0), by=st.integers(1, 255))
def test_a_changed_byte_breaks_the_seal(key: SealingKey, plaintext: bytes, at: int, by: int) -> None:
    sealed = bytearray(key.seal(b"here", plaintext))
    sealed[at % len(sealed)] ^= by
    with pytest.raises(SealBroken):
        key.open(b"here", bytes(sealed))


@given(key=keys, plaintext=st.binary(max_size=40), length=st.integers(0, 100))
def test_shortened_data_does_not_open(key: SealingKey, plaintext: bytes, length: int) -> None:
    sealed = key.seal(b"here", plaintext)
    if length < len(sealed):
        with pytest.raises(SealBroken):
            key.open(b"here", sealed[:length])


def test_secrets_are_not_in_representations() -> None:
    secret = new_secret()
    for shown in (repr(SealingKey(1, secret)), repr(MasterKey(secret))):
        assert secret.hex() not in shown and repr(secret) not in shown


def test_a_wrapped_key_opens_at_its_place_only() -> None:
    master, secret = MasterKey(new_secret()), new_secret()
    wrapped = master.wrap(b"key 1", secret)
    assert master.unwrap(b"key 1", wrapped) == secret
    for where, given_bytes, key in (
        (b"key 2", wrapped, master),
        (b"key 1", wrapped[:-1], master),
        (b"key 1", bytes(len(wrapped)), master),
        (b"key 1", wrapped, MasterKey(new_secret())),
    ):
        with pytest.raises(SealBroken):
            key.unwrap(where, given_bytes)


def test_a_master_key_survives_its_text() -> None:
    first, second = MasterKey(new_secret()), MasterKey(new_secret())
    text = f"# a comment\n{first.format()}  # the first\n\n{second.format()}=\n"
    assert [key.fingerprint for key in parse_master_keys(text)] == [first.fingerprint, second.fingerprint]


@pytest.mark.parametrize("text", ["", "# nothing\n", "abc", "ä" * 43, "!" * 43, "A" * 44])
def test_a_text_without_a_key_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_master_keys(text)
    assert not text.strip() or text not in str(caught.value)


def test_master_keys_are_read_again_if_one_is_unknown() -> None:
    file = [MasterKey(new_secret())]
    keys = MasterKeys(lambda: file, "the file")
    added = MasterKey(new_secret())
    with pytest.raises(MasterKeyMissing, match=rf"{added.fingerprint} is missing: the file does not hold it"):
        keys.get(added.fingerprint)
    file.append(added)
    assert keys.get(added.fingerprint) is added
