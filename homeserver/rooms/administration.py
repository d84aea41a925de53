"""What administrators see of rooms, by command and in the admin API.

A room's entry follows from its state, and is cached under the root of that state. Members are counted apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, ServerName
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms import state_tree
from homeserver.rooms.aliases import is_published
from homeserver.rooms.heads import StateKey, find_head, state_events

# An entry takes about 1 KiB: 20 MB.
_ENTRIES_CACHED_MAX = 20_000
ROOMS_PER_READ = 300  # of rooms whose state is not cached, each takes about a millisecond
SEARCHED_CHARACTERS_MAX = 255

_SHOWN: tuple[StateKey, ...] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.create", "m.room.name", "m.room.topic", "m.room.avatar", "m.room.canonical_alias", "m.room.encryption",
        "m.room.join_rules", "m.room.guest_access", "m.room.history_visibility", "m.room.tombstone",
    )
)  # fmt: skip


class Members(NamedTuple):
    """How many users are in a room, and how many of them belong to this server."""

    all: int = 0
    local: int = 0


class RoomEntry(msgspec.Struct, frozen=True):
    """A room as administrators see it. What the state does not say, or says in a wrong type, is None."""

    room_id: RoomID
    version: str
    creator: str | None
    is_federated: bool
    room_type: str | None
    name: str | None
    topic: str | None
    avatar: str | None
    canonical_alias: str | None
    encryption: str | None
    join_rules: str | None
    guest_access: str | None
    history_visibility: str | None
    is_tombstoned: bool
    replacement_room: str | None


class ListedRoom(msgspec.Struct, frozen=True):
    """A room of a list."""

    room_nid: int
    state_root: bytes
    entry: RoomEntry
    members: Members
    is_public: bool


Order = Literal[
    "name", "alphabetical", "size", "canonical_alias", "joined_members", "joined_local_members", "version", "creator",
    "encryption", "federatable", "public", "join_rules", "guest_access", "history_visibility", "state_events",
]  # fmt: skip


def list_known(tx: Transaction) -> list[int]:
    """Returns the numbers of all rooms that this server is or was in."""
    return tx.values("SELECT room_nid FROM rooms WHERE create_position > 0 ORDER BY room_nid")


def list_listed(tx: Transaction, room_nids: Sequence[int], members: Mapping[int, Members]) -> list[ListedRoom]:
    """Returns the entries of rooms. Rooms that have been deleted meanwhile are left out."""
    names = tx.names(room_nids)
    found = []
    for room_nid in room_nids:
        room_id = RoomID(names[room_nid])
        head = find_head(tx, room_id)
        if head is not None:
            entry = _entry(tx, room_id, head.version.id, head.state_root)
            is_public = is_published(tx, room_id)
            found.append(ListedRoom(room_nid, head.state_root, entry, members.get(room_nid, Members()), is_public))
    return found


def count_all_members(tx: Transaction) -> dict[int, Members]:
    """Returns how many are in each room, by its number. Reads an index with an entry for each member."""
    rows = tx.all("SELECT room_nid, COUNT(*) FROM memberships WHERE membership = 'join' GROUP BY room_nid")
    own = tx.all(
        "SELECT room_nid, COUNT(*) FROM memberships WHERE membership = 'join' AND server_nid = ? GROUP BY room_nid",
        tx.find(tx.server.name),
    )
    local: dict[int, int] = dict(own)
    return {room_nid: Members(int(count), int(local.get(room_nid, 0))) for room_nid, count in rows}


def count_members_of(tx: Transaction, room_nid: int) -> Members:
    """Returns how many are in one room."""
    (every,) = tx.values("SELECT COUNT(*) FROM memberships WHERE room_nid = ? AND membership = 'join'", room_nid)
    (local,) = tx.values(
        "SELECT COUNT(*) FROM memberships WHERE room_nid = ? AND membership = 'join' AND server_nid = ?",
        room_nid, tx.find(tx.server.name),
    )  # fmt: skip
    return Members(int(every), int(local))


def is_forgotten_by_all(tx: Transaction, room_nid: int) -> bool:
    """Returns whether every user of this server who is or was in the room has forgotten it."""
    row = tx.one(
        "SELECT 1 FROM memberships WHERE room_nid = ? AND server_nid = ? AND forgotten = 0 LIMIT 1",
        room_nid, tx.find(tx.server.name),
    )  # fmt: skip
    return row is None


def count_state_events(tx: Transaction, state_root: bytes) -> int:
    """Returns how many events a state has. Reads the whole state."""
    return len(state_tree.items(tx, state_root))


def _entry(tx: Transaction, room_id: RoomID, version: str, state_root: bytes) -> RoomEntry:
    cache = tx.cache("room_entries", _ENTRIES_CACHED_MAX)
    entry: RoomEntry | None = cache.get((room_id, state_root))
    if entry is None:
        entry = _read_entry(tx, room_id, version, state_root)
        if not tx.is_write:
            cache.put((room_id, state_root), entry)
    return entry


def _read_entry(tx: Transaction, room_id: RoomID, version: str, state_root: bytes) -> RoomEntry:
    state = state_events(tx, state_root, _SHOWN)

    def text(event_type: str, key: str) -> str | None:
        event = state.get((event_type, ""))
        value = None if event is None else event.content.get(key)
        return value if isinstance(value, str) else None

    create = state.get(("m.room.create", ""))
    return RoomEntry(
        room_id=room_id,
        version=version,
        creator=None if create is None else create.sender,
        is_federated=create is None or create.content.get("m.federate") is not False,
        room_type=text("m.room.create", "type"),
        name=text("m.room.name", "name"),
        topic=text("m.room.topic", "topic"),
        avatar=text("m.room.avatar", "url"),
        canonical_alias=text("m.room.canonical_alias", "alias"),
        encryption=text("m.room.encryption", "algorithm"),
        join_rules=text("m.room.join_rules", "join_rule"),
        guest_access=text("m.room.guest_access", "guest_access"),
        history_visibility=text("m.room.history_visibility", "history_visibility"),
        is_tombstoned=("m.room.tombstone", "") in state,
        replacement_room=text("m.room.tombstone", "replacement_room"),
    )


def count_rooms_of_servers(tx: Transaction) -> dict[ServerName, int]:
    """Returns how many rooms each other server is in with us. Reads an index with an entry for each member."""
    own_nid = tx.find(tx.server.name)
    rows = tx.all(
        "SELECT server_nid, COUNT(DISTINCT room_nid) FROM memberships WHERE membership = 'join' GROUP BY server_nid"
    )
    names = tx.names([nid for nid, _ in rows])
    return {ServerName(names[nid]): int(count) for nid, count in rows if nid != own_nid}


def list_rooms_with_server(tx: Transaction, server: ServerName) -> list[tuple[RoomID, int]]:
    """Returns the rooms that a server is in with us, each with the position of its newest event."""
    rows = tx.all(
        "SELECT room_nid, last_position FROM rooms r WHERE EXISTS (SELECT 1 FROM memberships m"
        " WHERE m.room_nid = r.room_nid AND m.membership = 'join' AND m.server_nid = ?)",
        tx.find(server),
    )
    names = tx.names([room_nid for room_nid, _ in rows])
    return [(RoomID(names[room_nid]), int(position)) for room_nid, position in rows]


# --- searching and sorting ---


def is_found(room: ListedRoom, term: str) -> bool:
    """Returns whether a search term is part of a room's name, of the localpart of its main alias, or of its ID."""
    folded = term.casefold()
    alias = (room.entry.canonical_alias or "").partition(":")[0]
    return not term or folded in (room.entry.name or "").casefold() or folded in alias.casefold() or term in (
        room.entry.room_id
    )  # fmt: skip


def sort_rooms(rooms: list[ListedRoom], order: Order, sizes: Mapping[int, int], *, descending: bool) -> None:
    """Sorts rooms: numbers begin with the largest, texts are alphabetical. sizes: how many events each state has."""
    rooms.sort(key=lambda room: room.entry.room_id)
    key, largest_first = _keys(sizes)[order]
    rooms.sort(key=key, reverse=largest_first != descending)


def _keys(sizes: Mapping[int, int]) -> dict[str, tuple[Callable[[ListedRoom], Any], bool]]:
    """Returns what rooms are sorted by, and whether the largest comes first."""

    def text(field: str) -> tuple[Callable[[ListedRoom], Any], bool]:
        return lambda room: (getattr(room.entry, field) or "").casefold(), False

    versions = list(ROOM_VERSIONS)
    return {
        "name": text("name"),
        "alphabetical": text("name"),
        "canonical_alias": text("canonical_alias"),
        "creator": text("creator"),
        "encryption": text("encryption"),
        "join_rules": text("join_rules"),
        "guest_access": text("guest_access"),
        "history_visibility": text("history_visibility"),
        "joined_members": (lambda room: room.members.all, True),
        "size": (lambda room: room.members.all, True),
        "joined_local_members": (lambda room: room.members.local, True),
        "version": (lambda room: versions.index(room.entry.version), True),
        "federatable": (lambda room: room.entry.is_federated, False),
        "public": (lambda room: room.is_public, False),
        "state_events": (lambda room: sizes.get(room.room_nid, 0), True),
    }


def list_state_sizes(tx: Transaction, rooms: Collection[ListedRoom]) -> dict[int, int]:
    """Returns how many events the state of each room has, by the number of the room."""
    return {room.room_nid: count_state_events(tx, room.state_root) for room in rooms}
