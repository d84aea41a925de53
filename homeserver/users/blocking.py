"""Whom a user wants to hear nothing of: ignored users, and whether there may be invitations at all.

Spec: client-server-api/#ignoring-users, #invite-permission
"""

from __future__ import annotations

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.identifiers import UserID
from homeserver.rooms.membership import measure_pending
from homeserver.users.account_data import find_account_data
from homeserver.users.accounts import get_user


def ignored_users(tx: Transaction, user_id: UserID) -> frozenset[str]:
    """Whose messages and invitations the user is not told of. Nobody ignores themselves."""
    content = find_account_data(tx, user_id, None, "m.ignored_user_list")
    ignored = None if content is None else content.get("ignored_users")
    return frozenset(ignored) - {user_id} if isinstance(ignored, dict) else frozenset()


def blocks_invites(tx: Transaction, user_id: UserID) -> bool:
    """Whether the user wants no invitations."""
    content = find_account_data(tx, user_id, None, "m.invite_permission_config")
    return content is not None and content.get("default_action") == "block"


def find_refusal(tx: Transaction, user_id: UserID) -> MatrixError | None:
    """Why the user, of this server, is not to be invited by anybody: nobody can answer for an account that is gone."""
    user = get_user(tx, user_id)
    if user is not None and user.is_deactivated:
        return forbidden(f"The account of {user_id} has been deactivated.")
    if blocks_invites(tx, user_id):
        return MatrixError(403, "M_INVITE_BLOCKED", f"{user_id} takes no invitations.")
    return None


def check_takes_invites(tx: Transaction, user_id: UserID) -> None:
    """Raises MatrixError 403 if the user, of this server, is not to be invited or has no room for another invite."""
    if refusal := find_refusal(tx, user_id):
        raise refusal
    check_pending(tx, user_id)


def check_pending(tx: Transaction, user_id: UserID, new_bytes: int = 0) -> None:
    """Raises MatrixError 403 if so many invites and knocks of a user of this server are pending that none may be added.

    new_bytes: the size of what the new one tells of its room.
    """
    count, size_bytes = measure_pending(tx, user_id)
    if count >= limits.PENDING_MAX or size_bytes + new_bytes > limits.PENDING_BYTES_MAX:
        raise forbidden(f"{user_id} has too many pending invites and knocks. They can accept or reject some.")
