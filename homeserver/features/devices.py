"""Devices: listing, renaming and deleting a user's sessions. Spec: client-server-api/#device-management"""

from __future__ import annotations

import hashlib

import msgspec
import trio

from homeserver import limits
from homeserver.api.routes import Empty, Response, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.users.devices import (
    check_device_id,
    create_device,
    delete_devices_of_user,
    find_device,
    forget_devices,
    list_devices,
    set_display_name,
    store_seen,
    with_last_seen,
)
from homeserver.users.user_interactive import (
    Authentication,
    delete_session,
    owner_flows,
    require_stages,
)

routes = Routes()


@routes.get("/_matrix/client/v3/devices", allow_guest=True)
async def get_devices(hs: Resources, requester: Requester) -> JsonObject:
    devices = await hs.database.read(list_devices, requester.user_id)
    return {"devices": [with_last_seen(device, hs.token_cache).body() for device in devices]}


@routes.get("/_matrix/client/v3/devices/{device_id}", allow_guest=True)
async def get_device(hs: Resources, requester: Requester, device_id: str) -> JsonObject:
    device = await hs.database.read(find_device, requester.user_id, device_id)
    if device is None:
        raise _no_device()
    return with_last_seen(device, hs.token_cache).body()


class DeviceBody(msgspec.Struct, frozen=True):
    display_name: str | None = None


@routes.put("/_matrix/client/v3/devices/{device_id}", allow_guest=True, allow_suspended=True)
async def update_device(hs: Resources, requester: Requester, device_id: str, body: DeviceBody) -> Response:
    """Returns 200 for an existing device; 201 if an application service creates one."""
    if body.display_name is not None and len(body.display_name) > limits.DEVICE_NAME_CHARACTERS_MAX:
        raise MatrixError(
            400, "M_TOO_LARGE", f"A device name may be at most {limits.DEVICE_NAME_CHARACTERS_MAX} characters long."
        )
    may_create = requester.appservice is not None
    created = await hs.database.write(_update_device, requester.user_id, device_id, body.display_name, may_create)
    return Response(201 if created else 200, {})


def _update_device(
    tx: Transaction, user_id: UserID, device_id: str, display_name: str | None, may_create: bool
) -> bool:
    """Renames the device, or creates it for an application service. Returns True if it was created."""
    device = find_device(tx, user_id, device_id)
    if device is None:
        if not may_create:
            raise _no_device()
        check_device_id(device_id)
        create_device(tx, user_id, device_id, display_name)
        return True
    if display_name is not None and display_name != device.display_name:
        set_display_name(tx, user_id, device_id, display_name)
    return False


class DeleteDeviceBody(msgspec.Struct, frozen=True):
    auth: JsonObject | None = None


@routes.delete("/_matrix/client/v3/devices/{device_id}", allow_suspended=True)
async def delete_device(hs: Resources, requester: Requester, device_id: str, body: DeleteDeviceBody | None) -> Empty:
    auth = body.auth if body is not None else None
    await _delete_with_authentication(hs, requester, [device_id], auth)
    return Empty()


class DeleteDevicesBody(msgspec.Struct, frozen=True):
    devices: list[str]
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v3/delete_devices", allow_suspended=True)
async def delete_devices(hs: Resources, requester: Requester, body: DeleteDevicesBody) -> Empty:
    if len(body.devices) > limits.DEVICES_PER_USER_MAX:
        raise invalid_param("Too many devices in one request.")
    await _delete_with_authentication(hs, requester, body.devices, body.auth)
    return Empty()


async def _delete_with_authentication(
    hs: Resources, requester: Requester, device_ids: list[str], auth: JsonObject | None
) -> None:
    """Deletes devices of the requester. Application services need no further authentication."""
    device_ids = sorted(set(device_ids))
    authentication = Authentication()
    if requester.appservice is None:
        authentication = await require_stages(
            hs,
            f"delete devices {hashlib.sha256(repr(device_ids).encode()).hexdigest()}",
            auth,
            owner_flows(requester.user_id),
            requester.user_id,
        )
    await hs.database.write(_delete_devices, requester.user_id, device_ids, authentication)


def _delete_devices(tx: Transaction, user_id: UserID, device_ids: list[str], authentication: Authentication) -> None:
    delete_session(tx, authentication)
    delete_devices_of_user(tx, user_id, device_ids)


def _no_device() -> MatrixError:
    return not_found("The user has no such device.")


async def follow_last_seen(hs: Resources) -> None:
    """Stores regularly when each device was last seen, in one write for all of them."""
    while True:
        await trio.sleep(limits.DEVICE_SEEN_INTERVAL_S)
        seen = hs.token_cache.take_seen()
        if seen:
            await hs.database.note(store_seen, seen)


FEATURE = Feature(
    name="devices",
    spec="client-server-api/#device-management",
    routes=routes,
    background=(follow_last_seen,),
    forget_user=forget_devices,
)
