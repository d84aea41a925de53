"""Sealing: authenticated encryption of what is stored, by XChaCha20-Poly1305 of libsodium.

Theory of operation. Each conversation, and each file of the media repository, has a random key. A master key, which is
not in the database, wraps them. What a key seals begins with a mark and the key's number, so that a reader knows which
key to load:

    0xFF | number of the key, 4 bytes | nonce, 24 random bytes | ciphertext and tag

With random nonces of 24 bytes no nonce is ever used twice, so a value that is stored again at the same place is sealed
again. `where` says where the value lies, such as the column and the number of the row. It is authenticated, but not
stored: a value that was moved to another row does not open. Nor does one whose key number was changed.

The mark cannot begin anything that is stored unsealed: JSON is UTF-8, and compressed data begins with the number of a
dictionary (`database/compression.py`).
"""

from __future__ import annotations

import binascii
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from homeserver.errors import StorageDamaged, StorageError

KEY_BYTES = 32
_NONCE_BYTES = 24
_TAG_BYTES = 16
_MARK = b"\xff"
BEGINNING_BYTES = 5
_NONCE_END = BEGINNING_BYTES + _NONCE_BYTES
OVERHEAD_BYTES = _NONCE_END + _TAG_BYTES


class SealBroken(StorageDamaged):
    """Sealed data does not open: it was damaged, or moved here from another place."""


class MasterKeyMissing(StorageError):
    """A master key is needed that this process does not have. The message is a sentence for the administrator."""


class SealingKey:
    """The key of a conversation or of a file. Immutable, and may be used by several threads."""

    __slots__ = ("_header", "number", "secret")

    def __init__(self, number: int, secret: bytes) -> None:
        assert len(secret) == KEY_BYTES
        self.number = number
        self.secret = secret
        self._header = beginning_of(number)

    def __repr__(self) -> str:
        return f"SealingKey({self.number})"  # never the secret: representations get into logs

    def seal(self, where: bytes, plaintext: bytes) -> bytes:
        """Returns `plaintext` sealed for the place `where`. Sealing the same again gives other bytes."""
        nonce = os.urandom(_NONCE_BYTES)
        header = self._header
        return (
            header + nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(plaintext, header + where, nonce, self.secret)
        )

    def open(self, where: bytes, sealed: bytes) -> bytes:
        """Returns what was sealed for the place `where`. Raises SealBroken."""
        if len(sealed) < OVERHEAD_BYTES or sealed[:BEGINNING_BYTES] != self._header:
            raise SealBroken(f"it is not sealed with key {self.number}")
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                sealed[_NONCE_END:], self._header + where, sealed[BEGINNING_BYTES:_NONCE_END], self.secret
            )
        except CryptoError:
            raise SealBroken("its seal is broken") from None


def is_sealed(data: bytes) -> bool:
    """Returns whether stored data is sealed."""
    return data[:1] == _MARK


def beginning_of(number: int) -> bytes:
    """Returns the first BEGINNING_BYTES of everything that the key with this number has sealed."""
    return _MARK + number.to_bytes(4, "big")


def key_number(sealed: bytes) -> int:
    """Returns the number of the key that seals the data. Raises SealBroken if it is too short to be sealed."""
    if len(sealed) < OVERHEAD_BYTES:
        raise SealBroken("it is too short")
    return int.from_bytes(sealed[1:BEGINNING_BYTES], "big")


def new_secret() -> bytes:
    """Returns a new random key."""
    return os.urandom(KEY_BYTES)


class MasterKey:
    """A key that wraps other keys. fingerprint: names it, and says nothing about the secret."""

    __slots__ = ("_secret", "fingerprint")

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError(f"a master key has {KEY_BYTES} bytes, not {len(secret)}")
        self._secret = secret
        self.fingerprint = blake2b(secret, digest_size=8, person=b"homeserver/mk").hexdigest()

    def __repr__(self) -> str:
        return f"MasterKey({self.fingerprint})"

    def wrap(self, where: bytes, secret: bytes) -> bytes:
        """Returns a key wrapped for the place `where`."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(secret, where, nonce, self._secret)

    def unwrap(self, where: bytes, wrapped: bytes) -> bytes:
        """Returns the key that was wrapped for the place `where`. Raises SealBroken."""
        if len(wrapped) != _NONCE_BYTES + KEY_BYTES + _TAG_BYTES:
            raise SealBroken("it has the wrong length")
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                wrapped[_NONCE_BYTES:], where, wrapped[:_NONCE_BYTES], self._secret
            )
        except CryptoError:
            raise SealBroken("its seal is broken") from None

    def format(self) -> str:
        """Returns the key as text, for its file."""
        return b64encode(self._secret).decode().rstrip("=")


def parse_master_keys(text: str) -> list[MasterKey]:
    """Returns the keys in a text: each is 32 bytes in base64. Spaces or lines separate them; `#` begins a comment.

    Raises ValueError, which never quotes the text.
    """
    words = [word for line in text.splitlines() for word in line.partition("#")[0].split()]
    keys = []
    for word in words:
        try:
            secret = b64decode(word + "=" * (-len(word) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("it holds something that is not base64") from None
        keys.append(MasterKey(secret))
    if not keys:
        raise ValueError("it holds no key")
    return keys


class MasterKeys:
    """The master keys that this process can use. During a rotation there are two.

    load: reads them. That happens again when a key is needed that is not known, because another process may have added
    it. Used by all threads of a database: the mapping is replaced as a whole, never changed.
    """

    __slots__ = ("_by_fingerprint", "_load", "place")

    def __init__(self, load: Callable[[], Iterable[MasterKey]], place: str) -> None:
        self._load = load
        self.place = place  # where the keys come from, for people
        self._by_fingerprint: Mapping[str, MasterKey] = {}
        self.reload()

    def list(self) -> list[MasterKey]:
        """Returns the keys, in the order of their source."""
        return list(self._by_fingerprint.values())

    def find(self, fingerprint: str) -> MasterKey | None:
        """Returns the key with this fingerprint, from the source if it is not known yet; or None."""
        known = self._by_fingerprint.get(fingerprint)
        if known is None:
            self.reload()
            known = self._by_fingerprint.get(fingerprint)
        return known

    def get(self, fingerprint: str) -> MasterKey:
        """Does the same as `find`. Raises MasterKeyMissing if there is no such key."""
        key = self.find(fingerprint)
        if key is None:
            raise MasterKeyMissing(f"The master key {fingerprint} is missing: {self.place} does not hold it.")
        return key

    def reload(self) -> None:
        """Reads the keys again."""
        self._by_fingerprint = {key.fingerprint: key for key in self._load()}
