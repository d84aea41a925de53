"""What administrators see of accounts, and how they lock and suspend them, by command and in the admin APIs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from homeserver.authenticate import AccountFlags, get_account_flags, store_account_flags
from homeserver.database import Transaction
from homeserver.errors import forbidden, not_found
from homeserver.federation.identifiers import UserID
from homeserver.users.accounts import User, find_user, is_active, list_users
from homeserver.users.profile import find_profile

Restriction = Literal["locked", "suspended"]


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account, its kind, and its profile. The last two fields are None if they are not set."""

    user: User
    flags: AccountFlags
    displayname: str | None
    avatar_url: str | None

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
    return AccountView(user, get_account_flags(tx, user.user_id), profile.get("displayname"), profile.get("avatar_url"))


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
