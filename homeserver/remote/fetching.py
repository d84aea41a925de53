"""Fetches missing events, states and auth chains from other servers. Everything is checked before it is used.

Theory of operation. Nothing that a server sends is trusted: signatures and hashes are checked (`checking`), events of
other rooms are dropped, and answers are limited in size and number. Servers are asked one after another until one gives
what is needed; for a state the next one is also asked if one is slow (`racing`). A server that does not answer is not
an error here: the result is empty, and the caller decides what to do without the events.

- Single events and gaps (`fetch_event`, `fetch_missing`) are returned. The caller receives them like pushed ones.
- Auth chains and states (`fetch_auth_events`, `fetch_state_before`) may be larger than memory. They are collected in a
  file, stored as outliers in small writes, auth events first, and referred to by their IDs.
- A state is first requested as IDs, because most of its events are usually stored already. Missing events are fetched
  one by one if they are few, otherwise as a whole state. A state with too many unverifiable events is refused.

Spec: server-server-api/#backfilling-and-retrieving-missing-events, #retrieving-events
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio

from homeserver import limits
from homeserver.federation import canonical_json
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, RoomID, ServerName, parse_event_id
from homeserver.federation.pdu_checks import Keys
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.wire.racing import Attempt, first_answer
from homeserver.process.peers import Cause
from homeserver.remote.answers import Take, Verdict, ask_many
from homeserver.remote.checking import check_with_keys, keep_signed, parse_pdu
from homeserver.remote.collecting import Collected
from homeserver.remote.keys import find_keys
from homeserver.remote.requests import Answer, Unreachable, path_to
from homeserver.resources import Resources
from homeserver.rooms.graph import in_order
from homeserver.rooms.outliers import store_outliers
from homeserver.rooms.state_before import list_state_after
from homeserver.rooms.storage import find_positions, list_placed


async def ask_events(
    hs: Resources,
    server: ServerName,
    method: str,
    uri: str,
    content: Any | None = None,
    *,
    array: str,
    version: RoomVersion,
    room_id: RoomID,
    limit: int,
    cause: Cause,
) -> list[Event]:
    """Returns the first correctly signed events of an array in a server's answer; [] if it does not answer.

    Stops reading after `limit` events, or LISTED_EVENTS_BYTES_MAX.
    """
    parsed: list[Event] = []
    left_bytes = limits.peers.LISTED_EVENTS_BYTES_MAX

    def take(text: bytes) -> Verdict:
        nonlocal left_bytes
        if len(parsed) >= limit or left_bytes < len(text):
            return "full"
        try:
            event = parse_pdu(canonical_json.decode(text), version, room_id)
        except NotCanonical:
            return "junk"
        if not isinstance(event, Event):
            return "junk"
        left_bytes -= len(text)
        parsed.append(event)
        return "taken"

    try:
        answer = await ask_many(
            hs, server, method, uri, content,
            cause=cause, take={array: take},
            timeout_s=limits.peers.FEDERATION_TIMEOUT_S, max_bytes=limits.peers.BACKFILL_BYTES_MAX,
        )  # fmt: skip
    except Unreachable:
        return []
    return await keep_signed(hs, parsed, version, cause) if answer.status == 200 else []


async def fetch_event(
    hs: Resources, server: ServerName, event_id: EventID, version: RoomVersion, room_id: RoomID, cause: Cause
) -> Event | None:
    """Returns one event, None if the server does not give it."""
    uri = path_to("v1", "event", event_id)
    events = await ask_events(
        hs, server, "GET", uri, array="pdus", version=version, room_id=room_id, limit=1, cause=cause
    )
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
    """Returns ancestors of the event that are not in `known` and at least `min_depth` deep, oldest first."""
    body = {"earliest_events": list(known), "latest_events": [event.event_id], "limit": limit, "min_depth": min_depth}
    uri = path_to("v1", "get_missing_events", event.room_id)
    events = await ask_events(
        hs, server, "POST", uri, body,
        array="events", version=event.version, room_id=event.room_id, limit=limit, cause=cause,
    )  # fmt: skip
    return in_order(events)


async def fetch_auth_events(
    hs: Resources, servers: Sequence[ServerName], event: Event, missing: Collection[EventID], cause: Cause
) -> bool:
    """Fetches and stores auth events of the event, and theirs. Returns whether all of `missing` are stored now."""
    wanted = frozenset(missing)
    for server in servers:
        with Collected(hs.config.data_path(""), event.version, event.room_id, hs.blobs.failure) as collected:
            uri = path_to("v1", "event_auth", event.room_id, event.event_id)
            await _collect(hs, server, uri, {"auth_chain": collected.take}, cause, limits.peers.STATE_IDS_BYTES_MAX)
            await store_collected(hs, collected, server, cause)
        wanted = await _unstored(hs, wanted)
        if wanted and len(wanted) <= limits.peers.STATE_EVENTS_SINGLY_MAX:
            await store(hs, await fetch_events(hs, server, wanted, event.version, event.room_id, cause), server, cause)
            wanted = await _unstored(hs, wanted)
        if not wanted:
            return True
    return False


async def _collect(
    hs: Resources, server: ServerName, uri: str, take: Mapping[str, Take], cause: Cause, max_bytes: int
) -> Answer | None:
    """Sends a GET whose answer has large arrays. Returns None if the server does not answer with them."""
    try:
        answer = await ask_many(
            hs, server, "GET", uri, cause=cause, take=take, timeout_s=limits.peers.STATE_TIMEOUT_S, max_bytes=max_bytes
        )
    except Unreachable:
        return None
    return answer if answer.status == 200 else None


async def fetch_events(
    hs: Resources, server: ServerName, event_ids: Iterable[EventID], version: RoomVersion, room_id: RoomID, cause: Cause
) -> list[Event]:
    """Returns single events, fetched several at a time. Events that the server does not give are left out."""
    found: list[Event] = []
    limiter = trio.CapacityLimiter(limits.peers.EVENT_FETCHES_AT_ONCE)

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
    """Returns the IDs of the state before the event as given by one of the servers. None if no server gives it.

    All events of the state are stored. Each server is asked for the state before the event, then for the state after
    one of its prev_events.
    """
    follows = await _unplaced(hs, event.prev_events)
    attempts: list[Attempt[list[EventID] | None]] = []
    for server in servers:
        attempts.append(partial(_fetch_state_at, hs, server, event.event_id, event.version, event.room_id, cause))
        for event_id in follows:
            attempts.append(partial(_fetch_state_after, hs, server, event_id, event.version, event.room_id, cause))
    hedge = limits.peers.HEDGES["person" if cause.kind == "person" else "peer"]
    return await first_answer(attempts, hedge.stagger_s, hedge.timeout_s)


async def _unplaced(hs: Resources, event_ids: Sequence[EventID]) -> list[EventID]:
    """Returns the first events that have no place in the graph, so that their state is unknown."""
    placed = await hs.database.read(list_placed, event_ids)
    return [event_id for event_id in event_ids if event_id not in placed][: limits.peers.GAP_PREV_EVENTS_ASKED_MAX]


async def _fetch_state_after(
    hs: Resources, server: ServerName, event_id: EventID, version: RoomVersion, room_id: RoomID, cause: Cause
) -> list[EventID] | None:
    """Returns the IDs of the state after an event, which need not be stored. All events of the state are."""
    event = await fetch_event(hs, server, event_id, version, room_id, cause)
    if event is None:
        return None
    state_ids = await _fetch_state_at(hs, server, event_id, version, room_id, cause)
    if state_ids is None:
        return None
    await store(hs, [event], server, cause)
    return await hs.database.read(list_state_after, state_ids, event)


async def _fetch_state_at(
    hs: Resources, server: ServerName, event_id: EventID, version: RoomVersion, room_id: RoomID, cause: Cause
) -> list[EventID] | None:
    """Returns the IDs of the state before an event, which need not be stored. All events of the state are."""
    state_ids: list[EventID] = []
    chain_ids: list[EventID] = []
    uri = path_to("v1", "state_ids", room_id, query={"event_id": event_id})
    take = {"pdu_ids": _taking_ids(state_ids), "auth_chain_ids": _taking_ids(chain_ids)}
    answer = await _collect(hs, server, uri, take, cause, limits.peers.STATE_IDS_BYTES_MAX)
    if answer is None or not state_ids:
        return None
    missing = await _unstored(hs, [*state_ids, *chain_ids])
    del chain_ids
    if missing:
        await _fetch_state_events(hs, server, event_id, version, room_id, missing, cause)
    unstored = await _unstored(hs, state_ids)
    if len(unstored) * 10 > len(state_ids):  # a few old events have signatures that cannot be verified any more
        return None
    return [each for each in state_ids if each not in unstored]


def _taking_ids(found: list[EventID]) -> Take:
    def take(text: bytes) -> Verdict:
        if len(found) >= limits.peers.STATE_EVENTS_MAX:
            return "full"
        try:
            found.append(parse_event_id(canonical_json.decode(text)))
        except (NotCanonical, InvalidIdentifier):
            return "junk"
        return "taken"

    return take


async def _fetch_state_events(
    hs: Resources,
    server: ServerName,
    event_id: EventID,
    version: RoomVersion,
    room_id: RoomID,
    missing: Collection[EventID],
    cause: Cause,
) -> None:
    if len(missing) <= limits.peers.STATE_EVENTS_SINGLY_MAX:
        await store(hs, await fetch_events(hs, server, missing, version, room_id, cause), server, cause)
        return
    uri = path_to("v1", "state", room_id, query={"event_id": event_id})
    with Collected(hs.config.data_path(""), version, room_id, hs.blobs.failure) as collected:
        take = {"pdus": collected.take_state, "auth_chain": collected.take}
        if await _collect(hs, server, uri, take, cause, limits.peers.STATE_BYTES_MAX) is not None:
            await store_collected(hs, collected, server, cause)


async def store_collected(hs: Resources, collected: Collected, server: ServerName, cause: Cause) -> frozenset[EventID]:
    """Checks collected events and stores them as outliers. If they lack a few auth events, asks `server` for these.

    Returns the IDs of the events that are still missing. There are many short writes instead of a long one, so that
    other writes get their turn.
    """
    wanted = collected.wanted_keys()
    with trio.move_on_after(limits.peers.KEYS_TIMEOUT_S):
        await find_keys(hs, wanted, cause)
    keys = await find_keys(hs, wanted, cause, ())
    del wanted
    ordered = await collected.in_order()
    lacking: frozenset[EventID] = frozenset()
    for _ in range(limits.peers.SERVERS_ASKED_MAX):
        lacking = await _store_ordered(hs, collected, ordered, keys)
        if not lacking or len(lacking) > limits.peers.STATE_EVENTS_SINGLY_MAX:
            break
        found = await fetch_events(hs, server, lacking, collected.version, collected.room_id, cause)
        if not found:
            break
        await _store_in_parts(hs, found)
    return lacking


async def _store_ordered(hs: Resources, collected: Collected, ordered: Sequence[int], keys: Keys) -> frozenset[EventID]:
    ids = collected.ids()
    lacking: set[EventID] = set()

    async def store_part(events: Sequence[Event]) -> None:
        for start in range(0, len(events), limits.peers.OUTLIERS_PER_WRITE):
            lacking.update(
                await hs.database.write(store_outliers, events[start : start + limits.peers.OUTLIERS_PER_WRITE])
            )

    # While one part is written, the next is checked on a thread.
    signed: list[Event] = []
    for start in range(0, len(ordered) + 1, limits.peers.OUTLIERS_CHECKED_AT_ONCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store_part, signed)
            signed = []
            part = [(index, ids[index]) for index in ordered[start : start + limits.peers.OUTLIERS_CHECKED_AT_ONCE]]
            unstored = await _unstored(hs, [event_id for _, event_id in part])
            part = [each for each in part if each[1] in unstored]
            if part:
                signed = await hs.workers.run(_read_signed, collected, part, keys)
    await store_part(signed)
    # Events that are only missing because another part of the answer lacks them need not be fetched.
    return frozenset(event_id for event_id in lacking if event_id not in collected)


def _read_signed(collected: Collected, part: Sequence[tuple[int, EventID]], keys: Keys) -> list[Event]:
    return check_with_keys(list(collected.read(part)), keys)


async def store(hs: Resources, events: Collection[Event], server: ServerName, cause: Cause) -> frozenset[EventID]:
    """Stores checked events as outliers. If they lack a few auth events, asks `server` for these.

    Returns the IDs of the events that are still missing. There are many short writes instead of a long one, so that
    other writes get their turn.
    """
    lacking = await _store_in_parts(hs, events)
    for _ in range(limits.peers.SERVERS_ASKED_MAX):
        if not lacking or len(lacking) > limits.peers.STATE_EVENTS_SINGLY_MAX:
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
    # From room version 12 on no event cites the create event, although all depend on it.
    ordered = sorted(in_order(unstored, by_auth=True), key=lambda event: event.type != "m.room.create")
    lacking: set[EventID] = set()
    for start in range(0, len(ordered), limits.peers.OUTLIERS_PER_WRITE):
        lacking |= await hs.database.write(store_outliers, ordered[start : start + limits.peers.OUTLIERS_PER_WRITE])
    # Events that are only missing because another part of the answer lacks them need not be fetched.
    return frozenset(lacking - {event.event_id for event in ordered})


async def _unstored(hs: Resources, event_ids: Collection[EventID]) -> frozenset[EventID]:
    stored = await hs.database.read(find_positions, event_ids)
    return frozenset(event_id for event_id in event_ids if event_id not in stored)
