"""The admin API for accounts: lists, and what is stored of one. `account_changes` has what changes them."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin, find_rate_limit
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, V2, V3, Direction, check_exists, check_local, check_page
from homeserver.features.administration.common import next_token as more
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.rooms.membership import list_joined_rooms, list_memberships
from homeserver.rooms.moderation import count_invites_sent, count_joins
from homeserver.users import accounts
from homeserver.users.account_data import list_all
from homeserver.users.administration import AccountView, Order, Page, Wanted, find_account, list_page
from homeserver.users.devices import list_devices, with_last_seen
from homeserver.users.push.pushers import list_pushers
from homeserver.users.single_sign_on import find_by_external_id, list_external_ids
from homeserver.users.threepids import EMAIL, find_owner, fold_email, list_threepids

USER = f"{V1}/users/{{user_id}}"

routes = Routes()


# --- lists ---


class UsersQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """from: how many accounts to leave out. name: a part of the localpart or of the display name.

    guests, deactivated, locked: see each version of the list. admins: only administrators, or everybody else.
    """

    start: int = 0
    limit: int = 100
    user_id: str = ""
    name: str = ""
    guests: bool = True
    admins: bool | None = None
    deactivated: bool | None = None
    locked: bool = False
    order_by: Order = "name"
    direction: Direction = "f"
    not_user_type: list[str] = []


@routes.get(f"{V2}/users")
async def list_users_for_admin(hs: Resources, requester: Requester, query: UsersQuery) -> JsonObject:
    """Includes deactivated accounts only on request."""
    return await _list(hs, requester, query, None if query.deactivated else False)


@routes.get(f"{V3}/users")
async def list_users_by_state(hs: Resources, requester: Requester, query: UsersQuery) -> JsonObject:
    """Includes deactivated accounts; with `deactivated` only these, or none of them."""
    return await _list(hs, requester, query, query.deactivated)


async def _list(hs: Resources, requester: Requester, query: UsersQuery, deactivated: bool | None) -> JsonObject:
    check_admin(requester)
    limit = check_page(query.start, query.limit)
    wanted = Wanted(
        id_part=query.user_id,
        name_part=query.name,
        guests=None if query.guests else False,
        admins=query.admins,
        deactivated=deactivated,
        locked=None if query.locked else False,
        excluded_types=frozenset(query.not_user_type),
    )
    page = Page(query.order_by, query.direction == "b", query.start, limit)
    found, total = await hs.database.read(list_page, wanted, page)
    return {"users": [account_body(each) for each in found], "total": total, **more(query.start, limit, total)}


def account_body(account: AccountView) -> JsonObject:
    """Returns an account in the format of the list."""
    return {
        "name": account.user_id,
        "displayname": account.displayname,
        "avatar_url": account.avatar_url,
        "admin": account.flags.is_admin,
        "is_guest": account.flags.is_guest,
        "user_type": account.user.user_type,
        "deactivated": account.user.is_deactivated,
        "erased": account.user.erased,
        "locked": account.flags.is_locked,
        "suspended": account.flags.is_suspended,
        "shadow_banned": account.flags.is_shadow_banned,
        "approved": True,
        "creation_ts": account.user.created_ms,
        "last_seen_ts": account.last_seen_ms,
    }


# --- one account ---


@routes.get(f"{V2}/users/{{user_id}}")
async def get_user_for_admin(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    return await hs.database.read(get_account_body, user_id)


def get_account_body(tx: Transaction, user_id: UserID) -> JsonObject:
    """Returns an account with everything that tools show of it. Raises M_NOT_FOUND."""
    account = find_account(tx, user_id)
    if account is None:
        raise accounts.no_account(user_id)
    return {
        **account_body(account),
        "threepids": [
            {"medium": each.medium, "address": each.address, "added_at": each.added_ms,
             "validated_at": each.validated_ms}
            for each in list_threepids(tx, user_id)
        ],
        "external_ids": [
            {"auth_provider": provider, "external_id": subject}
            for provider, subject in list_external_ids(tx, user_id)
        ],
        "appservice_id": account.user.appservice,
        "consent_server_notice_sent": None,
        "consent_version": None,
        "consent_ts": None,
        "devices": [device.body() for device in list_devices(tx, user_id)],
    }  # fmt: skip


@routes.get(f"{USER}/admin")
async def get_whether_admin(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    account = await hs.database.read(find_account, user_id)
    if account is None:
        raise accounts.no_account(user_id)
    return {"admin": account.flags.is_admin}


@routes.get(f"{V1}/whois/{{user_id}}")
async def get_sessions_for_admin(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    await hs.database.read(check_exists, user_id)
    devices = [with_last_seen(device, hs.token_cache) for device in await hs.database.read(list_devices, user_id)]
    return {"user_id": user_id, "devices": {device.device_id: {"sessions": [device.session()]} for device in devices}}


@routes.get(f"{USER}/joined_rooms")
async def list_joined_rooms_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    """The user may belong to another server. A user that this server does not know is in no room."""
    check_admin(requester)
    rooms = sorted(await hs.database.read(list_joined_rooms, user_id))
    return {"joined_rooms": rooms, "total": len(rooms)}


@routes.get(f"{USER}/memberships")
async def list_memberships_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_admin(requester)
    memberships = await hs.database.read(list_memberships, user_id)
    return {"memberships": {each.room_id: each.membership for each in memberships}}


class SinceQuery(msgspec.Struct, frozen=True):
    """from_ts: milliseconds since 1970."""

    from_ts: Annotated[int, msgspec.Meta(ge=0, le=2**53)]


@routes.get(f"{USER}/sent_invite_count")
async def count_invites_of_user(hs: Resources, requester: Requester, user_id: UserID, query: SinceQuery) -> JsonObject:
    check_local(hs, requester, user_id)
    return {"invite_count": await hs.database.read(count_invites_sent, user_id, query.from_ts)}


@routes.get(f"{USER}/cumulative_joined_room_count")
async def count_joins_of_user(hs: Resources, requester: Requester, user_id: UserID, query: SinceQuery) -> JsonObject:
    check_local(hs, requester, user_id)
    return {"cumulative_joined_room_count": await hs.database.read(count_joins, user_id, query.from_ts)}


@routes.get(f"{USER}/pushers")
async def list_pushers_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    await hs.database.read(check_exists, user_id)
    pushers = await hs.database.read(list_pushers, user_id)
    return {"pushers": [pusher.body() for pusher in pushers], "total": len(pushers)}


@routes.get(f"{USER}/accountdata")
async def list_account_data_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    return await hs.database.read(_account_data, user_id)


def _account_data(tx: Transaction, user_id: UserID) -> JsonObject:
    check_exists(tx, user_id)
    everywhere: dict[str, Any] = {}
    rooms: dict[str, dict[str, Any]] = {}
    for room_id, data_type, content in list_all(tx, user_id):
        (everywhere if room_id is None else rooms.setdefault(room_id, {}))[data_type] = content
    return {"account_data": {"global": everywhere, "rooms": rooms}}


@routes.get(f"{USER}/override_ratelimit")
async def get_rate_limit_of_user(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_local(hs, requester, user_id)
    await hs.database.read(check_exists, user_id)
    bucket = await hs.database.read(find_rate_limit, user_id)
    return {} if bucket is None else {"messages_per_second": bucket.per_second, "burst_count": bucket.burst}


# --- finding accounts ---


class NameQuery(msgspec.Struct, frozen=True):
    """The localpart that a new account would have."""

    username: str


@routes.get(f"{V1}/username_available")
async def check_username_for_admin(hs: Resources, requester: Requester, query: NameQuery) -> JsonObject:
    check_admin(requester)
    await hs.database.read(accounts.check_available, accounts.user_id_of(hs.server_name, query.username))
    return {"available": True}


@routes.get(f"{V1}/threepid/{{medium}}/users/{{address}}")
async def find_user_by_address(hs: Resources, requester: Requester, medium: str, address: str) -> JsonObject:
    check_admin(requester)
    folded = fold_email(address) if medium == EMAIL else address
    user_id = await hs.database.read(find_owner, medium, folded)
    if user_id is None:
        raise not_found("No account has this address.")
    return {"user_id": user_id}


@routes.get(f"{V1}/auth_providers/{{provider}}/users/{{external_id}}")
async def get_user_by_external_id_for_admin(
    hs: Resources, requester: Requester, provider: str, external_id: str
) -> JsonObject:
    """Returns the user whom a provider of single sign-on knows by this ID."""
    check_admin(requester)
    user_id = await hs.database.read(find_by_external_id, provider, external_id)
    if user_id is None:
        raise not_found("Nobody here has this external ID.")
    return {"user_id": user_id}
