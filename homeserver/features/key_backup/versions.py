"""The versions of a user's key backup. Spec: client-server-api/#server-side-key-backups"""

from __future__ import annotations

import re
from typing import Literal

import msgspec
import orjson

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.key_backup.storage import (
    Version,
    create_version,
    delete_version,
    find_version,
    has_had_version,
    set_auth_data,
)
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources

routes = Routes()

_NUMBER = re.compile(r"[1-9][0-9]{0,14}")

Algorithm = Literal["m.megolm_backup.v1.curve25519-aes-sha2"]


class VersionBody(msgspec.Struct, frozen=True):
    """`version`: only in an update, where it may repeat the version of the path."""

    algorithm: Algorithm
    auth_data: JsonObject
    version: str | None = None


def get_version(tx: Transaction, user_id: UserID, text: str) -> Version:
    """Returns the version that a client calls `text`. Raises M_NOT_FOUND if there is none."""
    version = find_version(tx, user_id, int(text)) if _NUMBER.fullmatch(text) else None
    if version is None:
        raise not_found("There is no such version of the key backup.")
    return version


@routes.post("/_matrix/client/v3/room_keys/version")
async def post_room_keys_version(hs: Resources, requester: Requester, body: VersionBody) -> JsonObject:
    _check_auth_data(body)
    version = await hs.database.write(create_version, requester.user_id, body.algorithm, body.auth_data)
    return {"version": str(version)}


@routes.get("/_matrix/client/v3/room_keys/version")
async def get_room_keys_version_current(hs: Resources, requester: Requester) -> JsonObject:
    version = await hs.database.read(find_version, requester.user_id)
    if version is None:
        raise not_found("There is no key backup.")
    return _body(version)


@routes.get("/_matrix/client/v3/room_keys/version/{version}")
async def get_room_keys_version(hs: Resources, requester: Requester, version: str) -> JsonObject:
    return _body(await hs.database.read(get_version, requester.user_id, version))


@routes.put("/_matrix/client/v3/room_keys/version/{version}")
async def put_room_keys_version(hs: Resources, requester: Requester, version: str, body: VersionBody) -> Empty:
    if body.version not in (None, version):
        raise invalid_param("The version in the body must be the one in the path.")
    _check_auth_data(body)
    await hs.database.write(_update_version, requester.user_id, version, body)
    return Empty()


@routes.delete("/_matrix/client/v3/room_keys/version/{version}")
async def delete_room_keys_version(hs: Resources, requester: Requester, version: str) -> Empty:
    await hs.database.write(_delete_version, requester.user_id, version)
    return Empty()


def _update_version(tx: Transaction, user_id: UserID, text: str, body: VersionBody) -> None:
    version = get_version(tx, user_id, text)
    if version.algorithm != body.algorithm:
        raise invalid_param("The algorithm of a backup cannot change. Create a new version.")
    set_auth_data(tx, version, body.auth_data)


def _delete_version(tx: Transaction, user_id: UserID, text: str) -> None:
    """Deletes a version. Deleting one that is already deleted succeeds, so that a client can repeat the request."""
    version = find_version(tx, user_id, int(text)) if _NUMBER.fullmatch(text) else None
    if version is not None:
        delete_version(tx, version)
    elif not _NUMBER.fullmatch(text) or not has_had_version(tx, user_id, int(text)):
        raise not_found("There is no such version of the key backup.")


def _check_auth_data(body: VersionBody) -> None:
    if len(to_json(body.auth_data)) > limits.users.KEY_BACKUP_AUTH_DATA_BYTES_MAX:
        most = limits.users.KEY_BACKUP_AUTH_DATA_BYTES_MAX >> 10
        raise MatrixError(413, "M_TOO_LARGE", f"The auth_data of a backup may be at most {most} KiB long.")


def _body(version: Version) -> JsonObject:
    return {
        "algorithm": version.algorithm,
        "auth_data": orjson.loads(version.auth_data),
        "count": version.keys,
        "etag": str(version.etag),
        "version": str(version.version),
    }
