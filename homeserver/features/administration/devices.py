"""The admin API for devices of users."""

from __future__ import annotations

import msgspec

from homeserver import limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V2, check_exists, check_local
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.users.accounts import is_active, no_account
from homeserver.users.devices import (
    Device,
    check_device_id,
    create_device,
    delete_devices_of_user,
    find_device,
    list_devices,
    set_display_name,
    with_last_seen,
)
from homeserver.users.encryption.dehydrated import find_dehydrated

DEVICES = f"{V2}/users/{{user_id}}/devices"

routes = Routes()


@routes.get(DEVICES)
async def list_devices_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    devices, dehydrated = await hs.database.read(_list, user_id)
    bodies = [{**_body(hs, each), "dehydrated": each.device_id == dehydrated} for each in devices]
    return {"devices": bodies, "total": len(bodies)}


def _list(tx: Transaction, user_id: UserID) -> tuple[list[Device], str | None]:
    check_exists(tx, user_id)
    dehydrated = find_dehydrated(tx, user_id)
    return list_devices(tx, user_id), None if dehydrated is None else dehydrated.device_id


@routes.get(f"{DEVICES}/{{device_id}}")
async def get_device_of_user(hs: Resources, requester: Requester, user_id: UserID, device_id: str) -> JsonObject:
    check_local(hs, requester, user_id)
    await hs.database.read(check_exists, user_id)
    device = await hs.database.read(find_device, user_id, device_id)
    if device is None:
        raise _no_device()
    return _body(hs, device)


def _body(hs: Resources, device: Device) -> JsonObject:
    """Returns a device in the format that tools expect."""
    device = with_last_seen(device, hs.token_cache)
    return {
        "user_id": device.user_id,
        "device_id": device.device_id,
        "display_name": device.display_name,
        "last_seen_ts": device.last_seen_ms,
        "last_seen_ip": device.last_seen_ip,
        "last_seen_user_agent": device.user_agent,
    }


class NewDeviceBody(msgspec.Struct, frozen=True):
    device_id: str


@routes.post(DEVICES)
async def create_device_of_user(hs: Resources, requester: Requester, user_id: UserID, body: NewDeviceBody) -> Empty:
    """Creates a device that nobody is logged in on. Does nothing if it exists."""
    check_local(hs, requester, user_id)
    check_device_id(body.device_id)
    await hs.database.write(_create, user_id, body.device_id)
    return Empty()


def _create(tx: Transaction, user_id: UserID, device_id: str) -> None:
    if not is_active(tx, user_id):
        raise no_account(user_id)
    if find_device(tx, user_id, device_id) is None:
        create_device(tx, user_id, device_id, None)


class DeviceChanges(msgspec.Struct, frozen=True):
    display_name: str | None = None


@routes.put(f"{DEVICES}/{{device_id}}")
async def rename_device_of_user(
    hs: Resources, requester: Requester, user_id: UserID, device_id: str, body: DeviceChanges
) -> Empty:
    check_local(hs, requester, user_id)
    if body.display_name is not None and len(body.display_name) > limits.DEVICE_NAME_CHARACTERS_MAX:
        raise invalid_param(f"A device name may be at most {limits.DEVICE_NAME_CHARACTERS_MAX} characters long.")
    await hs.database.write(_rename, user_id, device_id, body.display_name)
    return Empty()


def _rename(tx: Transaction, user_id: UserID, device_id: str, display_name: str | None) -> None:
    check_exists(tx, user_id)
    device = find_device(tx, user_id, device_id)
    if device is None:
        raise _no_device()
    if display_name is not None and display_name != device.display_name:
        set_display_name(tx, user_id, device_id, display_name)


@routes.delete(f"{DEVICES}/{{device_id}}")
async def delete_device_of_user(hs: Resources, requester: Requester, user_id: UserID, device_id: str) -> Empty:
    check_local(hs, requester, user_id)
    await hs.database.write(_delete, user_id, [device_id])
    return Empty()


class DevicesBody(msgspec.Struct, frozen=True):
    devices: list[str]


@routes.post(f"{V2}/users/{{user_id}}/delete_devices")
async def delete_devices_for_admin(hs: Resources, requester: Requester, user_id: UserID, body: DevicesBody) -> Empty:
    """Devices that do not exist are ignored, so a request can be repeated."""
    check_local(hs, requester, user_id)
    if len(body.devices) > limits.DEVICES_PER_USER_MAX:
        raise invalid_param("Too many devices in one request.")
    await hs.database.write(_delete, user_id, body.devices)
    return Empty()


def _delete(tx: Transaction, user_id: UserID, device_ids: list[str]) -> None:
    check_exists(tx, user_id)
    delete_devices_of_user(tx, user_id, device_ids)


def _no_device() -> MatrixError:
    return not_found("The user has no such device.")
