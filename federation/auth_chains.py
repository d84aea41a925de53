"""Walks over the graph that `auth_events` span: the auth difference and the conflicted state subgraph.

Spec: rooms/v12/#definitions. Auth chains are tens of thousands of events long, so nothing here recurses, and with a
`rank` nothing is loaded below the point where the states agree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from homeserver.federation.auth_events import StateKey
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID

StateMap = Mapping[StateKey, EventID]
"""A state of a room: which event stands under each (type, state_key)."""

Rank = Mapping[EventID, int]
"""A number for each event that is greater than those of all its auth events, e.g. the order of storing. What has
no number is taken to be missing."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The answer cannot be given before these events are there. More may be missing; ask again."""

    event_ids: frozenset[EventID]


class Absent(Exception):
    """Inside the protocol: events that are needed now are absent. Callers of the public functions see Missing."""


class KnownEvents:
    """The events that the caller has; remembers which were asked for in vain. Asks for no event twice."""

    __slots__ = ("_events", "_loaded", "absent")

    def __init__(self, events: Mapping[EventID, Event]) -> None:
        self._events = events
        self._loaded: dict[EventID, Event] = {}
        self.absent: set[EventID] = set()

    def find(self, event_id: EventID) -> Event | None:
        """The event; None, and remembered as absent, if the caller has it not."""
        event = self._loaded.get(event_id)
        if event is None and event_id not in self.absent:
            event = self._events.get(event_id)
            if event is None:
                self.absent.add(event_id)
            else:
                self._loaded[event_id] = event
        return event

    def need(self, event_id: EventID) -> Event:
        """The event. Raises Absent."""
        event = self.find(event_id)
        if event is None:
            raise Absent
        return event

    def need_all(self, event_ids: Iterable[EventID]) -> list[Event]:
        """The events, in the same order. Raises Absent after all were asked for."""
        found = [event for event in map(self.find, event_ids) if event is not None]
        self.check()
        return found

    def check(self) -> None:
        """Raises Absent if anything was asked for in vain."""
        if self.absent:
            raise Absent

    def missing(self) -> Missing:
        """What was asked for in vain."""
        return Missing(frozenset(self.absent))


def auth_difference(
    states: Collection[StateMap], events: Mapping[EventID, Event], *, rank: Rank | None = None
) -> frozenset[EventID] | Missing:
    """∪ Cᵢ − ∩ Cᵢ, where Cᵢ are the events of a state and their auth chains.

    The spec leaves the events of the state themselves out of Cᵢ, Synapse does not. It matters for an event that stands
    in all states while not all of them build upon it: by the spec's words it is in the difference, though nobody
    disagrees about it. Servers of one room have to come to the same state, so we count as nearly all of them do, and
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
    """The auth difference of states that have all of `unconflicted` beside the given events. Raises Absent.

    May have some of the given events too many, which are in the full conflicted set anyway.
    """
    everywhere = (1 << len(states)) - 1
    reached: dict[EventID, int] = {}
    for number, state in enumerate(states):
        for event_id in state:
            reached[event_id] = reached.get(event_id, 0) | 1 << number
    given = frozenset(reached)
    # The chains of unconflicted events are in all states: they but take away from the difference, and only from what
    # the others bring into it. That is seldom anything, and there may be very many of them.
    difference = _walk_down(dict(reached), everywhere, unconflicted, known, rank)
    if difference <= given or not unconflicted:
        return difference
    reached.update(dict.fromkeys(unconflicted.values(), everywhere))
    return _walk_down(reached, everywhere, unconflicted, known, rank)


def _walk_down(
    reached: dict[EventID, int], everywhere: int, unconflicted: StateMap, known: KnownEvents, rank: Rank | None
) -> set[EventID]:
    """`reached`: for each event, as bits, the states that it is known to be in the chain of; all others follow."""
    if rank is None:
        rank = _compute_ranks(reached, known)
        known.check()
    queue = [(-_rank_of(event_id, known, rank), event_id) for event_id in reached]
    heapify(queue)
    unsettled = sum(states != everywhere for states in reached.values())
    difference = set()
    done = set()
    # From the greatest rank down, all that cite an event come before it. Once only events that all states have are
    # left, so is all that lies below them.
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
                continue  # only where events cite one another in a loop
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
    """How many events long the longest way down is, for all events below the roots."""
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
    """The *conflicted state subgraph*: the events on all ways from one conflicted event to another. Raises Absent."""
    # No way to a conflicted event leads through one whose rank is not above the least of theirs.
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
    # All of `citing` is below a conflicted event; what is above one too lies between two.
    between = set(conflicted)
    stack = list(conflicted)
    while stack:
        for event_id in citing.get(stack.pop(), ()):
            if event_id not in between:
                between.add(event_id)
                stack.append(event_id)
    return between
