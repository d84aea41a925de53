"""Searches the graph of `auth_events` for the auth difference and the conflicted state subgraph.

Spec: rooms/v12/#definitions

Theory of operation. Both searches start from the events of the conflicting states and follow `auth_events` down towards
the create event. Auth chains can be tens of thousands of events long, so nothing here recurses.

`rank` gives each event a number greater than those of all its auth events; the order of storing is such a number. The
auth difference visits events from the highest rank down. When an event is visited, all events that cite it have been
visited, so the set of states whose chains contain it is complete. The walk stops once every event in the queue belongs
to all states, because everything below them does too. Without a rank, ranks are computed by walking the whole chains.

An event that the caller does not have is noted in `KnownEvents.absent`, and the walk goes on where it can, so that one
`Missing` lists as many absent events as possible. The caller fetches them and starts again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from heapq import heapify, heappop, heappush

import msgspec

from homeserver.federation.auth_events import StateKey
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID

StateMap = Mapping[StateKey, EventID]
"""A state of a room: the ID of the event for each (type, state_key)."""

Rank = Mapping[EventID, int]
"""A number for each event that is greater than those of all its auth events, e.g. the order of storing. An event
without a number counts as missing."""


class Missing(msgspec.Struct, frozen=True):
    """The result depends on these events, which the caller does not have. More may be missing; call again with them."""

    event_ids: frozenset[EventID]


class Absent(Exception):
    """Raised inside this package when a needed event is absent. The public functions return Missing instead."""


class KnownEvents:
    """The events that the caller has. Looks up each event once, and remembers the absent ones."""

    __slots__ = ("_events", "_loaded", "absent")

    def __init__(self, events: Mapping[EventID, Event]) -> None:
        self._events = events
        self._loaded: dict[EventID, Event] = {}
        self.absent: set[EventID] = set()

    def find(self, event_id: EventID) -> Event | None:
        """Returns the event. If the caller does not have it, returns None and notes it as absent."""
        event = self._loaded.get(event_id)
        if event is None and event_id not in self.absent:
            event = self._events.get(event_id)
            if event is None:
                self.absent.add(event_id)
            else:
                self._loaded[event_id] = event
        return event

    def need(self, event_id: EventID) -> Event:
        """Returns the event. Raises Absent."""
        event = self.find(event_id)
        if event is None:
            raise Absent
        return event

    def need_all(self, event_ids: Iterable[EventID]) -> list[Event]:
        """Returns the events in the same order. Looks all of them up before it raises Absent."""
        found = [event for event in map(self.find, event_ids) if event is not None]
        self.check()
        return found

    def check(self) -> None:
        """Raises Absent if any event that was looked up is absent."""
        if self.absent:
            raise Absent

    def missing(self) -> Missing:
        """Returns the absent events that were looked up so far."""
        return Missing(frozenset(self.absent))


def auth_difference(
    states: Collection[StateMap], events: Mapping[EventID, Event], *, rank: Rank | None = None
) -> frozenset[EventID] | Missing:
    """Returns ∪ Cᵢ − ∩ Cᵢ, where Cᵢ are the events of a state and their auth chains.

    The spec leaves the events of the state themselves out of Cᵢ; Synapse includes them. This matters for an event that
    is in all states but in the auth chains of only some: by the spec's words it is in the difference, although
    all states agree on it. Servers of one room have to reach the same state, so we count as nearly all of them do.
    tests/differential shows where the other reading leads elsewhere.
    """
    known = KnownEvents(events)
    try:
        return frozenset(find_difference([state.values() for state in states], {}, known, rank))
    except Absent:
        return known.missing()


def find_difference(
    states: Collection[Collection[EventID]], unconflicted: StateMap, known: KnownEvents, rank: Rank | None
) -> set[EventID]:
    """Returns the auth difference of states that contain `unconflicted` as well as the given events. Raises Absent.

    The result may include some of the given events that are not in the difference. They are harmless: the full
    conflicted set contains the given events anyway.
    """
    everywhere = (1 << len(states)) - 1
    reached: dict[EventID, int] = {}
    for number, state in enumerate(states):
        for event_id in state:
            reached[event_id] = reached.get(event_id, 0) | 1 << number
    given = frozenset(reached)
    # The chains of unconflicted events are in all states, so they can only remove events that the others add to the
    # difference. There are seldom any to remove, and the unconflicted events may be very many.
    difference = _walk_down(dict(reached), everywhere, unconflicted, known, rank)
    if difference <= given or not unconflicted:
        return difference
    reached.update(dict.fromkeys(unconflicted.values(), everywhere))
    return _walk_down(reached, everywhere, unconflicted, known, rank)


def _walk_down(
    reached: dict[EventID, int], everywhere: int, unconflicted: StateMap, known: KnownEvents, rank: Rank | None
) -> set[EventID]:
    """Returns the events that are not in the chains of all states.

    `reached` maps each starting event to a bit set: the states whose chains are known to contain it.
    """
    if rank is None:
        rank = _compute_ranks(reached, known)
        known.check()
    queue = [(-_rank_of(event_id, known, rank), event_id) for event_id in reached]
    heapify(queue)
    unsettled = sum(states != everywhere for states in reached.values())
    difference = set()
    done = set()
    # Events are visited from the greatest rank down, so every event that cites this one came earlier. Once all events
    # left in the queue belong to all states, so does everything below them.
    while unsettled and queue:
        _, event_id = heappop(queue)
        done.add(event_id)
        event = known.find(event_id)
        states = reached[event_id]
        if states != everywhere:
            unsettled -= 1
            if event is not None and event.is_state and unconflicted.get(event.key) == event_id:
                states = everywhere
            else:
                difference.add(event_id)
        for auth_id in () if event is None else event.auth_events:
            if auth_id in done:
                continue  # this happens only if events cite one another in a loop
            before = reached.get(auth_id)
            reached[auth_id] = after = states | (before or 0)
            if before is None:
                heappush(queue, (-_rank_of(auth_id, known, rank), auth_id))
                unsettled += after != everywhere
            elif before != everywhere and after == everywhere:
                unsettled -= 1
    known.check()
    return difference


def _rank_of(event_id: EventID, known: KnownEvents, rank: Rank) -> int:
    found = rank.get(event_id)
    if found is None:
        known.absent.add(event_id)
        return 0
    return found


def _compute_ranks(roots: Iterable[EventID], known: KnownEvents) -> dict[EventID, int]:
    """Returns, for each event below the roots, the length of the longest path down from it."""
    ranks: dict[EventID, int] = {}
    entered: set[EventID] = set()
    stack: list[tuple[EventID, Iterator[EventID]]] = []
    for root in roots:
        if root in entered:
            continue
        entered.add(root)
        stack.append((root, _cited_by(root, known)))
        while stack:
            event_id, rest = stack[-1]
            below = next((auth_id for auth_id in rest if auth_id not in entered), None)
            if below is not None:
                entered.add(below)
                stack.append((below, _cited_by(below, known)))
                continue
            stack.pop()
            ranks[event_id] = 1 + max((ranks.get(auth_id, 0) for auth_id in _cited_by(event_id, known)), default=0)
    return ranks


def _cited_by(event_id: EventID, known: KnownEvents) -> Iterator[EventID]:
    event = known.find(event_id)
    return iter(() if event is None else event.auth_events)


def find_conflicted_subgraph(conflicted: Collection[EventID], known: KnownEvents, rank: Rank | None) -> set[EventID]:
    """Returns the *conflicted state subgraph*: the events on any path between conflicted events. Raises Absent."""
    # Paths only descend in rank, so none reaches a conflicted event from below the lowest-ranked one.
    floor = None if rank is None else min((_rank_of(event_id, known, rank) for event_id in conflicted), default=0)
    citing: dict[EventID, list[EventID]] = {}
    seen = set(conflicted)
    stack = list(conflicted)
    while stack:
        event_id = stack.pop()
        for auth_id in _cited_by(event_id, known):
            citing.setdefault(auth_id, []).append(event_id)
            if auth_id in seen:
                continue
            seen.add(auth_id)
            if rank is None or floor is None or _rank_of(auth_id, known, rank) > floor:
                stack.append(auth_id)
    known.check()
    # All keys of `citing` lie below a conflicted event. Those that also lie above one are between two.
    between = set(conflicted)
    stack = list(conflicted)
    while stack:
        for event_id in citing.get(stack.pop(), ()):
            if event_id not in between:
                between.add(event_id)
                stack.append(event_id)
    return between
