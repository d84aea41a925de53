"""The state before and after an event, where the room forks. Spec: rooms/v12/#state-resolution

State resolution depends on nothing but the states that are resolved, so its results are cached by them for ever. That is how
it is kept out of the write transaction: a read beforehand runs the same functions, and the write finds the result there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from federation.event import Event
from federation.identifiers import EventID, RoomID
from federation.room_versions import RoomVersion
from federation.state_resolution import Missing, resolve
from homeserver.database import Transaction
from homeserver.rooms import state_tree
from homeserver.rooms.heads import find_resolved_head
from homeserver.rooms.storage import (
    Status,
    StoredEvent,
    event_ids_at,
    find_position,
    find_positions,
    load_auth_events,
)
from homeserver.rooms.state_tree import Key
from homeserver.rooms.timeline import list_backwards

RESOLVED_STATES_CACHED_MAX = 2_000
EVENT_IDS_CACHED_MAX = 50_000


@dataclass(frozen=True, slots=True)
class StateAt:
    """A state that may not be in the table yet: a stored one with changes (None: the entry is gone), sorted by key."""

    root: bytes
    changes: tuple[tuple[Key, int | None], ...] = ()


def state_after(tx: Transaction, event: StoredEvent) -> StateAt:
    """The state after a stored event whose state before is known. A rejected event changes nothing."""
    assert event.state_before is not None
    if event.state_key is None or event.status in (Status.REJECTED, Status.OUTLIER):
        return StateAt(event.state_before)
    type_nid, key_nid = tx.find(event.type), tx.find(event.state_key)
    assert type_nid is not None and key_nid is not None
    return StateAt(event.state_before, (((type_nid, key_nid), event.position),))


def head_at(tx: Transaction, room_id: RoomID, point: int) -> StateAt | None:
    """What the room's state was to those who saw its timeline up to a point; None before its first event."""
    events = list_backwards(tx, room_id, point, 1)
    if not events:
        return None
    resolved = find_resolved_head(tx, events[0].position)
    return StateAt(resolved) if resolved is not None else state_after(tx, events[0])


def changes_between(tx: Transaction, before: StateAt, after: StateAt) -> dict[Key, tuple[int | None, int | None]]:
    """Where two states differ: key → (position before, position after)."""
    found = state_tree.changed(tx, before.root, after.root)
    old, new = dict(before.changes), dict(after.changes)
    for key in old.keys() | new.keys():
        was = old[key] if key in old else state_tree.get(tx, before.root, key)
        now = new[key] if key in new else state_tree.get(tx, after.root, key)
        found.pop(key, None)
        if was != now:
            found[key] = (was, now)
    return found


def entries_of(tx: Transaction, state: StateAt) -> dict[Key, int]:
    """The whole state, in no order."""
    entries = state_tree.items(tx, state.root)
    for key, position in state.changes:
        if position is None:
            entries.pop(key, None)
        else:
            entries[key] = position
    return entries


def position_in(tx: Transaction, state: StateAt, key: Key) -> int | None:
    """The position of the event at `key`."""
    for changed, position in state.changes:
        if changed == key:
            return position
    return state_tree.get(tx, state.root, key)


def store_state(tx: Transaction, state: StateAt) -> bytes:
    """The root of the state, written if it is new."""
    return state_tree.apply(tx, state.root, dict(state.changes))


def resolve_states(tx: Transaction, version: RoomVersion, states: Collection[StateAt]) -> StateAt:
    """The state that the states resolve to."""
    distinct = list(dict.fromkeys(states))
    if len(distinct) == 1:
        return distinct[0]
    cache = tx.cache("resolved_states", RESOLVED_STATES_CACHED_MAX)
    known = frozenset(distinct)
    resolved = cache.get(known)
    if resolved is None:
        resolved = _resolve(tx, version, distinct)
        if not tx.is_write:
            cache.put(known, resolved)
    return resolved


def _resolve(tx: Transaction, version: RoomVersion, states: list[StateAt]) -> StateAt:
    maps = [entries_of(tx, state) for state in states]
    if all(entries == maps[0] for entries in maps):
        return states[0]
    names = tx.names({nid for entries in maps for key in entries for nid in key})
    event_ids = _event_ids(tx, {position for entries in maps for position in entries.values()})
    answer = resolve(
        version,
        [
            {(names[type_nid], names[key_nid]): event_ids[position] for (type_nid, key_nid), position in entries.items()}
            for entries in maps
        ],
        _StoredEvents(tx),
    )
    if isinstance(answer, Missing):
        raise LookupError(f"Auth events are missing from the database: {sorted(answer.event_ids)[:3]}")
    nids: dict[str, int] = {name: nid for nid, name in names.items()}
    positions = {event_id: position for position, event_id in event_ids.items()}
    positions.update(find_positions(tx, {event_id for event_id in answer.values() if event_id not in positions}))
    after: dict[Key, int] = {}
    for (event_type, state_key), event_id in answer.items():
        after[_nid(tx, nids, event_type), _nid(tx, nids, state_key)] = positions[event_id]
    before = state_tree.items(tx, states[0].root)
    changes = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    return StateAt(states[0].root, tuple(sorted(changes.items())))


def _nid(tx: Transaction, known: Mapping[str, int], name: str) -> int:
    nid = known.get(name)
    if nid is None:
        nid = tx.find(name)
        assert nid is not None, "a stored event's type and state key are interned"
    return nid


def _event_ids(tx: Transaction, positions: set[int]) -> dict[int, EventID]:
    cache = tx.cache("event_ids", EVENT_IDS_CACHED_MAX)
    found = {position: event_id for position in positions if (event_id := cache.get(position)) is not None}
    loaded = event_ids_at(tx, positions - found.keys())
    if not tx.is_write:
        for position, event_id in loaded.items():
            cache.put(position, event_id)
    return {**found, **loaded}


class _StoredEvents(Mapping[EventID, Event]):
    """Events by id, loaded when asked for. State resolution asks for the conflicted ones and for their auth chains."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._loaded: dict[EventID, Event | None] = {}

    def __getitem__(self, event_id: EventID) -> Event:
        if event_id not in self._loaded:
            position = find_position(self._tx, event_id)
            self._loaded[event_id] = None if position is None else load_auth_events(self._tx, (position,))[position]
        event = self._loaded[event_id]
        if event is None:
            raise KeyError(event_id)
        return event

    def __iter__(self) -> Iterator[EventID]:
        return (event_id for event_id, event in self._loaded.items() if event is not None)

    def __len__(self) -> int:
        return sum(event is not None for event in self._loaded.values())
