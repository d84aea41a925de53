"""Blocking: ignored users, and whose invitations a user accepts.

Spec: client-server-api/#ignoring-users, #invite-permission. The audiences of invitations and of friend requests are
those of `homeserver.users.privacy`. An invitation that is not wanted is refused. If it comes as an event of a room that
this server is in, it cannot be refused, so it is hidden. Invitations by ignored users are hidden and never refused:
nobody learns that they are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import JsonObject, SyncContext
from homeserver.federation.identifiers import UserID
from homeserver.rooms.heads import find_head, state_content
from homeserver.rooms.membership import count_pending
from homeserver.users.account_data import find_account_data
from homeserver.users.accounts import find_user
from homeserver.users.privacy import Privacy, allows, read_privacy

# In the content of m.room.create: the room is a conversation of friends, so that an invitation is a friend request.
FRIEND_MARK = "org.homeserver.friend"

IGNORED_TYPE = "m.ignored_user_list"

_NOBODY: frozenset[str] = frozenset()  # one for all: connections keep whom their users ignore


def ignored_users(tx: Transaction, user_id: UserID) -> frozenset[str]:
    """Returns the users whose messages and invitations this user does not want. Nobody can ignore themselves."""
    content = find_account_data(tx, user_id, None, IGNORED_TYPE)
    ignored = None if content is None else content.get("ignored_users")
    return frozenset(ignored) - {user_id} if isinstance(ignored, dict) else _NOBODY


def ignored_in_sync(tx: Transaction, context: SyncContext) -> frozenset[str]:
    """Returns the users whom the user of a sync ignores: no presence, receipt or typing of theirs is news."""
    return ignored_users(tx, context.user_id) if context.ignored is None else context.ignored


def blocks_invites(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the user blocks invitations."""
    content = find_account_data(tx, user_id, None, "m.invite_permission_config")
    return content is not None and content.get("default_action") == "block"


def find_refusal(
    tx: Transaction, user_id: UserID, inviter: UserID, create: Mapping[str, object] | None
) -> MatrixError | None:
    """Returns why this user may not invite this local user to a room, or None.

    The account may be deactivated or block invitations, or its settings do not include the inviter.
    create: the content of the room's m.room.create.
    """
    user = find_user(tx, user_id)
    if user is not None and user.is_deactivated:
        return forbidden(f"The account of {user_id} has been deactivated.")
    if blocks_invites(tx, user_id):
        return MatrixError(403, "M_INVITE_BLOCKED", f"{user_id} does not accept invitations.")
    if not _is_wanted(tx, user_id, inviter, create, read_privacy(tx, user_id)):
        return forbidden(f"{user_id} does not accept this invitation.")
    return None


def _is_wanted(
    tx: Transaction, user_id: UserID, inviter: UserID, create: Mapping[str, object] | None, privacy: Privacy
) -> bool:
    is_request = create is not None and create.get(FRIEND_MARK) is True
    return allows(tx, user_id, inviter, privacy.friend_requests if is_request else privacy.invites)


def check_takes_invites(tx: Transaction, user_id: UserID, inviter: UserID, room_id: str) -> None:
    """Raises MatrixError 403 if this local user does not accept the invitation, or has too many pending ones."""
    head = find_head(tx, room_id)
    create = None if head is None else state_content(tx, head.state_root, "m.room.create")
    if refusal := find_refusal(tx, user_id, inviter, create):
        raise refusal
    check_pending(tx, user_id)


def check_audience(tx: Transaction, user_id: UserID, inviter: UserID, stripped: Sequence[JsonObject]) -> None:
    """Raises MatrixError 403 if the settings of this local user do not include the inviter, a user of another server.

    stripped: the stripped state of the room.
    """
    if not _is_wanted(tx, user_id, inviter, _find_create(stripped), read_privacy(tx, user_id)):
        raise forbidden(f"{user_id} does not accept this invitation.")


def _find_create(stripped: Sequence[JsonObject]) -> JsonObject | None:
    for event in stripped:
        if event.get("type") == "m.room.create" and isinstance(content := event.get("content"), dict):
            return content
    return None


class InviteFilter(msgspec.Struct, frozen=True):
    """Which pending invitations a user gets to see, see `read_invite_filter`."""

    user_id: UserID
    ignored: frozenset[str]
    blocks_all: bool
    privacy: Privacy

    def hides(self, tx: Transaction, stripped: Sequence[JsonObject]) -> bool:
        """Returns whether the user does not want to see an invitation, of which this is the stripped state."""
        if self.blocks_all:
            return True
        own = [
            event
            for event in stripped
            if (event.get("type"), event.get("state_key")) == ("m.room.member", self.user_id)
        ]
        inviter = own[-1].get("sender") if own else None
        if not isinstance(inviter, str):
            return False
        is_wanted = _is_wanted(tx, self.user_id, UserID(inviter), _find_create(stripped), self.privacy)
        return inviter in self.ignored or not is_wanted


def read_invite_filter(tx: Transaction, user_id: UserID, ignored: frozenset[str]) -> InviteFilter:
    """Returns the filter for a user's pending invitations. ignored: see `ignored_users`."""
    return InviteFilter(user_id, ignored, blocks_invites(tx, user_id), read_privacy(tx, user_id))


def check_pending(tx: Transaction, user_id: UserID, new_bytes: int = 0) -> None:
    """Raises MatrixError 403 if this local user has too many pending invites and knocks to add another one.

    new_bytes: the size of the new one's stripped state.
    """
    count, size_bytes = count_pending(tx, user_id)
    if count >= limits.users.PENDING_MAX or size_bytes + new_bytes > limits.users.PENDING_BYTES_MAX:
        raise forbidden(f"{user_id} has too many pending invites and knocks. They can accept or reject some.")
