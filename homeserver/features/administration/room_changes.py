"""The admin API that changes rooms: deletes them or their history, and changes who is in them and who rules them."""

from __future__ import annotations

from typing import Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, V2
from homeserver.features.administration.room_deletion import ACTION, request_deletion
from homeserver.features.administration.working import run_task
from homeserver.federation.identifiers import RoomID, UserID, server_name_of
from homeserver.resources import Resources
from homeserver.rooms.blocking import store_block
from homeserver.rooms.tasks import Task, find_task, list_tasks_of
from homeserver.users.room_shutdown import Shutdown, is_known

routes = Routes()

_TEXT_CHARACTERS_MAX = 4_000


class DeletionBody(msgspec.Struct, frozen=True):
    """new_room_user_id: creates a room, with this name and message, to which our members are moved.

    block: nobody may join the room again. purge: everything that is stored of the room is deleted. force_purge: even
    if some users could not be removed.
    """

    new_room_user_id: UserID | None = None
    room_name: str | None = None
    message: str | None = None
    block: bool = False
    purge: bool = True
    force_purge: bool = False


@routes.delete(f"{V2}/rooms/{{room_id}}")
async def delete_room(hs: Resources, requester: Requester, room_id: RoomID, body: DeletionBody) -> JsonObject:
    """Begins to delete the room, and returns at once."""
    check_admin(requester)
    _check(hs, body)
    task = await hs.database.write(_request, room_id, _parameters(requester, body))
    return {"delete_id": task.task_id}


@routes.delete(f"{V1}/rooms/{{room_id}}")
async def delete_room_and_wait(hs: Resources, requester: Requester, room_id: RoomID, body: DeletionBody) -> JsonObject:
    """Deletes the room, and returns when that is done. An unknown room can be blocked."""
    check_admin(requester)
    _check(hs, body)
    if body.block and not await hs.database.read(is_known, room_id):
        await hs.database.write(store_block, room_id, requester.user_id)
        return _shutdown_body({})
    task = await hs.database.write(_request, room_id, _parameters(requester, body))
    await run_task(hs, task.task_id)
    ended = await hs.database.read(find_task, task.task_id)
    if ended is not None and ended.status == "failed":
        raise invalid_param(f"The room could not be deleted: {ended.error}")
    return _shutdown_body({} if ended is None else ended.result)


def _check(hs: Resources, body: DeletionBody) -> None:
    if body.new_room_user_id is not None and server_name_of(body.new_room_user_id) != hs.server_name:
        raise invalid_param("new_room_user_id must be a user of this server.")
    if len(body.room_name or "") > _TEXT_CHARACTERS_MAX or len(body.message or "") > _TEXT_CHARACTERS_MAX:
        raise invalid_param(f"room_name and message may have at most {_TEXT_CHARACTERS_MAX} characters.")


def _parameters(requester: Requester, body: DeletionBody) -> dict[str, Any]:
    return {**msgspec.structs.asdict(body), "requester": requester.user_id}


def _request(tx: Transaction, room_id: RoomID, parameters: dict[str, Any]) -> Task:
    """Returns the task that is under way, if there is one, or a new one."""
    if not is_known(tx, room_id):
        raise not_found("This server does not know that room.")
    for task in list_tasks_of(tx, ACTION, room_id):
        if not task.has_ended:
            return task
    return request_deletion(tx, room_id, parameters)


# --- how far it is ---


@routes.get(f"{V2}/rooms/{{room_id}}/delete_status")
async def list_deletions_of_room(hs: Resources, requester: Requester, room_id: RoomID) -> JsonObject:
    check_admin(requester)
    tasks = await hs.database.read(list_tasks_of, ACTION, room_id)
    if not tasks:
        raise not_found("No deletion of that room is known.")
    return {"results": [_body(task) for task in tasks]}


@routes.get(f"{V2}/rooms/delete_status/{{delete_id}}")
async def get_deletion(hs: Resources, requester: Requester, delete_id: str) -> JsonObject:
    check_admin(requester)
    task = await hs.database.read(find_task, delete_id)
    if task is None or task.action != ACTION:
        raise not_found("No such deletion is known.")
    return _body(task)


def _body(task: Task) -> JsonObject:
    body: JsonObject = {
        "delete_id": task.task_id,
        "room_id": task.resource,
        "status": task.status,
        "shutdown_room": _shutdown_body(task.result),
    }
    return body if task.error is None else {**body, "error": task.error}


def _shutdown_body(result: dict[str, Any]) -> JsonObject:
    shutdown = Shutdown(**result.get("shutdown_room", {}))
    return {
        "kicked_users": shutdown.kicked_users,
        "failed_to_kick_users": shutdown.failed_to_kick_users,
        "local_aliases": shutdown.local_aliases,
        "new_room_id": shutdown.new_room_id,
    }
