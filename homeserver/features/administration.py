"""The admin API for registration tokens and for listing accounts, for administrators of the server.

It is not part of the specification; the formats are those that tools for Synapse's admin API expect.
`homeserver.features.account` resets passwords and deactivates accounts.
"""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import invalid_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.users import registration_tokens
from homeserver.users.administration import AccountView, find_account, list_accounts
from homeserver.users.devices import list_devices

TOKENS = "/_synapse/admin/v1/registration_tokens"
USERS = "/_synapse/admin/v2/users"
_PAGE_MAX = 1000

routes = Routes()


@routes.get(TOKENS)
async def list_registration_tokens(hs: Resources, requester: Requester) -> JsonObject:
    check_admin(requester)
    tokens = await hs.database.read(registration_tokens.list_tokens)
    return {"registration_tokens": [each.body() for each in tokens]}


class NewTokenBody(msgspec.Struct, frozen=True):
    """expiry_time: milliseconds since 1970."""

    token: str | None = None
    uses_allowed: int | None = None
    expiry_time: int | None = None


@routes.post(f"{TOKENS}/new")
async def create_registration_token(hs: Resources, requester: Requester, body: NewTokenBody) -> JsonObject:
    check_admin(requester)
    if body.expiry_time is not None and body.expiry_time <= hs.now_ms():
        raise invalid_param("The expiry_time has passed.")
    create = registration_tokens.create_token
    return (await hs.database.write(create, body.token, body.uses_allowed, body.expiry_time)).body()


@routes.get(f"{TOKENS}/{{token}}")
async def get_registration_token(hs: Resources, requester: Requester, token: str) -> JsonObject:
    check_admin(requester)
    for each in await hs.database.read(registration_tokens.list_tokens):
        if each.token == token:
            return each.body()
    raise not_found("There is no such registration token.")


@routes.delete(f"{TOKENS}/{{token}}")
async def delete_registration_token(hs: Resources, requester: Requester, token: str) -> JsonObject:
    check_admin(requester)
    if not await hs.database.write(registration_tokens.delete_token, token):
        raise not_found("There is no such registration token.")
    return {}


class UsersQuery(msgspec.Struct, frozen=True):
    """from: the user ID at the end of the previous page."""

    start: str = msgspec.field(name="from", default="")
    limit: int = 100


@routes.get(USERS)
async def list_users_for_admin(hs: Resources, requester: Requester, query: UsersQuery) -> JsonObject:
    check_admin(requester)
    if not 1 <= query.limit <= _PAGE_MAX:
        raise invalid_param(f"The limit must be from 1 to {_PAGE_MAX}.")
    page = await hs.database.read(list_accounts, query.start, query.limit)
    more = {"next_token": page[-1].user_id} if len(page) == query.limit else {}
    return {"users": [_body(each) for each in page], **more}


@routes.get(f"{USERS}/{{user_id}}")
async def get_user_for_admin(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    check_admin(requester)
    return await hs.database.read(_find, user_id)


def _find(tx: Transaction, user_id: UserID) -> JsonObject:
    account = find_account(tx, user_id)
    if account is None:
        raise not_found("There is no such account.")
    return {**_body(account), "devices": [device.body() for device in list_devices(tx, user_id)]}


def _body(account: AccountView) -> JsonObject:
    """Returns an account in the format that tools expect."""
    return {
        "name": account.user_id,
        "displayname": account.displayname,
        "avatar_url": account.avatar_url,
        "admin": account.flags.is_admin,
        "is_guest": account.flags.is_guest,
        "deactivated": account.user.is_deactivated,
        "erased": account.user.erased,
        "locked": account.flags.is_locked,
        "suspended": account.flags.is_suspended,
        "appservice_id": account.user.appservice,
        "creation_ts": account.user.created_ms,
    }


FEATURE = Feature(name="administration", spec="", routes=routes)
