"""A dehydrated device receives the keys that are sent while none of the user's devices is logged in. Spec: MSC3814

Messages stay until the device is deleted, so that a client that fails while it reads them can begin again.
"""

from __future__ import annotations

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.errors import MatrixError, forbidden, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.encryption_keys.uploads import Upload, UploadBody, check_upload, store_upload
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.rooms.timeline import Tokens, find_since, parse_sync_token
from homeserver.users.devices import check_device_id, create_device, delete_devices_of_user, find_device
from homeserver.users.encryption.dehydrated import Dehydrated, find_dehydrated, store_dehydrated
from homeserver.users.encryption.inbox import list_inbox

routes = Routes()

PATH = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device"


class DehydratedBody(msgspec.Struct, frozen=True):
    """`device_data`: the private keys, encrypted in a way that `algorithm` in it names. The others as in an upload."""

    device_id: str
    device_data: JsonObject
    device_keys: JsonObject
    initial_device_display_name: str | None = None
    one_time_keys: JsonObject | None = None
    fallback_keys: JsonObject | None = None


class EventsBody(msgspec.Struct, frozen=True):
    next_batch: str | None = None


@routes.put(PATH)
async def put_dehydrated_device(hs: Resources, requester: Requester, body: DehydratedBody) -> JsonObject:
    """Creates the user's dehydrated device, in the place of the one before."""
    check_device_id(body.device_id)
    if not isinstance(body.device_data.get("algorithm"), str):
        raise invalid_param("device_data must name the algorithm by which the device is encrypted.")
    if len(to_json(body.device_data)) > limits.encryption.DEHYDRATED_DATA_BYTES_MAX:
        raise MatrixError(
            413, "M_TOO_LARGE", f"device_data is limited to {limits.encryption.DEHYDRATED_DATA_BYTES_MAX >> 10} KiB."
        )
    limit_requester(hs, requester, "encryption_keys", len(body.one_time_keys or {}) + len(body.fallback_keys or {}))
    keys = UploadBody(body.device_keys, body.one_time_keys, body.fallback_keys)
    upload = await check_upload(hs, requester.user_id, body.device_id, keys)
    await hs.database.write(_replace, requester.user_id, body, upload)
    return {"device_id": body.device_id}


@routes.get(PATH)
async def get_dehydrated_device(hs: Resources, requester: Requester) -> JsonObject:
    device = await hs.database.read(find_dehydrated, requester.user_id)
    if device is None:
        raise _no_device()
    return {"device_id": device.device_id, "device_data": device.device_data}


@routes.delete(PATH)
async def delete_dehydrated_device(hs: Resources, requester: Requester) -> JsonObject:
    return {"device_id": await hs.database.write(_delete, requester.user_id)}


@routes.post(PATH + "/{device_id}/events")
async def get_dehydrated_events(
    hs: Resources, requester: Requester, device_id: str, body: EventsBody | None
) -> JsonObject:
    """Returns the next messages of the dehydrated device. There are no more if there are none in an answer."""
    token = None if body is None else body.next_batch
    return await hs.database.read(_read_events, requester.user_id, device_id, token, hs.database.generation)


def _replace(tx: Transaction, user_id: UserID, body: DehydratedBody, upload: Upload) -> None:
    before = find_dehydrated(tx, user_id)
    if before is not None:
        delete_devices_of_user(tx, user_id, [before.device_id])
    if find_device(tx, user_id, body.device_id) is not None:
        raise invalid_param("The user has such a device already, and it is not dehydrated.")
    name = body.initial_device_display_name
    create_device(tx, user_id, body.device_id, name[: limits.DEVICE_NAME_CHARACTERS_MAX] if name else None)
    store_dehydrated(tx, user_id, Dehydrated(body.device_id, body.device_data))
    store_upload(tx, user_id, body.device_id, upload)


def _delete(tx: Transaction, user_id: UserID) -> str:
    device = find_dehydrated(tx, user_id)
    if device is None:
        raise _no_device()
    delete_devices_of_user(tx, user_id, [device.device_id])
    return device.device_id


def _read_events(tx: Transaction, user_id: UserID, device_id: str, token: str | None, generation: str) -> JsonObject:
    device = find_dehydrated(tx, user_id)
    if device is None or device.device_id != device_id:
        raise forbidden("You can only read the messages of your dehydrated device.")
    # After a restore from a backup all messages are read again.
    since = find_since(tx, parse_sync_token(token)) if token else None
    page = list_inbox(tx, user_id, device_id, since or 0, tx.position)
    return {"events": page.messages, "next_batch": Tokens(page.upto, generation).stream()}


def _no_device() -> MatrixError:
    return not_found("There is no dehydrated device.")
