"""Redactions: what they remove from an event is deleted from the tables, whichever of the two arrives first.

Spec: client-server-api/#redactions, rooms/v3/#handling-redactions
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from homeserver.database import Transaction
from homeserver.errors import forbidden
from homeserver.federation.auth_rules import may_apply_redaction
from homeserver.federation.event import Event, trusted_event
from homeserver.federation.identifiers import EventID, InvalidIdentifier, UserID, parse_event_id, server_name_of
from homeserver.federation.power_levels import read_power_levels
from homeserver.federation.redaction import redact
from homeserver.rooms.advance import STRIPPED_KEYS, stripped_state
from homeserver.rooms.envelope import event_key
from homeserver.rooms.events import forget_auth_event, to_events
from homeserver.rooms.heads import STATE_CHANGES, StateKey, find_head, state_events
from homeserver.rooms.membership import list_outsiders, list_told_of, replace_stripped
from homeserver.rooms.relations import delete_relation
from homeserver.rooms.rewrites import note_rewrite
from homeserver.rooms.storage import PlacedEvent, StoredEvent, find_stored_by_id, list_stored, replace_content

_CREATE: StateKey = ("m.room.create", "")
_POWER_LEVELS: StateKey = ("m.room.power_levels", "")


def check_may_redact(
    tx: Transaction, redaction: Event, auth_state: Mapping[StateKey, Event], *, as_admin: bool = False
) -> None:
    """Raises MatrixError 403 unless our user may redact the event: their own, or any with the redact level.

    The rules between servers are laxer: there a server answers for all of its users. as_admin: the requester is a
    server administrator, who may redact the events of this server's users.
    """
    if redaction.redacts is None:
        return
    create = auth_state[_CREATE]
    levels = read_power_levels(create, auth_state.get(_POWER_LEVELS), redaction.version)
    if levels.user_level(redaction.sender) >= levels.redact_level:
        return
    target = find_stored_by_id(tx, redaction.redacts)
    if target is not None and target.room_id == redaction.room_id:
        if target.sender == redaction.sender:
            return
        if as_admin and server_name_of(target.sender) == server_name_of(redaction.sender):
            return
    raise forbidden("Your power level does not allow you to redact other users' events.")


def apply_redaction(tx: Transaction, redaction: Event, position: int, root: bytes) -> None:
    """Applies a redaction of the timeline to its event, now or when that arrives. Ignores other events.

    Until the redaction is known to be valid it is withheld from clients, which would apply it blindly. `root`: the
    state before it.
    """
    if redaction.type != "m.room.redaction":
        return
    try:
        redacts = parse_event_id(redaction.redacts)
    except InvalidIdentifier:  # it refers to no event, and may be too long for an index
        _note_withheld(tx, position)
        return
    target = find_stored_by_id(tx, redacts)
    if target is None:
        _note_pending(tx, redacts, position)
    if target is None or not _apply(tx, target, redaction, position, root):
        _note_withheld(tx, position)


def apply_pending(tx: Transaction, event: Event) -> None:
    """Applies earlier redactions to an event that was just stored. Clients see the valid ones."""
    waiting = _list_pending(tx, event.event_id)
    if waiting:
        _delete_pending(tx, event.event_id)
    for position in waiting:
        stored = list_stored(tx, (position,))[position]
        (redaction,) = to_events(tx, [stored])
        target = find_stored_by_id(tx, event.event_id)
        if target is None or not isinstance(stored, PlacedEvent):
            continue
        if _apply(tx, target, redaction, position, stored.state_before):
            _delete_withheld(tx, position)
            note_rewrite(tx, tx.find(event.room_id))


def _list_pending(tx: Transaction, event_id: EventID) -> list[int]:
    return tx.values(
        "SELECT redaction FROM pending_redactions WHERE event_id = ? ORDER BY redaction", event_key(event_id)
    )


def _note_pending(tx: Transaction, event_id: EventID, redaction: int) -> None:
    tx.run(
        "INSERT INTO pending_redactions (event_id, redaction) VALUES (?, ?) ON CONFLICT DO NOTHING",
        event_key(event_id),
        redaction,
    )


def _delete_pending(tx: Transaction, event_id: EventID) -> None:
    tx.run("DELETE FROM pending_redactions WHERE event_id = ?", event_key(event_id))


def _delete_withheld(tx: Transaction, position: int) -> None:
    tx.run("DELETE FROM withheld_redactions WHERE position = ?", position)


def _note_withheld(tx: Transaction, position: int) -> None:
    tx.run("INSERT INTO withheld_redactions (position) VALUES (?) ON CONFLICT DO NOTHING", position)


def _apply(tx: Transaction, target: StoredEvent, redaction: Event, position: int, root: bytes) -> bool:
    """Applies a redaction and returns whether it is valid. Only the first valid one removes anything."""
    if target.room_id != redaction.room_id:
        return False
    (event,) = to_events(tx, [target])
    keys = {_CREATE, _POWER_LEVELS, ("m.room.member", redaction.sender)}
    if not may_apply_redaction(redaction, event, state_events(tx, root, keys)):
        return False
    if target.redacted_by is not None:
        return True
    redacted = trusted_event(redact(event.pdu, event.version), event.version, event.event_id)
    replace_content(tx, target.position, redacted, position)
    delete_relation(tx, target)
    forget_auth_event(tx, target.position)
    if target.state_key is not None:
        tx.wakes.add(STATE_CHANGES)
        _tell_invited_anew(tx, target)
    return True


def _tell_invited_anew(tx: Transaction, target: StoredEvent) -> None:
    """Updates the stripped state of invited and knocking users, so that it does not keep redacted content."""
    head = find_head(tx, target.room_id)
    if head is None or not head.extremities:
        return
    outsiders: Collection[UserID] = ()
    if (target.type, target.state_key) in STRIPPED_KEYS:
        outsiders = list_outsiders(tx, head.room_nid)
    elif target.type == "m.room.member" and target.state_key is not None:
        outsiders = list_told_of(tx, head.room_nid, target.state_key)
    for user_id in outsiders:
        replace_stripped(tx, head.room_nid, user_id, stripped_state(tx, head.state_root, user_id))
