"""Keys of end-to-end encryption: the shapes and signatures of device keys, one-time keys and cross-signing keys.

What is checked here may come from a user of this server or from any other server. Each `parse_` function takes decoded
JSON of any shape and raises `InvalidKey` with a sentence that says what is wrong, or `InvalidKeySignature` if only a
signature is. A key object that passes has the user and device that it was expected to have, so nobody's keys can be
passed off as those of another user.

Signatures that cannot be checked, because their key is unknown, are neither good nor bad: `with_signatures_by` keeps
those of known keys, `without_signatures` is for comparing what is signed.

Spec: client-server-api/#key-algorithms, #device-keys, #cross-signing
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.identifiers import fits
from homeserver.federation.signing import ALGORITHM, decode_base64, verify_json

Usage = Literal["master", "self_signing", "user_signing"]

KEY_BYTES = 32
"""The length of Ed25519 and Curve25519 keys."""

_CURVES = frozenset({"curve25519", "signed_curve25519"})


class InvalidKey(ValueError):
    """A key object is malformed, or belongs to another user or device; the message says so in one sentence."""


class InvalidKeySignature(InvalidKey):
    """A key object has a signature that is wrong, or lacks one that it must have."""


class DeviceKeys(msgspec.Struct, frozen=True):
    """The identity keys of a device. ed25519: the key that signs everything else of the device, in base64."""

    content: dict[str, Any]
    ed25519: str


class OneTimeKey(msgspec.Struct, frozen=True):
    """A one-time or fallback key. public_key: the key itself, which its signature is not part of."""

    algorithm: str
    key_id: str
    public_key: str
    content: str | dict[str, Any]


class CrossSigningKey(msgspec.Struct, frozen=True):
    """A cross-signing key. public_key: unpadded base64, which is also the second half of its key ID."""

    content: dict[str, Any]
    public_key: str

    @property
    def key_id(self) -> str:
        return f"{ALGORITHM}:{self.public_key}"


def parse_device_keys(value: object, user_id: str, device_id: str) -> DeviceKeys:
    """Returns the keys of this device, which has signed them. Anything `unsigned` is left out."""
    content = _parse_signed(value, user_id, "The device keys")
    if content.get("device_id") != device_id:
        raise InvalidKey("The device keys have the device_id of another device.")
    algorithms = content.get("algorithms")
    if not isinstance(algorithms, list) or not all(isinstance(each, str) for each in algorithms):
        raise InvalidKey("The algorithms of device keys must be an array of strings.")
    key_id = f"{ALGORITHM}:{device_id}"
    ed25519 = _parse_public_keys(content, "The device keys").get(key_id)
    if ed25519 is None or not is_public_key(ed25519):
        raise InvalidKey("The device keys must contain an Ed25519 key of the device.")
    if not isinstance(content.get("signatures"), dict):
        raise InvalidKey("The device keys have no signatures.")
    if not verify_json(content, user_id, key_id, ed25519):
        raise InvalidKeySignature("The device keys are not signed by the device, or its signature is wrong.")
    return DeviceKeys(content, ed25519)


def parse_one_time_key(name: str, value: object) -> OneTimeKey:
    """Returns a one-time or fallback key, called `<algorithm>:<key_id>`. Its signatures are not checked."""
    algorithm, _, key_id = name.partition(":")
    if not all(part and part.isprintable() and fits(part) for part in (algorithm, key_id)):
        raise InvalidKey("The name of a one-time key must have the form <algorithm>:<key_id>, each up to 255 bytes.")
    if isinstance(value, str):
        public_key: object = value
    elif isinstance(value, dict):
        public_key = value.get("key")
        check_signatures(value, "A one-time key")
        if "signatures" not in value:
            raise InvalidKey("A one-time key that is an object must have signatures.")
        if not isinstance(value.get("fallback", False), bool):
            raise InvalidKey("The fallback property of a key must be a boolean.")
        _check_canonical(value, "A one-time key")
    else:
        raise InvalidKey("A one-time key must be a string or an object.")
    if not isinstance(public_key, str) or not public_key:
        raise InvalidKey("A one-time key must have a key, which is a string.")
    if algorithm in _CURVES and not is_public_key(public_key):
        raise InvalidKey("A Curve25519 key must be 32 bytes in base64.")
    if algorithm == "signed_curve25519" and not isinstance(value, dict):
        raise InvalidKey("A signed_curve25519 key must be an object with a signature.")
    return OneTimeKey(algorithm, key_id, public_key, value)


def check_signed_by_device(key: OneTimeKey, user_id: str, device_id: str, ed25519: str) -> None:
    """Raises InvalidKeySignature if a key whose algorithm is signed was not signed by the device with that key."""
    if not isinstance(key.content, dict):
        return
    if not verify_json(key.content, user_id, f"{ALGORITHM}:{device_id}", ed25519):
        raise InvalidKeySignature(f"The key {key.algorithm}:{key.key_id} is not signed by the device.")


def parse_cross_signing_key(value: object, user_id: str, usage: Usage) -> CrossSigningKey:
    """Returns a cross-signing key of the user. Its signatures are not checked. Anything `unsigned` is left out."""
    content = _parse_signed(value, user_id, "The cross-signing key")
    uses = content.get("usage")
    if not isinstance(uses, list) or not all(isinstance(each, str) for each in uses) or usage not in uses:
        raise InvalidKey(f"The usage of the key must be an array that contains {usage}.")
    keys = _parse_public_keys(content, "The cross-signing key")
    if len(keys) != 1:
        raise InvalidKey("A cross-signing key object must have exactly one key.")
    ((key_id, public_key),) = keys.items()
    if key_id != f"{ALGORITHM}:{public_key}" or not is_public_key(public_key) or "=" in public_key:
        raise InvalidKey("A cross-signing key must be an Ed25519 key in unpadded base64, which is also its ID.")
    return CrossSigningKey(content, public_key)


def check_signed_by(key: CrossSigningKey, user_id: str, signer: CrossSigningKey) -> None:
    """Raises InvalidKeySignature unless the key has a valid signature of the user's key `signer`."""
    if not verify_json(key.content, user_id, signer.key_id, signer.public_key):
        raise InvalidKeySignature("The key is not signed by the master signing key, or the signature is wrong.")


def is_public_key(text: object) -> bool:
    """Returns whether the text is a key of 32 bytes in base64."""
    try:
        return len(decode_base64(text)) == KEY_BYTES
    except ValueError:
        return False


def check_signatures(content: Mapping[str, Any], what: str = "A key object") -> None:
    """Raises InvalidKey unless the signatures, if there are any, are strings by user ID and key ID."""
    signatures = content.get("signatures", {})
    if not isinstance(signatures, dict) or not all(
        isinstance(by_key, dict) and all(isinstance(signature, str) for signature in by_key.values())
        for by_key in signatures.values()
    ):
        raise InvalidKey(f"{what} must have signatures by user ID and key ID, which are strings.")


def signatures_by(content: Mapping[str, Any], user_id: str) -> dict[str, str]:
    """Returns the user's signatures of a parsed key object, by key ID."""
    return dict(content.get("signatures", {}).get(user_id, {}))


def with_signatures(content: Mapping[str, Any], signatures: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    """Returns a copy of a key object with exactly these signatures, by user ID and key ID."""
    kept = {user_id: dict(by_key) for user_id, by_key in signatures.items() if by_key}
    return {**without_signatures(content), "signatures": kept} if kept else without_signatures(content)


def without_signatures(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of a key object without its signatures and its unsigned part: what is signed, to be compared."""
    return {name: value for name, value in content.items() if name not in ("signatures", "unsigned")}


def _parse_signed(value: object, user_id: str, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidKey(f"{what} must be an object.")
    if value.get("user_id") != user_id:
        raise InvalidKey(f"{what} must have the user_id of the user.")
    content = {name: part for name, part in value.items() if name != "unsigned"}
    check_signatures(content, what)
    _check_canonical(content, what)
    return content


def _parse_public_keys(content: Mapping[str, Any], what: str) -> dict[str, str]:
    keys = content.get("keys")
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys.values()):
        raise InvalidKey(f"{what} must have keys, an object of strings.")
    return keys


def _check_canonical(content: object, what: str) -> None:
    try:
        canonical_json.encode(content)
    except NotCanonical as error:
        raise InvalidKey(f"{what} cannot be signed: {error}") from None
