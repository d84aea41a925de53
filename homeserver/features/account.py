"""Account management: a new password, and the end of an account. Spec: client-server-api/#account-management

A deactivated user leaves every room, a bounded number of rooms at a time; who is still to leave is stored with the
deactivation, so that a crash in between forgets nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from homeserver import authenticate, limits
from homeserver.api import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import UserID
from homeserver.lane import Lane
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.erasure import erase_sender
from homeserver.rooms.membership import list_memberships
from homeserver.users import accounts
from homeserver.users.account_data import delete_account_data
from homeserver.users.devices import delete_devices_of_user
from homeserver.users.filters import delete_filters
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.profile import delete_profile
from homeserver.users.push_rules import delete_push_rules
from homeserver.users.user_interactive import (
    Authentication,
    finish_authentication,
    password_stage,
    require_stages,
)

_log = logging.getLogger(__name__)

SCHEMA = Schema(
    "account",
    (Step("create", "CREATE TABLE departures (user_nid INTEGER PRIMARY KEY);"),),
)

routes = Routes()


class PasswordBody(msgspec.Struct, frozen=True):
    new_password: str
    logout_devices: bool = True
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v3/account/password", rate_limit="login")
async def change_password(hs: Resources, requester: Requester, body: PasswordBody) -> Empty:
    check_new_password(hs, body.new_password)
    flows = [(password_stage(requester.user_id),)]
    authentication = await require_stages(hs, "change password", body.auth, flows, requester.user_id)
    password_hash = await hash_password(hs, body.new_password)
    await hs.database.write(_change_password, hs, requester, password_hash, body.logout_devices, authentication)
    return Empty()


def _change_password(
    tx: Transaction,
    hs: Resources,
    requester: Requester,
    password_hash: str,
    logout_devices: bool,
    authentication: Authentication,
) -> None:
    finish_authentication(tx, authentication)
    accounts.store_password_hash(tx, requester.user_id, password_hash)
    if logout_devices:
        authenticate.delete_tokens_of_user(tx, hs.token_cache, requester.user_id, except_device_id=requester.device_id)
        delete_devices_of_user(tx, hs, requester.user_id, except_device_id=requester.device_id)


async def set_password(hs: Resources, user_id: UserID, password: str | None, *, logout_devices: bool) -> None:
    """Replaces a password without asking for the old one: for administrators and embedding programs.

    None: nobody can log in with a password any more. Raises M_NOT_FOUND if there is no such account.
    """
    password_hash = None
    if password is not None:
        check_new_password(hs, password)
        password_hash = await hash_password(hs, password)
    await hs.database.write(_set_password, hs, user_id, password_hash, logout_devices)


def _set_password(
    tx: Transaction, hs: Resources, user_id: UserID, password_hash: str | None, logout_devices: bool
) -> None:
    if not accounts.exists(tx, user_id):
        raise accounts.no_account(user_id)
    accounts.store_password_hash(tx, user_id, password_hash)
    if logout_devices:
        authenticate.delete_tokens_of_user(tx, hs.token_cache, user_id)
        delete_devices_of_user(tx, hs, user_id)


class DeactivateBody(msgspec.Struct, frozen=True):
    auth: JsonObject | None = None
    id_server: str | None = None
    erase: bool = False


@routes.post("/_matrix/client/v3/account/deactivate", rate_limit="login")
async def deactivate_account(hs: Resources, requester: Requester, body: DeactivateBody) -> JsonObject:
    flows = [(password_stage(requester.user_id),)]
    authentication = await require_stages(hs, "deactivate account", body.auth, flows, requester.user_id)
    await deactivate(hs, requester.user_id, erase=body.erase, authentication=authentication)
    return {"id_server_unbind_result": "success"}  # there is nothing to unbind


async def deactivate(
    hs: Resources, user_id: UserID, *, erase: bool, authentication: Authentication | None = None
) -> None:
    """Ends an account and takes its user out of every room; with `erase` forgets what is kept of the user.

    Raises M_NOT_FOUND if there is no such account.
    """
    await hs.database.write(_deactivate, hs, user_id, erase, authentication or Authentication())
    await _leave_all_rooms(hs, user_id)


def _deactivate(
    tx: Transaction, hs: Resources, user_id: UserID, erase: bool, authentication: Authentication
) -> None:
    finish_authentication(tx, authentication)
    if accounts.get_user(tx, user_id) is None:
        raise accounts.no_account(user_id)
    accounts.deactivate_user(tx, hs, user_id, erase=erase)
    delete_devices_of_user(tx, hs, user_id)
    tx.run("INSERT INTO departures (user_nid) VALUES (?) ON CONFLICT (user_nid) DO NOTHING", tx.intern(user_id))
    if erase:
        delete_account_data(tx, user_id)
        delete_filters(tx, user_id)
        delete_push_rules(tx, user_id)
        delete_profile(tx, user_id)
        erase_sender(tx, user_id)


async def _leave_all_rooms(hs: Resources, user_id: UserID) -> None:
    after: str | None = ""
    while after is not None:
        after = await hs.database.write(_leave_some_rooms, hs, user_id, after)


def _leave_some_rooms(tx: Transaction, hs: Resources, user_id: UserID, after: str) -> str | None:
    """Leaves rooms behind `after`; answers the last of them, None when all are left.

    An invite of a room that no user of this server is in stays as it is: nobody will answer it.
    """
    rooms = sorted(
        each.room_id
        for each in list_memberships(tx, user_id)
        if each.membership in ("join", "invite", "knock") and each.room_id > after
    )
    for room_id in rooms[: limits.PROFILE_ROOMS_PER_WRITE]:
        draft = Draft(room_id, user_id, "m.room.member", {"membership": "leave"}, state_key=user_id)
        try:
            append_local(tx, hs, draft)
        except MatrixError as error:  # one room that refuses must not keep the user in the others
            _log.info("leave refused", extra={"room_id": room_id, "user_id": user_id, "reason": error.error})
    if len(rooms) > limits.PROFILE_ROOMS_PER_WRITE:
        return rooms[limits.PROFILE_ROOMS_PER_WRITE - 1]
    tx.run("DELETE FROM departures WHERE user_nid = ?", tx.find(user_id))
    return None


async def finish_departures(hs: Resources) -> None:
    """After a start: takes those out of their rooms who were not out of them before the end."""

    async def finish(user_ids: Sequence[UserID]) -> None:
        for user_id in user_ids:
            await _leave_all_rooms(hs, user_id)

    await Lane("departures", hs.database, hs.metrics).work(await hs.database.read(_list_departures), finish)


def _list_departures(tx: Transaction) -> list[UserID]:
    return [UserID(name) for name in tx.names(tx.values("SELECT user_nid FROM departures")).values()]


FEATURE = Feature(
    name="account",
    spec="client-server-api/#account-management",
    schema=SCHEMA,
    routes=routes,
    background=(finish_departures,),
)
