"""Typing notifications. Spec: client-server-api/#typing-notifications

There is one row per user and room. A background task ends expired notifications; long expired rows are deleted by the
next write in the room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import msgspec
import trio

from homeserver import limits
from homeserver.api.filters import wants
from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester
from homeserver.database import Schema, Step, Transaction
from homeserver.database.lane import Lane
from homeserver.database.parked import RETRY_KEY
from homeserver.encoding import to_json
from homeserver.errors import forbidden
from homeserver.feature import Edu, Ephemeral, Feature, JsonObject, OutgoingEdu, Shared, SyncContext
from homeserver.federation.edus import TypingContent
from homeserver.federation.identifiers import RoomID, ServerName, UserID
from homeserver.moments import is_ahead, latest
from homeserver.resources import Resources
from homeserver.rooms.membership import check_joined, find_join_position, find_membership
from homeserver.users.blocking import ignored_in_sync
from homeserver.users.presence import note_activity
from homeserver.users.shadow_bans import write_for

SCHEMA = Schema(
    "typing",
    (
        Step(
            "001_create",
            """
            CREATE TABLE typing (
                room_nid INTEGER NOT NULL,
                user_nid INTEGER NOT NULL,
                expires_ms INTEGER NOT NULL,
                position INTEGER NOT NULL,
                is_local INTEGER NOT NULL,
                PRIMARY KEY (room_nid, user_nid)
            ) WITHOUT ROWID;
            CREATE INDEX typing_by_position ON typing (position);
            """,
        ),
        Step("002_due", "CREATE INDEX typing_due ON typing (expires_ms) WHERE expires_ms > 0;"),
    ),
)

routes = Routes()

# The stream key that wakes the task which ends typing notifications; writes wake it as well as the room.
WAKE_KEY = "typing"


class TypingBody(msgspec.Struct, frozen=True):
    typing: bool
    timeout: int | None = None


@routes.put("/_matrix/client/v3/rooms/{room_id}/typing/{user_id}", allow_guest=True)
async def set_typing(hs: Resources, requester: Requester, room_id: RoomID, user_id: UserID, body: TypingBody) -> Empty:
    if user_id != requester.user_id:
        raise forbidden("You cannot type for another user.")
    timeout_ms = limits.TYPING_TIMEOUT_MS_DEFAULT if body.timeout is None else body.timeout
    timeout_ms = max(0, min(timeout_ms, limits.TYPING_TIMEOUT_MS_MAX)) if body.typing else 0
    await write_for(hs, requester, _set_local, room_id, user_id, timeout_ms)
    return Empty()


def _set_local(tx: Transaction, room_id: RoomID, user_id: UserID, timeout_ms: int) -> None:
    check_joined(tx, room_id, user_id)
    store_typing(tx, room_id, user_id, tx.now_ms + timeout_ms if timeout_ms else 0, is_local=True)
    note_activity(tx, user_id)


async def follow_time(hs: Resources) -> None:
    """Notifies rooms when a typing notification has expired without being renewed."""
    lane = Lane("typing", hs.database, hs.metrics)

    async def end(due: Sequence[_Typing]) -> None:
        await hs.database.write(_end, due)

    while True:
        listed, wait_ms, position = await hs.database.read(_list_due)
        due = await lane.without_parked(listed)
        await lane.work(due, end)
        if not due:
            await hs.stream.wait((WAKE_KEY, RETRY_KEY), position, trio.current_time() + wait_ms / 1000)


_Typing = tuple[int, int, bool]
"""Room nid, user nid, and whether the user is local."""


def _list_due(tx: Transaction) -> tuple[list[_Typing], float, int]:
    """Returns the expired notifications, the milliseconds until the next one expires, and the stream position."""
    last_ms = latest(tx.now_ms, limits.TYPING_TIMEOUT_MS_MAX)
    due = tx.all(
        "SELECT room_nid, user_nid, is_local FROM typing WHERE expires_ms > 0 AND expires_ms <= ? OR expires_ms > ?",
        tx.now_ms,
        last_ms,
    )
    (next_ms,) = tx.one("SELECT MIN(expires_ms) FROM typing WHERE expires_ms > ?", tx.now_ms) or (None,)
    wait_ms = math.inf if next_ms is None else min(next_ms, last_ms) - tx.now_ms
    return [(room_nid, user_nid, bool(is_local)) for room_nid, user_nid, is_local in due], wait_ms, tx.position


def _end(tx: Transaction, due: Sequence[_Typing]) -> None:
    for room_nid, user_nid, is_local in due:
        store_typing(tx, RoomID(tx.name(room_nid)), UserID(tx.name(user_nid)), 0, is_local=is_local)


async def receive_typing(hs: Resources, origin: ServerName, contents: Sequence[TypingContent]) -> None:
    """Stores that users of another server have started or stopped typing."""
    await hs.database.write(_set_remote, contents)


def _set_remote(tx: Transaction, contents: Sequence[TypingContent]) -> None:
    for each in contents:
        if find_membership(tx, each.room_id, each.user_id) == "join":
            expires_ms = tx.now_ms + limits.TYPING_TIMEOUT_MS_DEFAULT if each.typing else 0
            store_typing(tx, each.room_id, each.user_id, expires_ms, is_local=False)


def sync_typing(tx: Transaction, ctx: SyncContext) -> None:
    """Adds the typing users to each room in which someone has started or stopped typing."""
    if not wants(ctx.filter.room.ephemeral, "m.typing", None):
        return
    ignored = ignored_in_sync(tx, ctx)
    for since, room_ids in ctx.rooms_by_since.items():
        changed = _list_rooms_changed(tx, since) if since else _list_rooms_with_typists(tx)
        for room_id in room_ids:
            section = ctx.rooms[room_id]
            if (changed and tx.find(room_id) in changed) or (section.members_changed and _has_typist_left(tx, room_id)):
                everybody = list_typing(tx, room_id)
                users = [user_id for user_id in everybody if user_id not in ignored]
                if users or (since and not everybody):
                    section.ephemeral.append(_typing_event(users))


class _TypingShare(msgspec.Struct, frozen=True):
    """The users who type in a room. event: as JSON, for members who ignore none of them."""

    users: Sequence[UserID]
    event: bytes

    def tell(self, tx: Transaction, user_id: UserID, ignored: frozenset[str]) -> list[bytes]:
        if ignored.isdisjoint(self.users):
            return [self.event]
        users = [each for each in self.users if each not in ignored]
        return [to_json(_typing_event(users))] if users else []


def share_typing(tx: Transaction, since: int, upto: int) -> Shared:
    """Returns what `sync_typing` tells of a span, in which no members have come or gone."""
    nids = _list_changes(tx, since, upto)
    rooms: dict[RoomID, _TypingShare] = {}
    for name in tx.names(set(nids)).values():
        users = list_typing(tx, RoomID(name))
        rooms[RoomID(name)] = _TypingShare(users, to_json(_typing_event(users)))
    return Shared(len(nids), rooms)


def _typing_event(users: Sequence[UserID]) -> JsonObject:
    return {"type": "m.typing", "content": {"user_ids": users}}


def list_ephemeral(tx: Transaction, since: int, upto: int) -> Iterator[Ephemeral]:
    """Yields who is typing in each room in which someone has started or stopped typing."""
    for room_nid in set(_list_changes(tx, since, upto)):
        room_id = RoomID(tx.name(room_nid))
        yield Ephemeral(_typing_event(list_typing(tx, room_id)), room_id)


def list_typing_edus(tx: Transaction, since: int, upto: int) -> list[OutgoingEdu]:
    """Yields an m.typing EDU for each local user who has started or stopped typing."""
    rows = tx.all(
        "SELECT room_nid, user_nid, expires_ms FROM typing WHERE position > ? AND position <= ? AND is_local = 1",
        since,
        upto,
    )
    edus = []
    for room_nid, user_nid, expires_ms in rows:
        room_id = RoomID(tx.name(room_nid))
        content: JsonObject = {"room_id": room_id, "user_id": tx.name(user_nid), "typing": _is_typing(tx, expires_ms)}
        edus.append(OutgoingEdu(content, room_id))
    return edus


# --- storage ---


def _is_typing(tx: Transaction, expires_ms: int) -> bool:
    return is_ahead(expires_ms, tx.now_ms, limits.TYPING_TIMEOUT_MS_MAX)


def store_typing(tx: Transaction, room_id: RoomID, user_id: UserID, expires_ms: int, *, is_local: bool) -> None:
    """Stores how long the user types (0: not any more), and wakes the room. Other servers need each renewal."""
    tx.run(
        "DELETE FROM typing WHERE room_nid = ? AND expires_ms < ? AND user_nid <> ?",
        tx.find(room_id),
        tx.now_ms - limits.TYPING_TIMEOUT_MS_MAX,
        tx.find(user_id),
    )
    tx.run(
        "INSERT INTO typing (room_nid, user_nid, expires_ms, position, is_local) VALUES (?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_nid) DO UPDATE SET expires_ms = excluded.expires_ms,"
        " position = excluded.position",
        tx.intern(room_id),
        tx.intern(user_id),
        expires_ms,
        tx.next_position(room_id, WAKE_KEY),
        int(is_local),
    )


def forget_typing(tx: Transaction, user_id: UserID, erase: bool) -> bool:
    """Deletes the user's typing notifications. In their place, a row without a user makes the rooms notice the end."""
    nid = tx.find(user_id)
    for room_nid, expires_ms in tx.all("SELECT room_nid, expires_ms FROM typing WHERE user_nid = ?", nid):
        if expires_ms:
            store_typing(tx, RoomID(tx.name(room_nid)), UserID(""), 0, is_local=False)
    tx.run("DELETE FROM typing WHERE user_nid = ?", nid)
    return False


def list_typing(tx: Transaction, room_id: RoomID) -> list[UserID]:
    """Returns the users typing in the room, sorted. A user who has left since is excluded, even after rejoining."""
    return sorted(user_id for user_id, since in _list_typists(tx, room_id) if _has_stayed(tx, room_id, user_id, since))


def _list_rooms_changed(tx: Transaction, since: int) -> set[int]:
    return set(tx.values("SELECT DISTINCT room_nid FROM typing WHERE position > ?", since))


def _list_changes(tx: Transaction, since: int, upto: int) -> list[int]:
    """Returns the room of each change in since < position ≤ upto."""
    return tx.values("SELECT room_nid FROM typing WHERE position > ? AND position <= ?", since, upto)


def _list_rooms_with_typists(tx: Transaction) -> set[int]:
    return set(tx.values("SELECT DISTINCT room_nid FROM typing WHERE expires_ms > ?", tx.now_ms))


def _has_typist_left(tx: Transaction, room_id: RoomID) -> bool:
    return not all(_has_stayed(tx, room_id, user_id, since) for user_id, since in _list_typists(tx, room_id))


def _has_stayed(tx: Transaction, room_id: RoomID, user_id: UserID, since: int) -> bool:
    entered = find_join_position(tx, room_id, user_id)
    return entered is not None and entered < since


def _list_typists(tx: Transaction, room_id: RoomID) -> list[tuple[UserID, int]]:
    """Returns the users whose notification has not expired, each with its position."""
    rows = tx.all(
        "SELECT user_nid, position FROM typing WHERE room_nid = ? AND expires_ms > ? AND expires_ms <= ?",
        tx.find(room_id),
        tx.now_ms,
        latest(tx.now_ms, limits.TYPING_TIMEOUT_MS_MAX),
    )
    names = tx.names([user_nid for user_nid, _ in rows])
    return [(UserID(names[user_nid]), position) for user_nid, position in rows]


FEATURE = Feature(
    name="typing",
    spec="client-server-api/#typing-notifications",
    schema=SCHEMA,
    routes=routes,
    edus={
        "m.typing": Edu(
            TypingContent,
            receive_typing,
            user=lambda typing: typing.user_id,
            room=lambda typing: typing.room_id,
            source=list_typing_edus,
            coalesce_by=lambda typing: (typing.room_id, typing.user_id),
            short_lived=True,
        )
    },
    sync=sync_typing,
    ephemeral=list_ephemeral,
    share=share_typing,
    background=(follow_time,),
    forget_user=forget_typing,
)
