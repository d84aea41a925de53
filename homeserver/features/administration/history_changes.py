"""Two tasks that delete what was said: old messages of a room, and what one user has sent.

Each write stores how far it has come in the task's `result`, as `room_deletion` does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin, get_account_flags
from homeserver.database import Transaction
from homeserver.errors import MatrixError, invalid_param, missing_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, RoomID, UserID, server_name_of
from homeserver.limits import TIMESTAMP_MS_MAX
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.rooms.expiring import Purged
from homeserver.rooms.heads import get_head
from homeserver.rooms.membership import list_joined_rooms, list_memberships
from homeserver.rooms.moderation import list_sent
from homeserver.rooms.purging import purge_room
from homeserver.rooms.storage import TimelineEvent, find_stored_by_id
from homeserver.rooms.tasks import Task, create_task, find_task, store_progress
from homeserver.rooms.timeline import END

PURGE, REDACT = "purge_history", "redact_all_events"

routes = Routes()

_ROOMS_MAX = 1_000
_LIMIT_DEFAULT, _LIMIT_MAX = 1_000, 100_000
_REDACTED_PER_WRITE = 20  # each is an event with its signature, about a millisecond, for which other writes wait
_FAILURES_KEPT = 100


# --- old messages of a room ---


class PurgeBody(msgspec.Struct, frozen=True):
    """Up to an event, or up to a time in milliseconds. delete_local_events: also those of this server's users."""

    delete_local_events: bool = False
    purge_up_to_event_id: EventID | None = None
    purge_up_to_ts: int | None = None


@routes.post(f"{V1}/purge_history/{{room_id}}")
@routes.post(f"{V1}/purge_history/{{room_id}}/{{event_id}}")
async def purge_history(
    hs: Resources, requester: Requester, room_id: RoomID, body: PurgeBody | None, event_id: str = ""
) -> JsonObject:
    """Begins to delete the messages before an event. State events stay, and what a redaction leaves of messages."""
    check_admin(requester)
    body = body or PurgeBody()
    upto_id = event_id or body.purge_up_to_event_id
    if upto_id is None and body.purge_up_to_ts is None:
        raise missing_param("An event, purge_up_to_event_id or purge_up_to_ts is required.")
    if body.purge_up_to_ts is not None and not 0 <= body.purge_up_to_ts <= TIMESTAMP_MS_MAX:
        raise invalid_param("purge_up_to_ts is not a time in milliseconds.")
    task = await hs.database.write(_request_purge, room_id, upto_id, body)
    return {"purge_id": task.task_id}


def _request_purge(tx: Transaction, room_id: RoomID, event_id: str | None, body: PurgeBody) -> Task:
    get_head(tx, room_id)
    before_ms = body.purge_up_to_ts
    if event_id is not None:
        event = find_stored_by_id(tx, event_id)
        if not isinstance(event, TimelineEvent) or event.room_id != room_id:
            raise not_found("There is no such event in that room.")
        before_ms = event.origin_server_ts
    return create_task(tx, PURGE, room_id, {"before_ms": before_ms, "keeps_local": not body.delete_local_events})


async def run_purge(hs: Resources, task_id: str) -> None:
    """Carries out a purge. One that was interrupted begins again, and finds what is left."""
    task = await hs.database.read(find_task, task_id)
    if task is None or task.has_ended:
        return
    purged = Purged()
    await hs.database.write(store_progress, task, {})
    try:
        head = await hs.database.read(get_head, task.resource)
        await purge_room(
            hs, head.room_nid, task.parameters["before_ms"], purged, keeps_local=task.parameters["keeps_local"]
        )
    except MatrixError as error:  # the room was deleted meanwhile
        await hs.database.write(store_progress, task, {}, "failed", error.error)
    else:
        await hs.database.write(store_progress, task, {"events": purged.events, "files": purged.files}, "complete")


@routes.get(f"{V1}/purge_history_status/{{purge_id}}")
async def get_purge_status(hs: Resources, requester: Requester, purge_id: str) -> JsonObject:
    check_admin(requester)
    task = await _get(hs, PURGE, purge_id)
    status = "active" if task.status == "scheduled" else task.status
    return {"status": status, **({} if task.error is None else {"error": task.error})}


async def _get(hs: Resources, action: str, task_id: str) -> Task:
    task = await hs.database.read(find_task, task_id)
    if task is None or task.action != action:
        raise not_found("No such task is known.")
    return task


# --- what a user has sent ---


class RedactionBody(msgspec.Struct, frozen=True):
    """rooms: empty for all that the user is in. limit: of each room, newest first. use_admin: as the administrator.

    after_ts, before_ts: only events of this time, in milliseconds since 1970.
    """

    rooms: list[RoomID]
    reason: str | None = None
    limit: int | None = None
    use_admin: bool = False
    after_ts: int | None = None
    before_ts: int | None = None


@routes.post(f"{V1}/user/{{user_id}}/redact")
async def redact_events_of_user(
    hs: Resources, requester: Requester, user_id: UserID, body: RedactionBody
) -> JsonObject:
    """Begins to redact. A user of another server is redacted by the administrator, who needs the power for it."""
    check_admin(requester)
    if len(body.rooms) > _ROOMS_MAX:
        raise invalid_param("Too many rooms in one request.")
    if body.limit is not None and not 1 <= body.limit <= _LIMIT_MAX:
        raise invalid_param(f"The limit must be from 1 to {_LIMIT_MAX}.")
    for moment in (body.after_ts, body.before_ts):
        if moment is not None and not 0 <= moment <= TIMESTAMP_MS_MAX:
            raise invalid_param("after_ts and before_ts are times in milliseconds.")
    is_ours = server_name_of(user_id) == hs.server_name
    parameters = {**msgspec.structs.asdict(body), "requester": requester.user_id}
    parameters["redactor"] = requester.user_id if body.use_admin or not is_ours else user_id
    task = await hs.database.write(request_redaction, user_id, parameters)
    return {"redact_id": task.task_id}


def request_redaction(tx: Transaction, user_id: UserID, parameters: dict[str, Any], *, is_urgent: bool = True) -> Task:
    """Creates the task. parameters: as in the request, with `requester` and `redactor`. Raises 404 for a stranger."""
    rooms = parameters["rooms"] or sorted(list_joined_rooms(tx, user_id))
    if not rooms and not list_memberships(tx, user_id):
        raise not_found("This server does not know that user.")
    return create_task(tx, REDACT, user_id, {**parameters, "rooms": rooms}, is_urgent=is_urgent)


async def run_redaction(hs: Resources, task_id: str) -> None:
    """Redacts some events in each write, room after room."""
    task = await hs.database.read(find_task, task_id)
    if task is None or task.has_ended:
        return
    result: dict[str, Any] = {"room": 0, "point": END, "seen": 0, "redacted": 0, "failed": {}, **task.result}
    while result["room"] < len(task.parameters["rooms"]):
        result = await hs.database.write(_redact_some, task, result)
    await hs.database.write(store_progress, task, result, "complete")


async def redact_now(hs: Resources, user_id: UserID, parameters: dict[str, Any]) -> dict[str, Any]:
    """Redacts what a user has sent, and returns how many events were `redacted` and which `failed`, with the errors.

    parameters: as for `request_redaction`. If this is interrupted, a running server goes on at its next start.
    """
    limit = parameters["limit"]
    if limit is not None and not 1 <= limit <= _LIMIT_MAX:
        raise invalid_param(f"The limit must be from 1 to {_LIMIT_MAX}.")
    task = await hs.database.write(partial(request_redaction, is_urgent=False), user_id, parameters)
    await run_redaction(hs, task.task_id)
    ended = await hs.database.read(find_task, task.task_id)
    return {"redacted": 0, "failed": {}} if ended is None else ended.result


def _redact_some(tx: Transaction, task: Task, result: dict[str, Any]) -> dict[str, Any]:
    parameters = task.parameters
    room_id, user_id = RoomID(parameters["rooms"][result["room"]]), UserID(task.resource)
    left = (parameters["limit"] or _LIMIT_DEFAULT) - result["seen"]
    events, point = list_sent(tx, room_id, user_id, result["point"], min(_REDACTED_PER_WRITE, left))
    failed = dict(result["failed"])
    redacted = result["redacted"]
    for event in events:
        if not _is_due(event, parameters):
            continue
        content = {} if parameters["reason"] is None else {"reason": parameters["reason"]}
        draft = Draft(room_id, UserID(parameters["redactor"]), "m.room.redaction", content, redacts=event.event_id)
        is_admin = get_account_flags(tx, UserID(parameters["requester"])).is_admin
        try:
            append_local(tx, draft, as_admin=is_admin)
            redacted += 1
        except MatrixError as error:
            if len(failed) < _FAILURES_KEPT:
                failed[event.event_id] = error.error
    changes = {"seen": result["seen"] + len(events), "point": point, "redacted": redacted, "failed": failed}
    if point is None or left <= len(events):
        changes |= {"room": result["room"] + 1, "point": END, "seen": 0}
    store_progress(tx, task, {**result, **changes})
    return {**result, **changes}


def _is_due(event: TimelineEvent, parameters: dict[str, Any]) -> bool:
    if event.redacted_by is not None or event.type in ("m.room.create", "m.room.redaction", "m.room.member"):
        return False
    after_ms, before_ms = parameters["after_ts"], parameters["before_ts"]
    return (after_ms is None or event.origin_server_ts >= after_ms) and (
        before_ms is None or event.origin_server_ts <= before_ms
    )


@routes.get(f"{V1}/user/redact_status/{{redact_id}}")
async def get_redaction_status(hs: Resources, requester: Requester, redact_id: str) -> JsonObject:
    check_admin(requester)
    task = await _get(hs, REDACT, redact_id)
    status = "completed" if task.status == "complete" else task.status
    return {"status": status, "failed_redactions": task.result.get("failed", {})}
