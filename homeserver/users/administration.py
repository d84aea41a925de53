"""The information about accounts that administrators see, on the command line and in the admin API."""

from __future__ import annotations

from dataclasses import dataclass

from homeserver.authenticate import AccountFlags, get_account_flags
from homeserver.database import Transaction
from homeserver.federation.identifiers import UserID
from homeserver.users.accounts import User, find_user, list_users
from homeserver.users.profile import find_profile


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
