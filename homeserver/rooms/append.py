"""Appends this server's own events: one synchronous function in one transaction, from the draft to the new head.

Theory of operation. `append_local` reads the head of the room and chooses the prev_events and auth events. It builds,
hashes and signs the event, checks it against the authorisation rules, stores it and moves the head. All this happens in
one write without an `await`, so no other event can come between, and an event that fails leaves nothing behind. The
client's transaction ID is stored in the event's row, so a retry finds the first event. `rooms/receive.py` does the same
for events of other servers. In a room with a policy server, that server signs the event first: see `rooms/policy.py`.
Spec: server-server-api/#signing-events, rooms/v12/#authorization-rules
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver.database import Transaction
from homeserver.database.server_identity import ServerIdentity
from homeserver.errors import MatrixError, forbidden
from homeserver.federation.auth_events import select_auth_keys
from homeserver.federation.auth_rules import check
from homeserver.federation.build import Draft, Reference, build_event, build_proto_event, reference_to
from homeserver.federation.event import PREV_EVENTS_MAX, Event, InvalidEvent, trusted_event
from homeserver.federation.identifiers import EventID, RoomID, fits, server_name_of
from homeserver.federation.room_versions import RoomVersion
from homeserver.limits import STATE_AHEAD_MS_MAX
from homeserver.rooms import state_tree
from homeserver.rooms.advance import STRIPPED_KEYS as STRIPPED_KEYS
from homeserver.rooms.advance import advance_beside, advance_onto
from homeserver.rooms.events import load_auth_events, load_events
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import (
    Head,
    StateKey,
    get_head,
    open_room,
    set_create_position,
)
from homeserver.rooms.policy import find_recommended
from homeserver.rooms.receive import receive_event
from homeserver.rooms.redactions import apply_redaction, check_may_redact
from homeserver.rooms.relations import check_may_relate, store_relation
from homeserver.rooms.resolve import StateAt, positions_in, resolve_states, state_after, store_state
from homeserver.rooms.storage import (
    ORDERING_SHIFT,
    Status,
    find_position,
    insert_event,
    list_in_timeline,
    list_stored,
    set_txn,
)

AUTH_CACHED_MAX = 5_000


def choose_room_id(tx: Transaction, version: RoomVersion) -> RoomID | None:
    """Returns a new room ID, or None if the room version derives it from the create event."""
    return None if version.room_id_is_create_event_id else RoomID(f"!{secrets.token_urlsafe(18)}:{tx.server.name}")


def append_create(tx: Transaction, draft: Draft, version: RoomVersion) -> Event:
    """Appends and returns the room's m.room.create event.

    The draft has no room ID if the room version derives it from the event.
    """
    now_ms = draft.origin_server_ts or tx.now_ms
    event = _build(tx.server, draft, version, prev_events=(), auth_events=(), depth=1, now_ms=now_ms)
    while version.room_id_is_create_event_id and find_position(tx, event.event_id) is not None:
        # The creator has created an identical room in the same millisecond.
        now_ms += 1
        stamped = replace(draft, origin_server_ts=now_ms)
        event = _build(tx.server, stamped, version, prev_events=(), auth_events=(), depth=1, now_ms=now_ms)
    rejection = check(event, {})
    if rejection is not None:
        raise forbidden(rejection.reason)
    head = open_room(tx, event.room_id, version)
    position = tx.next_position(event.room_id)
    insert_event(
        tx,
        event,
        position,
        Status.TIMELINE,
        known={},
        ordering=position << ORDERING_SHIFT,
        state_before=state_tree.EMPTY_ROOT,
    )
    set_create_position(tx, head.room_nid, position)
    advance_onto(tx, head, event, position)
    return event


def append_local(
    tx: Transaction,
    draft: Draft,
    *,
    device_id: str | None = None,
    txn_id: str | None = None,
    as_admin: bool = False,
    is_history: bool = False,
) -> Event:
    """Appends `draft` to its room and returns the event. MatrixError: 404 unknown room, 403 not allowed, 413 too large.

    `device_id` and `txn_id` are stored with the event; call `transaction_ids.find_txn` first to recognise a retry.
    as_admin: see `check_may_redact`. is_history: it was sent elsewhere long ago, so it notifies nobody, like history
    that is fetched from other servers.
    """
    place = _get_place(tx, draft)
    head = place.head
    event = _build_at(tx, draft, place)
    check_may_redact(tx, event, place.auth.state, as_admin=as_admin)
    check_may_relate(tx, event.sender, event.type, event.content)
    recommended = find_recommended(tx, head, event)
    if recommended is not None:
        return _append_recommended(tx, recommended, device_id, txn_id)
    position = tx.next_position(event.room_id)
    known = dict(zip(event.prev_events, place.prev_positions, strict=True))
    for key, auth_event in place.auth.events.items():
        known[auth_event.event_id] = place.auth.positions[key]
    root = store_state(tx, place.before)
    ordering = (position << ORDERING_SHIFT) - int(is_history)
    insert_event(
        tx,
        event,
        position,
        Status.TIMELINE,
        known=known,
        ordering=ordering,
        state_before=root,
        device_id=device_id if txn_id is not None else None,
        txn_id=txn_id,
    )
    store_relation(tx, event, position, ordering)
    if len(place.prev_positions) == len(head.extremities):
        advance_onto(tx, head, event, position)
    else:
        advance_beside(tx, head, event, position, followed=place.prev_positions, is_past=False)
    apply_redaction(tx, event, position, root)
    return event


def _append_recommended(tx: Transaction, event: Event, device_id: str | None, txn_id: str | None) -> Event:
    """Appends an event that the room's policy server has signed at its place, which may not be the end any more."""
    outcome = receive_event(tx, event)
    if isinstance(outcome, Missing) or outcome.status != Status.TIMELINE:
        raise forbidden("The room has changed in the meantime, and you may not send this event any more.")
    if txn_id is not None:
        set_txn(tx, outcome.position, device_id, txn_id)
    return event


class _Auth(msgspec.Struct, frozen=True):
    """The events that the auth rules read: the auth events in order, and their positions."""

    state: Mapping[StateKey, Event]
    events: Mapping[StateKey, Event]
    positions: Mapping[StateKey, int]


class _Place(msgspec.Struct, frozen=True):
    """The place of a new event: the events it follows, the state before it, and the auth events from that state."""

    head: Head
    before: StateAt
    prev_positions: tuple[int, ...]
    prev_events: list[Reference]
    auth: _Auth


def _get_place(tx: Transaction, draft: Draft) -> _Place:
    assert draft.room_id is not None
    _check_names(tx, draft)
    head = get_head(tx, draft.room_id)
    if not head.extremities:
        raise forbidden("You are not in that room.")
    prev_positions, before = head.extremities, StateAt(head.state_root)
    if len(prev_positions) > PREV_EVENTS_MAX:
        # An event has at most this many prev_events. The state before it is resolved from these; the rest stay loose.
        prev_positions = prev_positions[-PREV_EVENTS_MAX:]
        rows = list_in_timeline(tx, prev_positions)
        before = resolve_states(tx, head.version, [state_after(tx, row) for row in rows.values()])
    references = _references(tx, head, prev_positions)
    return _Place(head, before, prev_positions, references, _get_auth(tx, head, before, draft))


def _get_auth(tx: Transaction, head: Head, before: StateAt, draft: Draft) -> _Auth:
    """Returns the auth events. They depend only on state and sender, except for member events, and are cached."""
    cache = tx.cache("auth", AUTH_CACHED_MAX)
    known = None if draft.type == "m.room.member" else (before, draft.sender)
    auth: _Auth | None = None if known is None else cache.get(known)
    if auth is None:
        keys = select_auth_keys(draft.type, draft.sender, draft.state_key, draft.content, head.version)
        positions = positions_in(tx, before, {*keys, ("m.room.create", "")})
        events = load_auth_events(tx, positions.values())
        state = {key: events[position] for key, position in positions.items()}
        auth = _Auth(state, {key: state[key] for key in keys if key in state}, positions)
        if known is not None and tx.is_write:  # the state may come from this write, which may be rolled back
            tx.after_commit(cache.put, known, auth)
    return auth


def _check_names(tx: Transaction, draft: Draft) -> None:
    """Raises MatrixError 400 for a type or state key that cannot be stored, 413 for one that is too long."""
    for name in (draft.type, draft.state_key):
        if name is not None and tx.find(name) is None and not fits(name):
            raise MatrixError(413, "M_TOO_LARGE", "The type and the state key of an event are limited to 255 bytes.")


def _build_at(tx: Transaction, draft: Draft, place: _Place) -> Event:
    """Returns the signed event. Raises MatrixError 403 if it is not allowed."""
    event = _build(
        tx.server,
        draft,
        place.head.version,
        prev_events=place.prev_events,
        auth_events=list(place.auth.events.values()),
        depth=place.head.depth + 1,
        now_ms=tx.now_ms if draft.state_key is None else _state_ts(tx, (draft.type, draft.state_key), place.before),
    )
    rejection = check(event, place.auth.state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return event


def _state_ts(tx: Transaction, key: StateKey, before: StateAt) -> int:
    """Returns the timestamp of a state event: now, but later than the event of this server that it replaces.

    If two have the same time, state resolution takes the one with the greater event ID, which may be the older one.
    """
    for replaced in list_stored(tx, positions_in(tx, before, (key,)).values()).values():
        ahead_ms = replaced.origin_server_ts - tx.now_ms
        if 0 <= ahead_ms < STATE_AHEAD_MS_MAX and server_name_of(replaced.sender) == tx.server.name:
            return replaced.origin_server_ts + 1
    return tx.now_ms


def build_unplaced(tx: Transaction, draft: Draft) -> Event:
    """Returns the event that `append_local` would append, without appending it: another server must sign it first."""
    return _build_at(tx, draft, _get_place(tx, draft))


def build_template(tx: Transaction, draft: Draft) -> tuple[RoomVersion, dict[str, Any]]:
    """Returns the room version and an unsigned event with its place in the room, for a server that is not in the room.

    Raises MatrixError 403 if the event is not allowed.
    """
    place = _get_place(tx, draft)
    version = place.head.version
    pdu = build_proto_event(
        draft,
        version,
        prev_events=place.prev_events,
        auth_events=list(place.auth.events.values()),
        depth=place.head.depth + 1,
    )
    rejection = check(trusted_event(pdu, version, EventID("$template")), place.auth.state)
    if rejection is not None:
        raise forbidden(rejection.reason)
    return version, pdu


def _build(
    server: ServerIdentity,
    draft: Draft,
    version: RoomVersion,
    *,
    prev_events: Sequence[Reference],
    auth_events: Sequence[Event],
    depth: int,
    now_ms: int,
) -> Event:
    stamped = Draft(
        draft.room_id,
        draft.sender,
        draft.type,
        draft.content,
        draft.state_key,
        draft.redacts,
        draft.origin_server_ts or now_ms,
    )
    try:
        return build_event(
            stamped,
            version,
            prev_events=prev_events,
            auth_events=auth_events,
            depth=depth,
            server_name=server.name,
            key=server.signing_key,
            event_id_opaque="" if version.event_id_is_reference_hash else secrets.token_urlsafe(18),
        )
    except InvalidEvent as error:
        too_large = "larger than" in str(error)
        raise MatrixError(413 if too_large else 400, "M_TOO_LARGE" if too_large else "M_BAD_JSON", str(error)) from None


def _references(tx: Transaction, head: Head, positions: Sequence[int]) -> list[Reference]:
    if head.version.references_with_hashes:
        events = load_events(tx, positions)
        return [reference_to(events[position]) for position in positions]
    return [(event_id, None) for event_id in head.extremity_ids[-len(positions) :]]
