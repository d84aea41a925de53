"""Blocking: ignored users, and whether a user accepts invitations.

Spec: client-server-api/#ignoring-users, #invite-permission
"""

from __future__ import annotations

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.identifiers import UserID
from homeserver.rooms.membership import count_pending
from homeserver.users.account_data import find_account_data
from homeserver.users.accounts import find_user

IGNORED_TYPE = "m.ignored_user_list"


def ignored_users(tx: Transaction, user_id: UserID) -> frozenset[str]:
    """Returns the users whose messages and invitations this user does not want. Nobody can ignore themselves."""
    content = find_account_data(tx, user_id, None, IGNORED_TYPE)
    ignored = None if content is None else content.get("ignored_users")
    return frozenset(ignored) - {user_id} if isinstance(ignored, dict) else frozenset()


def blocks_invites(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the user blocks invitations."""
    content = find_account_data(tx, user_id, None, "m.invite_permission_config")
    return content is not None and content.get("default_action") == "block"


def find_refusal(tx: Transaction, user_id: UserID) -> MatrixError | None:
    """Returns why nobody may invite this local user, or None: the account is deactivated, or blocks invitations."""
    user = find_user(tx, user_id)
    if user is not None and user.is_deactivated:
        return forbidden(f"The account of {user_id} has been deactivated.")
    if blocks_invites(tx, user_id):
        return MatrixError(403, "M_INVITE_BLOCKED", f"{user_id} does not accept invitations.")
    return None


def check_takes_invites(tx: Transaction, user_id: UserID) -> None:
    """Raises MatrixError 403 if this local user does not accept invitations, or has too many pending ones."""
    if refusal := find_refusal(tx, user_id):
        raise refusal
    check_pending(tx, user_id)


def check_pending(tx: Transaction, user_id: UserID, new_bytes: int = 0) -> None:
    """Raises MatrixError 403 if this local user has too many pending invites and knocks to add another one.

    new_bytes: the size of the new one's stripped state.
    """
    count, size_bytes = count_pending(tx, user_id)
    if count >= limits.users.PENDING_MAX or size_bytes + new_bytes > limits.users.PENDING_BYTES_MAX:
        raise forbidden(f"{user_id} has too many pending invites and knocks. They can accept or reject some.")
