"""Events of peers enter a room here, after their signatures and hashes were checked by `homeserver/remote/`.

Steps 4 to 6 of server-server-api/#checks-performed-on-receipt-of-a-pdu are done here against the stored state; where events
are needed that are not stored, `Missing` says which, the driver fetches them and asks again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from federation.auth_events import select_auth_keys_of
from federation.auth_rules import Rejection, check, check_auth_events, may_apply_redaction
from federation.event import Event
from federation.identifiers import EventID, RoomID
from federation.room_versions import RoomVersion
from homeserver.database import Transaction
from homeserver.rooms import state_tree
from homeserver.rooms.append import redact_stored, update_memberships
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.graph import in_order
from homeserver.rooms.heads import (
    Head,
    find_head,
    insert_room,
    replace_head,
    set_create_position,
    state_events,
    store_resolved_head,
)
from homeserver.rooms.resolve import StateAt, resolve_states, state_after, store_state
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    Status,
    StoredEvent,
    find_position,
    find_positions,
    get_stored,
    insert_event,
    list_stored,
    load_auth_events,
    load_events,
    place_in_timeline,
)


@dataclass(frozen=True, slots=True)
class Missing:
    """Events that have to be stored first: ancestors whose state is needed, and auth events.

    Nothing at all where no event would help: it follows on none, or on one of another room.
    """

    prev_events: frozenset[EventID] = frozenset()
    auth_events: frozenset[EventID] = frozenset()


@dataclass(frozen=True, slots=True)
class Received:
    """What became of an event. `is_new` is False where it was stored before; `reason` says why it was not accepted."""

    position: int
    status: Status
    is_new: bool
    reason: str = ""


def receive_event(
    tx: Transaction, event: Event, *, state: Collection[EventID] | None = None, ordering: int | None = None
) -> Received | Missing:
    """Checks an event against its auth events, the state before it and the current state, and stores it.

    state: the events of the state before it as a resident server gave them, for an event whose ancestors are not to be had.
    ordering: the place in the timeline of an event of the past; without, it is new and takes its place at the end.
    """
    stored = get_stored(tx, event.event_id)
    if stored is not None and stored.status != Status.OUTLIER:
        return Received(stored.position, Status(stored.status), is_new=False)
    head = find_head(tx, event.room_id)
    if head is None or not head.create_position:
        return Missing(auth_events=frozenset(event.auth_events))
    before = _state_before(tx, head, event, state)
    if isinstance(before, Missing):
        return before
    root = store_state(tx, before)
    verdict = _judge(tx, head, event, root)
    if isinstance(verdict, Missing):
        return verdict
    status, reason = verdict
    if status == Status.SOFT_FAILED and ordering is not None:
        status, reason = Status.TIMELINE, ""  # history is not held against the present
    position = stored.position if stored is not None else tx.next_position(event.room_id)
    place = None
    if status == Status.TIMELINE:
        moment = tx.next_position(event.room_id) if stored is not None else position
        place = ordering if ordering is not None else moment << ORDERING_SHIFT
    if stored is not None:
        place_in_timeline(tx, position, status, place, root)
    else:
        insert_event(tx, event, position, status, ordering=place, state_before=root)
    if status == Status.TIMELINE:
        _note_missing(tx, head, event, position)
        if ordering is None:
            _move_head(tx, head, event, position)
        _redact(tx, head, event, position)
    return Received(position, status, is_new=True, reason=reason)


def resolve_beforehand(tx: Transaction, event: Event) -> None:
    """Resolves what `receive_event` will need resolved, so that the write finds it in the cache. Changes nothing."""
    head = find_head(tx, event.room_id)
    if head is not None and head.create_position:
        _state_before(tx, head, event, None)


def _state_before(
    tx: Transaction, head: Head, event: Event, given: Collection[EventID] | None
) -> StateAt | Missing:
    """The state before the event: resolved from the states after its prev_events, and the one given for those unknown."""
    positions = find_positions(tx, event.prev_events)
    if given is None and len(positions) == len(event.prev_events) and set(positions.values()) == set(head.extremities):
        return StateAt(head.state_root)
    stored = list_stored(tx, positions.values())
    if any(row.room_id != event.room_id for row in stored.values()):
        return Missing()  # it cites another room, and no state can come of that
    placed = [row for row in stored.values() if row.state_before is not None]
    states = [state_after(tx, row) for row in placed]
    if given is not None:
        given_state = _given_state(tx, head, given)
        # What we know ourselves has its say too, so that nobody can talk us out of it.
        return given_state if isinstance(given_state, Missing) else resolve_states(tx, head.version, [given_state, *states])
    missing = frozenset(event.prev_events) - {row.event_id for row in placed}
    if missing or not placed:
        return Missing(prev_events=missing)
    return resolve_states(tx, head.version, states)


def _given_state(tx: Transaction, head: Head, event_ids: Collection[EventID]) -> StateAt | Missing:
    """A state that another server has told. Events of other rooms, and another create event than ours, are left out."""
    positions = find_positions(tx, event_ids)
    missing = frozenset(event_ids) - positions.keys()
    if missing:
        return Missing(auth_events=missing)
    entries: dict[state_tree.Key, int | None] = {}
    for row in list_stored(tx, positions.values()).values():
        if row.state_key is None or row.status == Status.REJECTED or row.room_id != head.room_id:
            continue
        if (row.type, row.state_key) == ("m.room.create", "") and row.position != head.create_position:
            continue
        nids = (tx.find(row.type), tx.find(row.state_key))
        assert nids[0] is not None and nids[1] is not None
        entries[nids[0], nids[1]] = row.position
    return StateAt(state_tree.EMPTY_ROOT, tuple(sorted(entries.items())))


def _judge(tx: Transaction, head: Head, event: Event, root: bytes) -> tuple[Status, str] | Missing:
    """Steps 4 to 6: by its auth events, by the state before it, by the current state."""
    rejection = _check_by_auth_events(tx, head, event)
    if isinstance(rejection, Missing):
        return rejection
    keys = {*select_auth_keys_of(event), ("m.room.create", "")}
    rejection = rejection or check(event, state_events(tx, root, keys))
    if rejection is not None:
        return Status.REJECTED, rejection.reason
    if head.extremities and head.state_root != root:
        rejection = check(event, state_events(tx, head.state_root, keys))
        if rejection is not None:
            return Status.SOFT_FAILED, rejection.reason
    return Status.TIMELINE, ""


def _check_by_auth_events(tx: Transaction, head: Head, event: Event) -> Rejection | Missing | None:
    positions = find_positions(tx, event.auth_events)
    missing = frozenset(event.auth_events) - positions.keys()
    if missing:
        return Missing(auth_events=missing)
    rejected = {
        row.event_id for row in list_stored(tx, positions.values()).values() if row.status == Status.REJECTED
    }
    loaded = load_auth_events(tx, [*positions.values(), head.create_position])
    auth_events = [loaded[positions[event_id]] for event_id in event.auth_events]
    return _check_auth(event, auth_events, rejected, loaded[head.create_position])


def _check_auth(
    event: Event, auth_events: Sequence[Event], rejected: Collection[EventID], create: Event | None
) -> Rejection | None:
    """Step 4: the rules on the auth events themselves, then the event in the state that they make."""
    rejection = check_auth_events(event, auth_events, rejected)
    if rejection is not None:
        return rejection
    state = {auth_event.key: auth_event for auth_event in auth_events if auth_event.is_state}
    if create is not None:
        state.setdefault(("m.room.create", ""), create)
    return check(event, state)


def _move_head(tx: Transaction, head: Head, event: Event, position: int) -> None:
    """The head with one more extremity, and without those that the event follows."""
    followed = set(find_positions(tx, event.prev_events).values())
    extremities = [extremity for extremity in head.extremities if extremity not in followed] + [position]
    rows = list_stored(tx, extremities)
    new_state = resolve_states(tx, head.version, [state_after(tx, rows[extremity]) for extremity in extremities])
    root = store_state(tx, new_state)
    if len(extremities) > 1 or new_state.root != rows[position].state_before:
        store_resolved_head(tx, position, root)
    depth = max(event.depth, head.depth) if len(extremities) > 1 else event.depth
    replace_head(
        tx, head.room_nid, state_root=root, extremities=extremities, depth=depth, last_position=_newest(tx, position)
    )
    if root != head.state_root:
        update_memberships(tx, head.room_nid, head.state_root, root, _newest(tx, position))


def _newest(tx: Transaction, position: int) -> int:
    """The newest position taken: an outlier that comes in its place keeps its number, but is news now."""
    return max(position, tx.position)


def _note_missing(tx: Transaction, head: Head, event: Event, position: int) -> None:
    """Remembers which ancestors are not in the timeline, and that this one now is."""
    tx.run("DELETE FROM missing_events WHERE room_nid = ? AND event_id = ?", head.room_nid, event_key(event.event_id))
    positions = find_positions(tx, event.prev_events)
    placed = {
        row.event_id for row in list_stored(tx, positions.values()).values() if row.state_before is not None
    }
    rows = [
        (head.room_nid, event_key(event_id), position) for event_id in event.prev_events if event_id not in placed
    ]
    tx.many("INSERT INTO missing_events (room_nid, event_id, child) VALUES (?, ?, ?) ON CONFLICT DO NOTHING", rows)


def _redact(tx: Transaction, head: Head, event: Event, position: int) -> None:
    """Applies the event to what it redacts, and to the event the redactions that came before it."""
    if event.redacts is not None:
        target = get_stored(tx, event.redacts)
        if target is None:
            tx.run(
                "INSERT INTO pending_redactions (event_id, redaction) VALUES (?, ?) ON CONFLICT DO NOTHING",
                event_key(event.redacts),
                position,
            )
        elif target.redacted_by is None:
            _apply_redaction(tx, head, load_events(tx, [target.position])[target.position], event, position)
    key = event_key(event.event_id)
    for redaction_position in tx.values("SELECT redaction FROM pending_redactions WHERE event_id = ?", key):
        redaction = load_events(tx, [redaction_position])[redaction_position]
        _apply_redaction(tx, head, event, redaction, redaction_position)
        tx.run("DELETE FROM pending_redactions WHERE event_id = ? AND redaction = ?", key, redaction_position)


def _apply_redaction(tx: Transaction, head: Head, target: Event, redaction: Event, position: int) -> None:
    if target.room_id != redaction.room_id:
        return
    keys = {("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", redaction.sender)}
    if may_apply_redaction(redaction, target, state_events(tx, head.state_root, keys)):
        redact_stored(tx, target, position)


def store_outliers(tx: Transaction, events: Iterable[Event]) -> frozenset[EventID]:
    """Stores events that stand in no timeline: auth chains, and states given by others. Answers what they lack.

    An event is stored once all its auth events are, as rejected where they do not allow it.
    """
    given = {event.event_id: event for event in events}
    for event_id in find_positions(tx, given):
        del given[event_id]
    for room_id, version in {(event.room_id, event.version) for event in given.values()}:
        insert_room(tx, room_id, version)
    lacking: set[EventID] = set()
    unstored: set[EventID] = set()
    for event in in_order(given.values(), by_auth=True):
        positions = find_positions(tx, event.auth_events)
        if len(positions) == len(set(event.auth_events)):
            _store_outlier(tx, event, positions)
        else:
            unstored.add(event.event_id)
            lacking.update(set(event.auth_events) - positions.keys())
    return frozenset(lacking - unstored)


def _store_outlier(tx: Transaction, event: Event, positions: Mapping[EventID, int]) -> None:
    auth_rows = list_stored(tx, positions.values())
    rejected = {row.event_id for row in auth_rows.values() if row.status == Status.REJECTED}
    loaded = load_auth_events(tx, positions.values())
    create = _create_event(tx, event)
    rejection = _check_auth(event, [loaded[positions[event_id]] for event_id in event.auth_events], rejected, create)
    position = tx.next_position()
    insert_event(tx, event, position, Status.OUTLIER if rejection is None else Status.REJECTED)


def _create_event(tx: Transaction, event: Event) -> Event | None:
    """The room's create event, where auth events do not name it."""
    if event.type == "m.room.create" or not event.version.room_id_is_create_event_id:
        return None
    position = find_position(tx, "$" + event.room_id[1:])
    return None if position is None else load_auth_events(tx, (position,))[position]


def adopt_room(
    tx: Transaction, version: RoomVersion, join: Event, state: Sequence[Event], auth_chain: Sequence[Event]
) -> Received | Missing:
    """Enters a room by a join that a resident server has accepted: the state is what it gave, the join our only extremity."""
    insert_room(tx, join.room_id, version)
    lacking = store_outliers(tx, [*auth_chain, *state])
    if lacking:
        return Missing(auth_events=lacking)
    head = find_head(tx, join.room_id)
    assert head is not None
    create = next((event for event in state if event.type == "m.room.create" and event.state_key == ""), None)
    create_position = None if create is None else find_position(tx, create.event_id)
    if create_position is None:
        return Missing(auth_events=frozenset(join.auth_events))
    set_create_position(tx, head.room_nid, create_position)
    given = _given_state(tx, replace(head, create_position=create_position), [event.event_id for event in state])
    if isinstance(given, Missing):
        return given
    _leave_head(tx, head, store_state(tx, given))
    return receive_event(tx, join, state=[event.event_id for event in state])


def _leave_head(tx: Transaction, head: Head, root: bytes) -> None:
    """Drops the extremities of an earlier stay: nothing follows on them any more."""
    position = tx.next_position(head.room_id)
    replace_head(
        tx, head.room_nid, state_root=root, extremities=(), depth=0, last_position=max(head.last_position, position)
    )
    update_memberships(tx, head.room_nid, head.state_root, root, position)


def place_before_children(tx: Transaction, room_id: RoomID, events: Sequence[Event]) -> int | None:
    """The ordering for the first of consecutive events (oldest first) that end just before their first stored child.

    None where no stored event names any of them: they are not of this room's past.
    """
    room_nid = tx.find(room_id)
    children: set[int] = set()
    for event in events:
        children.update(
            tx.values(
                "SELECT child FROM missing_events WHERE room_nid = ? AND event_id = ?",
                room_nid,
                event_key(event.event_id),
            )
        )
    orderings = [row.ordering for row in list_stored(tx, children).values() if row.ordering is not None]
    if not orderings:
        return None
    first = min(orderings) - len(events)
    while True:
        row = tx.one(
            "SELECT min(ordering) FROM events WHERE room_nid = ? AND ordering >= ? AND ordering < ?",
            room_nid,
            first,
            first + len(events),
        )
        if row is None or row[0] is None:
            return first
        first = int(row[0]) - len(events)


def has_missing(tx: Transaction, room_id: RoomID) -> bool:
    """Whether the timeline has gaps that other servers could fill."""
    return tx.one("SELECT 1 FROM missing_events WHERE room_nid = ? LIMIT 1", tx.find(room_id)) is not None


def list_missing(tx: Transaction, room_id: RoomID, point: int, limit: int) -> list[tuple[EventID, StoredEvent]]:
    """Ancestors that are not in the timeline, with a child of each at or before `point`, the newest first."""
    rows = tx.all(
        "SELECT m.event_id, m.child FROM missing_events m JOIN events e ON e.position = m.child"
        " WHERE m.room_nid = ? AND e.ordering <= ? ORDER BY e.ordering DESC LIMIT ?",
        tx.find(room_id),
        point,
        limit,
    )
    stored = list_stored(tx, {child for _, child in rows})
    return [(event_id_of_key(bytes(key)), stored[child]) for key, child in rows]
