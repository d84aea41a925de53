"""What administrators see of accounts and do to them, by command and in the admin APIs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import orjson
from msgspec.structs import replace

from homeserver.authenticate import AccountFlags, get_account_flags, list_flagged, store_account_flags
from homeserver.database import Row, Transaction
from homeserver.errors import forbidden, not_found
from homeserver.federation.identifiers import UserID, localpart_of
from homeserver.resources import Resources
from homeserver.users import accounts
from homeserver.users.accounts import User, find_user, is_active, list_users
from homeserver.users.password_login import replace_password
from homeserver.users.passwords import check_new_password, hash_password
from homeserver.users.profile import find_profile

Restriction = Literal["locked", "suspended"]
Order = Literal[
    "name", "is_guest", "admin", "user_type", "deactivated", "shadow_banned", "displayname", "avatar_url",
    "creation_ts", "last_seen_ts", "locked", "suspended", "erased",
]  # fmt: skip


class AccountView(msgspec.Struct, frozen=True):
    """An account, its kind, and its profile. The last three fields are None if they are not set.

    last_seen_ms: when one of the devices was last seen, as far as it is stored.
    """

    user: User
    flags: AccountFlags
    displayname: str | None
    avatar_url: str | None
    last_seen_ms: int | None = None

    @property
    def user_id(self) -> UserID:
        """The user's ID."""
        return self.user.user_id


def find_account(tx: Transaction, user_id: UserID) -> AccountView | None:
    """Returns the account, even a deactivated one; None if there never was one."""
    user = find_user(tx, user_id)
    return None if user is None else _view(tx, user)


def list_accounts(tx: Transaction, after: str, limit: int) -> list[AccountView]:
    """Returns accounts sorted by ID, starting after `after`."""
    return [_view(tx, user) for user in list_users(tx, after, limit)]


def _view(tx: Transaction, user: User) -> AccountView:
    profile = find_profile(tx, user.user_id)
    flags = get_account_flags(tx, user.user_id)
    (last_seen_ms,) = _list_last_seen(tx, [tx.find(user.user_id)]).values() or (None,)
    return AccountView(user, flags, profile.get("displayname"), profile.get("avatar_url"), last_seen_ms)


def _list_last_seen(tx: Transaction, user_nids: Collection[int | None]) -> dict[int, int]:
    rows = tx.all_in(
        "SELECT user_nid, MAX(last_seen_ms) FROM devices WHERE user_nid IN (?*) AND last_seen_ms IS NOT NULL"
        " GROUP BY user_nid",
        user_nids,
    )
    return dict(rows)


# --- pages of accounts ---


class Wanted(msgspec.Struct, frozen=True):
    """Which accounts a list has. A flag None: both those that have it and those that do not.

    id_part: is part of the user ID. name_part: is part of the localpart or of the display name, whatever its case.
    """

    id_part: str = ""
    name_part: str = ""
    guests: bool | None = None
    admins: bool | None = None
    deactivated: bool | None = None
    locked: bool | None = None
    excluded_types: Collection[str] = ()


class Page(msgspec.Struct, frozen=True):
    """A part of a sorted list: at most `limit` of its entries after the first `start`."""

    order: Order = "name"
    descending: bool = False
    start: int = 0
    limit: int = 100


def list_page(tx: Transaction, wanted: Wanted, page: Page) -> tuple[list[AccountView], int]:
    """Returns a page of the list of accounts, and how many accounts the whole list has.

    Reads a row of each account of the server, and a profile field of each if names matter: some 10 µs an account.
    """
    flags = list_flagged(tx)
    rows = tx.all(
        "SELECT u.user_nid, s.value, u.created_ms, u.deactivated_ms, u.erased, u.user_type"
        " FROM users u JOIN strings s ON s.nid = u.user_nid"
    )
    names = _list_field(tx, "displayname") if wanted.name_part or page.order == "displayname" else {}
    kept = [
        _Listed(*row) for row in rows if _is_wanted(row, flags.get(row[0], _NONE), names.get(row[0], ""), wanted)
    ]  # fmt: skip
    kept.sort(key=lambda each: each.user_id)
    if page.order != "name":
        keys = _list_keys(tx, kept, flags, names, page.order)
        kept.sort(key=lambda each: keys[each.nid], reverse=page.descending)
    elif page.descending:
        kept.reverse()
    shown = [find_account(tx, UserID(each.user_id)) for each in kept[page.start : page.start + page.limit]]
    return [account for account in shown if account is not None], len(kept)


class _Listed(NamedTuple):
    """A row of the list."""

    nid: int
    user_id: str
    created_ms: int
    deactivated_ms: int | None
    erased: int
    user_type: str | None


_NONE = AccountFlags()


def _list_field(tx: Transaction, field: str) -> dict[int, str]:
    """Returns the field of all profiles that have it, by the number of the user."""
    values = tx.all("SELECT user_nid, value FROM profiles WHERE field = ?", field)
    return {nid: str(orjson.loads(value)) for nid, value in values}


def _is_wanted(row: Row, flags: AccountFlags, name: str, wanted: Wanted) -> bool:
    """`row`: as in _Listed. Every account passes here, so nothing is made that is not needed."""
    _, user_id, _, deactivated_ms, _, user_type = row
    if wanted.deactivated is not None and wanted.deactivated != (deactivated_ms is not None):
        return False
    if wanted.locked is not None and wanted.locked != flags.is_locked:
        return False
    if wanted.guests is not None and wanted.guests != flags.is_guest:
        return False
    if wanted.admins is not None and wanted.admins != flags.is_admin:
        return False
    if wanted.excluded_types and (user_type or "") in wanted.excluded_types:
        return False
    part = wanted.name_part.casefold()
    if part:
        return part in localpart_of(user_id).casefold() or part in name.casefold()
    return not wanted.id_part or wanted.id_part.casefold() in user_id.casefold()


def _list_keys(
    tx: Transaction, users: Sequence[_Listed], flags: dict[int, AccountFlags], names: dict[int, str], order: Order
) -> dict[int, Any]:
    """Returns what accounts are sorted by, by the number of the user."""
    if order in ("displayname", "avatar_url"):
        texts = names if order == "displayname" else _list_field(tx, order)
        return {each.nid: texts.get(each.nid, "").casefold() for each in users}
    if order == "last_seen_ts":
        seen = _list_last_seen(tx, [each.nid for each in users])
        return {each.nid: seen.get(each.nid, 0) for each in users}
    if order == "creation_ts":
        return {each.nid: each.created_ms for each in users}
    if order == "user_type":
        return {each.nid: each.user_type or "" for each in users}
    if order in ("deactivated", "erased"):
        return {each.nid: each.erased if order == "erased" else each.deactivated_ms is not None for each in users}
    field = "is_guest" if order == "is_guest" else f"is_{order}"
    return {each.nid: getattr(flags.get(each.nid, _NONE), field) for each in users}


# --- passwords ---


async def set_password(hs: Resources, user_id: UserID, password: str | None, *, logout_devices: bool) -> None:
    """Replaces a password without asking for the old one, for administrators and embedding programs.

    None disables login by password. Raises M_NOT_FOUND if there is no such account.
    """
    password_hash = None
    if password is not None:
        check_new_password(hs, password)
        password_hash = await hash_password(hs, password)
    await hs.database.write(change_password, user_id, password_hash, logout_devices)


def change_password(tx: Transaction, user_id: UserID, password_hash: str | None, logout_devices: bool) -> None:
    """Replaces the password of an account by one that was hashed before, and logs the user out everywhere."""
    if not is_active(tx, user_id):
        raise accounts.no_account(user_id)
    replace_password(tx, user_id, password_hash, logout_devices=logout_devices)


# --- moderation: client-server-api/#account-locking, #account-suspension ---


def get_moderated(tx: Transaction, user_id: UserID) -> AccountFlags:
    """Returns the flags of an account that administrators may lock and suspend.

    Raises M_NOT_FOUND if there is none or it was deactivated, M_FORBIDDEN if it is another administrator's.
    """
    if not is_active(tx, user_id):
        raise not_found("There is no such account, or it has been deactivated.")
    flags = get_account_flags(tx, user_id)
    if flags.is_admin:
        raise forbidden("This user is an administrator, and cannot be locked or suspended.")
    return flags


def moderate_account(tx: Transaction, user_id: UserID, flag: Restriction, value: bool) -> None:
    """Locks or suspends an account, or lifts that. Raises as `get_moderated` does."""
    flags = get_moderated(tx, user_id)
    changed = replace(flags, is_locked=value) if flag == "locked" else replace(flags, is_suspended=value)
    if changed != flags:
        store_account_flags(tx, user_id, changed)


def set_shadow_banned(tx: Transaction, user_id: UserID, value: bool) -> None:
    """Shadow-bans a user, or lifts that. Raises as `get_moderated` does."""
    flags = get_moderated(tx, user_id)
    if flags.is_shadow_banned != value:
        store_account_flags(tx, user_id, replace(flags, is_shadow_banned=value))
