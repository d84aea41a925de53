"""State resolution: computes the one state that follows from several states of a room.

Spec: rooms/v2/#state-resolution, rooms/v12/…

Theory of operation. The states are split into the unconflicted part, on which all agree, and the conflicted rest. The
full conflicted set is the conflicted events, the auth difference (`auth_chains`), and from v12 on the conflicted state
subgraph. Its power events are applied first, in reverse topological power order, each only if the authorisation rules
allow it in the state built so far. The remaining events follow in mainline order, and the unconflicted part has the
last word.

`_Resolution` has the methods of versions 2 and 2.1 under the numbers of the spec's steps; version 1 is in
`state_resolution_v1`. Invariant: the result depends only on the states, not on their order, nor on which other events
the caller has. So results can be cached by the states, and every server gets the same one. If an event that the result
depends on is absent, the result is Missing, which names it; the caller fetches it and starts again.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush

import msgspec

from homeserver.federation.auth_chains import (
    Absent,
    KnownEvents,
    Missing,
    Rank,
    StateMap,
    auth_difference,
    find_conflicted_subgraph,
    find_difference,
)
from homeserver.federation.auth_events import CREATE_KEY, POWER_LEVELS_KEY, StateKey, select_auth_keys_of
from homeserver.federation.auth_rules import check, create_event_id_of
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.federation.power_levels import read_power_levels
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.state_resolution_v1 import resolve_conflicts_v1

__all__ = ["Missing", "Rank", "StateMap", "auth_difference", "resolve", "resolve_conflicts", "split_states"]


def resolve(
    version: RoomVersion,
    states: Sequence[StateMap],
    events: Mapping[EventID, Event],
    *,
    rejected: Container[EventID] = frozenset(),
    rank: Rank | None = None,
) -> dict[StateKey, EventID] | Missing:
    """Returns the resolved state of a room, or Missing if `events` lacks events that it depends on.

    `events` may load events on demand; each is looked up at most once. `rejected` holds the IDs of the events that were
    not accepted. With `rank` only the differing parts of the auth chains are read, without it all of them.
    """
    unconflicted, conflicted = split_states(states)
    resolved = resolve_conflicts(version, unconflicted, conflicted, events, rejected=rejected, rank=rank)
    if isinstance(resolved, Missing):
        return resolved
    return {**unconflicted, **resolved}


def split_states(states: Sequence[StateMap]) -> tuple[dict[StateKey, EventID], list[dict[StateKey, EventID]]]:
    """Returns the *unconflicted state map*, and for each state the rest of it."""
    if not states:
        return {}, []
    same = set(states[0].items())
    for state in states[1:]:
        same.intersection_update(state.items())
    unconflicted = dict(same)
    return unconflicted, [
        {key: event_id for key, event_id in state.items() if key not in unconflicted} for state in states
    ]


def resolve_conflicts(
    version: RoomVersion,
    unconflicted: StateMap,
    conflicted: Sequence[StateMap],
    events: Mapping[EventID, Event],
    *,
    rejected: Container[EventID] = frozenset(),
    rank: Rank | None = None,
) -> dict[StateKey, EventID] | Missing:
    """Returns the resolved events of the conflicted keys, for callers that already know where the states differ.

    `unconflicted` may look keys up on demand; it is iterated only if the auth difference may depend on it.
    `conflicted` has one map for each state: the part of it that is not unconflicted.
    """
    if not any(conflicted):
        return {}
    known = KnownEvents(events)
    try:
        if version.state_resolution == "v1":
            return resolve_conflicts_v1(unconflicted, conflicted, known)
        resolution = _Resolution(version, unconflicted, known, rejected, rank)
        return resolution.run(conflicted)
    except Absent:
        return known.missing()


class _Resolution(msgspec.Struct, frozen=True):
    version: RoomVersion
    unconflicted: StateMap
    known: KnownEvents
    rejected: Container[EventID]
    rank: Rank | None

    def run(self, conflicted: Sequence[StateMap]) -> dict[StateKey, EventID]:
        full_conflicted = self.find_full_conflicted_set(conflicted)
        # 1. Select the set X of all power events that appear in the full conflicted set. For each such power event P,
        #    enlarge X by adding the events in the auth chain of P which also belong to the full conflicted set. Sort X
        #    into a list using the reverse topological power ordering.
        power_events = self.sort_power_events(full_conflicted)
        # 2. Apply the iterative auth checks algorithm, starting from the unconflicted state map (v12-: from an empty
        #    state map), to the list of events from the previous step to get a partially resolved state.
        initial: StateMap = {} if self.version.iterative_auth_starts_empty else self.unconflicted
        changed: dict[StateKey, EventID] = {}
        self.apply_allowed(power_events, initial, changed)
        # 3. Take all remaining events that weren't picked in step 1 and order them by the mainline ordering based on
        #    the power level in the partially resolved state obtained in step 2.
        picked = {event.event_id for event in power_events}
        remaining = [event for event_id, event in full_conflicted.items() if event_id not in picked]
        power_level = changed.get(POWER_LEVELS_KEY) or initial.get(POWER_LEVELS_KEY)
        remaining = self.sort_by_mainline(remaining, power_level)
        # 4. Apply the iterative auth checks algorithm on the partial resolved state and the list of events from the
        #    previous step.
        self.apply_allowed(remaining, initial, changed)
        # 5. Update the result by replacing any event with the event with the same key from the unconflicted state map,
        #    if such an event exists, to get the final resolved state.
        return {key: event_id for key, event_id in changed.items() if self.unconflicted.get(key) is None}

    def find_full_conflicted_set(self, conflicted: Sequence[StateMap]) -> dict[EventID, Event]:
        """Returns the *full conflicted set*, without events that are not state events."""
        conflicted_set = {event_id for state in conflicted for event_id in state.values()}
        full = set(conflicted_set)
        # v12-: the conflicted state subgraph
        if self.version.conflicted_state_subgraph:
            full |= find_conflicted_subgraph(conflicted_set, self.known, self.rank)
        states = [state.values() for state in conflicted]
        full |= find_difference(states, self.unconflicted, self.known, self.rank)
        found = self.known.need_all(full)
        return {event.event_id: event for event in found if event.is_state}

    def sort_power_events(self, full_conflicted: Mapping[EventID, Event]) -> list[Event]:
        """Returns X in the *reverse topological power ordering*."""
        # Chains are followed within the full conflicted set only, as other servers do. From v12 on the conflicted state
        # subgraph makes sure that no chain leaves the set and comes back.
        graph: dict[EventID, list[EventID]] = {}
        stack = [event_id for event_id, event in full_conflicted.items() if is_power_event(event)]
        while stack:
            event_id = stack.pop()
            if event_id not in graph:
                auth_events = dict.fromkeys(full_conflicted[event_id].auth_events)
                graph[event_id] = [auth_id for auth_id in auth_events if auth_id in full_conflicted]
                stack += graph[event_id]
        order = {}
        for event_id in graph:
            event = full_conflicted[event_id]
            order[event_id] = (-self.sender_level(event), event.origin_server_ts, event_id)
        return [full_conflicted[event_id] for event_id in _sort_topologically(graph, order)]

    def sender_level(self, event: Event) -> int:
        """Returns the power level of the event's sender according to its auth events."""
        cited = {each.key: each for each in self.known.need_all(event.auth_events) if each.is_state}
        create = self.find_create(event) or cited.get(CREATE_KEY)
        return read_power_levels(create, cited.get(POWER_LEVELS_KEY), self.version).user_level(event.sender)

    def find_create(self, event: Event) -> Event | None:
        """v12-: Returns the create event, which no event cites. In earlier versions returns None."""
        if not self.version.room_id_is_create_event_id or event.type == "m.room.create":
            return None
        return self.known.need(create_event_id_of(event.room_id))

    def apply_allowed(self, ordered: Iterable[Event], initial: StateMap, changed: dict[StateKey, EventID]) -> None:
        """Runs the *iterative auth checks algorithm*. A key's event is in `changed`, else in `initial`. Adds to
        `changed`.
        """
        for event in ordered:
            seen = {}
            lacking = []
            for key in select_auth_keys_of(event):
                event_id = changed.get(key) or initial.get(key)
                if event_id is None:
                    lacking.append(key)
                else:
                    seen[key] = self.known.need(event_id)
            # If a (event_type, state_key) key that is required for checking the authorisation rules is not present in
            # the state, then the appropriate state event from the event's auth_events is used if the auth event is not
            # rejected.
            if lacking:
                for cited in self.known.need_all(event.auth_events):
                    if cited.is_state and cited.key in lacking and cited.event_id not in self.rejected:
                        seen[cited.key] = cited
            if check(event, seen, create=self.find_create(event)) is None:
                changed[event.key] = event.event_id

    def sort_by_mainline(self, events: Iterable[Event], power_level: EventID | None) -> list[Event]:
        """Sorts by the *mainline ordering based on* a power level event; without one all have the same position."""
        mainline = _Mainline(self.known, power_level)
        order = {}
        for event in events:
            position = mainline.position_of(event)
            # The position may be ∞, which is greater than any integer.
            before = (0, 0) if position is None else (1, -position)
            order[event.event_id] = (before, event.origin_server_ts, event.event_id)
        return sorted(events, key=lambda event: order[event.event_id])


class _Mainline:
    """The *mainline of P*, walked only as far as needed."""

    __slots__ = ("_end", "_known", "_positions")

    def __init__(self, known: KnownEvents, power_level: EventID | None) -> None:
        self._known = known
        self._positions: dict[EventID, int] = {} if power_level is None else {power_level: 0}
        self._end = power_level
        """The last event of the mainline visited so far; None when the mainline has ended."""

    def position_of(self, event: Event) -> int | None:
        """Returns the *mainline position* of an event; None for ∞."""
        if not self._positions:
            return None
        seen = {event.event_id}
        below = self._cited_power_level(event)
        while below is not None and below not in seen:
            if self._reaches(below):
                return self._positions[below]
            seen.add(below)
            below = self._cited_power_level(self._known.need(below))
        return None

    def _reaches(self, event_id: EventID) -> bool:
        while event_id not in self._positions and self._end is not None:
            below = self._cited_power_level(self._known.need(self._end))
            if below is not None:
                if below in self._positions:
                    below = None
                else:
                    self._positions[below] = len(self._positions)
            self._end = below
        return event_id in self._positions

    def _cited_power_level(self, event: Event) -> EventID | None:
        for cited in self._known.need_all(event.auth_events):
            if cited.is_state and cited.key == POWER_LEVELS_KEY:
                return cited.event_id
        return None


def is_power_event(event: Event) -> bool:
    """Returns whether it is a *power event*: one that might remove someone's ability to do something in the room.

    As in other servers, an m.room.power_levels or m.room.join_rules event counts only if its state_key is empty, since
    the rules read no other.
    """
    if event.type in ("m.room.power_levels", "m.room.join_rules"):
        return event.state_key == ""
    return event.membership in ("leave", "ban") and event.state_key is not None and event.sender != event.state_key


def _sort_topologically(
    graph: Mapping[EventID, Collection[EventID]], order: Mapping[EventID, tuple[int, int, EventID]]
) -> list[EventID]:
    """Kahn's algorithm: cited events come first, and among the ready ones the smallest of `order`. Leaves out loops."""
    waiting = {event_id: len(cited) for event_id, cited in graph.items()}
    citing: dict[EventID, list[EventID]] = {}
    for event_id, cited in graph.items():
        for auth_id in cited:
            citing.setdefault(auth_id, []).append(event_id)
    ready = [order[event_id] for event_id, count in waiting.items() if count == 0]
    heapify(ready)
    ordered = []
    while ready:
        *_, event_id = heappop(ready)
        ordered.append(event_id)
        for above in citing.get(event_id, ()):
            waiting[above] -= 1
            if waiting[above] == 0:
                heappush(ready, order[above])
    return ordered
