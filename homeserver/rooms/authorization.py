"""Authorisation of another server's event by the state of its room.

Steps 4 to 6 of server-server-api/#checks-performed-on-receipt-of-a-pdu: the event is checked against its auth events,
against the state before it, and against the current state of the room. `homeserver/remote/checking.py` does the steps
before these, which need no room.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from homeserver.database import Transaction
from homeserver.federation.auth_events import select_auth_keys_of
from homeserver.federation.auth_rules import Rejection, check, check_auth_events
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.federation.pdu_checks import state_of
from homeserver.rooms.events import load_auth_events
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import Head, state_events
from homeserver.rooms.storage import Status, find_positions, list_stored


def authorize(tx: Transaction, head: Head, event: Event, root: bytes) -> tuple[Status, str] | Missing:
    """Does steps 4 to 6: checks by its auth events, by the state before it, and by the current state."""
    rejection = _check_by_stored_auth_events(tx, head, event)
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


def _check_by_stored_auth_events(tx: Transaction, head: Head, event: Event) -> Rejection | Missing | None:
    positions = find_positions(tx, event.auth_events)
    missing = frozenset(event.auth_events) - positions.keys()
    if missing:
        return Missing(auth_events=missing)
    rejected = {row.event_id for row in list_stored(tx, positions.values()).values() if row.status == Status.REJECTED}
    loaded = load_auth_events(tx, [*positions.values(), head.create_position])
    auth_events = [loaded[positions[event_id]] for event_id in event.auth_events]
    return check_by_auth_events(event, auth_events, rejected, loaded[head.create_position])


def check_by_auth_events(
    event: Event, auth_events: Sequence[Event], rejected: Collection[EventID], create: Event | None
) -> Rejection | None:
    """Does step 4: checks the auth events themselves, then the event against the state that they make up."""
    rejection = check_auth_events(event, auth_events, rejected)
    if rejection is not None:
        return rejection
    state = state_of(auth_events)
    if create is not None:
        state.setdefault(("m.room.create", ""), create)
    return check(event, state)
