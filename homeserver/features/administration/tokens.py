"""The admin API for registration tokens."""

from __future__ import annotations

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.errors import invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1
from homeserver.limits import REGISTRATION_TOKEN_CHARACTERS_MAX
from homeserver.resources import Resources
from homeserver.users import registration_tokens

TOKENS = f"{V1}/registration_tokens"

routes = Routes()


class TokensQuery(msgspec.Struct, frozen=True):
    """valid: only tokens that can be used now, or only those that cannot."""

    valid: bool | None = None


@routes.get(TOKENS)
async def list_registration_tokens(hs: Resources, requester: Requester, query: TokensQuery) -> JsonObject:
    check_admin(requester)
    tokens, now_ms = await hs.database.read(registration_tokens.list_tokens), hs.now_ms()
    wanted = [each for each in tokens if query.valid is None or each.is_valid(now_ms) == query.valid]
    return {"registration_tokens": [each.body() for each in wanted]}


class NewTokenBody(msgspec.Struct, frozen=True):
    """expiry_time: milliseconds since 1970. length: of a token with random text."""

    token: str | None = None
    uses_allowed: int | None = None
    expiry_time: int | None = None
    length: int | None = None


@routes.post(f"{TOKENS}/new")
async def create_registration_token(hs: Resources, requester: Requester, body: NewTokenBody) -> JsonObject:
    check_admin(requester)
    _check_expiry(hs, body.expiry_time)
    token = body.token
    if body.length is not None and token is None:
        if not 1 <= body.length <= REGISTRATION_TOKEN_CHARACTERS_MAX:
            raise invalid_param(f"The length must be from 1 to {REGISTRATION_TOKEN_CHARACTERS_MAX}.")
        token = registration_tokens.choose_token(body.length)
    create = registration_tokens.create_token
    return (await hs.database.write(create, token, body.uses_allowed, body.expiry_time)).body()


@routes.get(f"{TOKENS}/{{token}}")
async def get_registration_token(hs: Resources, requester: Requester, token: str) -> JsonObject:
    check_admin(requester)
    for each in await hs.database.read(registration_tokens.list_tokens):
        if each.token == token:
            return each.body()
    raise not_found("There is no such registration token.")


class TokenChanges(msgspec.Struct, frozen=True):
    """What is left out does not change. null: any number of uses, or no expiry."""

    uses_allowed: int | msgspec.UnsetType | None = msgspec.UNSET
    expiry_time: int | msgspec.UnsetType | None = msgspec.UNSET


@routes.put(f"{TOKENS}/{{token}}")
async def update_registration_token(hs: Resources, requester: Requester, token: str, body: TokenChanges) -> JsonObject:
    check_admin(requester)
    if body.expiry_time is not msgspec.UNSET:
        _check_expiry(hs, body.expiry_time)
    changes = {name: value for name, value in msgspec.structs.asdict(body).items() if value is not msgspec.UNSET}
    changed = await hs.database.write(registration_tokens.replace_token, token, changes)
    if changed is None:
        raise not_found("There is no such registration token.")
    return changed.body()


@routes.delete(f"{TOKENS}/{{token}}")
async def delete_registration_token(hs: Resources, requester: Requester, token: str) -> JsonObject:
    check_admin(requester)
    if not await hs.database.write(registration_tokens.delete_token, token):
        raise not_found("There is no such registration token.")
    return {}


def _check_expiry(hs: Resources, expiry_time: int | None) -> None:
    if expiry_time is not None and not hs.now_ms() < expiry_time < 2**53:
        raise invalid_param("The expiry_time has passed, or is not a time.")
