"""ID tokens: what a provider of OpenID Connect signs about a person who has logged in there.

The libraries' part: joserfc reads keys and verifies signatures, Authlib's `CodeIDToken` checks the claims (issuer,
audience, authorized party, times, nonce, hash of the access token). Ours: which algorithms and keys are accepted, and
limits. Both import `cryptography`, a third of a second, so they are imported when the first person comes back from a
provider. Everything here blocks: call it in a thread.

Only signatures with a provider's public key are accepted: "none" proves nothing, and with HS256 everyone who knows the
client's secret could sign. Spec: OpenID Connect Core 1.0, section 3.1.3.7; OpenID Connect Back-Channel Logout 1.0
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import orjson

from homeserver import limits
from homeserver.feature import JsonObject

ALGORITHMS = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519",
)  # fmt: skip


class BadToken(Exception):
    """A token that proves nothing. The message is for the log."""


class UnknownKey(BadToken):
    """The token is signed with a key that is not in the provider's set; perhaps it is new."""


def verify_id_token(
    token: str, keys: Any, issuer: str, client_id: str, nonce: str, access_token: str, now_s: int
) -> JsonObject:
    """Returns the claims of an ID token from the token endpoint. Raises BadToken.

    keys: the provider's JSON Web Key Set, of which keys that cannot be used are left out.
    """
    from authlib.oidc.core import CodeIDToken  # late on purpose, see above
    from joserfc.errors import JoseError

    header, claims = _verify_signature(token, keys)
    options = {
        "iss": {"essential": True, "value": issuer},
        "aud": {"essential": True, "value": client_id},
    }
    params = {"nonce": nonce, "client_id": client_id, "access_token": access_token}
    try:
        CodeIDToken(claims, header, options, params).validate(now_s, limits.users.SSO_CLOCK_SKEW_S)
    except (JoseError, ValueError, TypeError) as error:
        raise BadToken(f"the ID token is not valid: {error}") from error
    if not isinstance(claims.get("sub"), str) or not 0 < len(claims["sub"]) <= limits.users.SSO_SUBJECT_CHARACTERS_MAX:
        raise BadToken("the ID token has no usable subject")
    return claims


def _verify_signature(token: str, keys: Any) -> tuple[JsonObject, JsonObject]:
    """Returns header and claims of a token that was signed with one of the keys."""
    from joserfc import jwt
    from joserfc.errors import JoseError
    from joserfc.jws import JWSRegistry

    header = _read_header(token)
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in ALGORITHMS:
        raise BadToken(f"tokens signed with {algorithm!r} are not accepted")
    candidates = [key for key in _usable_keys(keys) if _fits(key, algorithm, kid)]
    if not candidates:
        raise UnknownKey(f"the provider has no key {kid!r} for {algorithm}")
    registry = JWSRegistry(algorithms=list(ALGORITHMS))
    failure = ""
    for key in candidates:
        try:
            decoded = jwt.decode(token, _import_key(key), list(ALGORITHMS), registry)
            return decoded.header, decoded.claims
        except (JoseError, ValueError, TypeError, KeyError, RecursionError) as error:  # of odd keys and tokens
            failure = f"{type(error).__name__}: {error}"
    raise BadToken(f"the signature of the token is wrong: {failure}")


def _read_header(token: str) -> Mapping[str, Any]:
    try:
        part = token.split(".")[0].encode("ascii")
        header = orjson.loads(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)))
    except (UnicodeEncodeError, binascii.Error, ValueError) as error:
        raise BadToken("the token is not a JSON Web Token") from error
    if not isinstance(header, dict) or token.count(".") != 2:
        raise BadToken("the token is not a signed JSON Web Token")
    return header


def _usable_keys(keys: Any) -> list[Mapping[str, Any]]:
    """Returns the public keys of a set that are for signatures, without those that would take long."""
    given = keys.get("keys") if isinstance(keys, dict) else None
    if not isinstance(given, list):
        raise BadToken("the provider's key set is not a JSON Web Key Set")
    return [
        key
        for key in given[: limits.users.SSO_KEYS_MAX]
        if isinstance(key, dict)
        and key.get("kty") in ("RSA", "EC", "OKP")
        and key.get("use", "sig") == "sig"
        and len(str(key.get("n", ""))) <= limits.users.SSO_KEY_CHARACTERS_MAX
        and len(str(key.get("e", ""))) <= 8  # a large exponent makes each check slow
    ]


_TYPES = {"R": "RSA", "P": "RSA", "E": "EC"}


def _fits(key: Mapping[str, Any], algorithm: str, kid: Any) -> bool:
    """Returns whether the key may have signed a token with this header."""
    wanted = "OKP" if algorithm.startswith("Ed") else _TYPES[algorithm[0]]
    return (
        key["kty"] == wanted
        and key.get("alg", algorithm) in (algorithm, *(("EdDSA", "Ed25519") if wanted == "OKP" else ()))
        and (kid is None or key.get("kid") == kid)
    )


def _import_key(key: Mapping[str, Any]) -> Any:
    from joserfc import jwk

    public = {name: value for name, value in key.items() if name in ("kty", "n", "e", "crv", "x", "y", "kid")}
    return jwk.import_key(public, key["kty"])
