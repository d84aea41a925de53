"""Moves a room's head over an event, and updates the memberships with it. Spec: rooms/v12/#state-resolution"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, UserID, server_name_of
from homeserver.rooms import state_tree
from homeserver.rooms.client_event import own_member_event, stripped_event
from homeserver.rooms.heads import Head, StateKey, replace_head, state_position, store_resolved_head
from homeserver.rooms.membership import MembershipRow, store_memberships
from homeserver.rooms.resolve import StateAt, resolve_states, state_after, store_state
from homeserver.rooms.storage import ORDERING_SHIFT, StoredEvent, list_in_timeline, list_stored

# The state shown to invited users. Spec: client-server-api/#stripped-state
STRIPPED_KEYS: tuple[StateKey, ...] = tuple(
    (event_type, "")
    for event_type in (
        "m.room.create",
        "m.room.name",
        "m.room.avatar",
        "m.room.topic",
        "m.room.join_rules",
        "m.room.canonical_alias",
        "m.room.encryption",
    )
)


def advance_onto(tx: Transaction, head: Head, event: Event, position: int) -> None:
    """Moves the head onto an event whose prev_events are exactly the head's extremities."""
    root = head.state_root
    if event.state_key is not None:
        root = state_tree.apply(tx, root, {(tx.intern(event.type), tx.intern(event.state_key)): position})
    replace_head(
        tx,
        head,
        state_root=root,
        extremities=((position, event.event_id),),
        depth=event.depth,
        last_position=position,
    )
    if event.type == "m.room.member":
        update_memberships(tx, head.room_nid, head.state_root, root, position)


def advance_beside(
    tx: Transaction, head: Head, event: Event, position: int, *, followed: Collection[int], is_past: bool
) -> None:
    """Moves the head for a new timeline event whose prev_events are only some of the extremities, or none.

    followed: the events that it follows. is_past: a timeline event follows it, so that it is not an extremity.
    """
    extremities = [pair for pair in zip(head.extremities, head.extremity_ids, strict=True) if pair[0] not in followed]
    if not is_past or not extremities:
        extremities.append((position, event.event_id))
    rows = list_in_timeline(tx, {position, *(each for each, _ in extremities)})
    is_alone = len(extremities) == 1 and extremities[0][0] == position
    row = rows[position]
    root = store_state(tx, resolve_states(tx, head.version, [state_after(tx, rows[each]) for each, _ in extremities]))
    if not is_alone and (event.state_key is not None or root != row.state_before):
        store_resolved_head(tx, head.room_nid, row.ordering, root)
    # An outlier that gets its place now keeps its number, but it is news from now on.
    newest = max(position, tx.position)
    replace_head(
        tx,
        head,
        state_root=root,
        extremities=extremities,
        depth=event.depth if is_alone else max(event.depth, head.depth),
        last_position=newest,
    )
    if root != head.state_root:
        update_memberships(tx, head.room_nid, head.state_root, root, newest)


def advance_past(tx: Transaction, head: Head, followed: Collection[int]) -> None:
    """Moves the head for an event of the past. It shows that the extremities in `followed` are none after all."""
    extremities = [pair for pair in zip(head.extremities, head.extremity_ids, strict=True) if pair[0] not in followed]
    if not extremities or len(extremities) == len(head.extremities):
        return
    rows = list_in_timeline(tx, {position for position, _ in extremities})
    state = resolve_states(tx, head.version, [state_after(tx, rows[position]) for position, _ in extremities])
    _replace_state(tx, head, store_state(tx, state), extremities, head.depth)


def leave_head(tx: Transaction, head: Head, state: StateAt) -> None:
    """Drops the extremities of an earlier stay, which nothing follows any more. `state` becomes the room's state.

    If that state lacks what our own users did last, other servers may hear of it later or never: the extremities stay,
    so that our next event follows both, and all servers resolve the same states.
    """
    root = store_state(tx, state)
    if _is_behind(tx, head.state_root, root):
        _replace_state(tx, head, root, tuple(zip(head.extremities, head.extremity_ids, strict=True)), head.depth)
    else:
        _replace_state(tx, head, root, (), 0)


def _is_behind(tx: Transaction, ours: bytes, given: bytes) -> bool:
    """Returns whether a given state has an earlier member event of one of our users than ours."""
    member_nid = tx.intern("m.room.member")
    earlier = [
        key[1]
        for key, (old, new) in state_tree.changed(tx, ours, given).items()
        if key[0] == member_nid and old is not None and new is not None and new < old
    ]
    return any(server_name_of(user_id) == tx.server.name for user_id in tx.names(earlier).values())


def _replace_state(
    tx: Transaction, head: Head, root: bytes, extremities: Sequence[tuple[int, EventID]], depth: int
) -> None:
    """Gives the head another state without an event."""
    last_position = head.last_position
    if root != head.state_root:
        last_position = tx.next_position(head.room_id)
        store_resolved_head(tx, head.room_nid, last_position << ORDERING_SHIFT, root)
    replace_head(
        tx,
        head,
        state_root=root,
        extremities=extremities,
        depth=depth,
        last_position=last_position,
    )
    if root != head.state_root:
        update_memberships(tx, head.room_nid, head.state_root, root, last_position)


def update_memberships(tx: Transaction, room_nid: int, old_root: bytes, new_root: bytes, position: int) -> None:
    """Replaces the current memberships with those of the new state, which holds from `position` on.

    A user whose member event was removed by state resolution has left, although no event says so.
    """
    member_nid = tx.intern("m.room.member")
    changes = {
        key[1]: new for key, (_, new) in state_tree.changed(tx, old_root, new_root).items() if key[0] == member_nid
    }
    if not changes:
        return
    stored = list_stored(tx, {new for new in changes.values() if new is not None})
    names = tx.names(changes)
    rows: list[MembershipRow] = []
    for user_nid, event_position in changes.items():
        user_id = UserID(names[user_nid])
        membership: object = "leave" if event_position is None else stored[event_position].content.get("membership")
        if isinstance(membership, str):
            stripped = stripped_state(tx, new_root, user_id) if membership in ("invite", "knock") else None
            rows.append(MembershipRow(user_id, membership, event_position or 0, stripped))
    store_memberships(tx, room_nid, rows, position)


def stripped_state(tx: Transaction, root: bytes, user_id: UserID) -> list[dict[str, Any]]:
    """Returns what an invited or knocking user is shown of a state.

    It includes the inviter's member event, so that clients can show a name and a picture. The user's own member event
    comes last, in full. Spec: client-server-api/#stripped-state, MSC4319
    """
    own = _state_event(tx, root, ("m.room.member", user_id))
    keys = list(STRIPPED_KEYS)
    if own is not None and own.sender != user_id:
        keys.append(("m.room.member", own.sender))
    found = [event for key in keys if (event := _state_event(tx, root, key)) is not None]
    told = [stripped_event(event) for event in found]
    return told if own is None else [*told, own_member_event(tx, own)]


def _state_event(tx: Transaction, root: bytes, key: StateKey) -> StoredEvent | None:
    position = state_position(tx, root, *key)
    return None if position is None else list_stored(tx, (position,)).get(position)
