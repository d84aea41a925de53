"""Joining restricted rooms: who may join, and which member authorises it. Spec: client-server-api/#restricted-rooms"""

from __future__ import annotations

from homeserver.database import Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.rooms.heads import Head, state_content
from homeserver.rooms.membership import find_membership, is_server_joined, list_joined_from
from homeserver.rooms.power import power_levels

CONDITIONS_MAX = 200  # per m.room.join_rules event: each costs a lookup


def authorised_via(tx: Transaction, head: Head, user_id: UserID, server_name: ServerName) -> UserID | None:
    """Returns the user of this server who authorises a join of a restricted room; None if the join needs nobody.

    Raises MatrixError 403 M_FORBIDDEN if the user meets no condition, 400 M_UNABLE_TO_AUTHORISE_JOIN or
    M_UNABLE_TO_GRANT_JOIN if this server cannot tell, or has no member who may invite.
    """
    rules = state_content(tx, head.state_root, "m.room.join_rules") or {}
    allowed_rules = ("restricted", "knock_restricted") if head.version.knock_restricted else ("restricted",)
    if not head.version.restricted_join or rules.get("join_rule") not in allowed_rules:
        return None
    if find_membership(tx, head.room_id, user_id) in ("join", "invite"):
        return None
    _check_conditions(tx, rules.get("allow"), user_id, server_name)
    inviter = find_inviter(tx, head, server_name)
    if inviter is None:
        raise MatrixError(400, "M_UNABLE_TO_GRANT_JOIN", "This server has no member in that room who may invite.")
    return inviter


def _check_conditions(tx: Transaction, allow: object, user_id: UserID, server_name: ServerName) -> None:
    unknown = False
    for condition in allow[:CONDITIONS_MAX] if isinstance(allow, list) else ():
        if not isinstance(condition, dict) or condition.get("type") != "m.room_membership":
            continue
        room_id = condition.get("room_id")
        if not isinstance(room_id, str):
            continue
        if not is_server_joined(tx, RoomID(room_id), server_name):
            unknown = True
        elif find_membership(tx, room_id, user_id) == "join":
            return
    if unknown:
        raise MatrixError(400, "M_UNABLE_TO_AUTHORISE_JOIN", "This server cannot tell whether you may join that room.")
    raise forbidden("You are not in any of the rooms whose members may join that room.")


def find_inviter(tx: Transaction, head: Head, server_name: ServerName) -> UserID | None:
    """Returns a joined user of a server who may invite, or None."""
    levels = power_levels(tx, head)
    members = list_joined_from(tx, head.room_id, server_name)
    return next((user_id for user_id in members if levels.user_level(user_id) >= levels.invite_level), None)
