"""Uploading cross-signing keys, and signatures made with them. Spec: client-server-api/#cross-signing"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, check_device, limit_requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, bad_json, forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.features.encryption_keys.queries import parse_owner, read_timeout_s
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.federation.signed_keys import CrossSigningKey, InvalidKey, InvalidKeySignature, Usage, check_signatures
from homeserver.federation.signed_keys import parse_cross_signing_key as parse_key
from homeserver.remote.device_keys import query_keys as query_remote_keys
from homeserver.resources import Resources
from homeserver.users.accounts import is_local
from homeserver.users.devices import find_device
from homeserver.users.encryption.cross_signing import (
    check_cross_signing_keys,
    find_cross_signing_keys,
    has_new_keys,
    store_cross_signing_keys,
    store_signature,
)
from homeserver.users.oauth.cross_signing import delete_used_approval, reset_flows, with_stage
from homeserver.users.oauth.sessions import find_session
from homeserver.users.user_interactive import Authentication, delete_session, owner_flows, require_stages

Signed = tuple[UserID, str, JsonObject]
"""The owner of a signed key, its name (a device ID, or a public key), and the key object."""

MasterKeys = dict[UserID, CrossSigningKey | MatrixError]
"""Master keys of users of other servers, or why a server has not told them."""

routes = Routes()


class KeysBody(msgspec.Struct, frozen=True):
    """The keys to store, each optional, and the authentication for replacing keys."""

    master_key: JsonObject | None = None
    self_signing_key: JsonObject | None = None
    user_signing_key: JsonObject | None = None
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v3/keys/device_signing/upload", allow_suspended=True)
@routes.post(
    "/_matrix/client/unstable/keys/device_signing/upload", allow_suspended=True
)  # matrix-js-sdk still asks here
async def upload_cross_signing_keys(hs: Resources, requester: Requester, body: KeysBody) -> Empty:
    keys = _parse_keys(requester.user_id, body)
    authentication = Authentication()
    if requester.appservice is None and await hs.database.read(_needs_authentication, requester.user_id, keys):
        authentication = await _authenticate(hs, requester, keys, body.auth)
    if not await hs.database.write(_store_keys, requester, keys, authentication):
        # Another request has stored the user's first keys meanwhile, so these would replace them.
        authentication = await _authenticate(hs, requester, keys, body.auth)
        await hs.database.write(_store_keys, requester, keys, authentication)
    return Empty()


def _parse_keys(user_id: UserID, body: KeysBody) -> dict[Usage, CrossSigningKey]:
    given: dict[Usage, JsonObject | None] = {
        "master": body.master_key,
        "self_signing": body.self_signing_key,
        "user_signing": body.user_signing_key,
    }
    try:
        return {usage: parse_key(_checked_size(key), user_id, usage) for usage, key in given.items() if key is not None}
    except InvalidKey as error:
        raise refusal(error) from error


async def _authenticate(
    hs: Resources, requester: Requester, keys: Mapping[Usage, CrossSigningKey], auth: JsonObject | None
) -> Authentication:
    public_keys = sorted((usage, key.public_key) for usage, key in keys.items())
    operation = f"replace cross-signing keys {hashlib.sha256(repr(public_keys).encode()).hexdigest()}"
    user_id = requester.user_id
    if await hs.database.read(find_session, user_id, requester.device_id) is None:
        return await require_stages(hs, operation, auth, owner_flows(user_id), user_id)
    return await require_stages(hs, operation, with_stage(auth), reset_flows(hs.config, user_id), user_id)


def _needs_authentication(tx: Transaction, user_id: UserID, keys: Mapping[Usage, CrossSigningKey]) -> bool:
    """Returns whether the keys would replace others, or add to them. The first keys and known ones do neither.

    Raises MatrixError if the keys cannot be stored, so that nobody authenticates in vain.
    """
    stored = find_cross_signing_keys(tx, user_id)
    try:
        check_cross_signing_keys(stored, keys)
    except InvalidKey as error:
        raise refusal(error) from error
    for key in keys.values():
        if find_device(tx, user_id, key.public_key) is not None:
            raise forbidden("A key is the same as the ID of one of the user's devices.")
    return "master" in stored and has_new_keys(stored, keys)


def _store_keys(
    tx: Transaction, requester: Requester, keys: Mapping[Usage, CrossSigningKey], authentication: Authentication
) -> bool:
    """Stores the keys. Returns False if the user has to authenticate first."""
    check_device(tx, requester)
    is_authenticated = bool(authentication.results) or requester.appservice is not None
    if _needs_authentication(tx, requester.user_id, keys) and not is_authenticated:
        return False
    delete_session(tx, authentication)
    delete_used_approval(tx, requester.user_id, authentication)
    store_cross_signing_keys(tx, requester.user_id, keys)
    return True


# --- signatures ---


@routes.post("/_matrix/client/v3/keys/signatures/upload", allow_suspended=True)
async def upload_cross_signing_signatures(hs: Resources, requester: Requester, body: dict) -> JsonObject:
    signed = _parse_signed(body)
    limit_requester(hs, requester, "encryption_keys", len(signed))
    failures: dict[str, JsonObject] = {}
    masters = await _fetch_master_keys(hs, {user_id for user_id, _, _ in signed if not is_local(hs, user_id)})
    for start in range(0, len(signed), limits.encryption.SIGNED_KEYS_PER_WRITE):
        part = signed[start : start + limits.encryption.SIGNED_KEYS_PER_WRITE]
        for user_id, name, error in await hs.database.write(_store_signatures, requester, part, masters):
            failures.setdefault(user_id, {})[name] = error.body()
    return {"failures": failures}


async def _fetch_master_keys(hs: Resources, user_ids: Collection[UserID]) -> MasterKeys:
    """Returns the master keys of users of other servers. Users without one are left out."""
    if not user_ids:
        return {}
    asked = await query_remote_keys(hs, dict.fromkeys(user_ids, ()), read_timeout_s(None))
    found: MasterKeys = {}
    for user_id in user_ids:
        error = asked.failures.get(server_name_of(user_id))
        if error is not None:
            found[user_id] = error
    for answer in asked.answers:
        found |= {user_id: parse_key(key, user_id, "master") for user_id, key in answer.master_keys.items()}
    return found


def _parse_signed(body: JsonObject) -> list[Signed]:
    signed: list[Signed] = []
    for user_id, by_name in body.items():
        owner = parse_owner(user_id)
        if not isinstance(by_name, dict) or not all(isinstance(content, dict) for content in by_name.values()):
            raise bad_json("The body must be a map of user ID to a map of key ID to a signed object.")
        signed += [(owner, name, content) for name, content in by_name.items()]
    if len(signed) > limits.encryption.SIGNED_KEYS_MAX:
        raise invalid_param(f"At most {limits.encryption.SIGNED_KEYS_MAX} signed keys in one request.")
    return signed


def _store_signatures(
    tx: Transaction,
    requester: Requester,
    signed: Sequence[Signed],
    masters: MasterKeys,
) -> list[tuple[UserID, str, MatrixError]]:
    """Stores what it can, and returns why it could not store the others."""
    check_device(tx, requester)
    return list(_store_each_signature(tx, requester, signed, masters))


def _store_each_signature(
    tx: Transaction,
    requester: Requester,
    signed: Sequence[Signed],
    masters: MasterKeys,
) -> Iterator[tuple[UserID, str, MatrixError]]:
    for user_id, name, content in signed:
        try:
            check_signatures(_checked_size(content))
            master = masters.get(user_id)
            if isinstance(master, MatrixError):
                raise master
            store_signature(tx, requester.user_id, user_id, name, content, master)
        except InvalidKey as error:
            yield user_id, name, refusal(error)
        except MatrixError as error:
            yield user_id, name, error


def _checked_size(content: JsonObject) -> JsonObject:
    if len(to_json(content)) > limits.encryption.CROSS_SIGNING_KEY_BYTES_MAX:
        most = limits.encryption.CROSS_SIGNING_KEY_BYTES_MAX
        raise MatrixError(400, "M_TOO_LARGE", f"A signed key may have at most {most} bytes.")
    return content


def refusal(error: InvalidKey) -> MatrixError:
    """Returns the answer to a client whose key was refused: M_INVALID_SIGNATURE or M_INVALID_PARAM."""
    errcode = "M_INVALID_SIGNATURE" if isinstance(error, InvalidKeySignature) else "M_INVALID_PARAM"
    return MatrixError(400, errcode, str(error))
