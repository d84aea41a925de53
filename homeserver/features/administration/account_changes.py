"""The admin API that creates accounts and changes them. `homeserver.features.account` deactivates them."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from homeserver import limits
from homeserver.api.routes import Empty, Response, Routes
from homeserver.authenticate import (
    Requester,
    create_token_for,
    get_account_flags,
    store_account_flags,
    store_rate_limit,
)
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden, invalid_param
from homeserver.feature import JsonObject
from homeserver.features.administration.accounts import USER, get_account_body
from homeserver.features.administration.common import V1, V2, check_exists, check_local
from homeserver.federation.identifiers import UserID, localpart_of
from homeserver.limits import Bucket
from homeserver.resources import ForgetUser, Resources
from homeserver.users import accounts
from homeserver.users.administration import change_password, moderate_account, set_password, set_shadow_banned
from homeserver.users.departures import end_account, reopen_account
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.profile_changes import change_field, checked_value, finish_update
from homeserver.users.single_sign_on import replace_external_ids
from homeserver.users.threepids import EMAIL, delete_threepid, fold_email, list_threepids, store_threepid

routes = Routes()

_USER_TYPES = ("bot", "support")
# Digits with the country's code in front. Spec: appendices/#pstn-phone-numbers
_PHONE_DIGITS_MAX = 15
# Spec of the tools: actions a second. More is the same as no limit.
_RATE_MAX = 1_000_000


# --- PUT: what an account should be ---


class Address(msgspec.Struct, frozen=True):
    """A third-party identifier of an account."""

    medium: str
    address: str


class ExternalId(msgspec.Struct, frozen=True):
    """An identity of the user at a provider of single sign-on."""

    auth_provider: str
    external_id: str


class AccountChanges(msgspec.Struct, frozen=True):
    """What is left out does not change. displayname, avatar_url: "" removes them, and so does null.

    threepids: replaces all addresses of the account.
    """

    password: str | None = None
    logout_devices: bool = True
    displayname: str | msgspec.UnsetType | None = msgspec.UNSET
    avatar_url: str | msgspec.UnsetType | None = msgspec.UNSET
    threepids: list[Address] | None = None
    external_ids: list[ExternalId] | None = None
    admin: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None
    suspended: bool | None = None
    user_type: str | msgspec.UnsetType | None = msgspec.UNSET


class _Checked(msgspec.Struct, frozen=True):
    """Changes that have been checked. profile: fields with their JSON, None to remove them."""

    body: AccountChanges
    password_hash: str | None
    profile: dict[str, bytes | None]
    addresses: list[tuple[str, str]] | None


@routes.put(f"{V2}/users/{{user_id}}")
async def set_user_for_admin(hs: Resources, requester: Requester, user_id: UserID, body: AccountChanges) -> Response:
    """Creates the account (201), or changes it (200). All changes are one write, so a refused one leaves nothing."""
    check_local(hs, requester, user_id)
    if user_id == requester.user_id and (body.admin is False or body.deactivated or body.locked or body.suspended):
        raise forbidden("You cannot take away your own rights, nor lock, suspend or deactivate yourself.")
    checked = await _check(hs, body)
    is_new, is_unfinished = await hs.database.write(_apply, hs.forgetters, user_id, checked)
    if is_unfinished:
        await finish_update(hs, user_id)
    return Response(201 if is_new else 200, await hs.database.read(get_account_body, user_id))


async def _check(hs: Resources, body: AccountChanges) -> _Checked:
    if body.deactivated and (body.locked or body.password is not None):
        raise invalid_param("An account that is deactivated can neither be locked nor have a password.")
    if body.user_type is not msgspec.UNSET and body.user_type not in (None, *_USER_TYPES):
        raise invalid_param(f"user_type must be null, or one of {', '.join(_USER_TYPES)}.")
    fields = {"displayname": body.displayname, "avatar_url": body.avatar_url}
    profile = {name: checked_value(name, value or "") for name, value in fields.items() if value is not msgspec.UNSET}
    addresses = None if body.threepids is None else [_fold(each) for each in body.threepids]
    if addresses is not None and len(addresses) > limits.users.EMAIL_ADDRESSES_MAX:
        raise invalid_param(f"An account may have at most {limits.users.EMAIL_ADDRESSES_MAX} addresses.")
    password_hash = None
    if body.password is not None:
        check_new_password(hs, body.password)
        password_hash = await hash_password(hs, body.password)
    if body.external_ids is not None and len(body.external_ids) > limits.users.SSO_IDS_MAX:
        raise invalid_param(f"An account may have at most {limits.users.SSO_IDS_MAX} external IDs.")
    return _Checked(body, password_hash, profile, addresses)


def _fold(each: Address) -> tuple[str, str]:
    if each.medium == EMAIL:
        return EMAIL, fold_email(each.address)
    if each.medium != "msisdn":
        raise invalid_param("The medium of an address must be email or msisdn.")
    if not (each.address.isascii() and each.address.isdigit() and len(each.address) <= _PHONE_DIGITS_MAX):
        raise invalid_param("A phone number must be digits alone, with the country's code in front.")
    return each.medium, each.address


def _apply(
    tx: Transaction, forgetters: tuple[ForgetUser, ...], user_id: UserID, checked: _Checked
) -> tuple[bool, bool]:
    """Returns whether the account is new, and whether rooms remain that do not have the new profile yet."""
    body = checked.body
    user = accounts.find_user(tx, user_id)
    if user is None:
        if accounts.user_id_of(tx.server.name, localpart_of(user_id)) != user_id:
            raise MatrixError(400, "M_INVALID_USERNAME", "The localpart of a user ID has no capital letters.")
        accounts.create_user(tx, user_id, checked.password_hash)
    elif user.is_deactivated:
        if body.deactivated is False:
            reopen_account(tx, user_id)
        elif body.deactivated is None:
            raise MatrixError(400, "M_UNKNOWN", "The account is deactivated. Send deactivated: false to reopen it.")
    if user is not None and checked.password_hash is not None:
        change_password(tx, user_id, checked.password_hash, body.logout_devices)
    _apply_flags(tx, user_id, body)
    if body.user_type is not msgspec.UNSET:
        accounts.set_user_type(tx, user_id, body.user_type)
    if checked.addresses is not None:
        _replace_addresses(tx, user_id, checked.addresses)
    if body.external_ids is not None:
        replace_external_ids(tx, user_id, [(each.auth_provider, each.external_id) for each in body.external_ids])
    unfinished = [change_field(tx, user_id, name, value) for name, value in checked.profile.items()]
    if body.deactivated and (user is None or not user.is_deactivated):
        end_account(tx, forgetters, user_id, erase=False)
    return user is None, any(each is not None for each in unfinished)


def _apply_flags(tx: Transaction, user_id: UserID, body: AccountChanges) -> None:
    flags = get_account_flags(tx, user_id)
    is_admin = flags.is_admin if body.admin is None else body.admin
    is_locked = flags.is_locked if body.locked is None else body.locked
    is_suspended = flags.is_suspended if body.suspended is None else body.suspended
    changed = replace(flags, is_admin=is_admin, is_locked=is_locked, is_suspended=is_suspended)
    if changed == flags:
        return
    if is_admin and (changed.is_locked or changed.is_suspended or changed.is_shadow_banned or changed.is_guest):
        raise forbidden("An administrator can be neither a guest, nor locked, suspended or shadow-banned.")
    store_account_flags(tx, user_id, changed)


def _replace_addresses(tx: Transaction, user_id: UserID, addresses: list[tuple[str, str]]) -> None:
    for each in list_threepids(tx, user_id):
        if (each.medium, each.address) not in addresses:
            delete_threepid(tx, user_id, each.medium, each.address)
    for medium, address in addresses:
        store_threepid(tx, user_id, medium, address, tx.now_ms)


# --- single changes ---


class AdminBody(msgspec.Struct, frozen=True):
    admin: bool


@routes.put(f"{USER}/admin")
async def set_whether_admin(hs: Resources, requester: Requester, user_id: UserID, body: AdminBody) -> Empty:
    check_local(hs, requester, user_id)
    if user_id == requester.user_id and not body.admin:
        raise forbidden("You cannot take away your own rights.")
    await hs.database.write(_set_admin, user_id, body.admin)
    return Empty()


def _set_admin(tx: Transaction, user_id: UserID, is_admin: bool) -> None:
    if not accounts.is_active(tx, user_id):
        raise accounts.no_account(user_id)
    _apply_flags(tx, user_id, AccountChanges(admin=is_admin))


class NewPasswordBody(msgspec.Struct, frozen=True):
    new_password: str
    logout_devices: bool = True


@routes.post(f"{V1}/reset_password/{{user_id}}")
async def reset_password(hs: Resources, requester: Requester, user_id: UserID, body: NewPasswordBody) -> Empty:
    check_local(hs, requester, user_id)
    await set_password(hs, user_id, body.new_password, logout_devices=body.logout_devices)
    return Empty()


class SuspensionBody(msgspec.Struct, frozen=True):
    suspend: bool


@routes.put(f"{V1}/suspend/{{user_id}}")
async def suspend_user(hs: Resources, requester: Requester, user_id: UserID, body: SuspensionBody) -> JsonObject:
    """The specification has an operation of its own for this: `set_admin_suspend_user`."""
    check_local(hs, requester, user_id)
    await hs.database.write(moderate_account, user_id, "suspended", body.suspend)
    return {f"user_{user_id}_suspended": body.suspend}


@routes.post(f"{USER}/shadow_ban")
async def shadow_ban_user(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    check_local(hs, requester, user_id)
    await hs.database.write(set_shadow_banned, user_id, True)
    return Empty()


@routes.delete(f"{USER}/shadow_ban")
async def lift_shadow_ban(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    check_local(hs, requester, user_id)
    await hs.database.write(set_shadow_banned, user_id, False)
    return Empty()


class RateLimitBody(msgspec.Struct, frozen=True):
    """Both 0: nothing is limited."""

    messages_per_second: int = 0
    burst_count: int = 0


@routes.post(f"{USER}/override_ratelimit")
async def set_rate_limit_of_user(
    hs: Resources, requester: Requester, user_id: UserID, body: RateLimitBody
) -> JsonObject:
    check_local(hs, requester, user_id)
    if not (0 <= body.messages_per_second <= _RATE_MAX and 0 <= body.burst_count <= _RATE_MAX):
        raise invalid_param(f"messages_per_second and burst_count must be from 0 to {_RATE_MAX}.")
    burst = max(body.burst_count, 1) if body.messages_per_second else body.burst_count
    await hs.database.write(_store_rate_limit, user_id, Bucket(burst, body.messages_per_second))
    return {"messages_per_second": body.messages_per_second, "burst_count": burst}


@routes.delete(f"{USER}/override_ratelimit")
async def delete_rate_limit_of_user(hs: Resources, requester: Requester, user_id: UserID) -> Empty:
    check_local(hs, requester, user_id)
    await hs.database.write(_store_rate_limit, user_id, None)
    return Empty()


def _store_rate_limit(tx: Transaction, user_id: UserID, bucket: Bucket | None) -> None:
    check_exists(tx, user_id)
    store_rate_limit(tx, user_id, bucket)


# --- acting for a user ---


class TokenBody(msgspec.Struct, frozen=True):
    """valid_until_ms: milliseconds since 1970; a token without it does not expire."""

    valid_until_ms: int | None = None


@routes.post(f"{USER}/login")
async def log_in_as_user(hs: Resources, requester: Requester, user_id: UserID, body: TokenBody | None) -> JsonObject:
    """Returns a token without a device, so that the user does not see it."""
    check_local(hs, requester, user_id)
    if user_id == requester.user_id:
        raise invalid_param("You are logged in already: this is for acting as somebody else.")
    lifetime_ms = None
    if body is not None and body.valid_until_ms is not None:
        lifetime_ms = body.valid_until_ms - hs.now_ms()
        if not 0 < lifetime_ms <= limits.ISSUED_TOKEN_LIFETIME_MS_MAX:
            raise invalid_param("valid_until_ms has passed, or is more than a year ahead.")
    return {"access_token": await hs.database.write(_create_token, user_id, requester.user_id, lifetime_ms)}


def _create_token(tx: Transaction, user_id: UserID, admin: UserID, lifetime_ms: int | None) -> str:
    if not accounts.is_active(tx, user_id):
        raise accounts.no_account(user_id)
    if get_account_flags(tx, user_id).is_admin:
        raise forbidden("This user is an administrator too: nobody acts for them.")
    return create_token_for(tx, user_id, admin, lifetime_ms)
