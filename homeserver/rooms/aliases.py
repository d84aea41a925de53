"""Names of rooms on this server: aliases, and the entries of the published room directory.

Spec: client-server-api/#room-aliases, #published-room-directory
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from homeserver.database import Schema, Step, Transaction
from homeserver.errors import MatrixError, bad_json, invalid_param
from homeserver.federation.identifiers import InvalidIdentifier, RoomAlias, RoomID, UserID, parse_room_alias

SCHEMA = Schema(
    name="aliases",
    steps=(
        Step(
            "001_create",
            """
            CREATE TABLE aliases (
                alias TEXT PRIMARY KEY,
                room_nid INTEGER NOT NULL,
                creator_nid INTEGER NOT NULL
            );
            CREATE INDEX aliases_of_room ON aliases (room_nid);
            CREATE TABLE published_rooms (room_nid INTEGER PRIMARY KEY);
            """,
        ),
        Step(
            "002_networks",
            """
            -- The directories of other networks, which application services keep.
            CREATE TABLE network_rooms (
                appservice TEXT NOT NULL,
                network TEXT NOT NULL,
                room_nid INTEGER NOT NULL,
                PRIMARY KEY (appservice, network, room_nid)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)


class PublishedRoom(NamedTuple):
    """A room in the directory. As long as both positions are unchanged, its entry is unchanged too."""

    room_id: RoomID
    last_position: int
    members_position: int


def read_canonical_aliases(content: Mapping[str, Any]) -> list[RoomAlias]:
    """Returns the aliases in the content of an m.room.canonical_alias, each once.

    Raises MatrixError 400 M_BAD_JSON or M_INVALID_PARAM.
    """
    alias, alternatives = content.get("alias"), content.get("alt_aliases", [])
    if not isinstance(alias, str | None) or not isinstance(alternatives, list):
        raise bad_json("alias must be a string, and alt_aliases must be an array.")
    try:
        names = [parse_room_alias(name) for name in ([alias, *alternatives] if alias else alternatives)]
    except InvalidIdentifier as error:
        raise invalid_param(f"An alias is invalid: {error}") from None
    return list(dict.fromkeys(names))


def store_alias(tx: Transaction, alias: RoomAlias, room_id: RoomID, creator: UserID) -> None:
    """Adds an alias for the room. Raises MatrixError 400 M_ROOM_IN_USE if it is already taken."""
    if find_alias(tx, alias) is not None:
        raise MatrixError(400, "M_ROOM_IN_USE", f"The alias {alias} is already taken.")
    tx.run(
        "INSERT INTO aliases (alias, room_nid, creator_nid) VALUES (?, ?, ?)",
        alias,
        tx.intern(room_id),
        tx.intern(creator),
    )


def find_alias(tx: Transaction, alias: str) -> tuple[RoomID, UserID] | None:
    """Returns the room of an alias, and the user who created the alias; None if there is no such alias."""
    row = tx.one("SELECT room_nid, creator_nid FROM aliases WHERE alias = ?", alias)
    return None if row is None else (RoomID(tx.name(row[0])), UserID(tx.name(row[1])))


def delete_alias(tx: Transaction, alias: str) -> None:
    """Removes the alias."""
    tx.run("DELETE FROM aliases WHERE alias = ?", alias)


def replace_room_of_aliases(tx: Transaction, old_id: RoomID, new_id: RoomID) -> list[RoomAlias]:
    """Makes the aliases of one room lead to another. Returns them, sorted."""
    moved = list_aliases(tx, old_id)
    tx.run("UPDATE aliases SET room_nid = ? WHERE room_nid = ?", tx.intern(new_id), tx.find(old_id))
    return moved


def list_aliases(tx: Transaction, room_id: str) -> list[RoomAlias]:
    """Returns the room's aliases on this server, sorted."""
    return [
        RoomAlias(alias)
        for alias in tx.values("SELECT alias FROM aliases WHERE room_nid = ? ORDER BY alias", tx.find(room_id))
    ]


def set_visibility(tx: Transaction, room_id: RoomID, *, is_public: bool) -> None:
    """Adds the room to this server's directory, or removes it."""
    if is_public:
        tx.run(
            "INSERT INTO published_rooms (room_nid) VALUES (?) ON CONFLICT (room_nid) DO NOTHING", tx.intern(room_id)
        )
    else:
        tx.run("DELETE FROM published_rooms WHERE room_nid = ?", tx.find(room_id))


class Network(NamedTuple):
    """A network that an application service bridges to. Its `instance_id` is what clients know it by."""

    appservice: str
    network_id: str

    @property
    def instance_id(self) -> str:
        return f"{self.appservice}|{self.network_id}"


def set_network_visibility(tx: Transaction, room_id: RoomID, network: Network, *, is_public: bool) -> None:
    """Adds the room to the directory of a network, or removes it."""
    if is_public:
        tx.run(
            "INSERT INTO network_rooms (appservice, network, room_nid) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            *network, tx.intern(room_id),
        )  # fmt: skip
    else:
        tx.run(
            "DELETE FROM network_rooms WHERE appservice = ? AND network = ? AND room_nid = ?",
            *network, tx.find(room_id),
        )  # fmt: skip


def count_network_rooms(tx: Transaction, appservice: str) -> int:
    """Returns how many entries an application service has in the directories of its networks."""
    (count,) = tx.values("SELECT COUNT(*) FROM network_rooms WHERE appservice = ?", appservice)
    return int(count)


def is_published(tx: Transaction, room_id: str) -> bool:
    """Returns whether the directory lists the room."""
    return tx.one("SELECT 1 FROM published_rooms WHERE room_nid = ?", tx.find(room_id)) is not None


def list_published(tx: Transaction) -> list[PublishedRoom]:
    """Returns the rooms in the directory of this server."""
    return _list_rooms(tx, tx.values("SELECT room_nid FROM published_rooms"))


def list_published_everywhere(tx: Transaction) -> list[PublishedRoom]:
    """Returns the rooms in the directory of this server, and in those of all networks."""
    return _list_rooms(tx, tx.values("SELECT room_nid FROM published_rooms UNION SELECT room_nid FROM network_rooms"))


def list_published_in(tx: Transaction, instance: str) -> list[PublishedRoom]:
    """Returns the rooms in the directory of a network. instance: its `instance_id` or its `network_id`."""
    nids = tx.values(
        "SELECT DISTINCT room_nid FROM network_rooms WHERE network = ? OR appservice || '|' || network = ?",
        instance, instance,
    )  # fmt: skip
    return _list_rooms(tx, nids)


def _list_rooms(tx: Transaction, room_nids: Collection[int]) -> list[PublishedRoom]:
    rows = tx.all_in("SELECT room_nid, last_position, members_position FROM rooms WHERE room_nid IN (?*)", room_nids)
    names = tx.names([row[0] for row in rows])
    return [PublishedRoom(RoomID(names[nid]), last, members) for nid, last, members in rows]


def forget_creator(tx: Transaction, user_id: UserID) -> None:
    """Forgets that the user created aliases. The aliases stay."""
    tx.run("UPDATE aliases SET creator_nid = ? WHERE creator_nid = ?", tx.intern(""), tx.find(user_id))
