"""Server keys: publishing ours, reading those of other servers, and vouching for them as a notary.

Spec: server-server-api/#retrieving-server-keys. A server signs the statement about its own keys; a notary adds its
signature to the same object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from homeserver.federation.canonical_json import INT_MAX
from homeserver.federation.identifiers import ServerName
from homeserver.federation.signing import SigningKey, decode_base64, sign_json, verify_json

VALIDITY_MS_MAX = 7 * 24 * 60 * 60 * 1000
"""A key is trusted for at most this long after it was fetched, whatever its server says, so that stolen keys expire."""

VERIFY_KEYS_MAX = 100
OLD_VERIFY_KEYS_MAX = 1000
NOTARY_RESPONSES_MAX = 1000

_KEY_ID = re.compile(r"ed25519:[a-zA-Z0-9_]{1,128}", re.ASCII)
_KEY_BYTES = 32

Milliseconds = Annotated[int, Meta(ge=0, le=INT_MAX)]


class InvalidKeys(ValueError):
    """The object is not a trustworthy statement of a server about its keys; the message says why."""


class VerifyKey(msgspec.Struct, frozen=True):
    """A public key, and until when its signatures count. `expired_ts` is set if its server no longer uses it."""

    key_base64: str
    valid_until_ts: int
    expired_ts: int | None = None

    def is_valid_at(self, signed_ts: int) -> bool:
        """Returns whether a signature made at `signed_ts` counts. Room versions 1 to 4 ignore this."""
        return signed_ts <= (self.valid_until_ts if self.expired_ts is None else self.expired_ts)

    def may_sign_requests(self, now_ms: int) -> bool:
        """Returns whether the key may sign requests now: `old_verify_keys` are "only valid for signing events"."""
        return self.expired_ts is None and now_ms <= self.valid_until_ts


@dataclass(frozen=True, slots=True)
class ServerKeys:
    """A server's own statement about its ed25519 keys, by key ID. `response` is the signed object it came in.

    valid_until_ts: as the server says, but at most 7 days after it was fetched.
    """

    server_name: ServerName
    verify_keys: Mapping[str, VerifyKey]
    old_verify_keys: Mapping[str, VerifyKey]
    valid_until_ts: int
    response: dict[str, Any] = field(repr=False)

    def find(self, key_id: str) -> VerifyKey | None:
        """Returns the current or old key with this ID, or None."""
        return self.verify_keys.get(key_id) or self.old_verify_keys.get(key_id)


def build_key_response(
    server_name: ServerName, key: SigningKey, old_keys: Mapping[str, VerifyKey], valid_until_ts: int
) -> dict[str, Any]:
    """Returns the signed answer to `GET /_matrix/key/v2/server`. Each of `old_keys`, by key ID, has an `expired_ts`."""
    response = {
        "server_name": server_name,
        "verify_keys": {key.key_id: {"key": key.verify_key_base64}},
        "old_verify_keys": {
            key_id: {"key": old.key_base64, "expired_ts": old.expired_ts} for key_id, old in old_keys.items()
        },
        "valid_until_ts": valid_until_ts,
    }
    return sign_json(response, server_name, key)


class _Key(Struct, frozen=True):
    key: str


class _OldKey(Struct, frozen=True):
    key: str
    expired_ts: Milliseconds


class _Response(Struct, frozen=True):
    server_name: str
    verify_keys: Annotated[dict[str, Any], Meta(max_length=VERIFY_KEYS_MAX)]
    valid_until_ts: Milliseconds
    old_verify_keys: Annotated[dict[str, Any], Meta(max_length=OLD_VERIFY_KEYS_MAX)] = {}


def parse_key_response(response: object, server_name: ServerName, fetched_ms: int) -> ServerKeys:
    """Returns the server's statement, fetched at `fetched_ms`. Raises InvalidKeys unless one of its current keys signed
    it.

    Leaves out malformed keys and keys of unknown algorithms. A `valid_until_ts` in the past is not an error: notaries
    serve such statements so that old events can still be checked.
    """
    try:
        parsed = msgspec.convert(response, _Response)
    except msgspec.ValidationError as error:
        raise InvalidKeys(str(error)) from None
    assert isinstance(response, dict)  # or it would not have been converted
    if parsed.server_name != server_name:
        raise InvalidKeys("The keys belong to another server.")
    # Servers MUST use the lesser of this field and 7 days into the future when determining if a key is valid.
    valid_until_ts = min(parsed.valid_until_ts, fetched_ms + VALIDITY_MS_MAX)
    verify_keys = {key_id: VerifyKey(key.key, valid_until_ts) for key_id, key in _read_keys(parsed.verify_keys, _Key)}
    if not any(verify_json(response, server_name, key_id, key.key_base64) for key_id, key in verify_keys.items()):
        raise InvalidKeys("None of the keys has signed the statement.")
    old_verify_keys = {
        key_id: VerifyKey(key.key, min(key.expired_ts, valid_until_ts), key.expired_ts)
        for key_id, key in _read_keys(parsed.old_verify_keys, _OldKey)
        if key_id not in verify_keys
    }
    return ServerKeys(server_name, verify_keys, old_verify_keys, valid_until_ts, response)


def add_notary_signature(response: dict[str, Any], notary: ServerName, key: SigningKey) -> dict[str, Any]:
    """Returns the same statement, also signed by a notary."""
    return sign_json(response, notary, key)


def build_notary_response(responses: Iterable[dict[str, Any]], notary: ServerName, key: SigningKey) -> dict[str, Any]:
    """Returns the answer to `/_matrix/key/v2/query`: statements of several servers, each also signed by the notary."""
    return {"server_keys": [add_notary_signature(response, notary, key) for response in responses]}


def parse_notary_response(
    body: object, notary: ServerName, notary_keys: Mapping[str, VerifyKey], fetched_ms: int
) -> list[ServerKeys]:
    """Returns the statements in a notary's answer that both their server and the notary have signed.

    Leaves out the others. Raises InvalidKeys if the answer as a whole is malformed. The notary may include servers that
    we did not ask for.
    """
    if not isinstance(body, dict) or not isinstance(body.get("server_keys"), list):
        raise InvalidKeys("Expected an object with a list of `server_keys`.")
    found = []
    for response in body["server_keys"][:NOTARY_RESPONSES_MAX]:
        if not isinstance(response, dict) or not isinstance(response.get("server_name"), str):
            continue
        if not any(verify_json(response, notary, key_id, key.key_base64) for key_id, key in notary_keys.items()):
            continue
        try:
            found.append(parse_key_response(response, ServerName(response["server_name"]), fetched_ms))
        except InvalidKeys:
            continue
    return found


def merge_keys(statements: Iterable[ServerKeys]) -> dict[ServerName, dict[str, VerifyKey]]:
    """Returns all keys by server and key ID. For each key the statement with the latest `valid_until_ts` counts.

    A notary may hold several statements of one server, from before and after it changed its keys.
    """
    merged: dict[ServerName, dict[str, VerifyKey]] = {}
    for statement in sorted(statements, key=lambda each: each.valid_until_ts):
        keys = merged.setdefault(statement.server_name, {})
        keys.update(statement.old_verify_keys)
        keys.update(statement.verify_keys)
    return merged


def _read_keys(keys: Mapping[str, Any], kind: type[Any]) -> Iterable[tuple[str, Any]]:
    for key_id, value in keys.items():
        if _KEY_ID.fullmatch(key_id) is None:
            continue
        try:
            key = msgspec.convert(value, kind)
            usable = len(decode_base64(key.key)) == _KEY_BYTES
        except ValueError:  # of the wrong shape, or not base64
            continue
        if usable:
            yield key_id, key
