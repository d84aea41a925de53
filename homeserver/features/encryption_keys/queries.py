"""Finding the keys of users of any server. Spec: client-server-api/#post_matrixclientv3keysquery"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.errors import MatrixError, invalid_param
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import InvalidIdentifier, ServerName, UserID, parse_user_ids
from homeserver.remote.device_keys import query_keys as query_remote_keys
from homeserver.remote.device_lists import list_cached_keys, note_wanted
from homeserver.resources import Resources
from homeserver.users.accounts import is_local
from homeserver.users.encryption.cross_signing import list_user_signatures
from homeserver.users.encryption.shown_keys import list_shown_keys, sign_for

routes = Routes()


class QueryBody(msgspec.Struct, frozen=True):
    """`device_keys`: user ID → device IDs, none for all. `timeout`: how long to wait for other servers, in ms."""

    device_keys: dict[str, list[str]]
    timeout: int | None = None


@routes.post("/_matrix/client/v3/keys/query", allow_guest=True, allow_suspended=True)
async def query_keys(hs: Resources, requester: Requester, body: QueryBody) -> JsonObject:
    wanted = parse_users(body.device_keys)
    limit_requester(hs, requester, "encryption_keys", len(wanted))
    local = {user_id: device_ids for user_id, device_ids in wanted.items() if is_local(hs, user_id)}
    remote = {user_id: wanted[user_id] for user_id in wanted if user_id not in local}
    shown = await hs.database.read(list_shown_keys, local, requester.user_id)
    failures: JsonObject = {}
    if remote:
        cached, unfollowed = await hs.database.read(list_cached_keys, remote)
        shown.add(cached)
        if unfollowed:
            await hs.database.note(note_wanted, unfollowed)
        unknown = {user_id: remote[user_id] for user_id in remote.keys() - cached.device_keys.keys()}
        asked = await query_remote_keys(hs, unknown, read_timeout_s(body.timeout))
        failures = failures_body(asked.failures)
        for answer in asked.answers:
            shown.add(answer)
        signed = await hs.database.read(list_user_signatures, requester.user_id, remote)
        for user_id, signature in signed.items():
            key = shown.master_keys.get(user_id)
            if key is not None and signature.signed_key in key["keys"].values():
                shown.master_keys[user_id] = sign_for(key, requester.user_id, signature)
    return {
        "device_keys": shown.device_keys,
        "failures": failures,
        "master_keys": shown.master_keys,
        "self_signing_keys": shown.self_signing_keys,
        "user_signing_keys": shown.user_signing_keys,
    }


def parse_users(device_keys: Mapping[str, list[str]]) -> dict[UserID, list[str]]:
    """Returns the users and devices of a query. Raises M_INVALID_PARAM for what is not a user ID, and for too many."""
    if len(device_keys) > limits.encryption.KEY_QUERY_USERS_MAX:
        raise invalid_param(f"At most {limits.encryption.KEY_QUERY_USERS_MAX} users in one query of keys.")
    return {owner: device_keys[owner] for owner in _parse_owners(device_keys)}


def parse_owner(user_id: str) -> UserID:
    """Returns the user ID. Raises M_INVALID_PARAM if it is none."""
    (owner,) = _parse_owners([user_id])
    return owner


def _parse_owners(user_ids: Collection[str]) -> Collection[UserID]:
    try:
        return parse_user_ids(user_ids)
    except InvalidIdentifier as error:
        raise invalid_param(f"Keys belong to users: {error}") from error


def read_timeout_s(timeout_ms: int | None) -> float:
    """Returns how long to wait for other servers: the default, unless the client wants the answer sooner."""
    most_ms = limits.encryption.REMOTE_KEYS_TIMEOUT_MS
    return min(max(most_ms if timeout_ms is None else timeout_ms, 0), most_ms) / 1000


def failures_body(failures: Mapping[ServerName, MatrixError]) -> JsonObject:
    """Returns the `failures` of an answer: which servers gave none, and why."""
    return {server: error.body() for server, error in failures.items()}


def check_local(hs: Resources, user_ids: Iterable[UserID]) -> None:
    """Raises M_INVALID_PARAM if another server asks us about users who do not belong to this server."""
    if not all(is_local(hs, user_id) for user_id in user_ids):
        raise invalid_param("A user does not belong to this server. Ask the user's own server.")


def limit_origin(hs: Resources, origin: ServerName, cost: int) -> None:
    """Takes from another server's bucket. Raises M_LIMIT_EXCEEDED."""
    hs.rate_limits.take("federation_encryption_keys", origin, hs.now_ms(), cost)
