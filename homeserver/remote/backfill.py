"""Backfill: fetches history that this server lacks when a reader reaches a gap.

Spec: server-server-api/#backfilling-and-retrieving-missing-events
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import trio

from homeserver import limits
from homeserver.database import Transaction
from homeserver.errors import MatrixError, not_found
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, ServerName, server_name_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.wire.racing import first_answer
from homeserver.process.peers import PERSON
from homeserver.remote import fetching
from homeserver.remote.access import choose_servers
from homeserver.remote.fetching import fetch_auth_events, fetch_state_before, store
from homeserver.remote.receiving import receive
from homeserver.remote.requests import path_to
from homeserver.resources import Resources
from homeserver.rooms.events import find_event
from homeserver.rooms.gaps import Gap, find_place_within, find_places, list_missing
from homeserver.rooms.graph import in_order, leading_to
from homeserver.rooms.heads import get_head
from homeserver.rooms.receive import Received
from homeserver.rooms.storage import find_positions, list_placed
from homeserver.rooms.versions import get_room_version


async def fill(hs: Resources, room_id: RoomID, point: int, limit: int) -> None:
    """Fetches up to `limit` events before a point of the timeline where it has a gap.

    Never raises. If anything goes wrong, the reader merely gets less history.
    """
    key = ("backfill", room_id, point)
    with trio.move_on_after(limits.peers.BACKFILL_WAIT_S):
        try:
            await hs.flights.join(hs.nursery, key, _fill, hs, room_id, point, limit)
        except MatrixError:
            return  # too many fetches are running, or the server is closing


async def _fill(hs: Resources, room_id: RoomID, point: int, limit: int) -> None:
    at_once = hs.flights.limiter("backfill", limits.peers.BACKFILLS_AT_ONCE_MAX)
    async with hs.peers.locks.hold(("backfill", room_id)), at_once:
        missing = await hs.database.read(list_missing, room_id, point, limits.peers.GAP_STATES_MAX)
        if not missing:
            return
        # The server whose user wrote just after the gap had the events before it.
        servers = await choose_servers(hs, room_id, server_name_of(missing[0][1].sender))
        version = await hs.database.read(get_room_version, room_id)
        wanted = [event_id for event_id, _ in missing]
        hedge = limits.peers.HEDGES["person"]
        while servers:
            attempts = [partial(_ask, hs, server, room_id, version, wanted, limit) for server in servers]
            page = await first_answer(attempts, hedge.stagger_s, hedge.timeout_s)
            if page is None or await take_in(hs, page.server, servers, page.events):
                return
            servers.remove(page.server)


class _Page(msgspec.Struct, frozen=True):
    """Events of the past as given by a server, oldest first."""

    server: ServerName
    events: list[Event]


async def _ask(
    hs: Resources,
    server: ServerName,
    room_id: RoomID,
    version: RoomVersion,
    start: Sequence[EventID],
    limit: int,
) -> _Page | None:
    """Returns a page of the past, None if the server has none."""
    limit = min(max(limit, 1), limits.peers.BACKFILL_EVENTS_MAX)
    query = [*(("v", event_id) for event_id in start), ("limit", str(limit))]
    uri = path_to("v1", "backfill", room_id, query=query)
    events = await fetching.ask_events(
        hs, server, "GET", uri, array="pdus", version=version, room_id=room_id, limit=limit, cause=PERSON
    )
    leading = leading_to(start, in_order(events))
    return _Page(server, leading) if leading else None


async def take_in(
    hs: Resources,
    server: ServerName,
    servers: Sequence[ServerName],
    events: Sequence[Event],
    gap: Gap | None = None,
) -> bool:
    """Stores the events in their place in the past. Returns whether any of them was new.

    For events with unknown ancestors the state before them is fetched; for the others it follows. If no server gives
    the state of an event, the event is left out and the page begins after it. gap: where to place a single event that
    no stored event follows.
    """
    asked = [server, *(other for other in servers if other != server)]
    within: set[EventID] = set()
    states: dict[EventID, list[EventID]] = {}
    questions = 0
    for event in events:
        known = {*within, *await hs.database.read(list_placed, [event.event_id, *event.prev_events])}
        if event.event_id not in known and not (event.prev_events and known.issuperset(event.prev_events)):
            if event.type == "m.room.create":
                states[event.event_id] = []
            elif questions == limits.peers.GAP_STATES_MAX:
                continue
            else:
                questions += 1
                state = await fetch_state_before(hs, asked, event, PERSON)
                if state is None:
                    continue
                states[event.event_id] = state
        within.add(event.event_id)
    events = [event for event in events if event.event_id in within]
    for event in events:
        lacking = frozenset(event.auth_events) - (await hs.database.read(find_positions, event.auth_events)).keys()
        if lacking - within:
            await fetch_auth_events(hs, asked, event, lacking - within, PERSON)
    return bool(events) and await hs.database.write(_place, events, states, gap) > 0


def _place(tx: Transaction, events: Sequence[Event], states: Mapping[EventID, list[EventID]], gap: Gap | None) -> int:
    """Stores the events, given oldest first, just below those that follow them. Returns how many were new."""
    places = find_places(tx, events[0].room_id, events)
    if gap is not None and events[0].event_id not in places and (middle := find_place_within(gap)) is not None:
        places[events[0].event_id] = middle
    count = 0
    for event in events:
        if event.event_id in places:
            outcome = receive(tx, event, state=states.get(event.event_id), ordering=places[event.event_id])
            count += isinstance(outcome, Received) and outcome.is_new
    return count


async def fetch_event(hs: Resources, room_id: RoomID, event_id: EventID) -> Event:
    """Returns an event of the room, from other servers if necessary. Raises MatrixError 404 if nobody has it."""
    stored = await hs.database.read(find_event, event_id)
    if stored is not None and stored.room_id == room_id:
        return stored
    head = await hs.database.read(get_head, room_id)
    for server in await choose_servers(hs, room_id, None):
        event = await fetching.fetch_event(hs, server, event_id, head.version, room_id, PERSON)
        if event is not None:
            await store(hs, [event], server, PERSON)
            return event
    raise not_found("No server of the room has that event.")
