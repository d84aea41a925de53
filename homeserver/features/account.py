"""Account management: changing the password and deactivating the account.

Spec: client-server-api/#account-management

Theory of operation of a deactivation

- One write ends the account: its password, its tokens, and what each feature stores of the user
  (`Feature.forget_user`). It also stores a row in `departures`, so that the rest happens even after a crash.
- The request waits until the user has left the rooms of this server, a bounded number of rooms in each write.
- The worklist of departures does the rest, also after a restart: it rejects invites and retracts knocks at other
  servers, which hear of it later if they are down (homeserver/remote/leaves.py), and deletes what was too much for
  one write. Then it deletes the row.
- Every step may be repeated.

docs/erasure.md says what remains, and why.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

import msgspec
import trio

from homeserver import authenticate, limits
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, check_not_guest
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import Feature, JsonObject, Worklist
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.remote.leaves import leave_room
from homeserver.remote.outside import is_outside
from homeserver.resources import ForgetUser, Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.membership import find_membership, list_memberships
from homeserver.users import accounts
from homeserver.users.departures import WAKE_KEY, delete_departure, end_account, list_departures
from homeserver.users.email_validation import delete_validation, email_stage
from homeserver.users.inventory import Personal, forget_rest, list_rest
from homeserver.users.page_sessions import forget_page_sessions
from homeserver.users.passkeys import forget_passkeys
from homeserver.users.password_login import replace_password
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.threepids import EMAIL, find_owner
from homeserver.users.user_interactive import (
    Authentication,
    delete_session,
    forget_sessions,
    owner_flows,
    require_stages,
)

_log = logging.getLogger(__name__)

routes = Routes()

EMAIL_STAGE = email_stage("reset")
_OPEN = ("join", "invite", "knock")


class PasswordBody(msgspec.Struct, frozen=True):
    new_password: str
    logout_devices: bool = True
    auth: JsonObject | None = None


@routes.post("/_matrix/client/v3/account/password", rate_limit="login", allow_suspended=True)
async def change_password(hs: Resources, requester: Requester | None, body: PasswordBody) -> Empty:
    """Users who are not logged in show that an email address of the account is theirs."""
    user_id = None
    if requester is not None:
        check_not_guest(requester)
        user_id = requester.user_id
    check_new_password(hs, body.new_password)
    if user_id is None and not hs.config.email.smtp_host:
        raise MatrixError(401, "M_MISSING_TOKEN", "Log in to change the password. This server sends no email.")
    flows = [(EMAIL_STAGE,)] if user_id is None else owner_flows(user_id)
    authentication = await require_stages(hs, "change password", body.auth, flows, user_id)
    password_hash = await hash_password(hs, body.new_password)
    await hs.database.write(_change_password, requester, password_hash, body.logout_devices, authentication)
    return Empty()


def _change_password(
    tx: Transaction,
    requester: Requester | None,
    password_hash: str,
    logout_devices: bool,
    authentication: Authentication,
) -> None:
    delete_session(tx, authentication)
    user_id = _use_email(tx, authentication) if requester is None else requester.user_id
    device_id = None if requester is None else requester.device_id
    replace_password(tx, user_id, password_hash, logout_devices=logout_devices, except_device_id=device_id)


def _use_email(tx: Transaction, authentication: Authentication) -> UserID:
    """Ends the validation of an email address, and returns the user whose it is."""
    result = authentication.results[EMAIL_STAGE.type]
    user_id = find_owner(tx, EMAIL, result["address"])
    if user_id is None or not accounts.is_active(tx, user_id):
        raise forbidden("No account has this email address any more.")
    delete_validation(tx, result["sid"], user_id)
    return user_id


class DeactivateBody(msgspec.Struct, frozen=True):
    auth: JsonObject | None = None
    id_server: str | None = None
    erase: bool = False


@routes.post("/_matrix/client/v3/account/deactivate", rate_limit="login", allow_suspended=True)
async def deactivate_account(hs: Resources, requester: Requester, body: DeactivateBody) -> JsonObject:
    flows = owner_flows(requester.user_id)
    authentication = await require_stages(hs, "deactivate account", body.auth, flows, requester.user_id)
    await deactivate(hs, requester.user_id, erase=body.erase, authentication=authentication)
    return {"id_server_unbind_result": "success"}  # there is nothing to unbind


async def deactivate(
    hs: Resources, user_id: UserID, *, erase: bool, authentication: Authentication | None = None
) -> None:
    """Ends an account and removes its user from the rooms of this server; with `erase`, erases the user as well.

    Invites from other servers are rejected and knocks retracted soon after. Raises M_NOT_FOUND if there is no such
    account.
    """
    await hs.database.write(_deactivate, hs.forgetters, user_id, erase, authentication or Authentication())
    _forget_in_this_process(hs, user_id)
    await _leave_rooms_here(hs, user_id)


def _deactivate(
    tx: Transaction, forgetters: Sequence[ForgetUser], user_id: UserID, erase: bool, authentication: Authentication
) -> None:
    delete_session(tx, authentication)
    end_account(tx, forgetters, user_id, erase=erase)


class AdminDeactivateBody(msgspec.Struct, frozen=True):
    erase: bool = False


@routes.post("/_synapse/admin/v1/deactivate/{user_id}")
async def deactivate_for_admin(
    hs: Resources, requester: Requester, user_id: UserID, body: AdminDeactivateBody
) -> JsonObject:
    """Part of the admin API, see `homeserver.features.administration`."""
    authenticate.check_admin(requester)
    await deactivate(hs, user_id, erase=body.erase)
    return {"id_server_unbind_result": "success"}


def forget_account(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes what is stored of the account itself, except the row that keeps its name taken."""
    authenticate.delete_account_flags(tx, user_id)
    forget_sessions(tx, user_id)
    forget_page_sessions(tx, user_id)
    forget_passkeys(tx, user_id)
    return False


def _forget_in_this_process(hs: Resources, user_id: UserID) -> None:
    """Drops the user's entries from this process's caches. On other nodes they expire as usual."""
    hs.token_cache.forget_user(user_id)
    hs.token_cache.forget_seen(user_id)
    hs.rate_limits.forget(user_id)


async def finish_departure(hs: Resources, user_id: UserID) -> None:
    """Finishes a deactivation: leaves the remaining rooms, then deletes what was too much for one write."""
    _forget_in_this_process(hs, user_id)
    await _leave_rooms_here(hs, user_id)
    limiter = trio.CapacityLimiter(limits.peers.LEAVES_AT_ONCE_MAX)

    async def leave(room_id: RoomID) -> None:
        async with limiter:
            try:
                await leave_room(hs, user_id, room_id, {})
            except MatrixError as error:
                _log.info("leave refused", extra={"room_id": room_id, "user_id": user_id, "reason": error.error})

    async with trio.open_nursery() as nursery:
        for room_id in await hs.database.read(_list_rooms_elsewhere, user_id):
            nursery.start_soon(leave, room_id)
    while await hs.database.write(_forget_more, hs.forgetters, user_id):
        pass
    await hs.database.write(_finish_departure, user_id, await hs.database.read(list_rest, user_id))


def _forget_more(tx: Transaction, forgetters: Sequence[ForgetUser], user_id: UserID) -> bool:
    """Deletes more of the user's data. Returns whether some is left."""
    user = accounts.find_user(tx, user_id)
    erase = user is not None and user.erased
    is_more = False
    for forget_user in forgetters:
        is_more |= forget_user(tx, user_id, erase)
    return is_more


def _finish_departure(tx: Transaction, user_id: UserID, rest: Sequence[Personal]) -> None:
    """Deletes the departure, and what no feature has deleted. `rest` was read before: some tables have no index."""
    for each in rest:
        _log.warning("data of a deactivated user was left in a table", extra={"table": each.table})
    forget_rest(tx, user_id, rest)
    delete_departure(tx, user_id)


async def _leave_rooms_here(hs: Resources, user_id: UserID) -> None:
    """Leaves the rooms of this server. The request and the worklist share one run: the later one joins it."""
    await hs.flights.join(hs.nursery, ("departure", user_id), _leave_all_rooms, hs, user_id)


async def _leave_all_rooms(hs: Resources, user_id: UserID) -> None:
    room_ids = sorted(await hs.database.read(_list_rooms_here, user_id))
    for start in range(0, len(room_ids), limits.users.PROFILE_ROOMS_PER_WRITE):
        some = room_ids[start : start + limits.users.PROFILE_ROOMS_PER_WRITE]
        try:
            await hs.database.write(_leave_some_rooms, user_id, some)
        except DatabaseDamaged:
            for room_id in some:  # an unreadable room must not keep the user in the others
                with contextlib.suppress(DatabaseDamaged):
                    await hs.database.write(_leave_some_rooms, user_id, [room_id])


def _leave_some_rooms(tx: Transaction, user_id: UserID, room_ids: Sequence[RoomID]) -> None:
    for room_id in room_ids:
        if find_membership(tx, room_id, user_id) not in _OPEN:
            continue
        draft = Draft(room_id, user_id, "m.room.member", {"membership": "leave"}, state_key=user_id)
        try:
            append_local(tx, draft)
        except MatrixError as error:  # a room that refuses must not keep the user in the others
            _log.info("leave refused", extra={"room_id": room_id, "user_id": user_id, "reason": error.error})


def _list_rooms_here(tx: Transaction, user_id: UserID) -> list[RoomID]:
    """Returns the rooms of this server that the user is in, invited to, or knocking on."""
    return [room_id for room_id in _list_open(tx, user_id) if not is_outside(tx, tx.server.name, room_id)]


def _list_rooms_elsewhere(tx: Transaction, user_id: UserID) -> list[RoomID]:
    """Returns the rooms of other servers that the user is invited to or knocking on."""
    return [room_id for room_id in _list_open(tx, user_id) if is_outside(tx, tx.server.name, room_id)]


def _list_open(tx: Transaction, user_id: UserID) -> list[RoomID]:
    return [each.room_id for each in list_memberships(tx, user_id, around_damage=True) if each.membership in _OPEN]


FEATURE = Feature(
    name="account",
    spec="client-server-api/#account-management",
    routes=routes,
    capabilities={"m.change_password": lambda config, requester: {"enabled": not requester.is_guest}},
    worklists=(Worklist("departures", list_departures, finish_departure, WAKE_KEY),),
    forget_user=forget_account,
)
