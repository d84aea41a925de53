"""The history of a room: in pages, around an event, by time. Spec: client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from homeserver import limits
from homeserver.api.filters import RoomEventFilter, parse_room_event_filter
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import DatabaseUnavailable, Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import EventID, RoomID, server_name_of
from homeserver.remote import backfill, by_time
from homeserver.resources import Resources
from homeserver.rooms.access import get_visible_event, read_access
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.gaps import find_newest_gap
from homeserver.rooms.history import Page, Reader, list_wanted, point_beside, read_page
from homeserver.rooms.membership import is_server_joined
from homeserver.rooms.resolve import StateAt, entries_of, positions_in, state_after
from homeserver.rooms.storage import StoredEvent, TimelineEvent, list_stored, without_withheld
from homeserver.rooms.timeline import (
    END,
    START,
    Timestamp,
    Token,
    Tokens,
    get_bounds,
    list_by_timestamp,
    parse_token,
)
from homeserver.rooms.visibility import filter_visible
from homeserver.users.blocking import ignored_users

routes = Routes()


class MessagesQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "direction": "dir"}):
    """Spec: client-server-api/#get_matrixclientv3roomsroomidmessages"""

    direction: Literal["b", "f"]
    from_: str | None = None
    to: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10
    filter: str | None = None


class TimestampQuery(msgspec.Struct, frozen=True, rename={"direction": "dir"}):
    direction: Literal["b", "f"]
    ts: Timestamp


class ContextQuery(msgspec.Struct, frozen=True):
    limit: Annotated[int, msgspec.Meta(ge=0)] = 10
    filter: str | None = None


@routes.get("/_matrix/client/v3/rooms/{room_id}/messages", allow_guest=True)
async def get_room_events(hs: Resources, requester: Requester, room_id: RoomID, query: MessagesQuery) -> JsonObject:
    wanted = _Wanted(
        requester,
        room_id,
        start=parse_token(query.from_) if query.from_ else None,
        stop=parse_token(query.to) if query.to else None,
        limit=min(query.limit, limits.MESSAGES_LIMIT_MAX),
        filter=parse_room_event_filter(query.filter),
        forwards=query.direction == "f",
        generation=hs.database.generation,
    )
    page = await hs.database.read(_page, wanted)
    if isinstance(page, int):  # the page ends at a gap that other servers can fill
        with contextlib.suppress(DatabaseUnavailable):  # serve what is here, up to the gap
            await backfill.fill(hs, room_id, page, wanted.limit)
        page = await hs.database.read(_page, wanted, True)
        assert not isinstance(page, int)
    return {**page, "start": query.from_} if query.from_ else page


@routes.get("/_matrix/client/v3/rooms/{room_id}/context/{event_id}", allow_guest=True)
async def get_event_context(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, query: ContextQuery
) -> JsonObject:
    filter_ = parse_room_event_filter(query.filter)
    limit = min(query.limit, limits.MESSAGES_LIMIT_MAX)
    return await hs.database.read(_context, requester, room_id, event_id, limit, filter_, hs.database.generation)


@routes.get("/_matrix/client/v3/rooms/{room_id}/event/{event_id}", allow_guest=True)
async def get_one_room_event(hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID) -> JsonObject:
    return await hs.database.read(_event, requester, room_id, event_id)


@routes.get("/_matrix/client/v1/rooms/{room_id}/timestamp_to_event")
async def get_event_by_timestamp(
    hs: Resources, requester: Requester, room_id: RoomID, query: TimestampQuery
) -> JsonObject:
    await hs.database.read(read_access, room_id, requester.user_id)
    with contextlib.suppress(DatabaseUnavailable):  # serve what is here
        await by_time.fill_gap_at(hs, room_id, query.ts, query.direction)
    return await hs.database.read(_event_by_timestamp, requester, room_id, query)


class _Wanted(msgspec.Struct, frozen=True):
    """A requested page of history: at most `limit` events from `start` on, and none beyond `stop`.

    generation: the stream's generation, for the tokens of the response.
    """

    requester: Requester
    room_id: RoomID
    start: Token | None
    stop: Token | None
    limit: int
    filter: RoomEventFilter
    forwards: bool
    generation: str


def _page(tx: Transaction, wanted: _Wanted, filled: bool = False) -> JsonObject | int:
    """Returns a page of the timeline, or its first point if it meets a gap that other servers may be able to fill."""
    requester, room_id = wanted.requester, wanted.room_id
    access = read_access(tx, room_id, requester.user_id)
    begin, to = get_bounds(tx, wanted.start, wanted.stop, forwards=wanted.forwards)
    reader = Reader(requester.user_id, room_id, wanted.filter, ignored_users(tx, requester.user_id))
    if wanted.forwards:
        page = read_page(tx, reader, begin, min(to, access.upto), wanted.limit, forwards=True)
    else:
        point = min(begin, access.upto)
        page = read_page(tx, reader, point, to, wanted.limit)
        if not filled and _meets_gap(tx, wanted, point, page):
            return begin
    tokens = Tokens(tx.position, wanted.generation)
    answer: JsonObject = {
        "chunk": _show(tx, requester, page.events, reader.ignored),
        "start": tokens.timeline(page.start if begin in (START, END) else begin),
    }
    if page.more:
        answer["end"] = tokens.timeline(page.end)
    if wanted.filter.lazy_load_members and page.events:
        answer["state"] = _senders(tx, access.state, page.events)
    return answer


def _meets_gap(tx: Transaction, wanted: _Wanted, point: int, page: Page) -> bool:
    """Returns whether this server is in the room and others may have events at the page's end or before its start."""
    if not (page.at_gap or find_newest_gap(tx, wanted.room_id, point, point + 1) is not None):
        return False
    return is_server_joined(tx, wanted.room_id, server_name_of(wanted.requester.user_id))


def _senders(tx: Transaction, state: StateAt, events: Sequence[StoredEvent]) -> list[JsonObject]:
    """Returns the member events of the senders, for clients that lazy-load members."""
    keys = [("m.room.member", sender) for sender in dict.fromkeys(event.sender for event in events)]
    members = list_stored(tx, set(positions_in(tx, state, keys).values())).values()
    return [client_event(tx, member, {"age": tx.now_ms - member.origin_server_ts}) for member in members]


def _context(
    tx: Transaction,
    requester: Requester,
    room_id: RoomID,
    event_id: EventID,
    limit: int,
    filter_: RoomEventFilter,
    generation: str,
) -> JsonObject:
    event = get_visible_event(tx, room_id, event_id, requester.user_id)
    reader = Reader(requester.user_id, room_id, filter_, ignored_users(tx, requester.user_id))
    before_point, after_point = point_beside(event, is_after=False), point_beside(event, is_after=True)
    before = read_page(tx, reader, before_point, START, limit - limit // 2)
    after = read_page(tx, reader, after_point, END, limit // 2, forwards=True)
    last = after.events[-1] if after.events else event
    senders = {each.sender for each in (event, *before.events, *after.events)}
    positions = entries_of(tx, state_after(tx, last))
    if filter_.lazy_load_members:
        member_nid, shown_nids = tx.find("m.room.member"), {tx.find(sender) for sender in senders}
        positions = {key: at for key, at in positions.items() if key[0] != member_nid or key[1] in shown_nids}
    state = without_withheld(tx, list(list_stored(tx, set(positions.values())).values()))
    wanted_state = list_wanted(filter_, list(state))
    shown = _show(tx, requester, [*before.events, event, *after.events], reader.ignored)
    tokens = Tokens(tx.position, generation)
    return {
        "event": shown[len(before.events)],
        "events_before": shown[: len(before.events)],
        "events_after": shown[len(before.events) + 1 :],
        "state": client_events(tx, wanted_state, user_id=requester.user_id, device_id=requester.device_id),
        "start": tokens.timeline(before.end),
        "end": tokens.timeline(after.end),
    }


def _event(tx: Transaction, requester: Requester, room_id: RoomID, event_id: EventID) -> JsonObject:
    event = get_visible_event(tx, room_id, event_id, requester.user_id)
    return _show(tx, requester, [event], ignored_users(tx, requester.user_id))[0]


def _show(
    tx: Transaction, requester: Requester, events: Sequence[TimelineEvent], ignored: frozenset[str]
) -> list[JsonObject]:
    return bundled_events(tx, events, user_id=requester.user_id, device_id=requester.device_id, ignored=ignored)


def _event_by_timestamp(tx: Transaction, requester: Requester, room_id: RoomID, query: TimestampQuery) -> JsonObject:
    """Returns the event nearest to a time that the user may see, among those that this server has by now."""
    read_access(tx, room_id, requester.user_id)
    for limit in (1, limits.MESSAGES_LIMIT_MAX):  # usually the user may see the nearest one
        nearest = list_by_timestamp(tx, room_id, query.ts, query.direction, limit)
        for event in filter_visible(tx, requester.user_id, room_id, nearest):
            return {"event_id": event.event_id, "origin_server_ts": event.origin_server_ts}
    raise not_found("There is no event near that time, or none that you may see.")


FEATURE = Feature(name="room_history", spec="client-server-api/#getting-events-for-a-room", routes=routes)
