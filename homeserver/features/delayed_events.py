"""Delayed events: a user schedules an event, puts it off, sends it at once or cancels it. Spec: MSC4140

The requests that schedule one are those that send one, in `sending.py` and `room_state.py`; the newest form of the
proposal has a request of its own, here.

Theory of operation. What is scheduled is in a table (`users/delayed_events.py`). One node at a time sends what is due;
it sleeps until the next event is due or the schedule changes. An event is sent in the write that notes it as sent,
provided that it is still scheduled for the same time: so it is sent once, whatever ends or happens meanwhile. Only an
invitation of another server's user is a write of its own, and may be repeated after a crash.

If an event cannot be sent when it is due, it has failed, and the error is kept with it. If it cannot be sent when its
user asks for it, it stays scheduled.

The node that sends compares the time of day with a clock that does not jump. If they disagree, the time of day was
changed, and it moves the schedule along: nothing is sent early, or an hour late. After a restart there is nothing to
compare with; then a delay that seems to have begun in the future begins again.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Literal, NamedTuple

import msgspec
import trio

from homeserver.api.routes import Empty, Routes
from homeserver.authenticate import Requester, limit_requester
from homeserver.database import Transaction
from homeserver.errors import MatrixError, missing_param, not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.limits import CLOCK_SKEW_MS, Bucket
from homeserver.limits.users import (
    DELAY_MS_MAX,
    DELAYED_EVENTS_AT_ONCE_MAX,
    DELAYED_EVENTS_MAX,
    DELAYED_EVENTS_PER_READ,
)
from homeserver.process.outages import is_outage
from homeserver.remote.state_events import put_state
from homeserver.resources import Resources
from homeserver.users.application_services import TimestampQuery
from homeserver.users.delayed_events import (
    WAKE_KEY,
    DelayedEvent,
    create_delayed_event,
    delete_unreadable,
    find_delayed,
    find_next_due_ms,
    find_sender,
    forget_delayed_events,
    forget_delayed_events_in,
    is_overtaken,
    list_due,
    list_scheduled,
    not_scheduled,
    note_cancelled,
    note_clock_change,
    note_restarted,
    note_sent,
    note_wrong_times,
)
from homeserver.users.sending import send_event
from homeserver.users.shadow_bans import write_and_undo

PREFIX = "/_matrix/client/unstable/org.matrix.msc4140"

LIMITS = {"max_delay_ms": DELAY_MS_MAX, "max_scheduled": DELAYED_EVENTS_MAX}

_log = logging.getLogger(__name__)

routes = Routes()

Action = Literal["send", "cancel", "restart"]


class DelayedEventBody(msgspec.Struct, frozen=True):
    """What is to be sent, and after how many milliseconds."""

    delay_ms: int
    content: dict
    state_key: str | None = None


class ActionBody(msgspec.Struct, frozen=True):
    action: Action | None = None


@routes.put(
    f"{PREFIX}/rooms/{{room_id}}/delayed_event/{{event_type}}/{{txn_id}}", rate_limit="message", allow_guest=True
)
async def schedule_event(
    hs: Resources,
    requester: Requester,
    room_id: RoomID,
    event_type: str,
    txn_id: str,
    query: TimestampQuery,
    body: DelayedEventBody,
) -> JsonObject:
    sent_ms = query.origin_server_ts(requester)
    draft = Draft(
        room_id, requester.user_id, event_type, body.content, state_key=body.state_key, origin_server_ts=sent_ms
    )
    return {"delay_id": await hs.database.write(create_delayed_event, requester, draft, body.delay_ms, txn_id)}


@routes.get(f"{PREFIX}/delayed_events", rate_limit="delayed_events", allow_guest=True)
async def get_delayed_events(hs: Resources, requester: Requester) -> JsonObject:
    return {"delayed_events": await hs.database.read(_tell_scheduled, requester)}


@routes.get(f"{PREFIX}/delayed_events/{{delay_id}}", rate_limit="delayed_events", allow_guest=True)
async def get_delayed_event(hs: Resources, requester: Requester, delay_id: str) -> JsonObject:
    return await hs.database.read(_tell_one, requester, delay_id)


@routes.post(f"{PREFIX}/delayed_events/{{delay_id}}/send", rate_limit="delayed_events")
async def send_delayed_event(hs: Resources, requester: Requester | None, delay_id: str) -> Empty:
    return await _act(hs, requester, delay_id, "send")


@routes.post(f"{PREFIX}/delayed_events/{{delay_id}}/cancel", rate_limit="delayed_events")
async def cancel_delayed_event(hs: Resources, requester: Requester | None, delay_id: str) -> Empty:
    return await _act(hs, requester, delay_id, "cancel")


@routes.post(f"{PREFIX}/delayed_events/{{delay_id}}/restart", rate_limit="delayed_events")
async def restart_delayed_event(hs: Resources, requester: Requester | None, delay_id: str) -> Empty:
    return await _act(hs, requester, delay_id, "restart")


@routes.post(f"{PREFIX}/delayed_events/{{delay_id}}", rate_limit="delayed_events")
async def update_delayed_event(hs: Resources, requester: Requester | None, delay_id: str, body: ActionBody) -> Empty:
    """The older form of the three requests above."""
    if body.action is None:
        raise missing_param("The body must say which action: send, cancel or restart.")
    return await _act(hs, requester, delay_id, body.action)


async def _act(hs: Resources, requester: Requester | None, delay_id: str, action: Action) -> Empty:
    """Does what a user, or the holder of a delay ID, asks for.

    What is finalised answers 404, unless it is what was asked for: calls are restarted by clients that expect this.
    """
    if action == "send":
        delayed = await hs.database.read(_find_for, requester, delay_id, action)
        if delayed.is_scheduled:
            await _send(hs, delayed)
    else:
        await hs.database.write(_change, requester, delay_id, action)
    return Empty()


def _change(tx: Transaction, requester: Requester | None, delay_id: str, action: Action) -> None:
    delayed = _find_for(tx, requester, delay_id, action)
    if action == "restart":
        note_restarted(tx, delayed)
    elif delayed.is_scheduled:
        note_cancelled(tx, delayed)


def _find_for(tx: Transaction, requester: Requester | None, delay_id: str, action: Action) -> DelayedEvent:
    """Returns a delayed event on which the action has something to do, or which it would leave as it is.

    Raises M_NOT_FOUND for any other, and for those of other users.
    """
    delayed = find_delayed(tx, delay_id)
    if delayed is None or (requester is not None and requester.user_id != delayed.draft.sender):
        raise not_scheduled()
    if delayed.is_scheduled and not is_overtaken(tx, delayed):
        return delayed
    done = "send" if delayed.is_sent else "cancel"
    if action != done:
        raise not_scheduled()
    return delayed


# Telling


def _tell_scheduled(tx: Transaction, requester: Requester) -> list[JsonObject]:
    return [_tell(each) for each in list_scheduled(tx, requester.user_id)]


def _tell_one(tx: Transaction, requester: Requester, delay_id: str) -> JsonObject:
    delayed = find_delayed(tx, delay_id)
    if delayed is None or requester.user_id != delayed.draft.sender:
        raise not_found("You have no such delayed event, or it is not kept any more.")
    told = _tell(delayed)
    if delayed.finalised_ms is not None:
        told["finalised_ts"] = delayed.finalised_ms
    if delayed.event_id is not None:
        told["event_id"] = delayed.event_id
    if delayed.error is not None:
        told["error"] = delayed.error
    return told


def _tell(delayed: DelayedEvent) -> JsonObject:
    """Returns a delayed event with the names of the proposal's newest form, and with those that Synapse has."""
    draft = delayed.draft
    told: JsonObject = {
        "delay_id": delayed.delay_id,
        "room_id": draft.room_id,
        "type": draft.type,
        "delay_ms": delayed.delay_ms,
        "delay": delayed.delay_ms,
        "scheduled_at": delayed.scheduled_ms,
        "running_since": delayed.scheduled_ms,
        "content": draft.content,
    }
    if draft.state_key is not None:
        told["state_key"] = draft.state_key
    return told


# Sending


class _Clocks(NamedTuple):
    """The time of day and a clock that does not jump, both in milliseconds, at a position of the stream."""

    day_ms: int
    steady_ms: float
    position: int


async def send_due(hs: Resources) -> None:
    """Sends what is due, for ever. One node of several does."""
    async with hs.database.hold("delayed_events"):
        clocks: _Clocks | None = None
        while True:
            clocks = await _follow_clock(hs, clocks)
            due, unreadable, next_ms, position = await hs.database.read(_read_due)
            clocks = clocks._replace(position=position)
            if unreadable:
                _log.error("delayed events are damaged and will not be sent", extra={"count": len(unreadable)})
                await hs.database.write(delete_unreadable, unreadable)
            if due or unreadable:
                await _send_all(hs, due)
            else:
                wait_s = math.inf if next_ms is None else max(0, next_ms - hs.now_ms()) / 1000
                await hs.stream.wait((WAKE_KEY,), position, trio.current_time() + wait_s)


def _read_due(tx: Transaction) -> tuple[list[DelayedEvent], list[int], int | None, int]:
    return *list_due(tx, DELAYED_EVENTS_PER_READ), find_next_due_ms(tx), tx.position


async def _follow_clock(hs: Resources, before: _Clocks | None) -> _Clocks:
    """Moves the schedule if the time of day has jumped since. Returns the clocks as they are now."""
    now = _Clocks(hs.now_ms(), trio.current_time() * 1000, before.position if before is not None else 0)
    if before is None:
        await hs.database.write(note_wrong_times)
        return now
    jump_ms = round((now.day_ms - before.day_ms) - (now.steady_ms - before.steady_ms))
    if abs(jump_ms) > CLOCK_SKEW_MS:
        _log.warning("the clock was changed; delayed events keep their delays", extra={"jump_ms": jump_ms})
        await hs.database.write(note_clock_change, jump_ms, before.position)
    return now


async def _send_all(hs: Resources, due: Sequence[DelayedEvent]) -> None:
    """Sends events: those of one room one after the other, and rooms in parallel."""
    by_room: dict[RoomID | None, list[DelayedEvent]] = defaultdict(list)
    for each in due:
        by_room[each.draft.room_id].append(each)
    limiter = trio.CapacityLimiter(DELAYED_EVENTS_AT_ONCE_MAX)
    async with trio.open_nursery() as nursery:
        for of_room in by_room.values():
            nursery.start_soon(_send_in_order, hs, of_room, limiter)


async def _send_in_order(hs: Resources, due: Sequence[DelayedEvent], limiter: trio.CapacityLimiter) -> None:
    async with limiter:
        for each in due:
            await _send_or_fail(hs, each)


async def _send_or_fail(hs: Resources, delayed: DelayedEvent) -> None:
    try:
        await _send(hs, delayed)
    except MatrixError as error:
        await hs.database.write(note_cancelled, delayed, error)
    except Exception as error:  # whatever it is, the events of others must not wait for this one for ever
        if is_outage(error):
            raise
        _log.error("a delayed event failed", exc_info=error, extra={"room_id": delayed.draft.room_id})
        await hs.database.write(note_cancelled, delayed, MatrixError(500, "M_UNKNOWN", "This event cannot be sent."))


async def _send(hs: Resources, delayed: DelayedEvent) -> None:
    """Sends a delayed event, as if its user had sent it now. Raises MatrixError."""
    requester = await hs.database.read(_find_sender, delayed)
    limit_requester(hs, requester, "delayed_event_sent")
    if delayed.draft.state_key is None:
        txn = delayed.stored_txn_id
        if requester.is_shadow_banned:
            event_id = await write_and_undo(hs, send_event, requester, delayed.draft, txn, txn)
            await hs.database.write(note_sent, delayed, event_id)
        else:
            await hs.database.write(_append, requester, delayed)
    else:
        then = partial(_note_sent, delayed)
        await put_state(hs, requester, delayed.draft, then, stored_txn_id=delayed.stored_txn_id)


def _find_sender(tx: Transaction, delayed: DelayedEvent) -> Requester:
    if is_overtaken(tx, delayed):
        raise MatrixError(409, "M_UNKNOWN", "Another user has changed this state since the event was scheduled.")
    requester = find_sender(tx, delayed.draft.sender)
    if requester is None:
        raise not_scheduled()
    return requester


def _append(tx: Transaction, requester: Requester, delayed: DelayedEvent) -> None:
    stored = delayed.stored_txn_id
    note_sent(tx, delayed, send_event(tx, requester, delayed.draft, stored, stored))


def _note_sent(delayed: DelayedEvent, tx: Transaction, event_id: EventID) -> None:
    note_sent(tx, delayed, event_id)


FEATURE = Feature(
    name="delayed_events",
    spec="MSC4140",
    routes=routes,
    limits={
        # Each participant of a call restarts every few seconds; the media server of many calls does so for all of them.
        "delayed_events": Bucket(200, 50),
        # As "message", for events that become due at the same time; they do not use up what the user can send now.
        "delayed_event_sent": Bucket(100, 10),
    },
    background=(send_due,),
    capabilities={"org.matrix.msc4140.delayed_events": lambda config, requester: dict(LIMITS)},
    unstable_features={"org.matrix.msc4140": True},
    forget_user=forget_delayed_events,
    forget_room=forget_delayed_events_in,
)
