"""Signing JSON with Ed25519. Spec: appendices/#signing-json"""

from __future__ import annotations

import binascii
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nacl.bindings import crypto_sign, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import BadSignatureError

from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical

ALGORITHM = "ed25519"

_SEED_BYTES = 32
_VERIFY_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_KEY_VERSION = re.compile(r"[A-Za-z0-9_]+", re.ASCII)
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}", re.ASCII)


class InvalidSigningKey(ValueError):
    """The text is not a signing key; the message says why, and never repeats the secret."""


def encode_base64(data: bytes) -> str:
    """Returns unpadded base64 in the standard alphabet."""
    return b64encode(data).rstrip(b"=").decode()


def decode_base64(text: object) -> bytes:
    """Decodes base64 in the standard or the URL-safe alphabet, padded or not. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("Base64 must be a string.")
    standard = text.replace("-", "+").replace("_", "/")
    if _BASE64.fullmatch(standard) is None:
        raise ValueError("Not base64.")
    bare = standard.rstrip("=")
    if len(bare) % 4 == 1:
        raise ValueError("Base64 cannot have this length.")
    return binascii.a2b_base64(bare + "==")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key of a server. The seed is secret and appears in no repr."""

    version: str
    seed: bytes = field(repr=False)
    key_id: str = field(init=False)
    """"ed25519:<version>"""
    verify_key_base64: str = field(init=False, compare=False)
    _secret: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if _KEY_VERSION.fullmatch(self.version) is None:
            raise InvalidSigningKey("A key version must consist of letters, digits and underscores.")
        if len(self.seed) != _SEED_BYTES:
            raise InvalidSigningKey(f"The seed of a signing key must have {_SEED_BYTES} bytes.")
        verify_key, secret = crypto_sign_seed_keypair(self.seed)
        object.__setattr__(self, "key_id", f"{ALGORITHM}:{self.version}")
        object.__setattr__(self, "verify_key_base64", encode_base64(verify_key))
        object.__setattr__(self, "_secret", secret)

    def sign(self, message: bytes) -> bytes:
        """Returns the signature: 64 bytes, always the same for the same message."""
        return crypto_sign(message, self._secret)[:_SIGNATURE_BYTES]


def parse_signing_key(text: str) -> SigningKey:
    """Returns the key in a signing.key file: "ed25519 <version> <unpadded base64 seed>". Raises InvalidSigningKey."""
    words = text.split()
    if len(words) != 3 or words[0] != ALGORITHM:
        raise InvalidSigningKey("A signing key must be written as 'ed25519 <version> <seed>'.")
    try:
        seed = decode_base64(words[2])
    except ValueError:
        raise InvalidSigningKey("The seed of a signing key must be base64.") from None
    return SigningKey(words[1], seed)


def format_signing_key(key: SigningKey) -> str:
    """Returns the text of a signing.key file, which parse_signing_key reads. It contains the secret."""
    return f"{ALGORITHM} {key.version} {encode_base64(key.seed)}\n"


def signed_bytes(obj: Mapping[str, Any]) -> bytes:
    """Returns the bytes that a signature covers: canonical JSON without `signatures` and `unsigned`.

    Lenient, since events of room versions below 6 may contain floats and large integers. Raises NotCanonical.
    """
    covered = {key: value for key, value in obj.items() if key != "signatures" and key != "unsigned"}
    return canonical_json.encode(covered, strict=False, depth_max=canonical_json.WRAPPED_DEPTH_MAX)


def sign_json(obj: Mapping[str, Any], signing_name: str, key: SigningKey) -> dict[str, Any]:
    """Returns a copy of the object with one more signature. Raises NotCanonical."""
    return with_signature(obj, signing_name, key.key_id, encode_base64(key.sign(signed_bytes(obj))))


def with_signature(obj: Mapping[str, Any], signing_name: str, key_id: str, signature: str) -> dict[str, Any]:
    """Returns a copy of the object with this signature added. Replaces `signatures` that are not objects of objects."""
    signatures = obj.get("signatures")
    signatures = dict(signatures) if isinstance(signatures, dict) else {}
    by_name = signatures.get(signing_name)
    signatures[signing_name] = {**by_name, key_id: signature} if isinstance(by_name, dict) else {key_id: signature}
    return {**obj, "signatures": signatures}


def verify_json(obj: object, signing_name: str, key_id: str, verify_key_base64: str) -> bool:
    """Returns whether the object has a valid signature of that name and key. False if anything is malformed."""
    if not isinstance(obj, dict):
        return False
    signatures = obj.get("signatures")
    by_name = signatures.get(signing_name) if isinstance(signatures, dict) else None
    signature = by_name.get(key_id) if isinstance(by_name, dict) else None
    if signature is None:
        return False
    try:
        message = signed_bytes(obj)
    except NotCanonical:
        return False
    return verify_bytes(message, signature, verify_key_base64)


def verify_bytes(message: bytes, signature_base64: object, verify_key_base64: object) -> bool:
    """Returns whether the signature of the message is valid. False if anything is malformed."""
    return verify_parts((message,), signature_base64, verify_key_base64)


def verify_parts(parts: Iterable[bytes], signature_base64: object, verify_key_base64: object) -> bool:
    """Does the same as `verify_bytes` for a message in parts, which saves copying a large one."""
    try:
        signature = decode_base64(signature_base64)
        verify_key = decode_base64(verify_key_base64)
    except ValueError:
        return False
    if len(signature) != _SIGNATURE_BYTES or len(verify_key) != _VERIFY_KEY_BYTES:
        return False
    try:
        crypto_sign_open(b"".join((signature, *parts)), verify_key)
    except BadSignatureError:
        return False
    return True
