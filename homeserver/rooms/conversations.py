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
    """Returns the membership of one user in each of some rooms."""
    rooms, users = tx.find_all(room_id for room_id, _ in members), tx.find_all(user_id for _, user_id in members)
    wanted = {(rooms[room], users[user]): room for room, user in members if room in rooms and user in users}
    rows = tx.all_in(
        "SELECT room_nid, user_nid, membership, event_position, entered_position FROM memberships"
        " WHERE room_nid IN (?*) AND membership IN ('join', 'invite', 'leave', 'ban', 'knock')",
        list(rooms.values()),
    )
    return {wanted[row[0], row[1]]: MemberPosition(*row[2:]) for row in rows if (row[0], row[1]) in wanted}
