"""The keys of our users, for other servers. Spec: server-server-api/#end-to-end-encryption, #device-management"""

from __future__ import annotations

import msgspec
import orjson

from homeserver.api.routes import Routes
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import JsonObject
from homeserver.features.encryption_keys.queries import check_local, limit_origin, parse_users
from homeserver.federation.identifiers import ServerName, UserID
from homeserver.resources import Resources
from homeserver.users.accounts import find_user
from homeserver.users.devices import list_device_names
from homeserver.users.encryption.cross_signing import list_cross_signing_keys
from homeserver.users.encryption.device_keys import list_device_keys
from homeserver.users.encryption.device_lists import find_last_update
from homeserver.users.encryption.shown_keys import list_shown_keys

routes = Routes()


class QueryBody(msgspec.Struct, frozen=True):
    """`device_keys`: user ID → device IDs, none for all. All users belong to this server."""

    device_keys: dict[str, list[str]]


@routes.post("/_matrix/federation/v1/user/keys/query", rate_limit="federation")
async def query_user_encryption_keys(hs: Resources, origin: ServerName, body: QueryBody) -> JsonObject:
    wanted = parse_users(body.device_keys)
    check_local(hs, wanted)
    limit_origin(hs, origin, len(wanted))
    shown = await hs.database.read(list_shown_keys, wanted, None)
    return {
        "device_keys": shown.device_keys,
        "master_keys": shown.master_keys,
        "self_signing_keys": shown.self_signing_keys,
    }


@routes.get("/_matrix/federation/v1/user/devices/{user_id}", rate_limit="federation")
async def get_user_devices(hs: Resources, origin: ServerName, user_id: UserID) -> JsonObject:
    check_local(hs, [user_id])
    return await hs.database.read(_list_devices, user_id)


def _list_devices(tx: Transaction, user_id: UserID) -> JsonObject:
    """Returns the user's devices that have keys, with the ID of the last change of this list."""
    if find_user(tx, user_id) is None:
        raise not_found("There is no such user.")
    names = list_device_names(tx, [user_id]).get(user_id, {})
    last = find_last_update(tx, user_id)
    devices = []
    for device_id, keys in list_device_keys(tx, [user_id]).get(user_id, {}).items():
        device: JsonObject = {"device_id": device_id, "keys": orjson.Fragment(keys)}
        if device_id in names:
            device["device_display_name"] = names[device_id]
        devices.append(device)
    answer: JsonObject = {"user_id": user_id, "stream_id": 0 if last is None else last.position, "devices": devices}
    for usage, (_, key) in list_cross_signing_keys(tx, [user_id]).get(user_id, {}).items():
        if usage != "user_signing":
            answer[f"{usage}_key"] = orjson.Fragment(key)
    return answer
