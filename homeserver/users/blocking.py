"""Whom a user wants to hear nothing of: ignored users, and whether invitations are wanted at all.

Spec: client-server-api/#ignoring-users, #invite-permission
"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import UserID
from homeserver.users.account_data import find_account_data


def ignored_users(tx: Transaction, user_id: UserID) -> frozenset[str]:
    """Whose messages and invitations the user is not told of. Nobody ignores themselves."""
    content = find_account_data(tx, user_id, None, "m.ignored_user_list")
    ignored = None if content is None else content.get("ignored_users")
    return frozenset(ignored) - {user_id} if isinstance(ignored, dict) else frozenset()


def blocks_invites(tx: Transaction, user_id: UserID) -> bool:
    """Whether the user wants no invitations."""
    content = find_account_data(tx, user_id, None, "m.invite_permission_config")
    return content is not None and content.get("default_action") == "block"


def check_takes_invites(tx: Transaction, user_id: UserID) -> None:
    """MatrixError 403 M_INVITE_BLOCKED if the user, of this server, wants no invitations."""
    if blocks_invites(tx, user_id):
        raise MatrixError(403, "M_INVITE_BLOCKED", f"{user_id} takes no invitations.")
