"""The current memberships of rooms, updated with the head. Spec: client-server-api/#room-membership"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import orjson

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.compression import decompress_json
from homeserver.database.lane import try_each
from homeserver.database.row_types import check_rows, row_types
from homeserver.encoding import to_json
from homeserver.errors import forbidden
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.limits import EVENT_CONTENT_BYTES_MAX
from homeserver.rooms.heads import STATE_CHANGES, Head, find_head
from homeserver.rooms.sealed_rows import RowOpener, open_stripped, seal_stripped

_log = logging.getLogger(__name__)

Membership = Literal["join", "invite", "leave", "ban", "knock"]

SERVERS_CACHED_MAX = 2_000
# room, membership, event_position, changed_position, forgotten, last_position, members_position, stripped
_MEMBERSHIP_ROW = row_types(int, str, int, int, int, int, int, bytes | None)


class RoomMembership(msgspec.Struct, frozen=True):
    """One user's membership of one room. `stripped`: what an invited or knocking user was shown of the room.

    For a user who was never in the room, `stripped` is the event that ended the invite or knock.
    `last_position`: of the room's newest event. `members_position`: when any membership of the room last changed.
    """

    room_id: RoomID
    membership: Membership
    event_position: int
    changed_position: int
    forgotten: bool
    last_position: int
    members_position: int
    stripped: list[dict[str, Any]] | None


class MembershipRow(NamedTuple):
    """A membership to be stored. event_position: 0 if no event says so."""

    user_id: UserID
    membership: str
    event_position: int
    stripped: list[dict[str, Any]] | None


def store_membership(
    tx: Transaction,
    room_nid: int,
    user_id: UserID,
    membership: str,
    event_position: int,
    changed_position: int,
    stripped: list[dict[str, Any]] | None = None,
) -> None:
    """Stores it as the user's current membership, and wakes the user."""
    store_memberships(tx, room_nid, [MembershipRow(user_id, membership, event_position, stripped)], changed_position)


def store_memberships(tx: Transaction, room_nid: int, rows: Sequence[MembershipRow], changed_position: int) -> None:
    """Stores current memberships and wakes their users. A forgotten room stays forgotten when its user is removed."""
    tx.many(
        "INSERT INTO memberships (user_nid, room_nid, membership, event_position, changed_position, entered_position,"
        " server_nid, forgotten, stripped) VALUES (?, ?, ?, ?, ?, ?, ?, 0, ?)"
        " ON CONFLICT (user_nid, room_nid) DO UPDATE SET"
        " membership = excluded.membership, event_position = excluded.event_position, entered_position ="
        " CASE WHEN memberships.membership = excluded.membership THEN memberships.entered_position"
        " ELSE excluded.entered_position END,"
        " changed_position = excluded.changed_position, stripped = excluded.stripped, forgotten ="
        " CASE WHEN excluded.membership IN ('leave', 'ban') THEN memberships.forgotten ELSE 0 END",
        [
            (
                tx.intern(row.user_id),
                room_nid,
                row.membership,
                row.event_position,
                changed_position,
                changed_position,
                tx.intern(server_name_of(row.user_id)),
                None if row.stripped is None else _seal(tx, room_nid, row.user_id, row.stripped),
            )
            for row in rows
        ],
    )
    tx.run("UPDATE rooms SET members_position = ? WHERE room_nid = ?", changed_position, room_nid)
    tx.wakes.update([STATE_CHANGES, *(row.user_id for row in rows)])


def count_pending(tx: Transaction, user_id: str) -> tuple[int, int]:
    """Returns how many invites and knocks of the user are pending, and how many bytes of stripped state they have."""
    ((count, size),) = tx.all(
        "SELECT count(*), COALESCE(SUM(LENGTH(stripped)), 0) FROM memberships WHERE user_nid = ?"
        " AND membership IN ('invite', 'knock')",
        tx.find(user_id),
    )
    return int(count), int(size)


def list_outsiders(tx: Transaction, room_nid: int) -> list[UserID]:
    """Returns the invited and knocking users, who were shown the room's stripped state."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership IN ('invite', 'knock')", room_nid
    )
    return [UserID(name) for name in tx.names(nids).values()]


def list_told_of(tx: Transaction, room_nid: int, user_id: str) -> list[UserID]:
    """Returns the invited or knocking users who were shown this user's member event: their invitees, and themselves."""
    nids = tx.values(
        "SELECT m.user_nid FROM memberships m JOIN events e ON e.position = m.event_position"
        " WHERE m.room_nid = ? AND m.membership IN ('invite', 'knock') AND (e.sender_nid = ? OR m.user_nid = ?)",
        room_nid,
        tx.find(user_id),
        tx.find(user_id),
    )
    return [UserID(name) for name in tx.names(nids).values()]


def replace_stripped(tx: Transaction, room_nid: int, user_id: UserID, stripped: list[dict[str, Any]]) -> None:
    """Replaces the stripped state that the user was shown. This does not count as news."""
    tx.run(
        "UPDATE memberships SET stripped = ? WHERE user_nid = ? AND room_nid = ?",
        _seal(tx, room_nid, user_id, stripped), tx.find(user_id), room_nid,
    )  # fmt: skip


def _seal(tx: Transaction, room_nid: int, user_id: UserID, stripped: list[dict[str, Any]]) -> bytes:
    return seal_stripped(tx, room_nid, tx.intern(user_id), to_json(stripped))


def set_forgotten(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    """Marks a room that the user has left as forgotten."""
    tx.run(
        "UPDATE memberships SET forgotten = 1 WHERE user_nid = ? AND room_nid = ?", tx.find(user_id), tx.find(room_id)
    )


def find_membership(tx: Transaction, room_id: str, user_id: str) -> Membership | None:
    """Returns the user's membership, None if there never was one."""
    row = tx.one(
        "SELECT membership FROM memberships WHERE user_nid = ? AND room_nid = ?", tx.find(user_id), tx.find(room_id)
    )
    return None if row is None else row[0]


def find_room_membership(tx: Transaction, room_id: str, user_id: str) -> RoomMembership | None:
    """Does the same as `find_membership`, with positions and stripped state."""
    row = tx.one(
        "SELECT m.room_nid, m.membership, m.event_position, m.changed_position, m.forgotten, r.last_position,"
        " r.members_position, m.stripped FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid"
        " WHERE m.user_nid = ? AND m.room_nid = ?",
        tx.find(user_id),
        tx.find(room_id),
    )
    return None if row is None else _room_membership(tx, row, user_id)


def find_join_position(tx: Transaction, room_id: str, user_id: str) -> int | None:
    """Returns the position at which the user last joined the room, None if they are not in it."""
    row = tx.one(
        "SELECT entered_position FROM memberships WHERE user_nid = ? AND room_nid = ? AND membership = 'join'",
        tx.find(user_id),
        tx.find(room_id),
    )
    return None if row is None else int(row[0])


def list_join_positions(tx: Transaction, user_id: str, room_nids: Collection[int]) -> dict[int, int]:
    """Returns the position at which the user last joined each of these rooms, by room, if they are in it."""
    rows = tx.all_in(
        "SELECT room_nid, entered_position FROM memberships WHERE room_nid IN (?*) AND user_nid = ?"
        " AND membership = 'join'",
        room_nids,
        tx.find(user_id),
    )
    return dict(rows)


def find_members_position(tx: Transaction, room_id: str) -> int:
    """Returns the position at which a membership of the room last changed, 0 for an unknown room."""
    row = tx.one("SELECT members_position FROM rooms WHERE room_nid = ?", tx.find(room_id))
    return 0 if row is None else int(row[0])


def has_come_or_gone(tx: Transaction, room_id: str, since: int) -> bool:
    """Returns whether anyone's membership has changed after position `since`. Profile changes do not count."""
    row = tx.one(
        "SELECT 1 FROM memberships WHERE room_nid = ? AND changed_position > ? AND entered_position > ? LIMIT 1",
        tx.find(room_id),
        since,
        since,
    )
    return row is not None


def check_joined(tx: Transaction, room_id: str, user_id: str) -> None:
    """Raises MatrixError 403 M_FORBIDDEN unless the user is in the room."""
    if find_membership(tx, room_id, user_id) != "join":
        raise forbidden("You are not in that room.")


def list_memberships(tx: Transaction, user_id: str, *, around_damage: bool = False) -> list[RoomMembership]:
    """Returns all memberships that the user has or ever had. around_damage: leave out rows that cannot be read."""
    rows = tx.all(
        "SELECT m.room_nid, m.membership, m.event_position, m.changed_position, m.forgotten, r.last_position,"
        " r.members_position, m.stripped FROM memberships m JOIN rooms r ON r.room_nid = m.room_nid"
        " WHERE m.user_nid = ?",
        tx.find(user_id),
    )
    if not around_damage:
        return [_room_membership(tx, row, user_id) for row in rows]
    found = []
    for row in rows:
        with contextlib.suppress(DatabaseDamaged):
            found.append(_room_membership(tx, row, user_id))
    return found


def list_joined_rooms(tx: Transaction, user_id: str) -> list[RoomID]:
    """Returns the rooms that the user is in."""
    nids = tx.values("SELECT room_nid FROM memberships WHERE user_nid = ? AND membership = 'join'", tx.find(user_id))
    return [RoomID(name) for name in tx.names(nids).values()]


def list_mutual_rooms(tx: Transaction, user_id: str, other: str, after: int, limit: int) -> list[tuple[int, RoomID]]:
    """Returns rooms that both users are in, each with its number, sorted by that; those with numbers above `after`."""
    nids = tx.values(
        "SELECT a.room_nid FROM memberships a JOIN memberships b ON b.user_nid = ? AND b.room_nid = a.room_nid"
        " WHERE a.user_nid = ? AND a.room_nid > ? AND a.membership = 'join' AND b.membership = 'join'"
        " ORDER BY a.room_nid LIMIT ?",
        tx.find(other),
        tx.find(user_id),
        after,
        limit,
    )
    names = tx.names(nids)
    return [(nid, RoomID(names[nid])) for nid in nids]


def count_mutual_rooms(tx: Transaction, user_id: str, other: str) -> int:
    """Returns how many rooms both users are in."""
    (count,) = tx.values(
        "SELECT count(*) FROM memberships a JOIN memberships b ON b.user_nid = ? AND b.room_nid = a.room_nid"
        " WHERE a.user_nid = ? AND a.membership = 'join' AND b.membership = 'join'",
        tx.find(other),
        tx.find(user_id),
    )
    return int(count)


def is_joined_to_any(tx: Transaction, user_id: str, room_ids: Iterable[str]) -> bool:
    """Returns whether the user is in one of the rooms."""
    rows = tx.all_in(
        "SELECT room_nid FROM memberships WHERE room_nid IN (?*) AND user_nid = ? AND membership = 'join'",
        [nid for room_id in room_ids if (nid := tx.find(room_id)) is not None],
        tx.find(user_id),
    )
    return bool(rows)


def list_members(tx: Transaction, room_id: str, membership: Membership) -> list[UserID]:
    """Returns the users with that membership."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = ?", tx.find(room_id), membership
    )
    return [UserID(name) for name in tx.names(nids).values()]


def list_entered(tx: Transaction, room_id: str) -> dict[UserID, int]:
    """Returns since which position of the stream each member of the room has been in it without a break."""
    rows = tx.all(
        "SELECT user_nid, entered_position FROM memberships WHERE room_nid = ? AND membership = 'join'",
        tx.find(room_id),
    )
    names = tx.names([user_nid for user_nid, _ in rows])
    return {UserID(names[user_nid]): entered for user_nid, entered in rows}


def list_latest(tx: Transaction, room_id: str, membership: Membership, limit: int) -> list[UserID]:
    """Returns the users whose membership became this one last, at most `limit`, latest first."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = ?"
        " ORDER BY entered_position DESC, user_nid LIMIT ?",
        tx.find(room_id),
        membership,
        limit,
    )
    names = tx.names(nids)
    return [UserID(names[nid]) for nid in nids]


def list_newcomers(tx: Transaction, room_id: str, since: int) -> list[UserID]:
    """Returns the joined users whose member event is later than position `since`: a join or a new profile."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND changed_position > ? AND membership = 'join'",
        tx.find(room_id),
        since,
    )
    return [UserID(name) for name in tx.names(nids).values()]


def find_joined_version(tx: Transaction, room_id: str) -> tuple[int, int] | None:
    """Returns numbers of which one rises with every change of `list_joined_contents`, redactions included.

    None for an unknown room.
    """
    row = tx.one("SELECT members_position, rewrites FROM rooms WHERE room_nid = ?", tx.find(room_id))
    return None if row is None else (int(row[0]), int(row[1]))


def list_joined_contents(tx: Transaction, room_id: str) -> list[tuple[UserID, dict[str, Any]]]:
    """Returns the joined users, each with the content of their member event."""
    rows = tx.all(
        "SELECT m.user_nid, e.room_nid, e.position, e.event_id, e.content"
        " FROM memberships m JOIN events e ON e.position = m.event_position"
        " WHERE m.room_nid = ? AND m.membership = 'join'",
        tx.find(room_id),
    )
    names = tx.names([row[0] for row in rows])
    opener = RowOpener(tx)
    return [
        (UserID(names[user_nid]), orjson.loads(decompress_json(opener.open_content(*row), EVENT_CONTENT_BYTES_MAX)))
        for user_nid, *row in rows
    ]


def list_joined_from(tx: Transaction, room_id: str, server_name: str) -> list[UserID]:
    """Returns the joined users of one server."""
    nids = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership = 'join' AND server_nid = ?",
        tx.find(room_id),
        tx.find(server_name),
    )
    return [UserID(name) for name in tx.names(nids).values()]


def is_server_joined(tx: Transaction, room_id: str, server_name: str) -> bool:
    """Returns whether a user of that server is in the room."""
    row = tx.one(
        "SELECT 1 FROM memberships WHERE room_nid = ? AND membership = 'join' AND server_nid = ? LIMIT 1",
        tx.find(room_id),
        tx.find(server_name),
    )
    return row is not None


def is_server_invited(tx: Transaction, room_id: str, server_name: str) -> bool:
    """Returns whether a user of that server is invited to the room."""
    row = tx.one(
        "SELECT 1 FROM memberships WHERE room_nid = ? AND membership = 'invite' AND server_nid = ? LIMIT 1",
        tx.find(room_id),
        tx.find(server_name),
    )
    return row is not None


def is_deserted(tx: Transaction, room_id: str) -> bool:
    """Returns whether everyone has left a room whose history this server has. No other server has more of it."""
    head = find_head(tx, room_id)
    return head is not None and bool(head.extremities) and not list_joined_servers(tx, head)


def list_rooms_of_server(tx: Transaction, server_name: str, since: int) -> list[int]:
    """Returns the rooms, as numbers, with events after position `since` that concern a server.

    These are the rooms that a user of the server is in, or has left since.
    """
    server_nid = tx.find(server_name)
    return tx.values(
        "SELECT r.room_nid FROM rooms r WHERE r.last_position > ? AND (EXISTS (SELECT 1 FROM memberships m"
        " WHERE m.room_nid = r.room_nid AND m.membership = 'join' AND m.server_nid = ?)"
        " OR r.members_position > ? AND EXISTS (SELECT 1 FROM memberships m WHERE m.room_nid = r.room_nid"
        " AND m.membership IN ('leave', 'ban') AND m.server_nid = ? AND m.changed_position > ?))",
        since,
        server_nid,
        since,
        server_nid,
        since,
    )


def count_members(tx: Transaction, room_id: str, membership: Membership) -> int:
    """Returns how many users have that membership."""
    (count,) = tx.values(
        "SELECT count(*) FROM memberships WHERE room_nid = ? AND membership = ?", tx.find(room_id), membership
    )
    return int(count)


def list_heroes(tx: Transaction, room_id: str, user_id: str) -> list[UserID]:
    """Returns up to five other users after whom a nameless room is called: joined or invited, else former members.

    Spec: client-server-api/#get_matrixclientv3sync (m.heroes)
    """
    present = tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership IN ('join', 'invite') AND user_nid <> ?"
        " ORDER BY event_position LIMIT 5",
        tx.find(room_id),
        tx.find(user_id),
    )
    nids = present or tx.values(
        "SELECT user_nid FROM memberships WHERE room_nid = ? AND membership IN ('leave', 'ban') AND user_nid <> ?"
        " ORDER BY event_position LIMIT 5",
        tx.find(room_id),
        tx.find(user_id),
    )
    names = tx.names(nids)
    return [UserID(names[nid]) for nid in nids]


def list_joined_servers(tx: Transaction, head: Head) -> frozenset[ServerName]:
    """Returns the servers with a user in the room. Cached until a membership changes."""
    cache = tx.cache("joined_servers", SERVERS_CACHED_MAX)
    version = (head.room_nid, head.members_position)
    servers = cache.get(version)
    if servers is None:
        nids = tx.values(
            "SELECT DISTINCT server_nid FROM memberships WHERE room_nid = ? AND membership = 'join'", head.room_nid
        )
        if tx.is_write:
            return frozenset(ServerName(name) for name in tx.names(nids).values())
        servers = _readable_servers(tx, head, nids)
        cache.put(version, servers)
    return servers


def _readable_servers(tx: Transaction, head: Head, nids: Sequence[int]) -> frozenset[ServerName]:
    """The servers behind the numbers. One whose name is damaged must not keep the others from the room."""
    found, failed = try_each(tx, nids, lambda some: tx.names(some).values())
    for nid, error in failed:
        about = {"room_id": head.room_id, "server": nid, "reason": str(error)}
        _log.error("a server in a room is left out: its name cannot be read", extra=about)
    return frozenset(ServerName(name) for name in found)


def list_largest_servers(tx: Transaction, room_id: str, limit: int) -> list[ServerName]:
    """Returns the servers with the most users in the room."""
    rows = tx.all(
        "SELECT server_nid, count(*) AS users FROM memberships WHERE room_nid = ? AND membership = 'join'"
        " GROUP BY server_nid ORDER BY users DESC, server_nid LIMIT ?",
        tx.find(room_id),
        limit,
    )
    names = tx.names({row[0] for row in rows})
    return [ServerName(names[row[0]]) for row in rows]


def list_sharing(tx: Transaction, user_id: str, others: Iterable[str]) -> set[UserID]:
    """Returns the others who share a room with the user. The cost grows with the number of the others' rooms."""
    rows = tx.all_in(
        "SELECT DISTINCT b.user_nid FROM memberships b WHERE b.user_nid IN (?*) AND b.membership = 'join'"
        " AND EXISTS (SELECT 1 FROM memberships a WHERE a.user_nid = ? AND a.room_nid = b.room_nid"
        " AND a.membership = 'join')",
        [nid for other in others if (nid := tx.find(other)) is not None],
        tx.find(user_id),
    )
    return {UserID(name) for name in tx.names([nid for (nid,) in rows]).values()}


def _room_membership(tx: Transaction, row: tuple[Any, ...], user_id: str) -> RoomMembership:
    check_rows([row], _MEMBERSHIP_ROW, "membership in the room")
    room_nid, membership, event_position, changed_position, forgotten, last_position, members_position, stripped = row
    return RoomMembership(
        RoomID(tx.name(room_nid)),
        membership,
        event_position,
        changed_position,
        bool(forgotten),
        last_position,
        members_position,
        None if stripped is None else read_stripped(open_stripped(tx, room_nid, tx.intern(user_id), stripped)),
    )


def read_stripped(stripped: bytes) -> list[dict[str, Any]]:
    """Parses what a user was shown of a room. Raises DatabaseDamaged."""
    try:
        events: list[dict[str, Any]] = orjson.loads(stripped)
    except orjson.JSONDecodeError as error:
        raise DatabaseDamaged(f"What a user was told of a room is damaged: {error}.") from error
    return events
