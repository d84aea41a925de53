"""Device lists: whose devices or keys have changed, for clients and for other servers.

Theory of operation. Whoever changes a device, its keys or a user's cross-signing keys calls `note_device_list_changed`
in the same write. It keeps two things:

- `device_lists`: the last change of each user's list, of local users and of users of other servers. It wakes the user
  and the rooms that the user is in, however many members they have; a `/sync` then finds the users who changed in its
  span and share a room with the requester (`homeserver/features/device_lists.py`).
- `device_list_updates`: the updates that other servers are sent about users of this server. An update's `stream_id` is
  its position, and its `prev_id` the position of the user's update before it, so a server that missed one sees a gap
  and asks for the whole list. The newest updates of each user are kept; the last one always, so that a server that
  comes back after a long time gets at least one update, finds the gap, and asks.

What an update says of a device is read when it is sent, so it is never older than the update.

Nothing that is shown of a user's devices and keys changes without a change in `device_lists`: the cache of
`shown_keys.py` relies on it.

Spec: client-server-api/#tracking-the-device-list-for-a-user, server-server-api/#device-management
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from homeserver.database import Schema, Step, Transaction
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.rooms.membership import list_joined_rooms

# A server that lags by more updates of one user asks for the whole list, in one request.
UPDATES_KEPT_MAX = 50

# What is older is read from the database again when it is needed, which takes a microsecond for each user.
RECENT_CHANGES_MAX = 1_000

SCHEMA = Schema(
    "device_lists",
    (
        Step(
            "001_create",
            """
            CREATE TABLE device_lists (user_nid INTEGER PRIMARY KEY, position INTEGER NOT NULL);
            CREATE INDEX device_lists_by_position ON device_lists (position);
            -- device_id: NULL for cross-signing keys, which have no place in the sequence of a user's devices.
            -- previous: the position of the update of a device before this one, NULL for the first.
            CREATE TABLE device_list_updates (
                position INTEGER PRIMARY KEY,
                user_nid INTEGER NOT NULL,
                device_id TEXT,
                previous INTEGER
            );
            CREATE INDEX device_list_updates_of_user ON device_list_updates (user_nid, position);
            """,
        ),
    ),
)


class DeviceListUpdate(msgspec.Struct, frozen=True):
    """Something for other servers to learn about a user of this server.

    device_id: the device that changed, came or went; None if the cross-signing keys changed. previous: the position of
    the user's update of a device before this one, None if there is none.
    """

    position: int
    user_id: UserID
    device_id: str | None
    previous: int | None


class RecentChanges(msgspec.Struct, frozen=True):
    """The users whose lists changed in since < position ≤ upto, with when each last changed.

    upto: the position of the snapshot that this is true of. positions: by the user's number.
    """

    since: int
    upto: int
    positions: Mapping[int, int]


def note_device_list_changed(
    tx: Transaction, user_id: UserID, device_ids: Collection[str] = (), *, signing_keys: bool = False
) -> None:
    """Records that a user's devices or keys changed. Call it in the write that changes them.

    Clients of users who share a room with the user are told to ask for the keys again. If the user is of this server,
    the other servers in the user's rooms are sent the devices `device_ids` as they are then (or that they are gone),
    and with `signing_keys` the master and self-signing key. For a user of another server, pass the user only.
    """
    position = tx.next_position(user_id, *list_joined_rooms(tx, user_id))
    tx.run(
        "INSERT INTO device_lists (user_nid, position) VALUES (?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET position = excluded.position",
        tx.intern(user_id), position,
    )  # fmt: skip
    if server_name_of(user_id) == tx.server.name:
        _store_updates(tx, user_id, [*([None] if signing_keys else []), *device_ids])


def note_device_created(tx: Transaction, user_id: UserID, device_id: str) -> None:
    """Records a new device of a user of this server. Other servers are told; clients only once it has keys."""
    _store_updates(tx, user_id, [device_id])


def list_changed_users(tx: Transaction, since: int, upto: int) -> list[UserID]:
    """Returns the users whose list last changed in since < position ≤ upto."""
    nids = tx.values("SELECT user_nid FROM device_lists WHERE position > ? AND position <= ?", since, upto)
    return [UserID(name) for name in tx.names(nids).values()]


def list_last_changes(tx: Transaction, user_nids: Collection[int]) -> dict[int, int]:
    """Returns when each user's list last changed. Users whose list has never changed are left out."""
    return dict(tx.all_in("SELECT user_nid, position FROM device_lists WHERE user_nid IN (?*)", user_nids))


def list_recent_changes(tx: Transaction) -> RecentChanges:
    """Returns the lists that changed not long ago. Only the changes since the last call are read from the database."""
    cache = tx.cache("recent_list_changes", 1)
    known: RecentChanges | None = cache.get("")
    if known is not None and known.upto == tx.position:
        return known
    recent = RecentChanges(tx.position, tx.position, {})
    if known is not None:
        changed = tx.all(
            "SELECT user_nid, position FROM device_lists WHERE position > ? ORDER BY position LIMIT ?",
            known.upto, RECENT_CHANGES_MAX + 1,
        )  # fmt: skip
        if len(known.positions) + len(changed) <= RECENT_CHANGES_MAX:
            positions = {**known.positions, **dict(changed)} if changed else known.positions
            recent = RecentChanges(known.since, tx.position, positions)
    cache.put("", recent)
    return recent


def list_device_list_updates(tx: Transaction, since: int, upto: int) -> list[DeviceListUpdate]:
    """Returns the updates for other servers in since < position ≤ upto, in that order."""
    rows = tx.all(
        "SELECT position, user_nid, device_id, previous FROM device_list_updates WHERE position > ? AND position <= ?"
        " ORDER BY position",
        since, upto,
    )  # fmt: skip
    names = tx.names({row[1] for row in rows})
    return [DeviceListUpdate(row[0], UserID(names[row[1]]), row[2], row[3]) for row in rows]


def find_last_update(tx: Transaction, user_id: UserID) -> DeviceListUpdate | None:
    """Returns the user's last update of a device, None if no device has changed yet.

    Its position is the `stream_id` of the user's list (0 if there is none).
    """
    row = tx.one(
        "SELECT position, device_id, previous FROM device_list_updates WHERE user_nid = ? AND device_id IS NOT NULL"
        " ORDER BY position DESC LIMIT 1",
        tx.find(user_id),
    )
    return None if row is None else DeviceListUpdate(row[0], user_id, row[1], row[2])


def _store_updates(tx: Transaction, user_id: UserID, device_ids: Collection[str | None]) -> None:
    """Stores an update for each device (None: the cross-signing keys), and drops the user's oldest ones."""
    last = find_last_update(tx, user_id)
    previous = None if last is None else last.position
    nid = tx.intern(user_id)
    for device_id in device_ids:
        position = tx.next_position()
        tx.run(
            "INSERT INTO device_list_updates (position, user_nid, device_id, previous) VALUES (?, ?, ?, ?)",
            position, nid, device_id, previous,
        )  # fmt: skip
        if device_id is not None:
            previous = position
    # The last update of a device is kept besides: many changes of the cross-signing keys must not end the sequence.
    tx.run(
        "DELETE FROM device_list_updates WHERE user_nid = ? AND position <> ? AND position <= (SELECT position"
        " FROM device_list_updates WHERE user_nid = ? ORDER BY position DESC LIMIT 1 OFFSET ?)",
        nid, previous or 0, nid, UPDATES_KEPT_MAX,
    )  # fmt: skip
