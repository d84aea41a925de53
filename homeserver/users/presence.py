"""Presence: who is online, who was when, and how that changes. Spec: client-server-api/#presence

Theory of operation. Each device of a user is "online" or "unavailable" as long as it keeps syncing; a device that has
been silent for the timeout counts as offline. The user's presence is the best of the devices' states, and online turns
into unavailable when the user was last active too long ago. Only changes that others can see take a position in the
stream. A sync writes only if something changes, or if the last write is a minute old, so a crash loses little.

Some changes happen by mere passing of time: a user falls silent, or becomes idle. `due_ms` says when a row will change
by itself, and a sweep updates the rows that are due. A `due_ms` too far in the future was set by a wrong clock and is
due as well. Presence of users on other servers becomes offline when their server has been silent for too long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec.structs import replace

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.feature import JsonObject, PresenceState
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent, latest, passed
from homeserver.rooms.membership import list_joined_rooms

# Cache of when users were last noted as active. A forgotten user costs one more statement.
ACTIVITY_CACHED_MAX = 100_000
# Wakes the sweep when a user's presence may change with time.
WAKE_KEY = "presence"
_NOTED_FOR_MS = limits.users.CURRENTLY_ACTIVE_MS // 2

SCHEMA = Schema(
    "presence",
    (
        Step(
            "create",
            """
            CREATE TABLE presence (
                user_nid INTEGER PRIMARY KEY,
                is_local INTEGER NOT NULL,
                state TEXT NOT NULL,
                status_msg TEXT,
                last_active_ms INTEGER NOT NULL,
                currently_active INTEGER NOT NULL,
                told_ms INTEGER NOT NULL,
                due_ms INTEGER,
                position INTEGER NOT NULL
            );
            CREATE INDEX presence_position ON presence (position);
            CREATE INDEX presence_due ON presence (due_ms) WHERE due_ms IS NOT NULL;
            CREATE TABLE presence_devices (
                user_nid INTEGER NOT NULL,
                device_id TEXT NOT NULL,
                state TEXT NOT NULL,
                seen_ms INTEGER NOT NULL,
                PRIMARY KEY (user_nid, device_id)
            ) WITHOUT ROWID;
            """,
        ),
    ),
)


class Presence(msgspec.Struct, frozen=True):
    """A user's presence. last_active_ms: 0 if never active. position: of the last change that others can see."""

    user_id: UserID
    is_local: bool
    state: PresenceState = "offline"
    status_msg: str | None = None
    last_active_ms: int = 0
    currently_active: bool = False
    told_ms: int = 0
    due_ms: int | None = None
    position: int = 0

    def body(self, now_ms: int) -> JsonObject:
        """Returns the presence as in the API and in m.presence events."""
        body: JsonObject = {"presence": self.state}
        if self.last_active_ms:
            body["last_active_ago"] = max(0, now_ms - self.last_active_ms)
        if self.state == "online":
            body["currently_active"] = self.currently_active
        if self.status_msg is not None:
            body["status_msg"] = self.status_msg
        return body

    def event(self, now_ms: int) -> JsonObject:
        """Returns the m.presence event."""
        return {"type": "m.presence", "sender": self.user_id, "content": self.body(now_ms)}


def _timeout_ms(tx: Transaction) -> int:
    return tx.server.config.presence.online_timeout_s * 1000


def is_news_of_device(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState) -> bool:
    """Returns whether `note_device` would write anything new, or refresh an old write."""
    row = _find_device(tx, user_id, device_id)
    return row is None or row[0] != state or not is_recent(row[1], tx.now_ms, _write_interval_ms(tx))


def fresh_for_ms(tx: Transaction, user_id: UserID, device_id: str) -> int:
    """Returns for how long the last write about a device does not need to be refreshed. Not negative."""
    row = _find_device(tx, user_id, device_id)
    interval_ms = _write_interval_ms(tx)
    if row is None or not is_recent(row[1], tx.now_ms, interval_ms):
        return 0
    return row[1] + interval_ms - tx.now_ms


def _write_interval_ms(tx: Transaction) -> int:
    return min(limits.users.PRESENCE_WRITE_INTERVAL_MS, _timeout_ms(tx) // 3)


def _find_device(tx: Transaction, user_id: UserID, device_id: str) -> tuple[PresenceState, int] | None:
    """Returns the state of a device and when it was stored, or None."""
    row = tx.one(
        "SELECT state, seen_ms FROM presence_devices WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id
    )
    return None if row is None else (row[0], row[1])


def note_device(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState) -> None:
    """Notes that a device is in use. Coming online counts as being active; staying online does not."""
    was = tx.one(
        "SELECT 1 FROM presence_devices WHERE user_nid = ? AND state = 'online' AND seen_ms > ? AND seen_ms <= ?"
        " LIMIT 1",
        tx.find(user_id), tx.now_ms - _timeout_ms(tx), latest(tx.now_ms, 0),
    )  # fmt: skip
    _store_device(tx, user_id, device_id, state)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    active_ms = tx.now_ms if state == "online" and was is None else old.last_active_ms
    _store_current(tx, old, replace(old, last_active_ms=active_ms))


def set_status(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState, status_msg: str | None) -> None:
    """Stores the state that a user sets for the current device, and their status message.

    This is news for the device's next sync, which may show another state.
    """
    if is_news_of_device(tx, user_id, device_id, state):
        tx.wake(user_id)
    _store_device(tx, user_id, device_id, state)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    _store_current(tx, old, replace(old, status_msg=status_msg, last_active_ms=tx.now_ms))


def note_activity(tx: Transaction, user_id: UserID) -> None:
    """Notes that a local user did something, such as sending a message. Call it in the write that does it.

    Only looks into memory if this was already noted in the last half minute.
    """
    noted = tx.cache("activity", ACTIVITY_CACHED_MAX)
    if is_recent(noted.get(user_id, 0), tx.now_ms, _NOTED_FOR_MS) or not tx.server.config.presence.enabled:
        return
    active_ms = tx.now_ms
    old = find_presence(tx, user_id)
    if old is not None and is_recent(old.last_active_ms, active_ms, _NOTED_FOR_MS):
        active_ms = old.last_active_ms
    elif old is not None:
        _store_current(tx, old, replace(old, last_active_ms=active_ms))
    tx.after_commit(noted.put, user_id, active_ms)


def _store_current(tx: Transaction, old: Presence, new: Presence) -> None:
    """Stores the current presence of a local user, computed from the devices and `new.last_active_ms`."""
    now_ms, timeout_ms = tx.now_ms, _timeout_ms(tx)
    nid = tx.intern(old.user_id)
    tx.run(
        "DELETE FROM presence_devices WHERE user_nid = ? AND (seen_ms <= ? OR seen_ms > ?)",
        nid, now_ms - timeout_ms, latest(now_ms, 0),
    )  # fmt: skip
    devices = tx.all("SELECT state, seen_ms FROM presence_devices WHERE user_nid = ?", nid)
    idle_ms = now_ms - new.last_active_ms
    state: PresenceState = "offline"
    due: list[int] = []
    if devices:
        is_online = any(each == "online" for each, _ in devices) and idle_ms < timeout_ms
        state = "online" if is_online else "unavailable"
        due = [seen_ms + timeout_ms for _, seen_ms in devices]
        due.append((old.told_ms or now_ms) + limits.users.PRESENCE_REPEAT_MS)
    currently_active = state == "online" and idle_ms < limits.users.CURRENTLY_ACTIVE_MS
    if state == "online":
        due.append(new.last_active_ms + (limits.users.CURRENTLY_ACTIVE_MS if currently_active else timeout_ms))
    new = replace(new, state=state, currently_active=currently_active, due_ms=min(due, default=None))
    store_presence(tx, old, new)


def store_presence(tx: Transaction, old: Presence, new: Presence) -> None:
    """Stores a presence. Wakes users who share a room if they can see a difference, or have heard nothing for long."""
    seen = (new.state, new.status_msg, new.currently_active) != (old.state, old.status_msg, old.currently_active)
    repeat = new.is_local and new.state != "offline" and tx.now_ms - old.told_ms >= limits.users.PRESENCE_REPEAT_MS
    position, told_ms = old.position, old.told_ms
    if seen or repeat or old.position == 0:
        position = tx.next_position(new.user_id, *list_joined_rooms(tx, new.user_id), WAKE_KEY)
        told_ms = tx.now_ms
    tx.run(
        "INSERT INTO presence (user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms,"
        " due_ms, position) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_nid) DO UPDATE SET state = excluded.state, status_msg = excluded.status_msg,"
        " last_active_ms = excluded.last_active_ms,"
        " currently_active = excluded.currently_active, told_ms = excluded.told_ms, due_ms = excluded.due_ms,"
        " position = excluded.position",
        tx.intern(new.user_id), int(new.is_local), new.state, new.status_msg, new.last_active_ms,
        int(new.currently_active), told_ms, new.due_ms, position,
    )  # fmt: skip


def repeat_presence(tx: Transaction, user_id: UserID) -> None:
    """Shows a local user's presence again to everyone who may see it, because that may be others than before."""
    old = find_presence(tx, user_id)
    if old is not None:
        store_presence(tx, replace(old, position=0), old)


def forget_presence(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes everything except that the user is offline, which others still have to be told."""
    tx.run("DELETE FROM presence_devices WHERE user_nid = ?", tx.find(user_id))
    old = find_presence(tx, user_id)
    if old is not None:
        store_presence(tx, old, Presence(user_id, True))
    tx.after_commit(tx.cache("activity", ACTIVITY_CACHED_MAX).forget, user_id)
    return False


def is_anybody_there(tx: Transaction) -> tuple[bool, int]:
    """Returns whether any presence will change with time, and the position up to which this is known."""
    return tx.one("SELECT 1 FROM presence WHERE due_ms IS NOT NULL LIMIT 1") is not None, tx.position


def list_due(tx: Transaction) -> list[int]:
    """Returns the numbers of some of the users that `note_silence` must check."""
    return tx.values(
        "SELECT user_nid FROM presence WHERE due_ms <= ? OR due_ms > ? ORDER BY due_ms LIMIT 200", *_due(tx)
    )


def _due(tx: Transaction) -> tuple[int, int]:
    """Returns two moments. Rows are due up to the first, and after the second, which only a wrong clock can set."""
    span_ms_max = max(limits.users.PRESENCE_REPEAT_MS, limits.users.PRESENCE_REMOTE_TIMEOUT_MS, _timeout_ms(tx))
    return tx.now_ms, latest(tx.now_ms, span_ms_max)


def note_silence(tx: Transaction, user_nids: Sequence[int]) -> None:
    """Makes those of the users idle or offline who have been silent for long enough."""
    before, behind = _due(tx)
    for old in _presences(tx, tx.all_in(_SELECT_OF_USERS, user_nids)):
        if old.due_ms is None or before < old.due_ms <= behind:
            continue
        if old.is_local:
            _store_current(tx, old, old)
        else:
            store_presence(tx, old, replace(old, state="offline", currently_active=False, due_ms=None))


# --- storage ---

_SELECT_CHANGED = """
    SELECT user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position
    FROM presence WHERE position > ? AND position <= ?
"""
_SELECT_PRESENT = """
    SELECT user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position
    FROM presence WHERE state <> 'offline'
"""
_SELECT_OF_USERS = """
    SELECT user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position
    FROM presence WHERE user_nid IN (?*)
"""


def find_presence(tx: Transaction, user_id: UserID) -> Presence | None:
    """Returns the user's presence, None if nothing is known about it."""
    return next(iter(list_presences(tx, (user_id,))), None)


def list_presences(tx: Transaction, user_ids: Iterable[UserID]) -> list[Presence]:
    """Returns the known presences of these users."""
    nids = [nid for user_id in user_ids if (nid := tx.find(user_id)) is not None]
    return _presences(tx, tx.all_in(_SELECT_OF_USERS, nids))


def list_present(tx: Transaction) -> list[Presence]:
    """Returns the presence of everyone who is not offline."""
    return _presences(tx, tx.all(_SELECT_PRESENT))


def list_presence_changes(tx: Transaction, since: int, upto: int) -> list[Presence]:
    """Returns presences whose last change visible to others is in since < position ≤ upto."""
    return _presences(tx, tx.all(_SELECT_CHANGED, since, upto))


def _presences(tx: Transaction, rows: Iterable[Row]) -> list[Presence]:
    return [
        Presence(
            UserID(tx.name(nid)), bool(is_local), state, status_msg, passed(last_active_ms, tx.now_ms),
            bool(currently_active), passed(told_ms, tx.now_ms), due_ms, position,
        )
        for nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position in rows
    ]  # fmt: skip


def _store_device(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState) -> None:
    """Stores that the device was just in use; "offline" deletes the device."""
    nid = tx.intern(user_id)
    if state == "offline":
        tx.run("DELETE FROM presence_devices WHERE user_nid = ? AND device_id = ?", nid, device_id)
        return
    tx.run(
        "INSERT INTO presence_devices (user_nid, device_id, state, seen_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, device_id) DO UPDATE SET state = excluded.state, seen_ms = excluded.seen_ms",
        nid, device_id, state, tx.now_ms,
    )  # fmt: skip
