"""Tasks: what administrators have asked for and takes long, such as the deletion of a room.

Theory of operation. A task is a row, stored in the write that takes the request. A worklist of
`homeserver/features/administration` carries it out in many short writes, each of which also stores how far it has come
in the task's `result`. So a task goes on after a crash where it was, and tools can ask about it. A task that ends says
so in its row. The newest TASKS_KEPT tasks are kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import orjson

from homeserver.database import Row, Transaction
from homeserver.encoding import to_json

Status = Literal["scheduled", "active", "complete", "cancelled", "failed"]

WAKE_KEY = "tasks"
"""The stream key that is woken when a task is created."""
TASKS_KEPT = 1000
_ENDED = ("complete", "failed")


class Task(msgspec.Struct, frozen=True):
    """A task. resource: the room or the user that it is about. parameters: of the request. result: so far."""

    task_id: str
    action: str
    resource: str
    status: Status
    parameters: dict[str, Any]
    result: dict[str, Any]
    error: str | None
    changed_ms: int

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing left to do."""
        return self.status in _ENDED


def create_task(
    tx: Transaction, action: str, resource: str, parameters: dict[str, Any], *, is_urgent: bool = True
) -> Task:
    """Stores a new task. is_urgent: False if the caller carries it out, and only a crash leaves it to the worklist."""
    task = Task(secrets.token_urlsafe(12), action, resource, "scheduled", parameters, {}, None, tx.now_ms)
    tx.run(
        "INSERT INTO tasks (task_id, action, resource_nid, status, parameters, result, error, changed_ms, position)"
        " VALUES (?, ?, ?, ?, ?, ?, NULL, ?, ?)",
        task.task_id, action, tx.intern(resource), task.status, to_json(parameters), to_json({}), tx.now_ms,
        tx.next_position(*([WAKE_KEY] if is_urgent else [])),
    )  # fmt: skip
    tx.run(
        "DELETE FROM tasks WHERE status IN ('complete', 'failed') AND position <="
        " (SELECT position FROM tasks ORDER BY position DESC LIMIT 1 OFFSET ?)",
        TASKS_KEPT,
    )
    return task


def store_progress(
    tx: Transaction, task: Task, result: dict[str, Any], status: Status = "active", error: str | None = None
) -> None:
    """Stores how far a task has come, or how it has ended."""
    tx.run(
        "UPDATE tasks SET status = ?, result = ?, error = ?, changed_ms = ? WHERE task_id = ?",
        status, to_json(result), error, tx.now_ms, task.task_id,
    )  # fmt: skip


def find_task(tx: Transaction, task_id: str) -> Task | None:
    """Returns a task, None if there is none, or if it ended long ago."""
    rows = tx.all(
        "SELECT task_id, action, resource_nid, status, parameters, result, error, changed_ms FROM tasks"
        " WHERE task_id = ?",
        task_id,
    )
    return _tasks(tx, rows)[0] if rows else None


def list_tasks(tx: Transaction) -> list[Task]:
    """Returns all tasks, the newest first."""
    rows = tx.all(
        "SELECT task_id, action, resource_nid, status, parameters, result, error, changed_ms FROM tasks"
        " ORDER BY position DESC"
    )
    return _tasks(tx, rows)


def list_tasks_of(tx: Transaction, action: str, resource: str) -> list[Task]:
    """Returns the tasks of one kind about a room or a user, the newest first."""
    rows = tx.all(
        "SELECT task_id, action, resource_nid, status, parameters, result, error, changed_ms FROM tasks"
        " WHERE resource_nid = ? AND action = ? ORDER BY position DESC",
        tx.find(resource), action,
    )  # fmt: skip
    return _tasks(tx, rows)


def list_unfinished(tx: Transaction) -> list[str]:
    """Returns the IDs of the tasks that have not ended, in the order in which they were created."""
    return tx.values("SELECT task_id FROM tasks WHERE status IN ('scheduled', 'active') ORDER BY position")


def _tasks(tx: Transaction, rows: Sequence[Row]) -> list[Task]:
    names = tx.names({row[2] for row in rows})
    return [
        Task(row[0], row[1], names[row[2]], row[3], orjson.loads(row[4]), orjson.loads(row[5]), row[6], row[7])
        for row in rows
    ]
