"""Presence: who is online, since when not, and how that changes. Spec: client-server-api/#presence

Each device of a user is online or unavailable for as long as it shows itself; the user's presence is made of that and
of when the user was last active. Only what others can see takes a position in the stream. A sync writes nothing unless
something changes, or the last write is a minute old; `due_ms` says when a row changes by itself, and a sweep finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from homeserver import limits
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.feature import JsonObject, PresenceState
from homeserver.federation.identifiers import UserID
from homeserver.moments import is_recent, latest, passed
from homeserver.rooms.membership import list_joined_rooms

# When users were last noted to be active: who is forgotten costs a statement more.
ACTIVITY_CACHED_MAX = 100_000
# Wakes who follows the time, once there may be somebody whose presence changes by itself.
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


@dataclass(frozen=True, slots=True)
class Presence:
    """A user's presence. last_active_ms is 0 for one who was never active; position: of the last change others see."""

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
        """As the API and m.presence events tell it."""
        body: JsonObject = {"presence": self.state}
        if self.last_active_ms:
            body["last_active_ago"] = max(0, now_ms - self.last_active_ms)
        if self.state == "online":
            body["currently_active"] = self.currently_active
        if self.status_msg is not None:
            body["status_msg"] = self.status_msg
        return body

    def event(self, now_ms: int) -> JsonObject:
        """The m.presence event that tells it."""
        return {"type": "m.presence", "sender": self.user_id, "content": self.body(now_ms)}


def _timeout_ms(tx: Transaction) -> int:
    return tx.server.config.presence.online_timeout_s * 1000


def is_news_of_device(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState) -> bool:
    """Whether `show_device` would write anything that is not written yet, or not for long."""
    row = tx.one(
        "SELECT state, seen_ms FROM presence_devices WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id
    )
    if row is None:
        return True
    interval_ms = min(limits.users.PRESENCE_WRITE_INTERVAL_MS, _timeout_ms(tx) // 3)
    return bool(row[0] != state or not is_recent(row[1], tx.now_ms, interval_ms))


def show_device(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState) -> None:
    """A device has shown itself. To be online again, or for the first time, is being active; to go on is not."""
    was = tx.one(
        "SELECT 1 FROM presence_devices WHERE user_nid = ? AND state = 'online' AND seen_ms > ? AND seen_ms <= ?"
        " LIMIT 1",
        tx.find(user_id), tx.now_ms - _timeout_ms(tx), latest(tx.now_ms, 0),
    )  # fmt: skip
    _store_device(tx, user_id, device_id, state)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    active_ms = tx.now_ms if state == "online" and was is None else old.last_active_ms
    _refresh(tx, old, replace(old, last_active_ms=active_ms))


def set_status(tx: Transaction, user_id: UserID, device_id: str, state: PresenceState, status_msg: str | None) -> None:
    """What a user says of the device that is used, and of the user."""
    _store_device(tx, user_id, device_id, state)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    _refresh(tx, old, replace(old, status_msg=status_msg, last_active_ms=tx.now_ms))


def note_activity(tx: Transaction, user_id: UserID) -> None:
    """A user of this server has done something, such as sending a message. To be called in the write that does it.

    No more than a look into memory where it was noted less than half a minute ago.
    """
    noted = tx.cache("activity", ACTIVITY_CACHED_MAX)
    if is_recent(noted.get(user_id, 0), tx.now_ms, _NOTED_FOR_MS) or not tx.server.config.presence.enabled:
        return
    active_ms = tx.now_ms
    old = find_presence(tx, user_id)
    if old is not None and is_recent(old.last_active_ms, active_ms, _NOTED_FOR_MS):
        active_ms = old.last_active_ms
    elif old is not None:
        _refresh(tx, old, replace(old, last_active_ms=active_ms))
    tx.after_commit(noted.put, user_id, active_ms)


def _refresh(tx: Transaction, old: Presence, new: Presence) -> None:
    """Stores what the presence of a local user is now, given the devices and `new.last_active_ms`."""
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
    """Stores a presence; tells those who share a room where they can see a difference, or have long heard nothing."""
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


def forget_presence(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Everything but that the user is offline, which others still have to be told."""
    tx.run("DELETE FROM presence_devices WHERE user_nid = ?", tx.find(user_id))
    old = find_presence(tx, user_id)
    if old is not None:
        store_presence(tx, old, Presence(user_id, True))
    tx.after_commit(tx.cache("activity", ACTIVITY_CACHED_MAX).forget, user_id)
    return False


def is_anybody_there(tx: Transaction) -> tuple[bool, int]:
    """Whether any presence changes by itself sooner or later; and the position up to which that is known."""
    return tx.one("SELECT 1 FROM presence WHERE due_ms IS NOT NULL LIMIT 1") is not None, tx.position


def list_due(tx: Transaction) -> list[int]:
    """The numbers of some of the users that `sweep` has to look at."""
    return tx.values(
        "SELECT user_nid FROM presence WHERE due_ms <= ? OR due_ms > ? ORDER BY due_ms LIMIT 200", *_due(tx)
    )


def _due(tx: Transaction) -> tuple[int, int]:
    """Rows are due up to the first of these moments, and behind the second, which only a wrong clock has set."""
    span_ms_max = max(limits.users.PRESENCE_REPEAT_MS, limits.users.PRESENCE_REMOTE_TIMEOUT_MS, _timeout_ms(tx))
    return tx.now_ms, latest(tx.now_ms, span_ms_max)


def sweep(tx: Transaction, user_nids: Sequence[int]) -> None:
    """Makes those of the users idle or offline whose time has come."""
    before, behind = _due(tx)
    for old in _presences(tx, tx.all_in(_SELECT_OF_USERS, user_nids)):
        if old.due_ms is None or before < old.due_ms <= behind:
            continue
        if old.is_local:
            _refresh(tx, old, old)
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
    """The user's presence, None where nothing is known of it."""
    return next(iter(list_presences(tx, (user_id,))), None)


def list_presences(tx: Transaction, user_ids: Iterable[UserID]) -> list[Presence]:
    """What is known of these users' presence."""
    nids = [nid for user_id in user_ids if (nid := tx.find(user_id)) is not None]
    return _presences(tx, tx.all_in(_SELECT_OF_USERS, nids))


def list_present(tx: Transaction) -> list[Presence]:
    """Everyone who is not offline."""
    return _presences(tx, tx.all(_SELECT_PRESENT))


def list_presence_changes(tx: Transaction, since: int, upto: int) -> list[Presence]:
    """Of everyone whose presence has changed for others at since < position ≤ upto."""
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
    """Notes that the device has just shown itself; "offline" forgets the device."""
    nid = tx.intern(user_id)
    if state == "offline":
        tx.run("DELETE FROM presence_devices WHERE user_nid = ? AND device_id = ?", nid, device_id)
        return
    tx.run(
        "INSERT INTO presence_devices (user_nid, device_id, state, seen_ms) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_nid, device_id) DO UPDATE SET state = excluded.state, seen_ms = excluded.seen_ms",
        nid, device_id, state, tx.now_ms,
    )  # fmt: skip
