"""Devices and users with keys of their own, which sign as clients do.

phone = Device(alice.user_id, alice.device_id)
await alice.ok("POST", "keys/upload", json={"device_keys": phone.keys(), "one_time_keys": phone.one_time_keys(10)})
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_seed_keypair

from homeserver.federation.signing import encode_base64, signed_bytes, with_signature

OLM = "m.olm.v1.curve25519-aes-sha2"
MEGOLM = "m.megolm.v1.aes-sha2"
SIGNED = "signed_curve25519"


class Key:
    """An Ed25519 key pair, the same for the same name."""

    def __init__(self, name: str) -> None:
        public, self._secret = crypto_sign_seed_keypair(hashlib.sha256(name.encode()).digest())
        self.public = encode_base64(public)

    def sign(self, content: dict[str, Any], user_id: str, key_id: str) -> dict[str, Any]:
        """The object with one more signature."""
        signature = crypto_sign(signed_bytes(content), self._secret)[:64]
        return with_signature(content, user_id, f"ed25519:{key_id}", encode_base64(signature))


def curve_key(name: str) -> str:
    """Something that passes for a Curve25519 key."""
    return encode_base64(hashlib.sha256(f"curve {name}".encode()).digest())


@dataclass
class Device:
    """A device with its keys. `secret` tells apart devices of the same ID."""

    user_id: str
    device_id: str
    secret: str = ""
    key: Key = field(init=False)
    _numbers: count[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.key = Key(self._name)

    @property
    def _name(self) -> str:
        return f"{self.user_id} {self.device_id} {self.secret}"

    def sign(self, content: dict[str, Any]) -> dict[str, Any]:
        return self.key.sign(content, self.user_id, self.device_id)

    def keys(self, **more: Any) -> dict[str, Any]:
        """The identity keys, as they are uploaded."""
        content = {
            "user_id": self.user_id,
            "device_id": self.device_id,
            "algorithms": [OLM, MEGOLM],
            "keys": {
                f"curve25519:{self.device_id}": curve_key(self._name),
                f"ed25519:{self.device_id}": self.key.public,
            },
            **more,
        }
        return self.sign(content)

    def one_time_key(self, name: str, **more: Any) -> dict[str, Any]:
        """A signed one-time key; the same for the same name."""
        return self.sign({"key": curve_key(f"{self._name} {name}"), **more})

    def one_time_keys(self, number: int) -> dict[str, Any]:
        """So many new keys, by their names."""
        names = [f"AAAA{next(self._numbers):04}" for _ in range(number)]
        return {f"{SIGNED}:{name}": self.one_time_key(name) for name in names}

    def fallback_key(self, name: str) -> dict[str, Any]:
        """A fallback key, by its name."""
        return {f"{SIGNED}:{name}": self.one_time_key(name, fallback=True)}


@dataclass
class CrossSigning:
    """The cross-signing keys of a user. `secret` tells apart those that replace one another."""

    user_id: str
    secret: str = ""

    def __post_init__(self) -> None:
        self.master, self.self_signing, self.user_signing = (
            Key(f"{self.user_id} {usage} {self.secret}") for usage in ("master", "self-signing", "user-signing")
        )

    def master_key(self) -> dict[str, Any]:
        return self._object("master", self.master)

    def self_signing_key(self) -> dict[str, Any]:
        return self.by_master(self._object("self_signing", self.self_signing))

    def user_signing_key(self) -> dict[str, Any]:
        return self.by_master(self._object("user_signing", self.user_signing))

    def body(self) -> dict[str, Any]:
        """All three, as they are uploaded."""
        return {
            "master_key": self.master_key(),
            "self_signing_key": self.self_signing_key(),
            "user_signing_key": self.user_signing_key(),
        }

    def by_master(self, content: dict[str, Any]) -> dict[str, Any]:
        """The object with the signature of the master key."""
        return self.master.sign(content, self.user_id, self.master.public)

    def by_self_signing(self, content: dict[str, Any]) -> dict[str, Any]:
        """The object, of an own device, with the signature of the self-signing key."""
        return self.self_signing.sign(content, self.user_id, self.self_signing.public)

    def by_user_signing(self, content: dict[str, Any]) -> dict[str, Any]:
        """The object, of another user, with the signature of the user-signing key."""
        return self.user_signing.sign(content, self.user_id, self.user_signing.public)

    def _object(self, usage: str, key: Key) -> dict[str, Any]:
        return {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{key.public}": key.public}}
