"""Device lists of users of other servers: a cache that their servers' updates keep fresh.

Theory of operation
- A list is fetched once somebody here asks for the user's keys and shares a room with the user. From then on the user's
  server sends updates. Each names the update before it, so a missed one is noticed.
- A list is used to answer queries of keys only while it is fresh and a room has been shared, without interruption, ever
  since it was fetched. In all other cases the query asks the user's server directly, and the list is fetched again.
- States of a list: unknown (no row), fresh, stale (a row that is not fresh). An update of a fresh list that follows on
  it is applied. Any other update makes the list stale. If a fresh list has become stale by that, it is fetched again
  at once, since somebody asked for it before.
- Clients hear of each applied update, and when a list becomes stale: they ask, and get what the server says then. They
  hear no more of a stale list before it has been fetched. So a flood of updates that fit nothing wakes nobody twice.
- Lists to be fetched are rows of `device_list_resyncs`, one for each user. `homeserver/remote/resyncs.py` fetches them.
  If something was missed again while a list was being fetched, it is fetched once more (`wanted_position`).
- After a restore from a backup all lists are stale: updates have been lost. The first client that comes with a token of
  the lost history tells us that there was a restore.
- Nothing is stored of users with whom nobody here shares a room. Lists with too many devices are not cached.

Spec: server-server-api/#device-management
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import orjson

from homeserver import limits
from homeserver.database import Transaction
from homeserver.database.generations import get_beginning
from homeserver.encoding import is_intact, to_json
from homeserver.federation.edus import DeviceListUpdateContent, SigningKeyUpdateContent
from homeserver.federation.identifiers import UserID, server_name_of
from homeserver.federation.signed_keys import InvalidKey
from homeserver.remote.device_keys import check_device, check_signing_keys
from homeserver.rooms.sharing import list_shared_since
from homeserver.users.encryption.device_lists import note_device_list_changed
from homeserver.users.encryption.shown_keys import ShownKeys, Wanted

WAKE_KEY = "device_list_resyncs"


class RemoteList(msgspec.Struct, frozen=True):
    """What is cached of a user's list. master_key, self_signing_key: JSON, None if the user has none."""

    user_nid: int
    stream_id: int
    is_fresh: bool
    tracked_position: int
    master_key: bytes | None
    self_signing_key: bytes | None


class Snapshot(msgspec.Struct, frozen=True):
    """A list as its server tells it, checked. position: the stream's position before the server was asked."""

    user_id: UserID
    stream_id: int
    position: int
    devices: Mapping[str, bytes]
    master_key: bytes | None
    self_signing_key: bytes | None

    @property
    def is_too_large(self) -> bool:
        return (
            len(self.devices) > limits.encryption.CACHED_DEVICES_MAX
            or sum(map(len, self.devices.values())) > limits.encryption.CACHED_LIST_BYTES_MAX
        )


# --- answering queries ---


def list_cached_keys(tx: Transaction, wanted: Wanted) -> tuple[ShownKeys, list[UserID]]:
    """Returns the keys of those users whose list is known, and the users whose list is worth fetching."""
    shown = ShownKeys()
    lists = _list_lists(tx, wanted)
    shared = list_shared_since(tx, wanted.keys(), tx.server.name)
    fresh = {user_id for user_id, since in shared.items() if _is_usable(lists.get(user_id), since)}
    by_nid = {lists[user_id].user_nid: user_id for user_id in fresh}
    for user_id in fresh:
        known = lists[user_id]
        shown.device_keys[user_id] = {}
        if known.master_key is not None and is_intact(known.master_key, "cross-signing key"):
            shown.master_keys[user_id] = orjson.loads(known.master_key)
        if known.self_signing_key is not None and is_intact(known.self_signing_key, "cross-signing key"):
            shown.self_signing_keys[user_id] = orjson.Fragment(known.self_signing_key)
    for user_nid, device_id, keys in tx.all_in(
        "SELECT user_nid, device_id, keys FROM remote_devices WHERE user_nid IN (?*)", by_nid
    ):
        user_id = by_nid[user_nid]
        if (not wanted[user_id] or device_id in wanted[user_id]) and is_intact(keys, "device keys"):
            shown.device_keys[user_id][device_id] = orjson.Fragment(keys)
    unknown = tx.find_all(user_id for user_id in shared if user_id not in fresh)
    wanted_already = tx.all_in("SELECT user_nid FROM device_list_resyncs WHERE user_nid IN (?*)", unknown.values())
    pending = {user_nid for (user_nid,) in wanted_already}
    unfollowed = [UserID(user_id) for user_id, nid in unknown.items() if nid not in pending]
    return shown, unfollowed[: limits.encryption.LISTS_WANTED_PER_QUERY]


def note_wanted(tx: Transaction, user_ids: Collection[UserID]) -> None:
    """Notes that these lists are to be fetched, because somebody here asked for the keys of the users."""
    for user_id in user_ids:
        _note_wanted(tx, user_id, again=False)


# --- updates ---


def store_device_updates(tx: Transaction, updates: Sequence[DeviceListUpdateContent]) -> None:
    """Takes in updates of devices, each by a server about its own user."""
    for update in updates:
        known = _note_received(tx, update.user_id)
        if known is None:
            continue
        if update.stream_id == known.stream_id:
            # The list was fetched after the change, but clients may have asked before it.
            note_device_list_changed(tx, update.user_id)
        elif update.stream_id > known.stream_id and update.prev_id == [known.stream_id]:
            _store_update(tx, known, update)
        else:
            _note_missed(tx, update.user_id)


def store_signing_key_updates(tx: Transaction, updates: Sequence[SigningKeyUpdateContent]) -> None:
    """Takes in new cross-signing keys, each by a server about its own user."""
    for update in updates:
        known = _note_received(tx, update.user_id)
        if known is None:
            continue
        # A key that is left out has not changed.
        master_key = update.master_key or (known.master_key and orjson.loads(known.master_key))
        self_signing_key = update.self_signing_key or (known.self_signing_key and orjson.loads(known.self_signing_key))
        shown = ShownKeys()
        check_signing_keys(shown, update.user_id, master_key, self_signing_key)
        tx.run(
            "UPDATE remote_device_lists SET master_key = ?, self_signing_key = ? WHERE user_nid = ?",
            *_signing_keys(shown, update.user_id), known.user_nid,
        )  # fmt: skip
        note_device_list_changed(tx, update.user_id)


def _note_received(tx: Transaction, user_id: UserID) -> RemoteList | None:
    """Returns the list that an update applies to. None if there is no such list; then it is stale from now on."""
    known = _list_lists(tx, [user_id]).get(user_id)
    since = list_shared_since(tx, [user_id], tx.server.name).get(user_id)
    if since is None:
        if known is not None:
            delete_list(tx, user_id)
        return None
    if known is not None and _is_usable(known, since):
        return known
    if known is not None and not known.is_fresh:
        tx.run(
            "UPDATE device_list_resyncs SET wanted_position = ?, retry_after_ms = 0 WHERE user_nid = ?",
            tx.next_position(WAKE_KEY), known.user_nid,
        )  # fmt: skip
    elif known is not None:
        _note_missed(tx, user_id)
    else:
        tx.run(
            "INSERT INTO remote_device_lists (user_nid, stream_id, is_fresh, tracked_position) VALUES (?, 0, 0, 0)",
            tx.intern(user_id),
        )
        tx.run(
            "UPDATE device_list_resyncs SET wanted_position = ?, retry_after_ms = 0 WHERE user_nid = ?",
            tx.next_position(WAKE_KEY), tx.find(user_id),
        )  # fmt: skip
        note_device_list_changed(tx, user_id)
    return None


def _note_missed(tx: Transaction, user_id: UserID) -> None:
    """Makes a fresh list stale: an update does not follow on it."""
    tx.run("UPDATE remote_device_lists SET is_fresh = 0 WHERE user_nid = ?", tx.find(user_id))
    _note_wanted(tx, user_id, again=True)
    note_device_list_changed(tx, user_id)


def _store_update(tx: Transaction, known: RemoteList, update: DeviceListUpdateContent) -> None:
    """Applies an update that follows on the list. A device without valid keys is as good as none."""
    keys: bytes | None = None
    if not update.deleted and update.keys is not None:
        try:
            name = update.device_display_name
            keys = to_json(check_device(update.keys, update.user_id, update.device_id, name))
        except InvalidKey:
            keys = None
    if keys is not None and not _has_room(tx, known, update.device_id, keys):
        delete_list(tx, update.user_id)
        note_device_list_changed(tx, update.user_id)
        return
    if keys is None:
        tx.run("DELETE FROM remote_devices WHERE user_nid = ? AND device_id = ?", known.user_nid, update.device_id)
    else:
        _store_device(tx, known.user_nid, update.device_id, keys)
    tx.run("UPDATE remote_device_lists SET stream_id = ? WHERE user_nid = ?", update.stream_id, known.user_nid)
    note_device_list_changed(tx, update.user_id)


def _has_room(tx: Transaction, known: RemoteList, device_id: str, keys: bytes) -> bool:
    row = tx.one(
        "SELECT COUNT(*), COALESCE(SUM(LENGTH(keys)), 0) FROM remote_devices WHERE user_nid = ? AND device_id <> ?",
        known.user_nid, device_id,
    )  # fmt: skip
    assert row is not None
    return (
        row[0] < limits.encryption.CACHED_DEVICES_MAX and row[1] + len(keys) <= limits.encryption.CACHED_LIST_BYTES_MAX
    )


# --- lists as fetched ---


def store_snapshot(tx: Transaction, snapshot: Snapshot, *, was_late: bool) -> None:
    """Stores a list that was fetched, unless an update was missed meanwhile: then it is fetched again.

    was_late: it could not be fetched at first. Clients whose query failed as well are told that they can ask now.
    """
    user_id, nid = snapshot.user_id, tx.find(snapshot.user_id)
    wanted = tx.one("SELECT wanted_position FROM device_list_resyncs WHERE user_nid = ?", nid)
    if wanted is None or wanted[0] > snapshot.position:
        return
    if user_id not in list_shared_since(tx, [user_id], tx.server.name) or snapshot.is_too_large:
        delete_list(tx, user_id)
        return
    known = _list_lists(tx, [user_id]).get(user_id)
    is_changed = known is not None and known.tracked_position > 0 and _get_content(tx, known) != _content(snapshot)
    delete_list(tx, user_id)
    tx.run(
        "INSERT INTO remote_device_lists (user_nid, stream_id, is_fresh, tracked_position, master_key,"
        " self_signing_key) VALUES (?, ?, 1, ?, ?, ?)",
        nid, snapshot.stream_id, snapshot.position, snapshot.master_key, snapshot.self_signing_key,
    )  # fmt: skip
    for device_id, keys in snapshot.devices.items():
        _store_device(tx, tx.intern(user_id), device_id, keys)
    if is_changed or was_late:
        note_device_list_changed(tx, user_id)


def has_restored_lists(tx: Transaction) -> bool:
    """Returns whether fresh lists may come from a backup, and lack updates. Ask only if there was a restore."""
    found = tx.one(
        "SELECT 1 FROM remote_device_lists WHERE is_fresh = 1 AND tracked_position <= ? LIMIT 1", get_beginning(tx)
    )
    return found is not None


def set_restored_lists_stale(tx: Transaction) -> None:
    """Makes all fresh lists that may come from a backup stale. They are fetched again, and clients told of changes."""
    nids = tx.values(
        "UPDATE remote_device_lists SET is_fresh = 0 WHERE is_fresh = 1 AND tracked_position <= ? RETURNING user_nid",
        get_beginning(tx),
    )
    for user_id in tx.names(nids).values():
        _note_wanted(tx, UserID(user_id), again=True)


def is_known(tx: Transaction, user_id: UserID) -> bool:
    """Returns whether the user's list has ever been fetched and is still stored, fresh or stale."""
    known = _list_lists(tx, [user_id]).get(user_id)
    return known is not None and known.tracked_position > 0


def delete_list(tx: Transaction, user_id: UserID) -> None:
    """Forgets what is known of the user's list, and that it was to be fetched."""
    nid = tx.find(user_id)
    tx.run("DELETE FROM remote_device_lists WHERE user_nid = ?", nid)
    tx.run("DELETE FROM remote_devices WHERE user_nid = ?", nid)
    tx.run("DELETE FROM device_list_resyncs WHERE user_nid = ?", nid)


def forget_unshared_lists(tx: Transaction, after: int, limit: int) -> int | None:
    """Forgets lists of users with whom no room is shared any more, of the first `limit` after a number.

    Returns the number to go on after, None at the end.
    """
    nids = tx.values(
        "SELECT user_nid FROM remote_device_lists WHERE user_nid > ?"
        " UNION SELECT user_nid FROM device_list_resyncs WHERE user_nid > ? ORDER BY user_nid LIMIT ?",
        after, after, limit,
    )  # fmt: skip
    user_ids = [UserID(name) for name in tx.names(nids).values()]
    shared = list_shared_since(tx, user_ids, tx.server.name)
    for user_id in user_ids:
        if user_id not in shared:
            delete_list(tx, user_id)
    return nids[-1] if len(nids) == limit else None


# --- storage ---


def _is_usable(known: RemoteList | None, shared_since: int) -> bool:
    return known is not None and known.is_fresh and shared_since <= known.tracked_position


def _list_lists(tx: Transaction, user_ids: Collection[UserID]) -> dict[UserID, RemoteList]:
    by_nid = {nid: UserID(user_id) for user_id, nid in tx.find_all(user_ids).items()}
    rows = tx.all_in(
        "SELECT user_nid, stream_id, is_fresh, tracked_position, master_key, self_signing_key FROM remote_device_lists"
        " WHERE user_nid IN (?*)",
        by_nid,
    )
    return {by_nid[row[0]]: RemoteList(row[0], row[1], bool(row[2]), *row[3:]) for row in rows}


def _note_wanted(tx: Transaction, user_id: UserID, *, again: bool) -> None:
    """Notes that a list is to be fetched. again: also if it is being fetched at this moment."""
    nid = tx.intern(user_id)
    is_wanted = tx.one("SELECT 1 FROM device_list_resyncs WHERE user_nid = ?", nid) is not None
    if is_wanted and not again:
        return
    tx.run(
        "INSERT INTO device_list_resyncs (user_nid, server_nid, wanted_position, failures, retry_after_ms)"
        " VALUES (?, ?, ?, 0, 0) ON CONFLICT (user_nid) DO UPDATE SET wanted_position = excluded.wanted_position,"
        " retry_after_ms = 0",
        nid, tx.intern(server_name_of(user_id)), tx.next_position(WAKE_KEY),
    )  # fmt: skip


def _store_device(tx: Transaction, user_nid: int, device_id: str, keys: bytes) -> None:
    tx.run(
        "INSERT INTO remote_devices (user_nid, device_id, keys) VALUES (?, ?, ?)"
        " ON CONFLICT (user_nid, device_id) DO UPDATE SET keys = excluded.keys",
        user_nid, device_id, keys,
    )  # fmt: skip


def _signing_keys(shown: ShownKeys, user_id: UserID) -> tuple[bytes | None, bytes | None]:
    master, self_signing = shown.master_keys.get(user_id), shown.self_signing_keys.get(user_id)
    return None if master is None else to_json(master), None if self_signing is None else to_json(self_signing)


def _content(snapshot: Snapshot) -> tuple[Any, ...]:
    return dict(snapshot.devices), snapshot.master_key, snapshot.self_signing_key


def _get_content(tx: Transaction, known: RemoteList) -> tuple[Any, ...]:
    rows = tx.all("SELECT device_id, keys FROM remote_devices WHERE user_nid = ?", known.user_nid)
    return {device_id: bytes(keys) for device_id, keys in rows}, known.master_key, known.self_signing_key


def make_snapshot(user_id: UserID, answer: Mapping[str, Any], shown: ShownKeys, position: int) -> Snapshot | None:
    """Returns the list that a server has answered, with the keys that are good. None if the answer is malformed."""
    stream_id = answer.get("stream_id")
    if answer.get("user_id") != user_id or type(stream_id) is not int or not 0 <= stream_id < 1 << 53:
        return None
    devices = {device_id: to_json(keys) for device_id, keys in shown.device_keys.get(user_id, {}).items()}
    return Snapshot(user_id, stream_id, position, devices, *_signing_keys(shown, user_id))
