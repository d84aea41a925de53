"""The state before and after an event, also where the room forks. Spec: rooms/v12/#state-resolution

Theory of operation. The result of state resolution depends only on the states that are resolved, so results are cached
under these states and stay valid. That keeps the work out of the write transaction: a read beforehand runs the same
functions, and the write finds the result in the cache. If the head has moved in the meantime, the write resolves by
itself. A resolved state is a `StateAt`: a stored state with changes, which is only written to the table when an event
needs it (`store_state`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import NamedTuple, TypeVar

import msgspec

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.federation.room_versions import RoomVersion
from homeserver.federation.state_resolution import Missing, resolve_conflicts
from homeserver.rooms import state_tree
from homeserver.rooms.events import load_auth_events
from homeserver.rooms.heads import StateKey, find_resolved_head
from homeserver.rooms.state_tree import Key, find_key, get_key
from homeserver.rooms.storage import PlacedEvent, Status, find_status, list_event_ids
from homeserver.rooms.timeline import list_backwards

RESOLVED_STATES_CACHED_MAX = 2_000

T = TypeVar("T")


class StateAt(msgspec.Struct, frozen=True):
    """A state that may not be stored yet: a stored root with changes sorted by key (None: the entry is removed)."""

    root: bytes
    changes: tuple[tuple[Key, int | None], ...] = ()


def state_after(tx: Transaction, event: PlacedEvent) -> StateAt:
    """Returns the state after an event. A rejected event changes nothing."""
    if event.state_key is None or event.status == Status.REJECTED:
        return StateAt(event.state_before)
    return StateAt(event.state_before, ((get_key(tx, event.type, event.state_key), event.position),))


def head_at(tx: Transaction, room_id: RoomID, point: int) -> StateAt | None:
    """Returns the room's state as seen by a reader of the timeline up to a point; None before the first event."""
    events = list_backwards(tx, room_id, point, 1)
    resolved = find_resolved_head(tx, tx.find(room_id), point)
    if resolved is not None and (not events or events[0].ordering <= resolved[0]):
        return StateAt(resolved[1])
    return state_after(tx, events[0]) if events else None


def changes_between(tx: Transaction, before: StateAt, after: StateAt) -> dict[Key, tuple[int | None, int | None]]:
    """Returns the differences of two states: key → (position before, position after)."""
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
    """Returns the whole state, in no particular order."""
    entries = state_tree.items(tx, state.root)
    for key, position in state.changes:
        if position is None:
            entries.pop(key, None)
        else:
            entries[key] = position
    return entries


def position_in(tx: Transaction, state: StateAt, key: Key) -> int | None:
    """Returns the position of the event at `key`, or None."""
    for changed, position in state.changes:
        if changed == key:
            return position
    return state_tree.get(tx, state.root, key)


def positions_in(tx: Transaction, state: StateAt, keys: Collection[StateKey]) -> dict[StateKey, int]:
    """Returns the positions of the existing state events among `keys`."""
    found: dict[StateKey, int] = {}
    for state_key in keys:
        key = find_key(tx, *state_key)
        position = None if key is None else position_in(tx, state, key)
        if position is not None:
            found[state_key] = position
    return found


def store_state(tx: Transaction, state: StateAt) -> bytes:
    """Returns the root of the state, after writing it if it is new."""
    return state_tree.apply(tx, state.root, dict(state.changes))


def resolve_states(tx: Transaction, version: RoomVersion, states: Collection[StateAt]) -> StateAt:
    """Returns the resolution of the states."""
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
    first = states[0]
    differing = {key for other in states[1:] for key in changes_between(tx, first, other)}
    if not differing:
        return first
    stored = _Stored(tx)
    answer = resolve_conflicts(
        version,
        _Unconflicted(tx, first, differing),
        [_part(tx, state, differing) for state in states],
        _Each(stored, lambda row: row.event),
        rejected=_Rejected(stored),
        rank=_Each(stored, lambda row: row.position),  # an event is stored after its auth events
    )
    if isinstance(answer, Missing):
        raise DatabaseDamaged(f"Auth events are missing: {sorted(answer.event_ids)[:3]}.")
    changes: dict[Key, int | None] = {**dict(first.changes), **dict.fromkeys(differing)}
    for state_key, event_id in answer.items():
        changes[get_key(tx, *state_key)] = stored.get(event_id).position
    return StateAt(first.root, tuple(sorted(changes.items())))


def _part(tx: Transaction, state: StateAt, keys: Collection[Key]) -> dict[StateKey, EventID]:
    """Returns the entries of the state at `keys`, with names instead of numbers."""
    positions = {key: position for key in keys if (position := position_in(tx, state, key)) is not None}
    names = tx.names({nid for key in positions for nid in key})
    event_ids = list_event_ids(tx, set(positions.values()))
    return {(names[key[0]], names[key[1]]): event_ids[position] for key, position in positions.items()}


class _Row(NamedTuple):
    """What state resolution needs to know of an event: the event, its position (after its auth events), its status."""

    event: Event
    position: int
    status: int


class _Stored:
    """Events by ID, loaded on demand. State resolution needs the conflicted ones and their auth chains."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._rows: dict[EventID, _Row | None] = {}

    def find(self, event_id: EventID) -> _Row | None:
        if event_id not in self._rows:
            found = find_status(self._tx, event_id)
            if found is None:
                self._rows[event_id] = None
            else:
                position, status = found
                self._rows[event_id] = _Row(load_auth_events(self._tx, (position,))[position], position, status)
        return self._rows[event_id]

    def get(self, event_id: EventID) -> _Row:
        row = self.find(event_id)
        if row is None:
            raise KeyError(event_id)
        return row

    def __len__(self) -> int:
        return sum(row is not None for row in self._rows.values())

    def __iter__(self) -> Iterator[EventID]:
        return (event_id for event_id, row in self._rows.items() if row is not None)


class _Each(Mapping[EventID, T]):
    """One property of each stored event."""

    def __init__(self, stored: _Stored, read: Callable[[_Row], T]) -> None:
        self._stored = stored
        self._read = read

    def __getitem__(self, event_id: EventID) -> T:
        return self._read(self._stored.get(event_id))

    def __iter__(self) -> Iterator[EventID]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


class _Rejected(Container[EventID]):
    def __init__(self, stored: _Stored) -> None:
        self._stored = stored

    def __contains__(self, event_id: object) -> bool:
        row = self._stored.find(EventID(str(event_id)))
        return row is not None and row.status == Status.REJECTED


class _Unconflicted(Mapping[StateKey, EventID]):
    """The common part of the states, looked up on demand: a room may have thousands of irrelevant members."""

    def __init__(self, tx: Transaction, state: StateAt, differing: Collection[Key]) -> None:
        self._tx = tx
        self._state = state
        self._differing = frozenset(differing)

    def __getitem__(self, key: StateKey) -> EventID:
        number = find_key(self._tx, *key)
        position = None if number is None or number in self._differing else position_in(self._tx, self._state, number)
        if position is None:
            raise KeyError(key)
        return list_event_ids(self._tx, (position,))[position]

    def __iter__(self) -> Iterator[StateKey]:
        return iter(self._whole())

    def __len__(self) -> int:
        return len(self._whole())

    def _whole(self) -> dict[StateKey, EventID]:
        keys = entries_of(self._tx, self._state).keys() - self._differing
        return _part(self._tx, self._state, keys)
