"""The history of a room, in pages and around an event. Spec: client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from federation.identifiers import EventID, RoomID
from homeserver import limits
from homeserver.api import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.remote import backfill
from homeserver.resources import Resources
from homeserver.rooms.access import find_in_state, readable_state
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.membership import is_server_joined
from homeserver.rooms.receive import find_newest_gap, has_missing, list_missing
from homeserver.rooms.resolve import StateAt, entries_of, state_after
from homeserver.rooms.storage import Status, StoredEvent, get_stored, list_stored
from homeserver.rooms.timeline import END, START, list_backwards, list_forwards, parse_point, timeline_token
from homeserver.rooms.visibility import filter_visible
from homeserver.sync.filter import RoomEventFilter, parse_room_event_filter, wants_event

routes = Routes()


class MessagesQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "direction": "dir"}):
    """Spec: client-server-api/#get_matrixclientv3roomsroomidmessages"""

    direction: Literal["b", "f"]
    from_: str | None = None
    to: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10
    filter: str | None = None


class ContextQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10
    filter: str | None = None


@routes.get("/_matrix/client/v3/rooms/{room_id}/messages")
async def get_room_events(
    hs: Resources, requester: Requester, room_id: RoomID, query: MessagesQuery
) -> JsonObject:
    filter_ = parse_room_event_filter(query.filter)
    forwards = query.direction == "f"
    point = parse_point(query.from_) if query.from_ else (START if forwards else END)
    to = parse_point(query.to) if query.to else (END if forwards else START)
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    page = await hs.database.read(_page, requester, room_id, point, to, limit, filter_, forwards)
    if page is None:  # the page ends at a gap that other servers can fill
        await backfill.fill(hs, room_id, point, limit)
        page = await hs.database.read(_page, requester, room_id, point, to, limit, filter_, forwards, True)
        assert page is not None
    return page


@routes.get("/_matrix/client/v3/rooms/{room_id}/context/{event_id}")
async def get_event_context(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, query: ContextQuery
) -> JsonObject:
    filter_ = parse_room_event_filter(query.filter)
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    return await hs.database.read(_context, requester, room_id, event_id, limit, filter_)


@routes.get("/_matrix/client/v3/rooms/{room_id}/event/{event_id}")
async def get_one_room_event(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID
) -> JsonObject:
    return await hs.database.read(_event, requester, room_id, event_id)


def _page(
    tx: Transaction,
    requester: Requester,
    room_id: RoomID,
    point: int,
    to: int,
    limit: int,
    filter_: RoomEventFilter,
    forwards: bool,
    filled: bool = False,
) -> JsonObject | None:
    """A page of the timeline; None if a gap begins inside of it and has not been filled."""
    readable_state(tx, room_id, requester.user_id)
    if forwards:
        events = list_forwards(tx, room_id, point, limit, to)
    else:
        events = list_backwards(tx, room_id, point, limit, to)
        if not filled and _meets_gap(tx, room_id, point, to, events, limit, requester):
            return None
        gap = find_newest_gap(tx, room_id, to, point)
        if gap is not None:  # the page ends there, and the next one begins with what can be had of what is missing
            events = [event for event in events if (event.ordering or 0) >= gap]
    chosen = [
        event for event in filter_visible(tx, requester.user_id, room_id, events) if wants_event(filter_, event)
    ]
    answer: JsonObject = {
        "chunk": client_events(tx, chosen, user_id=requester.user_id, device_id=requester.device_id),
        "start": timeline_token(point if point not in (START, END) else _edge(events, forwards, point)),
    }
    if (len(events) == limit and limit > 0) or (not forwards and events and has_missing(tx, room_id)):
        last = events[-1].ordering
        assert last is not None
        answer["end"] = timeline_token(last if forwards else last - 1)
    if filter_.lazy_load_members and chosen:
        answer["state"] = _senders(tx, room_id, requester, chosen)
    return answer


def _edge(events: list[StoredEvent], forwards: bool, point: int) -> int:
    """A page that began at the very start or end of the timeline: where that was."""
    first = events[0].ordering if events else None
    if first is None:
        return point
    return first - 1 if forwards else first


def _meets_gap(
    tx: Transaction,
    room_id: RoomID,
    point: int,
    to: int,
    events: list[StoredEvent],
    limit: int,
    requester: Requester,
) -> bool:
    gaps = list_missing(tx, room_id, point, 1)
    if not gaps or not is_server_joined(tx, room_id, requester.user_id.partition(":")[2]):
        return False
    newest_gap = gaps[0][1].ordering
    assert newest_gap is not None
    if newest_gap <= to:
        return False
    return len(events) < limit or (events[-1].ordering or 0) <= newest_gap


def _senders(
    tx: Transaction, room_id: RoomID, requester: Requester, events: list[StoredEvent]
) -> list[JsonObject]:
    """The member events of who sent the events, for clients that load members lazily."""
    state = readable_state(tx, room_id, requester.user_id)
    members = [
        find_in_state(tx, state, "m.room.member", sender) for sender in dict.fromkeys(event.sender for event in events)
    ]
    return [client_event(member, {"age": tx.now_ms - member.origin_server_ts}) for member in members if member]


def _context(
    tx: Transaction,
    requester: Requester,
    room_id: RoomID,
    event_id: EventID,
    limit: int,
    filter_: RoomEventFilter,
) -> JsonObject:
    event = _get_visible(tx, requester, room_id, event_id)
    assert event.ordering is not None
    before = list_backwards(tx, room_id, event.ordering - 1, limit - limit // 2)
    after = list_forwards(tx, room_id, event.ordering, limit // 2)
    shown_before, shown_after = (
        [each for each in filter_visible(tx, requester.user_id, room_id, events) if wants_event(filter_, each)]
        for events in (before, after)
    )
    last = after[-1] if after else event
    senders = {each.sender for each in (event, *shown_before, *shown_after)}
    state = entries_of(tx, StateAt(last.state_before or b"") if not last.is_state else state_after(tx, last))
    stored = list_stored(tx, set(state.values())).values()
    lazy = filter_.lazy_load_members
    kept = [each for each in stored if not lazy or each.type != "m.room.member" or each.state_key in senders]

    def shown(events: list[StoredEvent]) -> list[dict[str, Any]]:
        return client_events(tx, events, user_id=requester.user_id, device_id=requester.device_id)

    first = before[-1].ordering if before else event.ordering
    assert first is not None and last.ordering is not None
    return {
        "event": shown([event])[0],
        "events_before": shown(shown_before),
        "events_after": shown(shown_after),
        "state": shown(kept),
        "start": timeline_token(first - 1),
        "end": timeline_token(last.ordering),
    }


def _event(tx: Transaction, requester: Requester, room_id: RoomID, event_id: EventID) -> JsonObject:
    event = _get_visible(tx, requester, room_id, event_id)
    return client_events(tx, [event], user_id=requester.user_id, device_id=requester.device_id)[0]


def _get_visible(tx: Transaction, requester: Requester, room_id: RoomID, event_id: EventID) -> StoredEvent:
    event = get_stored(tx, event_id)
    if event is None or event.room_id != room_id or event.status != Status.TIMELINE:
        raise not_found("There is no such event, or none that you may see.")
    if not filter_visible(tx, requester.user_id, room_id, [event]):
        raise not_found("There is no such event, or none that you may see.")
    return event


FEATURE = Feature(name="room_history", spec="client-server-api/#getting-events-for-a-room", routes=routes)
