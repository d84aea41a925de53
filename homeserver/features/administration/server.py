"""The admin API about the server itself: its version, and what tools ask about work in the background."""

from __future__ import annotations

import msgspec

from homeserver import __version__
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.errors import invalid_param
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, check_local
from homeserver.federation.identifiers import UserID
from homeserver.resources import Resources
from homeserver.rooms.tasks import Status, list_tasks

routes = Routes()


@routes.get(f"{V1}/server_version")
async def get_server_version(hs: Resources) -> JsonObject:
    """Tools ask before they log in. `/_matrix/federation/v1/version` says the same."""
    return {"server_version": f"homeserver {__version__}"}


@routes.get(f"{V1}/background_updates/status")
async def get_background_updates(hs: Resources, requester: Requester) -> JsonObject:
    """Migrations of this server are done when it starts, so none is ever under way."""
    check_admin(requester)
    return {"enabled": True, "current_updates": {}}


class EnabledBody(msgspec.Struct, frozen=True):
    enabled: bool


@routes.get(f"{V1}/background_updates/enabled")
@routes.post(f"{V1}/background_updates/enabled")
async def set_background_updates_enabled(hs: Resources, requester: Requester, body: EnabledBody | None) -> JsonObject:
    """There is nothing to pause."""
    check_admin(requester)
    return {"enabled": True}


class TasksQuery(msgspec.Struct, frozen=True):
    """Only tasks of this action, about this room or user, in this state, or last changed before this time."""

    action_name: str | None = None
    resource_id: str | None = None
    status: Status | None = None
    max_timestamp: int | None = None


@routes.get(f"{V1}/scheduled_tasks")
async def list_scheduled_tasks(hs: Resources, requester: Requester, query: TasksQuery) -> JsonObject:
    """Lists what administrators have asked for and takes long. `rooms/tasks.py` keeps it."""
    check_admin(requester)
    tasks = [
        {"id": task.task_id, "action": task.action, "status": task.status, "timestamp_ms": task.changed_ms,
         "resource_id": task.resource, "result": task.result, "error": task.error}
        for task in await hs.database.read(list_tasks)
        if query.action_name in (None, task.action)
        and query.resource_id in (None, task.resource)
        and query.status in (None, task.status)
        and (query.max_timestamp is None or task.changed_ms < query.max_timestamp)
    ]  # fmt: skip
    return {"scheduled_tasks": tasks}


@routes.get(f"{V1}/experimental_features/{{user_id}}")
async def get_experimental_features(hs: Resources, requester: Requester, user_id: UserID) -> JsonObject:
    """This server has no feature that only some users have."""
    check_local(hs, requester, user_id)
    return {"features": {}}


class FeaturesBody(msgspec.Struct, frozen=True):
    features: dict[str, bool]


@routes.put(f"{V1}/experimental_features/{{user_id}}")
async def set_experimental_features(
    hs: Resources, requester: Requester, user_id: UserID, body: FeaturesBody
) -> JsonObject:
    check_local(hs, requester, user_id)
    if any(body.features.values()):
        raise invalid_param("This server has no feature that can be turned on for single users.")
    return {}
