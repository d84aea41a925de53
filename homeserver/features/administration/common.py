"""What the operations of the admin API share: paths, pages, and checks of the user in the path."""

from __future__ import annotations

from typing import Literal

from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import invalid_param
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.resources import Resources
from homeserver.users.accounts import find_user, no_account

V1, V2, V3 = "/_synapse/admin/v1", "/_synapse/admin/v2", "/_synapse/admin/v3"

Direction = Literal["f", "b"]
# Entries of one answer. Tools that ask for more get this many, and a token for the rest.
PAGE_MAX = 1000
_START_MAX = 2**53


def check_page(start: int, limit: int) -> int:
    """Returns how many entries a page has. Raises M_INVALID_PARAM."""
    if not 0 <= start < _START_MAX:
        raise invalid_param("from must be the next_token of another page.")
    if limit < 1:
        raise invalid_param("The limit must be at least 1.")
    return min(limit, PAGE_MAX)


def next_token(start: int, limit: int, total: int) -> dict[str, str]:
    """Returns the token of the page after this one; nothing if it is the last one."""
    return {"next_token": str(start + limit)} if start + limit < total else {}


def check_local(hs: Resources, requester: Requester, user_id: UserID) -> None:
    """Checks the requester before the account, so that nobody else learns which accounts exist."""
    check_admin(requester)
    if server_name_of(user_id) != hs.server_name:
        raise invalid_param("This user belongs to another server.")


def check_exists(tx: Transaction, user_id: UserID) -> None:
    """Raises M_NOT_FOUND if there never was such an account."""
    if find_user(tx, user_id) is None:
        raise no_account(user_id)
