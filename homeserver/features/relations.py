"""Events that relate to an event, and the threads of a room.

Spec: client-server-api/#relationships-api, #querying-threads-in-a-room
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from homeserver import limits
from homeserver.api.routes import Routes
from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.feature import Feature, JsonObject
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.resources import Resources
from homeserver.rooms.access import get_visible_event, read_access
from homeserver.rooms.bundles import bundled_events, visible_children
from homeserver.rooms.erasure import redacted_copy
from homeserver.rooms.relations import (
    Wanted,
    find_relation,
    has_backlog,
    list_children,
    list_parents_below,
    list_participated,
    list_threads,
    store_backlog,
)
from homeserver.rooms.storage import TimelineEvent, list_stored
from homeserver.rooms.timeline import END, Token, Tokens, get_bounds, get_point, parse_token
from homeserver.rooms.visibility import filter_visible
from homeserver.users.blocking import ignored_users

RECURSION_DEPTH = 3  # what the specification asks for at least
LIMIT_DEFAULT = 20
SCAN_FACTOR = 10  # of the requested events so many are read if the user may not see them or does not want them
BACKLOG_EVENTS = 500  # in one write, which takes some 10 ms

routes = Routes()


class RelationsQuery(msgspec.Struct, frozen=True, rename={"from_": "from", "direction": "dir"}):
    """Spec: client-server-api/#get_matrixclientv1roomsroomidrelationseventid"""

    from_: str | None = None
    to: str | None = None
    limit: Annotated[int, msgspec.Meta(ge=0)] = LIMIT_DEFAULT
    direction: Literal["b", "f"] = "b"
    recurse: bool | None = None


class ThreadsQuery(msgspec.Struct, frozen=True, rename={"from_": "from"}):
    """Spec: client-server-api/#get_matrixclientv1roomsroomidthreads"""

    include: Literal["all", "participated"] = "all"
    limit: Annotated[int, msgspec.Meta(ge=1)] = LIMIT_DEFAULT
    from_: str | None = None


@routes.get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}")
async def get_relating_events(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, query: RelationsQuery
) -> JsonObject:
    return await _read(hs, requester, room_id, event_id, Wanted(), query)


@routes.get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}")
async def get_relating_events_with_rel_type(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, rel_type: str, query: RelationsQuery
) -> JsonObject:
    return await _read(hs, requester, room_id, event_id, Wanted(rel_type), query)


@routes.get("/_matrix/client/v1/rooms/{room_id}/relations/{event_id}/{rel_type}/{event_type}")
async def get_relating_events_with_rel_type_and_event_type(
    hs: Resources,
    requester: Requester,
    room_id: RoomID,
    event_id: EventID,
    rel_type: str,
    event_type: str,
    query: RelationsQuery,
) -> JsonObject:
    return await _read(hs, requester, room_id, event_id, Wanted(rel_type, event_type), query)


@routes.get("/_matrix/client/v1/rooms/{room_id}/threads")
async def get_thread_roots(hs: Resources, requester: Requester, room_id: RoomID, query: ThreadsQuery) -> JsonObject:
    start = None if query.from_ is None else parse_token(query.from_)
    return await hs.database.read(_list_threads, requester, room_id, query, start, hs.database.generation)


# --- children ---


class _Children(msgspec.Struct, frozen=True):
    """The requested children of an event: at most `limit` from `start` on, and none beyond `stop`."""

    requester: Requester
    room_id: RoomID
    event_id: EventID
    wanted: Wanted
    start: Token | None
    stop: Token | None
    limit: int
    forwards: bool
    recurse: bool
    generation: str


async def _read(
    hs: Resources, requester: Requester, room_id: RoomID, event_id: EventID, wanted: Wanted, query: RelationsQuery
) -> JsonObject:
    children = _Children(
        requester,
        room_id,
        event_id,
        wanted,
        start=parse_token(query.from_) if query.from_ else None,
        stop=parse_token(query.to) if query.to else None,
        limit=min(query.limit, limits.RELATIONS_LIMIT_MAX),
        forwards=query.direction == "f",
        recurse=query.recurse or False,
        generation=hs.database.generation,
    )
    answer = await hs.database.read(_page, children)
    if query.recurse is not None:
        answer["recursion_depth"] = RECURSION_DEPTH if query.recurse else 0
    return answer


def _page(tx: Transaction, children: _Children) -> JsonObject:
    requester, forwards, limit = children.requester, children.forwards, children.limit
    parent = get_visible_event(tx, children.room_id, children.event_id, requester.user_id)
    ignored = ignored_users(tx, requester.user_id)
    parents = [parent.position]
    if children.recurse:
        parents = list_parents_below(tx, parent.position, children.wanted, RECURSION_DEPTH)
    begin, stop = get_bounds(tx, children.start, children.stop, forwards=children.forwards)
    end, found, scanned = begin, list[TimelineEvent](), 0
    more = True
    while more and len(found) <= limit and scanned <= SCAN_FACTOR * (limit + 1):
        low, high = (end, stop) if forwards else (stop, end)
        batch = list_children(tx, parents, children.wanted, low, high, limit + 1, forwards=forwards)
        more = len(batch) > limit
        if batch:
            scanned += len(batch)
            end = batch[-1].ordering if forwards else batch[-1].ordering - 1
            found += visible_children(tx, requester.user_id, ignored, batch)
    if len(found) > limit:
        more = True
        end = found[limit].ordering - 1 if forwards else found[limit].ordering
        del found[limit:]
    tokens = Tokens(tx.position, children.generation)
    answer: JsonObject = {"chunk": _bundled(tx, requester, found, ignored)}
    if more:
        answer["next_batch"] = tokens.timeline(end)
    if children.start is not None:
        answer["prev_batch"] = tokens.timeline(begin)
    return answer


def _bundled(
    tx: Transaction, requester: Requester, events: Sequence[TimelineEvent], ignored: frozenset[str]
) -> list[JsonObject]:
    return bundled_events(tx, events, user_id=requester.user_id, device_id=requester.device_id, ignored=ignored)


# --- threads ---


def _list_threads(
    tx: Transaction, requester: Requester, room_id: RoomID, query: ThreadsQuery, start: Token | None, generation: str
) -> JsonObject:
    read_access(tx, room_id, requester.user_id)
    ignored = ignored_users(tx, requester.user_id)
    limit = min(query.limit, limits.RELATIONS_LIMIT_MAX)
    end = END if start is None else get_point(tx, start, forwards=False)
    chunk: list[JsonObject] = []
    scanned, more = 0, True
    while more and len(chunk) < limit and scanned <= SCAN_FACTOR * (limit + 1):
        threads = list_threads(tx, room_id, end, limit - len(chunk) + 1)
        more = len(threads) > limit - len(chunk)
        threads = threads[: limit - len(chunk)]
        if threads:
            scanned += len(threads)
            end = threads[-1].latest_by - 1
            roots = [thread.root for thread in threads]
            if query.include == "participated":
                participated = list_participated(tx, requester.user_id, roots)
                roots = [root for root in roots if root in participated]
            chunk += _list_roots(tx, requester, room_id, roots, ignored)
    if more:
        return {"chunk": chunk, "next_batch": Tokens(tx.position, generation).timeline(end)}
    return {"chunk": chunk}


def _list_roots(
    tx: Transaction, requester: Requester, room_id: RoomID, positions: Sequence[int], ignored: frozenset[str]
) -> list[JsonObject]:
    """Returns the roots that the user may see, of threads with a reply that the user sees. Those of ignored users are
    redacted.
    """
    stored = list_stored(tx, positions)
    placed = [event for position in positions if isinstance(event := stored[position], TimelineEvent)]
    visible = filter_visible(tx, requester.user_id, room_id, placed)
    roots = [event for event in visible if find_relation(event.content) is None]
    roots = [redacted_copy(tx, event) if event.sender in ignored else event for event in roots]
    shown = _bundled(tx, requester, roots, ignored)
    return [
        answer
        for root, answer in zip(roots, shown, strict=True)
        if root.is_state or "m.thread" in answer["unsigned"].get("m.relations", {})
    ]


# --- the backlog ---


async def work_off_backlog(hs: Resources) -> None:
    """Stores the relations of events from before this server knew relations, after the update that brought them."""
    async with hs.database.hold("relations backlog"):
        while await hs.database.read(has_backlog):
            await hs.database.write(store_backlog, BACKLOG_EVENTS)


FEATURE = Feature(
    name="relations",
    spec="client-server-api/#forming-relationships-between-events",
    routes=routes,
    background=(work_off_backlog,),
)
