"""Many rooms at a glance: what tells whether anything has changed in them, and one member of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.membership import Membership


class RoomVersions(NamedTuple):
    """Numbers of a room of which one rises with every change of its events and members.

    last_position: of its newest event; members_position: of the last change of a membership.
    """

    room_nid: int
    last_position: int
    members_position: int
    rewrites: int

    @property
    def newest(self) -> int:
        """The position of the last change, other than a rewrite."""
        return max(self.last_position, self.members_position)


def list_versions(tx: Transaction, room_ids: Collection[RoomID]) -> dict[RoomID, RoomVersions]:
    """Returns the versions of those of the rooms that this server knows."""
    nids = {nid: RoomID(room_id) for room_id, nid in tx.find_all(room_ids).items()}
    rows = tx.all_in(
        "SELECT room_nid, last_position, members_position, rewrites FROM rooms WHERE room_nid IN (?*)", list(nids)
    )
    return {nids[row[0]]: RoomVersions(*row) for row in rows}


class MemberPosition(NamedTuple):
    """A membership, the position of the event that says so (0: none), and the one since which it is the same."""

    membership: Membership
    event_position: int
    entered_position: int


def list_member_positions(tx: Transaction, members: Sequence[tuple[RoomID, UserID]]) -> dict[RoomID, MemberPosition]:
    """Returns the membership of one user in each of some rooms. The cost does not grow with the rooms."""
    rooms, users = tx.find_all(room_id for room_id, _ in members), tx.find_all(user_id for _, user_id in members)
    found: dict[RoomID, MemberPosition] = {}
    for room_id, user_id in members:
        row = tx.one(
            "SELECT membership, event_position, entered_position FROM memberships WHERE user_nid = ? AND room_nid = ?",
            users.get(user_id), rooms.get(room_id),
        )  # fmt: skip
        if row is not None:
            found[room_id] = MemberPosition(*row)
    return found


def find_only_other(tx: Transaction, room_id: RoomID, user_id: UserID) -> UserID | None:
    """Returns the one other user who is in the room or invited; None if there is nobody, or several."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership IN ('join', 'invite') AND user_nid <> ?"
        " LIMIT 2",
        tx.find(room_id), tx.find(user_id) or 0,
    )  # fmt: skip
    return UserID(tx.name(nids[0])) if len(nids) == 1 else None
