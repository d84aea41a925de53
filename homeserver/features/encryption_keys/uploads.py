"""Uploading the keys of a device. Spec: client-server-api/#post_matrixclientv3keysupload"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_device, limit_requester
from homeserver.database import Transaction
from homeserver.errors import invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.encryption_keys.cross_signing import refusal
from homeserver.federation.identifiers import UserID
from homeserver.federation.signed_keys import (
    DeviceKeys,
    InvalidKey,
    OneTimeKey,
    check_signed_by_device,
    parse_device_keys,
    parse_one_time_key,
)
from homeserver.resources import Resources
from homeserver.users.devices import create_device, find_device
from homeserver.users.encryption.cross_signing import store_uploaded_keys
from homeserver.users.encryption.device_keys import find_signing_key
from homeserver.users.encryption.one_time_keys import count_keys, store_fallback_keys, store_one_time_keys

routes = Routes()


class UploadBody(msgspec.Struct, frozen=True):
    """The keys that are new. `one_time_keys` and `fallback_keys` are called `<algorithm>:<key_id>`."""

    device_keys: JsonObject | None = None
    one_time_keys: JsonObject | None = None
    fallback_keys: JsonObject | None = None


class Upload(msgspec.Struct, frozen=True):
    """The content of an upload, whose shapes have been checked."""

    device_keys: DeviceKeys | None
    one_time: Sequence[OneTimeKey]
    fallback: Sequence[OneTimeKey]


@routes.post("/_matrix/client/v3/keys/upload", allow_guest=True, allow_suspended=True)
async def upload_keys(hs: Resources, requester: Requester, body: UploadBody) -> JsonObject:
    if not requester.device_id:
        raise invalid_param("Keys belong to a device, and this request comes from none: name one in device_id.")
    count = len(body.one_time_keys or {}) + len(body.fallback_keys or {})
    limit_requester(hs, requester, "encryption_keys", count)
    stored = None
    if body.device_keys is None:
        if not count:  # a client that only wants to know how many keys it has
            counts = await hs.database.read(count_keys, requester.user_id, requester.device_id)
            return {"one_time_key_counts": counts.one_time}
        stored = await hs.database.read(find_signing_key, requester.user_id, requester.device_id)
    upload = await check_upload(hs, requester.user_id, requester.device_id, body, stored)
    return {"one_time_key_counts": await hs.database.write(_store, requester, upload)}


async def check_upload(
    hs: Resources, user_id: UserID, device_id: str, body: UploadBody, stored: str | None = None
) -> Upload:
    """Returns what is uploaded for a device, after checking its signatures. Raises MatrixError.

    stored: the Ed25519 key that the device has already. Without identity keys, signatures cannot be checked yet.
    """
    count = len(body.one_time_keys or {}) + len(body.fallback_keys or {})
    try:
        if count > limits.encryption.SIGNATURES_INLINE_MAX:
            return await hs.workers.run(_parse, user_id, device_id, body, stored)
        return _parse(user_id, device_id, body, stored)
    except InvalidKey as error:
        raise refusal(error) from error


def _parse(user_id: UserID, device_id: str, body: UploadBody, stored: str | None) -> Upload:
    device_keys, ed25519 = None, stored
    if body.device_keys is not None:
        device_keys = parse_device_keys(body.device_keys, user_id, device_id)
        ed25519 = device_keys.ed25519
    one_time, fallback = _parse_keys(body.one_time_keys or {}), _parse_keys(body.fallback_keys or {})
    if ed25519 is not None:
        for key in (*one_time, *fallback):
            check_signed_by_device(key, user_id, device_id, ed25519)
    return Upload(device_keys, one_time, fallback)


def _parse_keys(given: JsonObject) -> list[OneTimeKey]:
    if len(given) > limits.encryption.ONE_TIME_KEYS_PER_DEVICE_MAX:
        raise InvalidKey(f"A device may have at most {limits.encryption.ONE_TIME_KEYS_PER_DEVICE_MAX} one-time keys.")
    return [parse_one_time_key(name, key) for name, key in given.items()]


def _store(tx: Transaction, requester: Requester, upload: Upload) -> dict[str, int]:
    """Stores an upload and returns how many one-time keys the device has, by algorithm."""
    check_device(tx, requester)
    user_id, device_id = requester.user_id, requester.device_id
    if find_device(tx, user_id, device_id) is None:
        if requester.appservice is not None:
            raise not_found("The user has no such device: create it first.")
        create_device(tx, user_id, device_id, None)  # a client in this process has no device until it needs one
    store_upload(tx, user_id, device_id, upload)
    return count_keys(tx, user_id, device_id).one_time


def store_upload(tx: Transaction, user_id: UserID, device_id: str, upload: Upload) -> None:
    """Stores the keys of a device that exists."""
    if upload.device_keys is not None:
        store_uploaded_keys(tx, user_id, device_id, upload.device_keys)
    store_one_time_keys(tx, user_id, device_id, upload.one_time)
    store_fallback_keys(tx, user_id, device_id, upload.fallback)
