"""Fetching events that are missing, and states and auth chains. What comes is checked before anyone sees it.

Spec: server-server-api/#backfilling-and-retrieving-missing-events, #retrieving-events
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import trio

from homeserver import limits
from homeserver.errors import MatrixError
from homeserver.federation.canonical_json import decode_parts
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, ServerName, parse_event_id
from homeserver.federation.room_versions import RoomVersion
from homeserver.peers import Cause
from homeserver.remote.checking import check_good_pdus
from homeserver.remote.requests import ask, path_to
from homeserver.resources import Resources
from homeserver.rooms.graph import in_order
from homeserver.rooms.receive import store_outliers
from homeserver.rooms.storage import find_positions


async def fetch_event(
    hs: Resources, server: ServerName, event_id: EventID, version: RoomVersion, room_id: RoomID, cause: Cause
) -> Event | None:
    """One event, None where the server does not give it."""
    try:
        answer = await ask(hs, server, "GET", path_to("v1", "event", event_id), cause=cause, decode=decode_parts)
    except MatrixError:
        return None
    events = await check_good_pdus(hs, answer.get("pdus"), version, room_id, cause)
    return next((event for event in events if event.event_id == event_id), None)


async def fetch_missing(
    hs: Resources,
    server: ServerName,
    event: Event,
    known: Collection[EventID],
    min_depth: int,
    limit: int,
    cause: Cause,
) -> list[Event]:
    """Ancestors of the event that are not among the `known`, nor less deep than `min_depth`, oldest first."""
    body = {"earliest_events": list(known), "latest_events": [event.event_id], "limit": limit, "min_depth": min_depth}
    try:
        answer = await ask(
            hs, server, "POST", path_to("v1", "get_missing_events", event.room_id), body,
            cause=cause, max_bytes=limits.BACKFILL_BYTES_MAX, decode=decode_parts,
        )  # fmt: skip
    except MatrixError:
        return []
    pdus = answer.get("events")
    events = await check_good_pdus(
        hs, pdus[:limit] if isinstance(pdus, list) else None, event.version, event.room_id, cause
    )
    return in_order(events)


async def fetch_auth_events(
    hs: Resources, servers: Sequence[ServerName], event: Event, missing: Collection[EventID], cause: Cause
) -> bool:
    """Fetches and stores auth events of the event, and theirs. Whether none of the `missing` is missing any more."""
    wanted = frozenset(missing)
    for server in servers:
        uri = path_to("v1", "event_auth", event.room_id, event.event_id)
        try:
            answer = await ask(
                hs, server, "GET", uri,
                cause=cause, timeout_s=limits.STATE_TIMEOUT_S, max_bytes=limits.STATE_IDS_BYTES_MAX,
                decode=decode_parts,
            )  # fmt: skip
            chain = await check_good_pdus(hs, answer.get("auth_chain"), event.version, event.room_id, cause)
        except MatrixError:
            chain = []
        await store(hs, chain, server, cause)
        wanted = await _unstored(hs, wanted)
        if wanted and len(wanted) <= limits.STATE_EVENTS_SINGLY_MAX:
            await store(hs, await fetch_events(hs, server, wanted, event.version, event.room_id, cause), server, cause)
            wanted = await _unstored(hs, wanted)
        if not wanted:
            return True
    return False


async def fetch_events(
    hs: Resources, server: ServerName, event_ids: Iterable[EventID], version: RoomVersion, room_id: RoomID, cause: Cause
) -> list[Event]:
    """Single events, several at a time; those that the server does not give are absent."""
    found: list[Event] = []
    limiter = trio.CapacityLimiter(limits.EVENT_FETCHES_AT_ONCE)

    async def fetch(event_id: EventID) -> None:
        async with limiter:
            event = await fetch_event(hs, server, event_id, version, room_id, cause)
            if event is not None:
                found.append(event)

    async with trio.open_nursery() as nursery:
        for event_id in event_ids:
            nursery.start_soon(fetch, event_id)
    return found


async def fetch_state_before(
    hs: Resources, servers: Sequence[ServerName], event: Event, cause: Cause
) -> list[EventID] | None:
    """The ids of the state before the event as one of the servers tells it, all of them stored. None if nobody does."""
    for server in servers:
        uri = path_to("v1", "state_ids", event.room_id, query={"event_id": event.event_id})
        try:
            answer = await ask(
                hs, server, "GET", uri,
                cause=cause, timeout_s=limits.STATE_TIMEOUT_S, max_bytes=limits.STATE_IDS_BYTES_MAX,
            )  # fmt: skip
        except MatrixError:
            continue
        state_ids, chain_ids = _event_ids(answer.get("pdu_ids")), _event_ids(answer.get("auth_chain_ids"))
        if not state_ids:
            continue
        missing = await _unstored(hs, {*state_ids, *chain_ids})
        if missing:
            await _fetch_state_events(hs, server, event, missing, cause)
        unstored = await _unstored(hs, state_ids)
        if len(unstored) * 10 <= len(state_ids):  # of old events a few have signatures that nobody can check any more
            return [event_id for event_id in state_ids if event_id not in unstored]
    return None


async def _fetch_state_events(
    hs: Resources, server: ServerName, event: Event, missing: Collection[EventID], cause: Cause
) -> None:
    if len(missing) <= limits.STATE_EVENTS_SINGLY_MAX:
        await store(hs, await fetch_events(hs, server, missing, event.version, event.room_id, cause), server, cause)
        return
    uri = path_to("v1", "state", event.room_id, query={"event_id": event.event_id})
    try:
        answer = await ask(
            hs, server, "GET", uri,
            cause=cause, timeout_s=limits.STATE_TIMEOUT_S, max_bytes=limits.STATE_BYTES_MAX, decode=decode_parts,
        )  # fmt: skip
    except MatrixError:
        return
    pdus = [*_list(answer.get("auth_chain")), *_list(answer.get("pdus"))]
    await store(hs, await check_good_pdus(hs, pdus, event.version, event.room_id, cause), server, cause)


async def store(hs: Resources, events: Collection[Event], server: ServerName, cause: Cause) -> frozenset[EventID]:
    """Stores checked events as outliers, once `server` was asked for the few auth events they lack; answers the rest.

    Many short writes rather than one long one: the writer serves others in between.
    """
    lacking = await _store_in_parts(hs, events)
    for _ in range(limits.SERVERS_ASKED_MAX):
        if not lacking or len(lacking) > limits.STATE_EVENTS_SINGLY_MAX:
            break
        sample = next(iter(events))
        found = await fetch_events(hs, server, lacking, sample.version, sample.room_id, cause)
        if not found:
            break
        await _store_in_parts(hs, found)
        lacking = await _store_in_parts(hs, [*events, *found])
    return lacking


async def _store_in_parts(hs: Resources, events: Collection[Event]) -> frozenset[EventID]:
    stored = await hs.database.read(find_positions, [event.event_id for event in events])
    unstored = [event for event in events if event.event_id not in stored]
    # From room version 12 on no event names the create event, upon which all stand.
    ordered = sorted(in_order(unstored, by_auth=True), key=lambda event: event.type != "m.room.create")
    lacking: set[EventID] = set()
    for start in range(0, len(ordered), limits.OUTLIERS_PER_WRITE):
        lacking |= await hs.database.write(store_outliers, ordered[start : start + limits.OUTLIERS_PER_WRITE])
    # What one part lacks because another part lacks something is not to be asked for.
    return frozenset(lacking - {event.event_id for event in ordered})


async def _unstored(hs: Resources, event_ids: Collection[EventID]) -> frozenset[EventID]:
    stored = await hs.database.read(find_positions, event_ids)
    return frozenset(event_id for event_id in event_ids if event_id not in stored)


def _event_ids(listed: object) -> list[EventID]:
    found: list[EventID] = []
    for event_id in _list(listed)[: limits.STATE_IDS_MAX]:
        try:
            found.append(parse_event_id(event_id))
        except InvalidIdentifier:
            continue
    return found


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
