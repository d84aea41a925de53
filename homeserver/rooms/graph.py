"""Walks through the event graph of a room: auth chains, and back along prev_events.

Spec: server-server-api/#pdus, rooms/v12/#definitions
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.rooms.archive.reading import nodes_at
from homeserver.rooms.envelope import event_key, unpack
from homeserver.rooms.storage import Status, find_positions, find_positions_of_keys

CITATIONS_CACHED_MAX = 100_000


class Node(msgspec.Struct, frozen=True):
    """The references of a stored event, as positions of stored events. `is_placed`: it has its place in the graph."""

    position: int
    room_nid: int
    depth: int
    is_placed: bool
    prev_events: tuple[int, ...]
    auth_events: tuple[int, ...]


class Missing(msgspec.Struct, frozen=True):
    """Events that must be stored first: ancestors whose state is needed, and auth events.

    Empty if no event would help: the event has no prev_events, or only some from another room.
    """

    prev_events: frozenset[EventID] = frozenset()
    auth_events: frozenset[EventID] = frozenset()


def auth_chain(tx: Transaction, positions: Iterable[int]) -> set[int]:
    """Returns the whole auth chains of the events, without the events themselves unless one is in another's chain."""
    chain: set[int] = set()
    waiting = set(positions)
    while waiting:
        nodes = _auth_events(tx, waiting)
        waiting = {position for cited in nodes.values() for position in cited} - chain
        chain |= waiting
    return chain


def walk_back(
    tx: Transaction,
    room_id: RoomID,
    start: Collection[EventID],
    limit: int,
    *,
    known: Collection[EventID] = (),
    min_depth: int = 0,
    with_start: bool = True,
) -> list[int]:
    """Returns at most `limit` events before `start`, deepest first. Stops at the events in `known`. No outliers."""
    room_nid = tx.find(room_id)
    ignored = set(find_positions(tx, known).values())
    first = [node for node in _list_nodes(tx, find_positions(tx, start).values()).values() if node.room_nid == room_nid]
    if not with_start:
        ignored.update(node.position for node in first)
        first = list(_list_nodes(tx, {position for node in first for position in node.prev_events} - ignored).values())
    queue = [(-node.depth, -node.position, node) for node in first if node.position not in ignored]
    heapify(queue)
    seen = ignored | {node.position for node in first}
    found: list[int] = []
    while queue and len(found) < limit:
        _, _, node = heappop(queue)
        if not node.is_placed or node.room_nid != room_nid or node.depth < min_depth:
            continue
        found.append(node.position)
        before = [position for position in node.prev_events if position not in seen]
        seen.update(before)
        for earlier in _list_nodes(tx, before).values():
            heappush(queue, (-earlier.depth, -earlier.position, earlier))
    return found


def in_order(events: Iterable[Event], *, by_auth: bool = False) -> list[Event]:
    """Sorts the events so that each comes after its prev_events (its auth_events with `by_auth`).

    Otherwise shallower events come first. Events in a loop, which no honest server creates, are left out.
    """
    waiting = {event.event_id: event for event in events}
    citing: dict[EventID, list[EventID]] = {}
    unmet: dict[EventID, int] = {}
    for event in waiting.values():
        cited = {event_id for event_id in (event.auth_events if by_auth else event.prev_events) if event_id in waiting}
        unmet[event.event_id] = len(cited)
        for event_id in cited:
            citing.setdefault(event_id, []).append(event.event_id)
    ready = [(event.depth, event.event_id) for event in waiting.values() if not unmet[event.event_id]]
    heapify(ready)
    ordered: list[Event] = []
    while ready:
        _, event_id = heappop(ready)
        ordered.append(waiting[event_id])
        for later in citing.get(event_id, ()):
            unmet[later] -= 1
            if not unmet[later]:
                heappush(ready, (waiting[later].depth, later))
    return ordered


def leading_to(start: Collection[EventID], events: Sequence[Event]) -> list[Event]:
    """Returns the events that can be reached from `start` along prev_events, including `start`, in their order."""
    by_id = {event.event_id: event for event in events}
    found: set[EventID] = set()
    waiting = list(start)
    while waiting:
        event_id = waiting.pop()
        if event_id in by_id and event_id not in found:
            found.add(event_id)
            waiting += by_id[event_id].prev_events
    return [event for event in events if event.event_id in found]


def _auth_events(tx: Transaction, positions: Collection[int]) -> dict[int, tuple[int, ...]]:
    """Returns the auth events of each event. They are all stored, so they never change and can be cached."""
    cache = tx.cache("auth_citations", CITATIONS_CACHED_MAX)
    found: dict[int, tuple[int, ...]] = {}
    unread: list[int] = []
    for position in positions:
        cited = cache.get(position)
        if cited is None:
            unread.append(position)
        else:
            found[position] = cited
    for position, node in _list_nodes(tx, unread).items():
        found[position] = node.auth_events
        if not tx.is_write:
            cache.put(position, node.auth_events)
    return found


def _list_nodes(tx: Transaction, positions: Collection[int]) -> dict[int, Node]:
    rows = tx.all_in(
        "SELECT position, room_nid, status, state_before, envelope FROM events WHERE position IN (?*)", list(positions)
    )
    if len(rows) < len(positions):
        rows += nodes_at(tx, {*positions} - {row[0] for row in rows})
    unpacked = [(*row[:4], unpack(bytes(row[4]))) for row in rows]
    prev = {row[0]: _citations(row[4].prev_events, row[4].rest.get("prev_events")) for row in unpacked}
    auth = {row[0]: _citations(row[4].auth_events, row[4].rest.get("auth_events")) for row in unpacked}
    keys = {key for cited in (*prev.values(), *auth.values()) for key in cited if isinstance(key, bytes)}
    by_key = find_positions_of_keys(tx, keys)
    return {
        position: Node(
            position,
            room_nid,
            envelope.depth,
            state is not None and status != Status.OUTLIER,
            _stored(prev[position], by_key),
            _stored(auth[position], by_key),
        )
        for position, room_nid, status, state, envelope in unpacked
    }


def _citations(packed: Sequence[int | bytes] | None, plain: object) -> list[int | bytes]:
    """Returns references in the envelope's form: as packed, or from pairs of event ID and hashes (versions 1 and 2)."""
    if packed is not None:
        return list(packed)
    return [event_key(pair[0]) for pair in plain] if isinstance(plain, list) else []


def _stored(cited: Sequence[int | bytes], by_key: dict[bytes, int]) -> tuple[int, ...]:
    positions = (key if isinstance(key, int) else by_key.get(key) for key in cited)
    return tuple(position for position in positions if position is not None)
