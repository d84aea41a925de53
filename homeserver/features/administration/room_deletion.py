"""Deleting rooms: the task that removes this server's users from a room, and then everything that is stored of it.

Theory of operation. The task's `result` has what tools are told (`shutdown_room`) and where it is:

    stage       what is done next
    leaving     the users are removed and moved, the names closed (`homeserver/users/room_shutdown.py`)
    purging     `begin_deletion`, memberships, the archive, the events at the positions after `reached`
    sweeping    what features keep, then table after table (`homeserver/rooms/deletion.py`)

Each write stores it together with what it has done, so after a crash the task goes on there. `homeserver room delete`
carries out the same task by itself, with a progress bar. Other servers must hear that our users have left before the
events that say so are deleted: the purge begins a little later, and waits for the sender, but not for servers that are
away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
from msgspec.structs import asdict

from homeserver.database import Transaction
from homeserver.database.tail import find_position
from homeserver.errors import MatrixError
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.remote.leaves import leave_room
from homeserver.remote.outbound import TAIL
from homeserver.resources import ForgetRoom, Resources
from homeserver.rooms import deletion
from homeserver.rooms.blocking import delete_block, store_block
from homeserver.rooms.resealing import seal_rest
from homeserver.rooms.tasks import Task, create_task, find_task, store_progress
from homeserver.users.account_data import delete_of_room
from homeserver.users.room_shutdown import (
    Shutdown,
    close_names,
    is_known,
    list_pending,
    open_new_room,
    remove_some,
)

ACTION = "shutdown_and_purge_room"
DEFAULT_NAME = "Content Violation Notification"
DEFAULT_MESSAGE = "This room was closed by the administrators of this server."

# Clients that are connected get the leave in this time, which they cannot see any more once the room is deleted.
_LEAVES_SEEN_S = 2.0
# How often we look whether the sender has handed the leaves to all servers that answer.
_LEAVES_SENT_TRIES = 15
_ROWS_PER_WRITE = 1_000

Tell = Callable[[int, int], object]
Progress = dict[str, Any]


def request_deletion(tx: Transaction, room_id: RoomID, parameters: dict[str, Any], *, is_urgent: bool = True) -> Task:
    """Creates the task. From then on nobody enters the room. parameters: as in the request, and `requester`."""
    if parameters["purge"] or parameters["block"]:
        store_block(tx, room_id, UserID(parameters["requester"]), is_lasting=parameters["block"])
    return create_task(tx, ACTION, room_id, parameters, is_urgent=is_urgent)


async def run_deletion(hs: Resources, task_id: str, tell: Tell = lambda done, of: None) -> None:
    """Carries out the task, or goes on where it was. tell(done, of): called after each write of the purge."""
    task = await hs.database.read(find_task, task_id)
    if task is None or task.has_ended:
        return
    result: Progress = {"stage": "leaving", "reached": 0, "tables": 0, **task.result}
    room_id = RoomID(task.resource)
    try:
        if result["stage"] == "leaving":
            await _shut_down(hs, task, room_id, result)
        if task.parameters["purge"]:
            await _purge(hs, task, room_id, result, tell)
        await hs.database.write(_complete, task, room_id, result)
    except MatrixError as error:
        await hs.database.write(_fail, task, room_id, result, error.error)


def _complete(tx: Transaction, task: Task, room_id: RoomID, result: Progress) -> None:
    delete_block(tx, room_id, lasting_too=False)
    store_progress(tx, task, {**result, "stage": "done"}, "complete")


def _fail(tx: Transaction, task: Task, room_id: RoomID, result: Progress, error: str) -> None:
    delete_block(tx, room_id, lasting_too=False)
    store_progress(tx, task, result, "failed", error)


# --- leaving ---


async def _shut_down(hs: Resources, task: Task, room_id: RoomID, result: Progress) -> None:
    is_more = True
    while is_more:
        is_more, changes = await hs.database.write(_leave_some, task, room_id, result)
        result.update(changes)
    for user_id in await hs.database.read(list_pending, room_id):
        await leave_room(hs, user_id, room_id, {})
    result.update(await hs.database.write(_close, task, room_id, result))
    failed = result["shutdown_room"]["failed_to_kick_users"]
    if task.parameters["purge"] and failed and not task.parameters["force_purge"]:
        raise MatrixError(400, "M_UNKNOWN", f"{len(failed)} users could not be removed from the room.")


def _leave_some(tx: Transaction, task: Task, room_id: RoomID, result: Progress) -> tuple[bool, Progress]:
    """Returns whether users remain in the room."""
    shutdown = Shutdown(**result.get("shutdown_room", {}))
    given = task.parameters.get("new_room_user_id")
    creator = None if given is None else UserID(given)
    if creator is not None:
        name = task.parameters.get("room_name") or DEFAULT_NAME
        open_new_room(tx, shutdown, creator, name, task.parameters.get("message") or DEFAULT_MESSAGE)
    is_more = is_known(tx, room_id) and remove_some(tx, room_id, shutdown, creator)
    return is_more, _save(tx, task, result, {"shutdown_room": asdict(shutdown)})


def _close(tx: Transaction, task: Task, room_id: RoomID, result: Progress) -> Progress:
    shutdown = Shutdown(**result["shutdown_room"])
    close_names(tx, room_id, shutdown)
    return _save(tx, task, result, {"shutdown_room": asdict(shutdown), "stage": "purging", "left_at": tx.position})


def _save(tx: Transaction, task: Task, result: Progress, changes: Progress) -> Progress:
    """Stores how far the task is. Returns the changes."""
    store_progress(tx, task, {**result, **changes})
    return changes


# --- purging ---


async def _purge(hs: Resources, task: Task, room_id: RoomID, result: Progress, tell: Tell) -> None:
    database = hs.database
    if result["stage"] == "purging":
        if "upto" not in result:
            await _wait_for_leaves(hs, room_id, result)
            result.update(await database.write(_begin, task, room_id, result))
        room_nid, upto = result["room_nid"], result["upto"]
        await seal_rest(database, 0)  # only then it is known which files other rooms refer to
        while await database.write(deletion.delete_members, room_nid):
            pass
        while await database.write(deletion.delete_block_of, room_nid):
            pass
        while result["reached"] < upto:
            result.update(await database.write(_delete_some, task, room_nid, result))
            tell(result["reached"], upto)
        result.update(await database.write(_finish, task, result, hs.room_forgetters))
        await database.scrub("sealing_keys")
    while await database.write(delete_of_room, room_id, _ROWS_PER_WRITE):
        pass
    while result["tables"] < deletion.count_steps():
        result.update(await database.write(_sweep, task, result["room_nid"], result))
    await database.scrub()


async def _wait_for_leaves(hs: Resources, room_id: RoomID, result: Progress) -> None:
    if not result["shutdown_room"]["kicked_users"]:
        return
    await trio.sleep(_LEAVES_SEEN_S)
    for _ in range(_LEAVES_SENT_TRIES if hs.config.federation.enabled else 0):
        if (await hs.database.read(find_position, TAIL) or 0) >= result["left_at"]:
            return
        await trio.sleep(_LEAVES_SEEN_S)


def _begin(tx: Transaction, task: Task, room_id: RoomID, result: Progress) -> Progress:
    room_nid, upto = deletion.begin_deletion(tx, room_id)
    return _save(tx, task, result, {"room_nid": room_nid, "upto": upto})


def _delete_some(tx: Transaction, task: Task, room_nid: int, result: Progress) -> Progress:
    reached = deletion.delete_events(tx, room_nid, result["reached"], result["upto"])
    return _save(tx, task, result, {"reached": reached})


def _finish(tx: Transaction, task: Task, result: Progress, forgetters: tuple[ForgetRoom, ...]) -> Progress:
    deletion.finish_forgetting(tx, result["room_nid"], forgetters)
    return _save(tx, task, result, {"stage": "sweeping"})


def _sweep(tx: Transaction, task: Task, room_nid: int, result: Progress) -> Progress:
    return _save(tx, task, result, {"tables": deletion.delete_rest(tx, room_nid, result["tables"])})
