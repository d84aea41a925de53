"""State resolution of room version 1. Spec: rooms/v1/#state-resolution"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha1

from homeserver.federation.auth_chains import KnownEvents, StateMap
from homeserver.federation.auth_events import StateKey, select_auth_keys_of
from homeserver.federation.auth_rules import check
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID

_PASSES = ("m.room.power_levels", "m.room.join_rules", "m.room.member")
"""The types whose conflicts are resolved before all others, in this order."""


def resolve_conflicts_v1(
    unconflicted: StateMap, differing: Sequence[StateMap], known: KnownEvents
) -> dict[StateKey, EventID]:
    """Returns the resolved events of the keys in which the states differ. `unconflicted` is common to all states.

    Raises Absent.
    """
    candidates: dict[StateKey, set[EventID]] = {}
    for state in differing:
        for key, event_id in state.items():
            candidates.setdefault(key, set()).add(event_id)
    known.need_all(event_id for event_ids in candidates.values() for event_id in event_ids)
    # A conflict occurs between states where those states have different event_ids for the same (event_type, state_key):
    # a key that only some states have is not a conflict.
    resolved = {key: next(iter(event_ids)) for key, event_ids in candidates.items() if len(event_ids) == 1}
    conflicts = {key: _sort(known.need_all(event_ids)) for key, event_ids in candidates.items() if len(event_ids) > 1}
    # First we resolve conflicts between m.room.power_levels events. Repeat the above process for conflicts between
    # m.room.join_rules events. Repeat the above process for conflicts between m.room.member events.
    for event_type in _PASSES:
        # Each member's conflict is resolved without the outcomes of the others, so that their order does not matter.
        resolved |= {
            key: _resolve_auth_conflict(events, unconflicted, resolved, known)
            for key, events in conflicts.items()
            if key[0] == event_type
        }
    # No other events affect the authorisation rules, so for all other conflicts, […]
    return resolved | {
        key: _resolve_other_conflict(events, unconflicted, resolved, known)
        for key, events in conflicts.items()
        if key[0] not in _PASSES
    }


def _sort(events: Iterable[Event]) -> list[Event]:
    """Sort the list by ascending depth then descending sha1(event_id)."""
    by_hash = sorted(events, key=_sha1, reverse=True)
    return sorted(by_hash, key=lambda event: event.depth)


def _sha1(event: Event) -> bytes:
    return sha1(event.event_id.encode(), usedforsecurity=False).digest()


def _resolve_auth_conflict(
    events: Sequence[Event], unconflicted: StateMap, resolved: Mapping[StateKey, EventID], known: KnownEvents
) -> EventID:
    # Add the first event in the list to R.
    chosen = events[0]
    # For each subsequent event in the list, check that the event would be allowed by the authorisation rules for a room
    # in state R. If the event would be allowed, then update R with the event and continue with the next event in the
    # list. If it would not be allowed, stop.
    for event in events[1:]:
        if not _is_allowed(event, unconflicted, {**resolved, chosen.key: chosen.event_id}, known):
            break
        chosen = event
    return chosen.event_id


def _resolve_other_conflict(
    events: Sequence[Event], unconflicted: StateMap, resolved: Mapping[StateKey, EventID], known: KnownEvents
) -> EventID:
    # […] just pick the event with the highest depth and lowest sha1(event_id) that passes authentication in R and add
    # it to R. (If none passes, the spec does not say; other servers keep the oldest.)
    for event in reversed(events[1:]):
        if _is_allowed(event, unconflicted, resolved, known):
            return event.event_id
    return events[0].event_id


def _is_allowed(event: Event, unconflicted: StateMap, resolved: Mapping[StateKey, EventID], known: KnownEvents) -> bool:
    found = {key: resolved.get(key) or unconflicted.get(key) for key in select_auth_keys_of(event)}
    state = {key: known.need(event_id) for key, event_id in found.items() if event_id is not None}
    return check(event, state) is None
