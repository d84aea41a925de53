"""What this server still has to do in the conversations of friends, and when.

Theory of operation
- What needs another server, or cannot happen in the write that decided it, is a *task*, a row of `friend_tasks`. It
  survives a crash, and is retried until it succeeds, is refused, or is not wanted any more. A task may be repeated:
  each begins with a look at the memberships.
- Each server that is needed by tasks has a *lane*, a row of `friend_lanes`. Tasks of one lane are done one after the
  other, those of different lanes at the same time, so a server that does not answer holds up only its own. Tasks that
  need no other server are in the lane of this one.
- A task that fails alone, because the other server answers with an error, is due again after a pause of its own. If the
  server does not answer at all, its whole lane rests, for longer after each failure, and the next attempt stands for
  all of its tasks. A success, or news of one of its people in a conversation, ends the rest.
- So a search for work reads the lanes that are due, by an index, and then their tasks, by another one. How many tasks
  wait elsewhere does not matter. When no task of a lane is due any more, its row gets the moment of the next one, or is
  deleted (`note_lane_done`).
- Tasks that were stored before there were lanes have the server 0. `replace_unplaced_tasks` assigns them at the start.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec

from homeserver.database import Transaction
from homeserver.federation.identifiers import RoomID, ServerName, UserID, server_name_of
from homeserver.moments import is_ahead, latest

WAKE_KEY = "friends"
"""Wakes the task that looks for lanes that are due."""
RETRY_MS_MAX = 60_000
"""The longest pause of a task that a server fails on. Each attempt costs a request or two."""
LANE_RETRY_MS_MAX = 300_000
"""The longest rest of a lane. Somebody may be waiting for the answer, and a thousand servers that are gone cost three
attempts a second."""
KEPT_MS = 90 * 24 * 60 * 60 * 1000
"""How long a request is delivered to a server that does not answer."""

TaskKind = Literal["invite", "join", "close"]


class Task(msgspec.Struct, frozen=True):
    """What is left to do for a user in a conversation: invite the other person, join, or close it.

    message: goes with the invitation. failures: attempts that failed.
    """

    user_id: UserID
    other: UserID
    room_id: RoomID
    kind: TaskKind
    message: str = ""
    since_ms: int = 0
    failures: int = 0


def store_task(tx: Transaction, task: Task) -> None:
    """Stores a task to be done at once, in place of the conversation's task if it has one.

    If its server does not answer at present, it waits with the others of its lane.
    """
    server_nid = tx.intern(tx.server.name if task.kind == "close" else server_name_of(task.other))
    tx.run(
        "INSERT INTO friend_tasks (user_nid, friend_nid, room_nid, kind, message, since_ms, failures, retry_after_ms,"
        " server_nid) VALUES (?, ?, ?, ?, ?, ?, 0, 0, ?) ON CONFLICT (user_nid, friend_nid, room_nid) DO UPDATE SET"
        " kind = excluded.kind, message = excluded.message, since_ms = excluded.since_ms, failures = 0,"
        " retry_after_ms = 0, server_nid = excluded.server_nid",
        tx.intern(task.user_id), tx.intern(task.other), tx.intern(task.room_id), task.kind, task.message, tx.now_ms,
        server_nid,
    )  # fmt: skip
    _store_lane(tx, server_nid)


def _store_lane(tx: Transaction, server_nid: int) -> None:
    """Makes a lane due, unless its server does not answer at present."""
    tx.run(
        "INSERT INTO friend_lanes (server_nid, failures, retry_after_ms) VALUES (?, 0, 0) ON CONFLICT (server_nid)"
        " DO UPDATE SET retry_after_ms = 0 WHERE friend_lanes.failures = 0",
        server_nid,
    )
    tx.wake(WAKE_KEY)


def replace_unplaced_tasks(tx: Transaction) -> None:
    """Puts tasks that were stored before there were lanes into theirs."""
    rows = tx.all("SELECT user_nid, friend_nid, room_nid, kind FROM friend_tasks WHERE server_nid = 0")
    for user_nid, friend_nid, room_nid, kind in rows:
        server = tx.server.name if kind == "close" else server_name_of(UserID(tx.name(friend_nid)))
        tx.run(
            "UPDATE friend_tasks SET server_nid = ? WHERE user_nid = ? AND friend_nid = ? AND room_nid = ?",
            tx.intern(server), user_nid, friend_nid, room_nid,
        )  # fmt: skip
        _store_lane(tx, tx.intern(server))


def delete_task(tx: Transaction, user_id: UserID, other: UserID, room_id: RoomID) -> None:
    """Deletes the task of a conversation, if it has one."""
    tx.run(
        "DELETE FROM friend_tasks WHERE user_nid = ? AND friend_nid = ? AND room_nid = ?",
        tx.find(user_id), tx.find(other), tx.find(room_id),
    )  # fmt: skip


def list_tasks(tx: Transaction, user_id: UserID, other: UserID) -> list[Task]:
    """Returns the tasks of a pair."""
    rows = tx.all(
        "SELECT user_nid, friend_nid, room_nid, kind, message, since_ms, failures FROM friend_tasks"
        " WHERE user_nid = ? AND friend_nid = ? ORDER BY room_nid",
        tx.find(user_id), tx.find(other),
    )  # fmt: skip
    return [_read_task(tx, row) for row in rows]


def find_lane_task(tx: Transaction, server: ServerName) -> Task | None:
    """Returns the next task of a lane that is due: one that never failed, if there is any. None if the lane rests."""
    server_nid = tx.find(server)
    lane = tx.one("SELECT retry_after_ms FROM friend_lanes WHERE server_nid = ?", server_nid)
    if lane is None or is_ahead(lane[0], tx.now_ms, LANE_RETRY_MS_MAX):
        return None
    row = tx.one(
        "SELECT user_nid, friend_nid, room_nid, kind, message, since_ms, failures FROM friend_tasks"
        " WHERE server_nid = ? AND (retry_after_ms <= ? OR retry_after_ms > ?) ORDER BY retry_after_ms LIMIT 1",
        server_nid, tx.now_ms, latest(tx.now_ms, RETRY_MS_MAX),
    )  # fmt: skip
    return None if row is None else _read_task(tx, row)


def _read_task(tx: Transaction, row: Sequence[Any]) -> Task:
    user_nid, friend_nid, room_nid, kind, message, since_ms, failures = row
    names = tx.names((user_nid, friend_nid, room_nid))
    user_id, other, room_id = UserID(names[user_nid]), UserID(names[friend_nid]), RoomID(names[room_nid])
    return Task(user_id, other, room_id, kind, message, since_ms, failures)


def list_lanes_due(tx: Transaction, busy: Collection[ServerName], limit: int) -> tuple[list[ServerName], float, int]:
    """Returns the lanes that are due, those first that have waited for the longest, without those that are `busy`.

    Also returns in how many milliseconds the next one is due, and the stream position.
    """
    last_ms = latest(tx.now_ms, LANE_RETRY_MS_MAX)
    nids = tx.values(
        "SELECT server_nid FROM friend_lanes WHERE retry_after_ms <= ? OR retry_after_ms > ? ORDER BY retry_after_ms"
        " LIMIT ?",
        tx.now_ms, last_ms, limit + len(busy),
    )  # fmt: skip
    names = tx.names(nids)
    due = [ServerName(names[nid]) for nid in nids if names[nid] not in busy]
    row = tx.one("SELECT MIN(retry_after_ms) FROM friend_lanes WHERE retry_after_ms > ?", tx.now_ms)
    next_ms = math.inf if row is None or row[0] is None else row[0] - tx.now_ms
    return due[:limit], next_ms, tx.position


def note_lane_done(tx: Transaction, server: ServerName) -> None:
    """Notes when the next task of a lane is due. A lane without tasks ends; one that rests is left as it is."""
    server_nid = tx.find(server)
    row = tx.one("SELECT MIN(retry_after_ms) FROM friend_tasks WHERE server_nid = ?", server_nid)
    if row is None or row[0] is None:
        tx.run("DELETE FROM friend_lanes WHERE server_nid = ?", server_nid)
    else:
        tx.run(
            "UPDATE friend_lanes SET retry_after_ms = ? WHERE server_nid = ?"
            " AND (retry_after_ms <= ? OR retry_after_ms > ?)",
            row[0], server_nid, tx.now_ms, latest(tx.now_ms, LANE_RETRY_MS_MAX),
        )  # fmt: skip
    tx.wake(WAKE_KEY)


def note_failed_task(tx: Transaction, task: Task, delay_ms: int) -> None:
    """Notes that an attempt failed. The next one comes after the delay."""
    tx.run(
        "UPDATE friend_tasks SET failures = failures + 1, retry_after_ms = ? WHERE user_nid = ? AND friend_nid = ?"
        " AND room_nid = ? AND kind = ?",
        tx.now_ms + min(delay_ms, RETRY_MS_MAX), tx.find(task.user_id), tx.find(task.other), tx.find(task.room_id),
        task.kind,
    )  # fmt: skip


def note_given_up(tx: Transaction, task: Task) -> None:
    """Notes that a task was given up. It is due now and then, as an administrator may have it tried again."""
    tx.run(
        "UPDATE friend_tasks SET retry_after_ms = ? WHERE user_nid = ? AND friend_nid = ? AND room_nid = ?",
        tx.now_ms + RETRY_MS_MAX, tx.find(task.user_id), tx.find(task.other), tx.find(task.room_id),
    )  # fmt: skip


def count_failures(tx: Transaction, server: ServerName) -> int:
    """Returns how often in succession a server has not answered."""
    row = tx.one("SELECT failures FROM friend_lanes WHERE server_nid = ?", tx.find(server))
    return 0 if row is None else int(row[0])


def note_silent(tx: Transaction, server: ServerName, delay_ms: int) -> None:
    """Notes that a server has not answered: its lane rests for the delay. A failure during a rest changes nothing."""
    tx.run(
        "UPDATE friend_lanes SET failures = failures + 1, retry_after_ms = ? WHERE server_nid = ?"
        " AND (failures = 0 OR retry_after_ms <= ? OR retry_after_ms > ?)",
        tx.now_ms + min(delay_ms, LANE_RETRY_MS_MAX), tx.find(server), tx.now_ms,
        latest(tx.now_ms, LANE_RETRY_MS_MAX),
    )  # fmt: skip
    tx.wake(WAKE_KEY)


def note_answer(tx: Transaction, server: ServerName) -> None:
    """Notes that a server has answered: if its lane rests, it is due."""
    changed = tx.run(
        "UPDATE friend_lanes SET failures = 0, retry_after_ms = 0 WHERE server_nid = ? AND failures > 0",
        tx.find(server),
    )
    if changed:
        tx.wake(WAKE_KEY)


def note_sign_of_life(tx: Transaction, user_id: UserID, other: UserID) -> None:
    """Makes the tasks of a pair due: the other server has just said something about it."""
    changed = tx.run(
        "UPDATE friend_tasks SET retry_after_ms = 0 WHERE user_nid = ? AND friend_nid = ? AND retry_after_ms > 0",
        tx.find(user_id), tx.find(other),
    )  # fmt: skip
    if changed:
        server = server_name_of(other)
        note_answer(tx, server)
        _store_lane(tx, tx.intern(server))
