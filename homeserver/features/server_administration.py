"""Server administration: locking and suspending accounts, and where a user is logged in.

Spec: client-server-api/#server-administration. Tools for Synapse's admin API use `administration.py`.
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.config import Config
from homeserver.errors import forbidden, invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.administration import get_moderated, moderate_account
from homeserver.users.devices import list_devices, with_last_seen

routes = Routes()


class LockBody(msgspec.Struct, frozen=True):
    locked: bool


class SuspendBody(msgspec.Struct, frozen=True):
    suspended: bool


@routes.get("/_matrix/client/v1/admin/lock/{user_id}")
async def get_admin_lock_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    _check_may_ask(hs, requester, user_id)
    return {"locked": (await hs.database.read(get_moderated, user_id)).is_locked}


@routes.put("/_matrix/client/v1/admin/lock/{user_id}")
async def set_admin_lock_user(hs: Resources, requester: Requester, user_id: UserID, body: LockBody) -> JsonObject:
    _check_may_change(hs, requester, user_id)
    await hs.database.write(moderate_account, user_id, "locked", body.locked)
    return {"locked": body.locked}


@routes.get("/_matrix/client/v1/admin/suspend/{user_id}")
async def get_admin_suspend_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    _check_may_ask(hs, requester, user_id)
    return {"suspended": (await hs.database.read(get_moderated, user_id)).is_suspended}


@routes.put("/_matrix/client/v1/admin/suspend/{user_id}")
async def set_admin_suspend_user(hs: Resources, requester: Requester, user_id: UserID, body: SuspendBody) -> JsonObject:
    _check_may_change(hs, requester, user_id)
    await hs.database.write(moderate_account, user_id, "suspended", body.suspended)
    return {"suspended": body.suspended}


def _check_may_ask(hs: Resources, requester: Requester, user_id: UserID) -> None:
    """Checks the requester before the account is looked up, so that nobody else learns which accounts exist."""
    check_admin(requester)
    if server_name_of(user_id) != hs.config.server_name:
        raise invalid_param("This user belongs to another server.")


def _check_may_change(hs: Resources, requester: Requester, user_id: UserID) -> None:
    _check_may_ask(hs, requester, user_id)
    if user_id == requester.user_id:
        raise forbidden("Administrators may not lock or suspend themselves.")


def get_moderation(config: Config, requester: Requester) -> JsonObject | None:
    """Returns the capability to moderate accounts, None for those who may not."""
    return {"lock": True, "suspend": True} if requester.is_admin else None


# --- whois ---


@routes.get("/_matrix/client/v3/admin/whois/{user_id}")
async def get_who_is(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    """Administrators may ask about everybody on this server, others about themselves."""
    if user_id != requester.user_id:
        _check_may_ask(hs, requester, user_id)
    if await hs.database.read(accounts.find_user, user_id) is None:
        raise not_found("There is no such account.")
    devices = [with_last_seen(device, hs.token_cache) for device in await hs.database.read(list_devices, user_id)]
    return {"user_id": user_id, "devices": {device.device_id: {"sessions": [device.session()]} for device in devices}}


FEATURE = Feature(
    name="server_administration",
    spec="client-server-api/#server-administration",
    routes=routes,
    capabilities={"m.account_moderation": get_moderation},
)
