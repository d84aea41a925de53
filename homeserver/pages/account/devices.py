"""The devices of an account: when each was last seen, its name, and logging it out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.federation.identifiers import UserID
from homeserver.pages.account.authorize import client_values
from homeserver.pages.account.login import ask_again, is_confirmed
from homeserver.pages.account.notices import notice_of
from homeserver.pages.account.visits import Answer, Page, PageRoutes, Problem, Redirect, Visit, page_path
from homeserver.resources import Resources
from homeserver.users.devices import (
    Device,
    delete_devices_of_user,
    find_device,
    list_devices,
    set_display_name,
    with_last_seen,
)
from homeserver.users.oauth.clients import Client, find_client
from homeserver.users.oauth.sessions import find_session, list_sessions

routes = PageRoutes()


@routes.get("devices")
async def show_devices(hs: Resources, visit: Visit) -> Answer:
    found, apps = await hs.database.read(_read_devices, visit.user_id)
    devices = [with_last_seen(each, hs.token_cache) for each in found]
    devices.sort(key=lambda each: each.last_seen_ms or each.created_ms, reverse=True)
    listed = [shown(hs, each, apps.get(each.device_id)) for each in devices]
    return Page("devices.html", {"devices": listed, "notice": notice_of(visit)})


def _read_devices(tx: Transaction, user_id: UserID) -> tuple[list[Device], dict[str, Client]]:
    """Returns the user's devices, and the apps that have logged in on them by OAuth."""
    apps = {each.device_id: find_client(tx, each.client_id) for each in list_sessions(tx, user_id)}
    return list_devices(tx, user_id), {device_id: app for device_id, app in apps.items() if app is not None}


def _read_device(tx: Transaction, user_id: UserID, device_id: str) -> tuple[Device | None, Client | None]:
    session = find_session(tx, user_id, device_id)
    app = None if session is None else find_client(tx, session.client_id)
    return find_device(tx, user_id, device_id), app


def shown(hs: Resources, device: Device, app: Client | None) -> dict[str, Any]:
    """Returns a device as its owner sees it."""
    return {
        "app": None if app is None else client_values(app),
        "device_id": device.device_id,
        "query": quote(device.device_id, safe=""),
        "name": device.display_name or device.device_id,
        "display_name": device.display_name or "",
        "created": day(device.created_ms),
        "seen": "" if device.last_seen_ms is None else ago(hs.now_ms() - device.last_seen_ms),
        "address": device.last_seen_ip or "",
        "user_agent": device.user_agent or "",
    }


def ago(elapsed_ms: int) -> str:
    """Returns how long ago something was, in words."""
    minutes = max(0, elapsed_ms) // 60_000
    for size, unit in ((24 * 60, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            count = minutes // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def day(moment_ms: int) -> str:
    """Returns a day, in UTC: "3 April 2026"."""
    moment = datetime.fromtimestamp(moment_ms / 1000, UTC)
    return f"{moment.day} {moment:%B %Y}"


async def _find(hs: Resources, visit: Visit, device_id: str) -> dict[str, Any]:
    device, app = await hs.database.read(_read_device, visit.user_id, device_id)
    if device is None:
        raise not_found("You have no such device. It may have been logged out already.")
    return shown(hs, with_last_seen(device, hs.token_cache), app)


@routes.get("devices/view")
async def show_device(hs: Resources, visit: Visit) -> Answer:
    device = await _find(hs, visit, visit.query.get("device_id", ""))
    return Page("device.html", {"device": device})


@routes.post("devices/rename")
async def rename_device(hs: Resources, visit: Visit) -> Answer:
    device = await _find(hs, visit, visit.text("device_id"))
    name = " ".join(visit.text("name").split())
    if len(name) > limits.DEVICE_NAME_CHARACTERS_MAX:
        problem = Problem("name", f"A name may have at most {limits.DEVICE_NAME_CHARACTERS_MAX} characters.")
        return Page("device.html", {"device": {**device, "display_name": name}}, (problem,), 400)
    await hs.database.write(_rename, visit.user_id, device["device_id"], name)
    return Redirect(page_path("devices") + "?done=renamed")


def _rename(tx: Transaction, user_id: UserID, device_id: str, name: str) -> None:
    if find_device(tx, user_id, device_id) is not None:
        set_display_name(tx, user_id, device_id, name)


@routes.get("devices/delete")
async def show_delete(hs: Resources, visit: Visit) -> Answer:
    device = await _find(hs, visit, visit.query.get("device_id", ""))
    if not is_confirmed(hs, visit):
        return ask_again(visit.here)
    return Page("delete_device.html", {"device": device})


@routes.post("devices/delete")
async def delete_device(hs: Resources, visit: Visit) -> Answer:
    device_id = visit.text("device_id")
    if not is_confirmed(hs, visit):
        return ask_again(f"{page_path('devices/delete')}?device_id={quote(device_id, safe='')}")
    await hs.database.write(delete_devices_of_user, visit.user_id, [device_id])
    return Redirect(page_path("devices") + "?done=device")
