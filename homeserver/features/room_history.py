"""The history of a room: in pages, around an event, at a time. Spec: client-server-api/#getting-events-for-a-room"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import DatabaseUnavailable, Transaction
from homeserver.errors import not_found
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import EventID, RoomID, server_name_of
from homeserver.remote import backfill
from homeserver.resources import Resources
from homeserver.rooms.access import read_access
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.membership import get_room_membership, is_server_joined
from homeserver.rooms.receive import find_newest_gap, list_missing
from homeserver.rooms.resolve import StateAt, entries_of, positions_in, state_after
from homeserver.rooms.storage import Status, StoredEvent, get_stored, list_stored, without_withheld
from homeserver.rooms.timeline import (
    END,
    START,
    Timestamp,
    Token,
    Tokens,
    find_point,
    list_backwards,
    list_by_timestamp,
    list_forwards,
    parse_token,
)
from homeserver.rooms.visibility import filter_visible, is_world_readable
from homeserver.sync.filter import RoomEventFilter, parse_room_event_filter, wants_event
from homeserver.users.blocking import ignored_users

routes = Routes()

SCAN_FACTOR = 10  # a filter that lets little pass may cost this many times the events that are asked for


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
        with contextlib.suppress(DatabaseUnavailable):  # what is here can be read; the page ends at the gap
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
    return await hs.database.read(_event_by_timestamp, requester, room_id, query)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A page of history that a user has asked for: at most `limit` events from `start` on, not beyond `stop`.

    generation: of the stream, for the tokens of the answer.
    """

    requester: Requester
    room_id: RoomID
    start: Token | None
    stop: Token | None
    limit: int
    filter: RoomEventFilter
    forwards: bool
    generation: str

    def points(self, tx: Transaction) -> tuple[int, int]:
        """Where the page begins, and beyond which point it does not go."""
        first, last = (START, END) if self.forwards else (END, START)
        return (
            first if self.start is None else find_point(tx, self.start, forwards=self.forwards),
            last if self.stop is None else find_point(tx, self.stop, forwards=not self.forwards),
        )


def _page(tx: Transaction, wanted: _Wanted, filled: bool = False) -> JsonObject | int:
    """A page of the timeline; if a gap begins inside of it and has not been filled, the point where the page begins."""
    requester, room_id = wanted.requester, wanted.room_id
    access = read_access(tx, room_id, requester.user_id)
    begin, to = wanted.points(tx)
    if wanted.forwards:
        found = _scan(tx, wanted, begin, min(to, access.upto))
    else:
        point = min(begin, access.upto)
        gap = find_newest_gap(tx, room_id, to, point)
        # The page ends there, and the next one begins with what can be had of what is missing.
        found = _scan(tx, wanted, point, to if gap is None else gap - 1)
        if not filled and _meets_gap(tx, wanted, point, to, found):
            return begin
        if gap is not None and found.end is None:
            found = replace(found, end=gap - 1)
    tokens = Tokens(tx.position, wanted.generation)
    answer: JsonObject = {
        "chunk": client_events(tx, found.events, user_id=requester.user_id, device_id=requester.device_id),
        "start": tokens.timeline(found.start if begin in (START, END) else begin),
    }
    if found.end is not None:
        answer["end"] = tokens.timeline(found.end)
    if wanted.filter.lazy_load_members and found.events:
        answer["state"] = _senders(tx, access.state, found.events)
    return answer


@dataclass(frozen=True, slots=True)
class _Found:
    """Events of a page, and the points of the timeline before the first and after the last; `end` None if none follow.

    lowest: the least ordering that was looked at.
    """

    events: list[StoredEvent]
    start: int
    end: int | None
    lowest: int


def _scan(tx: Transaction, wanted: _Wanted, point: int, to: int) -> _Found:
    """The events between two points that the user may see and wants: as many as asked for, if they are not too rare."""
    user_id, room_id, forwards = wanted.requester.user_id, wanted.room_id, wanted.forwards
    list_next = list_forwards if forwards else list_backwards
    found: list[StoredEvent] = []
    start: int | None = None
    scanned, is_end, lowest = 0, False, point
    ignored = ignored_users(tx, user_id)
    while len(found) < wanted.limit and scanned < SCAN_FACTOR * wanted.limit:
        batch = list_next(tx, room_id, point, wanted.limit, to)
        is_end = len(batch) < wanted.limit
        scanned += len(batch)
        for event in batch[:1] if start is None else ():
            start = _point_beside(event, not forwards)
        visible = filter_visible(tx, user_id, room_id, batch)
        seen = [event for event in visible if _is_shown(event, wanted.filter, ignored)]
        if len(found) + len(seen) > wanted.limit:
            seen = seen[: wanted.limit - len(found)]
            last = seen[-1].position
            is_end, batch = False, batch[: [event.position for event in batch].index(last) + 1]
        found += seen
        if batch:
            point = _point_beside(batch[-1], forwards)
            lowest = min(lowest, batch[-1].ordering or 0)
        if is_end:
            break
    return _Found(found, point if start is None else start, None if is_end else point, lowest)


def _is_shown(event: StoredEvent, filter_: RoomEventFilter, ignored: Collection[str]) -> bool:
    """Whether an event that the user may see is to be told: not what ignored users say, but all state."""
    return (event.is_state or event.sender not in ignored) and wants_event(filter_, event)


def _point_beside(event: StoredEvent, is_after: bool) -> int:
    """The point of the timeline just after or just before an event."""
    assert event.ordering is not None
    return event.ordering if is_after else event.ordering - 1


def _meets_gap(tx: Transaction, wanted: _Wanted, point: int, to: int, found: _Found) -> bool:
    """Whether other servers, if this one is in the room, may have events where the page ends."""
    gaps = list_missing(tx, wanted.room_id, point, 1)
    if not gaps or not is_server_joined(tx, wanted.room_id, server_name_of(wanted.requester.user_id)):
        return False
    newest_gap = gaps[0][1].ordering
    assert newest_gap is not None
    return newest_gap > to and (found.end is None or found.lowest <= newest_gap)


def _senders(tx: Transaction, state: StateAt, events: list[StoredEvent]) -> list[JsonObject]:
    """The member events of the senders, for clients that load members lazily."""
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
    event = _get_visible(tx, requester, room_id, event_id)
    assert event.ordering is not None
    before = list_backwards(tx, room_id, event.ordering - 1, limit - limit // 2)
    after = list_forwards(tx, room_id, event.ordering, limit // 2)
    after = filter_visible(tx, requester.user_id, room_id, after)
    ignored = ignored_users(tx, requester.user_id)
    shown_after = [each for each in after if _is_shown(each, filter_, ignored)]
    visible_before = filter_visible(tx, requester.user_id, room_id, before)
    shown_before = [each for each in visible_before if _is_shown(each, filter_, ignored)]
    last = after[-1] if after else event  # never one that the user may not see: nor may they see the state after it
    senders = {each.sender for each in (event, *shown_before, *shown_after)}
    positions = entries_of(tx, state_after(tx, last))
    if filter_.lazy_load_members:
        member_nid, shown_nids = tx.find("m.room.member"), {tx.find(sender) for sender in senders}
        positions = {key: at for key, at in positions.items() if key[0] != member_nid or key[1] in shown_nids}
    state = without_withheld(tx, list(list_stored(tx, set(positions.values())).values()))
    wanted_state = [each for each in state if wants_event(filter_, each)]

    def shown(events: Sequence[StoredEvent]) -> list[dict[str, Any]]:
        return client_events(tx, events, user_id=requester.user_id, device_id=requester.device_id)

    first = before[-1].ordering if before else event.ordering
    assert first is not None and last.ordering is not None
    tokens = Tokens(tx.position, generation)
    return {
        "event": shown([event])[0],
        "events_before": shown(shown_before),
        "events_after": shown(shown_after),
        "state": shown(wanted_state),
        "start": tokens.timeline(first - 1),
        "end": tokens.timeline(last.ordering),
    }


def _event(tx: Transaction, requester: Requester, room_id: RoomID, event_id: EventID) -> JsonObject:
    event = _get_visible(tx, requester, room_id, event_id)
    return client_events(tx, [event], user_id=requester.user_id, device_id=requester.device_id)[0]


def _event_by_timestamp(tx: Transaction, requester: Requester, room_id: RoomID, query: TimestampQuery) -> JsonObject:
    """The event nearest to a time that the user may see, of those that this server has."""
    read_access(tx, room_id, requester.user_id)
    for limit in (1, limits.MESSAGES_LIMIT_MAX):  # the nearest is mostly one that they may see
        nearest = list_by_timestamp(tx, room_id, query.ts, query.direction, limit)
        for event in filter_visible(tx, requester.user_id, room_id, nearest):
            return {"event_id": event.event_id, "origin_server_ts": event.origin_server_ts}
    raise not_found("There is no event of that time, or none that you may see.")


def _get_visible(tx: Transaction, requester: Requester, room_id: RoomID, event_id: EventID) -> StoredEvent:
    event = get_stored(tx, event_id)
    unseen = not_found("There is no such event, or none that you may see.")
    if event is None or event.room_id != room_id or event.status != Status.TIMELINE:
        raise unseen
    membership = get_room_membership(tx, room_id, requester.user_id)
    if membership is not None and membership.forgotten and not is_world_readable(tx, room_id):
        raise unseen
    visible = filter_visible(tx, requester.user_id, room_id, [event])
    if not visible:
        raise unseen
    return visible[0]


FEATURE = Feature(name="room_history", spec="client-server-api/#getting-events-for-a-room", routes=routes)
