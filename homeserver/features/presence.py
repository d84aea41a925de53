"""Presence: who is online, and since when not. Spec: client-server-api/#presence, server-server-api/#presence

Each device of a user is online or unavailable for as long as it shows itself; the user's presence is made of that and
of when the user was last active. Only what others can see takes a position in the stream. A sync writes nothing unless
something changes, or the last write is a minute old; `due_ms` says when a row changes by itself, and a sweep finds it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import msgspec
import trio

from federation.edus import PresenceContent, PresenceUpdate
from federation.identifiers import ServerName, UserID
from homeserver import limits
from homeserver.api import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Row, Schema, Step, Transaction
from homeserver.errors import MatrixError, forbidden
from homeserver.feature import Feature, JsonObject, OutgoingEdu, SyncContext
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import joined_servers, list_joined_rooms, list_members, list_sharers, share_room

State = Literal["online", "unavailable", "offline"]

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
    state: State = "offline"
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
        return {"type": "m.presence", "sender": self.user_id, "content": self.body(now_ms)}


routes = Routes()


class PresenceBody(msgspec.Struct, frozen=True):
    presence: State
    status_msg: str | None = None


@routes.get("/_matrix/client/v3/presence/{user_id}/status")
async def get_presence(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    return await hs.database.read(_read_presence, requester, user_id)


@routes.put("/_matrix/client/v3/presence/{user_id}/status")
async def set_presence(hs: Resources, requester: Requester, user_id: UserID, body: PresenceBody) -> Empty:
    if requester.user_id != user_id:
        raise forbidden("Nobody sets the presence of another user.")
    if len((body.status_msg or "").encode("utf-8", "surrogatepass")) > limits.STATUS_MESSAGE_BYTES_MAX:
        raise MatrixError(400, "M_TOO_LARGE", f"A status message is {limits.STATUS_MESSAGE_BYTES_MAX} bytes at most.")
    if hs.config.presence.enabled:
        await hs.database.write(_set, hs, user_id, requester.device_id, body)
    return Empty()


def _read_presence(tx: Transaction, requester: Requester, user_id: UserID) -> JsonObject:
    may_see = requester.user_id == user_id or requester.is_admin or share_room(tx, requester.user_id, user_id)
    if not may_see:
        raise forbidden("You share no room with that user.")
    return (find_presence(tx, user_id) or Presence(user_id, True)).body(tx.now_ms)


async def touch(hs: Resources, user_id: UserID, device_id: str, presence: str) -> None:
    """A client has shown itself by a sync with `set_presence`. One read; one write where something changes."""
    if not hs.config.presence.enabled:
        return
    if await hs.database.read(_must_write, hs, user_id, device_id, presence):
        await hs.database.write(_touch, hs, user_id, device_id, presence)


async def follow_time(hs: Resources) -> None:
    """Sees to it that users become idle and offline when their time has come."""
    if not hs.config.presence.enabled:
        return
    interval_s = min(limits.PRESENCE_SWEEP_INTERVAL_S, hs.config.presence.online_timeout_s / 3)
    while True:
        await trio.sleep(interval_s)
        if await hs.database.read(_is_anyone_due):
            await hs.database.write(_sweep, hs)


# --- sync and federation ---


def sync_presence(tx: Transaction, context: SyncContext) -> None:
    """The user's own presence and that of users who share a room: at first who is there, then what changes."""
    if context.since == 0:
        rows = tx.all(_SELECT_PRESENT)
    else:
        rows = tx.all(_SELECT_CHANGED, context.since, context.upto)
    told = list(_visible(tx, context.user_id, rows))
    if context.since > 0:
        told += _of_new_rooms(tx, context, {presence.user_id for presence in told})
    context.presence += [presence.event(tx.now_ms) for presence in told]


def _visible(tx: Transaction, user_id: UserID, rows: list[Row]) -> Iterator[Presence]:
    """Those that the user may see. Few are asked for one by one, many with the list of all who share a room."""
    found = list(_presences(tx, rows))
    sharers = {user_id, *list_sharers(tx, user_id)} if len(found) > 20 else None
    for presence in found:
        if sharers is not None:
            may_see = presence.user_id in sharers
        else:
            may_see = presence.user_id == user_id or share_room(tx, user_id, presence.user_id)
        if may_see:
            yield presence


def _of_new_rooms(tx: Transaction, context: SyncContext, told: set[UserID]) -> list[Presence]:
    """Who is there in rooms that the user has just joined."""
    members = {member for room_id in context.newly_joined for member in list_members(tx, room_id, "join")} - told
    rows = tx.all_in(_SELECT_OF_USERS, [tx.find(member) for member in members])
    return [presence for presence in _presences(tx, rows) if presence.state != "offline"]


def list_presence_edus(tx: Transaction, since: int, upto: int) -> Iterable[OutgoingEdu]:
    """An m.presence for each user of this server who changed, to the servers in the user's rooms."""
    for presence in _presences(tx, tx.all(_SELECT_CHANGED, since, upto)):
        if not presence.is_local:
            continue
        servers: set[ServerName] = set()
        for room_id in list_joined_rooms(tx, presence.user_id):
            head = find_head(tx, room_id)
            servers |= joined_servers(tx, head) if head is not None else set()
        servers.discard(ServerName(presence.user_id.partition(":")[2]))
        if servers:
            # The spec requires last_active_ago, also of one who was never active.
            update = {"user_id": presence.user_id, "last_active_ago": 0, **presence.body(tx.now_ms)}
            yield OutgoingEdu("m.presence", {"push": [update]}, destinations=tuple(sorted(servers)))


async def receive_presence(hs: Resources, origin: ServerName, content: PresenceContent) -> None:
    """An m.presence EDU: counts for users of `origin` only, and only for those who share a room with ours."""
    if not hs.config.presence.enabled:
        return
    updates = [update for update in content.push if update.user_id.partition(":")[2] == origin]
    if updates:
        await hs.database.write(_store_remote, updates[: limits.PRESENCE_UPDATES_PER_EDU_MAX])


def _store_remote(tx: Transaction, updates: list[PresenceUpdate]) -> None:
    for update in updates:
        if not list_joined_rooms(tx, update.user_id):
            continue
        old = find_presence(tx, update.user_id) or Presence(update.user_id, False)
        active_ms = old.last_active_ms
        if update.last_active_ago is not None:
            active_ms = max(0, tx.now_ms - update.last_active_ago)
        is_online = update.presence == "online"
        new = replace(
            old,
            state=update.presence,
            status_msg=update.status_msg,
            last_active_ms=active_ms,
            currently_active=is_online and update.currently_active,
            due_ms=None if update.presence == "offline" else tx.now_ms + limits.PRESENCE_REMOTE_TIMEOUT_MS,
        )
        _store(tx, old, new)


# --- how presence changes ---


def _timeout_ms(hs: Resources) -> int:
    return hs.config.presence.online_timeout_s * 1000


def _must_write(tx: Transaction, hs: Resources, user_id: UserID, device_id: str, state: str) -> bool:
    row = tx.one(
        "SELECT state, seen_ms FROM presence_devices WHERE user_nid = ? AND device_id = ?", tx.find(user_id), device_id
    )
    if row is None or state == "offline":
        return (row is None) != (state == "offline")
    interval_ms = min(limits.PRESENCE_WRITE_INTERVAL_MS, _timeout_ms(hs) // 3)
    return bool(row[0] != state or tx.now_ms - row[1] >= interval_ms)


def _touch(tx: Transaction, hs: Resources, user_id: UserID, device_id: str, state: State) -> None:
    """Being online again, or for the first time, is being active; going on to be online is not."""
    was = tx.one(
        "SELECT 1 FROM presence_devices WHERE user_nid = ? AND state = 'online' AND seen_ms > ? LIMIT 1",
        tx.find(user_id), tx.now_ms - _timeout_ms(hs),
    )  # fmt: skip
    _store_device(tx, user_id, device_id, state)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    active_ms = tx.now_ms if state == "online" and was is None else old.last_active_ms
    refresh(tx, hs, old, replace(old, last_active_ms=active_ms))


def _set(tx: Transaction, hs: Resources, user_id: UserID, device_id: str, body: PresenceBody) -> None:
    _store_device(tx, user_id, device_id, body.presence)
    old = find_presence(tx, user_id) or Presence(user_id, True)
    refresh(tx, hs, old, replace(old, status_msg=body.status_msg, last_active_ms=tx.now_ms))


def note_activity(tx: Transaction, hs: Resources, user_id: UserID) -> None:
    """The user has done something, such as sending a message. To be called in the write that does it."""
    old = find_presence(tx, user_id) if hs.config.presence.enabled else None
    if old is None or tx.now_ms - old.last_active_ms < limits.CURRENTLY_ACTIVE_MS // 2:
        return
    refresh(tx, hs, old, replace(old, last_active_ms=tx.now_ms))


def refresh(tx: Transaction, hs: Resources, old: Presence, new: Presence) -> None:
    """Stores what the presence of a local user is now, given the devices and `new.last_active_ms`."""
    now_ms, timeout_ms = tx.now_ms, _timeout_ms(hs)
    nid = tx.intern(old.user_id)
    tx.run("DELETE FROM presence_devices WHERE user_nid = ? AND seen_ms <= ?", nid, now_ms - timeout_ms)
    devices = tx.all("SELECT state, seen_ms FROM presence_devices WHERE user_nid = ?", nid)
    idle_ms = now_ms - new.last_active_ms
    state: State = "offline"
    due: list[int] = []
    if devices:
        is_online = any(each == "online" for each, _ in devices) and idle_ms < timeout_ms
        state = "online" if is_online else "unavailable"
        due = [seen_ms + timeout_ms for _, seen_ms in devices]
        due.append((old.told_ms or now_ms) + limits.PRESENCE_REPEAT_MS)
    currently_active = state == "online" and idle_ms < limits.CURRENTLY_ACTIVE_MS
    if state == "online":
        due.append(new.last_active_ms + (limits.CURRENTLY_ACTIVE_MS if currently_active else timeout_ms))
    new = replace(new, state=state, currently_active=currently_active, due_ms=min(due, default=None))
    _store(tx, old, new)


def _store(tx: Transaction, old: Presence, new: Presence) -> None:
    """Stores a presence; tells those who share a room where they can see a difference, or have long heard nothing."""
    seen = (new.state, new.status_msg, new.currently_active) != (old.state, old.status_msg, old.currently_active)
    repeat = new.is_local and new.state != "offline" and tx.now_ms - old.told_ms >= limits.PRESENCE_REPEAT_MS
    position, told_ms = old.position, old.told_ms
    if seen or repeat or old.position == 0:
        position = tx.next_position(new.user_id, *list_joined_rooms(tx, new.user_id))
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


def _is_anyone_due(tx: Transaction) -> bool:
    return tx.one("SELECT 1 FROM presence WHERE due_ms <= ? LIMIT 1", tx.now_ms) is not None


def _sweep(tx: Transaction, hs: Resources) -> None:
    for old in list(_presences(tx, tx.all(_SELECT_DUE, tx.now_ms))):
        if old.is_local:
            refresh(tx, hs, old, old)
        else:
            _store(tx, old, replace(old, state="offline", currently_active=False, due_ms=None))


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
_SELECT_DUE = """
    SELECT user_nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position
    FROM presence WHERE due_ms <= ? ORDER BY due_ms LIMIT 100
"""


def find_presence(tx: Transaction, user_id: UserID) -> Presence | None:
    """The user's presence, None where nothing is known of it."""
    nid = tx.find(user_id)
    rows = [] if nid is None else tx.all_in(_SELECT_OF_USERS, [nid])
    return next(_presences(tx, rows), None)


def _presences(tx: Transaction, rows: Iterable[Row]) -> Iterator[Presence]:
    for nid, is_local, state, status_msg, last_active_ms, currently_active, told_ms, due_ms, position in rows:
        yield Presence(
            UserID(tx.name(nid)), bool(is_local), state, status_msg, last_active_ms, bool(currently_active), told_ms,
            due_ms, position,
        )  # fmt: skip


def _store_device(tx: Transaction, user_id: UserID, device_id: str, state: State) -> None:
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


FEATURE = Feature(
    name="presence",
    spec="client-server-api/#presence",
    schema=SCHEMA,
    routes=routes,
    edus={"m.presence": receive_presence},
    sync=sync_presence,
    edu_source=list_presence_edus,
    background=(follow_time,),
    heartbeat=touch,
)
