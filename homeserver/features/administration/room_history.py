"""The admin API for what was said in rooms, whether or not the administrator is in them."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from homeserver import limits
from homeserver.api.filters import parse_room_event_filter
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester, check_admin
from homeserver.database import Transaction
from homeserver.errors import invalid_param, not_found
from homeserver.feature import JsonObject
from homeserver.features.administration.common import V1, Direction
from homeserver.features.administration.rooms import ROOM
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.resources import Resources
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.events import to_events
from homeserver.rooms.heads import get_head
from homeserver.rooms.history import Administrator, Page, point_beside, read_page
from homeserver.rooms.resolve import entries_of, state_after
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored_by_id, list_stored, without_withheld
from homeserver.rooms.timeline import END, START, Timestamp, Token, Tokens, get_bounds, list_by_timestamp, parse_token

routes = Routes()


class MessagesQuery(msgspec.Struct, frozen=True, rename={"start": "from", "direction": "dir"}):
    """Like `/messages` of the client-server API, but forwards unless something else is said."""

    start: str = ""
    to: str | None = None
    limit: int = 10
    direction: Direction = "f"
    filter: str | None = None


@routes.get(f"{ROOM}/messages")
async def list_messages_for_admin(
    hs: Resources, requester: Requester, room_id: RoomID, query: MessagesQuery
) -> JsonObject:
    """Reads what this server has. History that it lacks is not fetched."""
    check_admin(requester)
    if query.limit < 0:
        raise invalid_param("The limit must not be negative.")
    reader = Administrator(room_id, parse_room_event_filter(query.filter))
    start = parse_token(query.start) if query.start else None
    stop = parse_token(query.to) if query.to else None
    return await hs.database.read(_page, reader, query, start, stop, hs.database.generation, requester)


def _page(
    tx: Transaction,
    reader: Administrator,
    query: MessagesQuery,
    start: Token | None,
    stop: Token | None,
    generation: str,
    requester: Requester,
) -> JsonObject:
    get_head(tx, reader.room_id)
    forwards = query.direction == "f"
    begin, to = get_bounds(tx, start, stop, forwards=forwards)
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    page: Page = read_page(tx, reader, begin, to, limit, forwards=forwards)
    tokens = Tokens(tx.position, generation)
    answer: JsonObject = {
        "chunk": _show(tx, requester, page.events),
        "start": query.start or tokens.timeline(page.start if begin in (START, END) else begin),
        "state": [],
    }
    if page.more:
        answer["end"] = tokens.timeline(page.end)
    return answer


def _show(tx: Transaction, requester: Requester, events: Sequence[StoredEvent]) -> list[JsonObject]:
    return client_events(tx, events, user_id=requester.user_id)


class ContextQuery(msgspec.Struct, frozen=True):
    limit: int = 10
    filter: str | None = None


@routes.get(f"{ROOM}/context/{{event_id}}")
async def get_context_for_admin(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, query: ContextQuery
) -> JsonObject:
    check_admin(requester)
    if query.limit < 0:
        raise invalid_param("The limit must not be negative.")
    reader = Administrator(room_id, parse_room_event_filter(query.filter))
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    return await hs.database.read(_context, reader, event_id, limit, hs.database.generation, requester)


def _context(
    tx: Transaction, reader: Administrator, event_id: EventID, limit: int, generation: str, requester: Requester
) -> JsonObject:
    event = find_stored_by_id(tx, event_id)
    if not isinstance(event, TimelineEvent) or event.room_id != reader.room_id:
        raise not_found("There is no such event in that room.")
    before = read_page(tx, reader, point_beside(event, is_after=False), START, limit - limit // 2)
    after = read_page(tx, reader, point_beside(event, is_after=True), END, limit // 2, forwards=True)
    last = after.events[-1] if after.events else event
    positions = set(entries_of(tx, state_after(tx, last)).values())
    state = without_withheld(tx, list(list_stored(tx, positions).values()))
    tokens = Tokens(tx.position, generation)
    return {
        "event": _show(tx, requester, [event])[0],
        "events_before": _show(tx, requester, before.events),
        "events_after": _show(tx, requester, after.events),
        "state": [client_event(tx, each, {"age": tx.now_ms - each.origin_server_ts}) for each in state],
        "start": tokens.timeline(before.end),
        "end": tokens.timeline(after.end),
    }


class TimeQuery(msgspec.Struct, frozen=True, rename={"direction": "dir"}):
    ts: Timestamp
    direction: Direction = "f"


@routes.get(f"{ROOM}/timestamp_to_event")
async def get_event_by_time_for_admin(
    hs: Resources, requester: Requester, room_id: RoomID, query: TimeQuery
) -> JsonObject:
    check_admin(requester)
    return await hs.database.read(_by_time, room_id, query)


def _by_time(tx: Transaction, room_id: RoomID, query: TimeQuery) -> JsonObject:
    get_head(tx, room_id)
    for event in list_by_timestamp(tx, room_id, query.ts, query.direction, 1):
        return {"event_id": event.event_id, "origin_server_ts": event.origin_server_ts}
    raise not_found("There is no event near that time.")


@routes.get(f"{V1}/fetch_event/{{event_id}}")
async def fetch_event_for_admin(hs: Resources, requester: Requester, event_id: EventID) -> JsonObject:
    """Returns an event as servers exchange it, with its signatures, even if it was rejected."""
    check_admin(requester)
    return {"event": await hs.database.read(_pdu, event_id)}


def _pdu(tx: Transaction, event_id: EventID) -> JsonObject:
    stored = find_stored_by_id(tx, event_id)
    if stored is None:
        raise not_found("This server does not have that event.")
    (event,) = to_events(tx, [stored])
    return {**event.pdu, "event_id": event.event_id, "room_id": event.room_id}
