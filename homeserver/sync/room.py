"""One room of a `/sync` answer: its timeline, state and summary. Spec: client-server-api/#syncing

Invariant: a client that applies the answer's `state` and then its `timeline` has the state of the room's head.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import msgspec

from homeserver.api.filters import (
    Filter,
    select_fields,
    timeline_limit,
    wants,
    wants_room,
)
from homeserver.database import Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.access import find_in_state
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.events import to_events
from homeserver.rooms.history import Everyone, Reader, list_wanted, point_beside, read_page
from homeserver.rooms.membership import RoomMembership, count_members, has_come_or_gone, list_heroes
from homeserver.rooms.resolve import StateAt, changes_between, entries_of, head_at, position_in, state_after
from homeserver.rooms.state_tree import Key, get_key
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored, list_stored, without_withheld
from homeserver.rooms.timeline import END, START, Tokens, after_position
from homeserver.rooms.visibility import find_leave
from homeserver.sync.lazy_members import DeviceMembers


class Viewer(msgspec.Struct, frozen=True):
    """The user and device that an answer is for, and the options of the request.

    tokens: creates the tokens of the answer.
    members: the member events that the device knows by lazy loading.
    ignored: the users whose events, except state events, are hidden.
    """

    user_id: UserID
    device_id: str
    filter: Filter
    full_state: bool
    use_state_after: bool
    tokens: Tokens
    members: DeviceMembers
    ignored: frozenset[str] = frozenset()

    @property
    def loads_lazily(self) -> bool:
        return self.filter.room.state.lazy_load_members

    @property
    def wants_members(self) -> bool:
        """Whether the filter lets any member event through, so that joins and leaves are news."""
        parts = (self.filter.room.state, self.filter.room.timeline)
        return self.loads_lazily or any(wants(part, "m.room.member", None) for part in parts)


class Timeline(msgspec.Struct, frozen=True):
    """Events, oldest first. limited: the client lacks events before them. start: the point before the first one."""

    events: list[TimelineEvent]
    limited: bool
    start: int


def joined_room(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, head: StateAt, since: int, *, whole: bool
) -> dict[str, Any]:
    """Returns the timeline, state and summary of a room that the user is in; {} if there is no news.

    whole: the client knows nothing of the room. Otherwise the answer covers what came after stream position `since`.
    """
    room_id = membership.room_id
    since_point = after_position(since)
    timeline = read_timeline(tx, viewer, room_id, START if whole else since_point, END)
    before = None if whole or viewer.full_state else head_at(tx, room_id, since_point)
    with_summary = whole or is_summary_news(tx, viewer, membership, before, head, since)
    heroes = list_heroes(tx, room_id, viewer.user_id) if with_summary and not is_named(tx, head) else []
    timeline, state = read_state(tx, viewer, room_id, before, head, timeline, heroes)
    if not (whole or viewer.full_state or with_summary or timeline.events or timeline.limited or state):
        return {}
    answer = _sections(tx, viewer, room_id, timeline, state)
    if with_summary:
        answer["summary"] = read_summary(tx, room_id, heroes)
    return answer


def is_summary_news(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, before: StateAt | None, head: StateAt, since: int
) -> bool:
    """Returns whether the summary has changed since a stream position, if the user wants to hear of members."""
    if not viewer.wants_members:
        return False
    if membership.members_position > since and has_come_or_gone(tx, membership.room_id, since):
        return True
    return before is not None and before != head and is_named(tx, before) != is_named(tx, head)


def is_named(tx: Transaction, state: StateAt) -> bool:
    """Returns whether the room has a name or an alias, so that clients do not need heroes to name it."""
    for event_type, field in (("m.room.name", "name"), ("m.room.canonical_alias", "alias")):
        event = find_in_state(tx, state, event_type, "")
        value = None if event is None else event.content.get(field)
        if isinstance(value, str) and value:
            return True
    return False


def left_room(tx: Transaction, viewer: Viewer, membership: RoomMembership, since: int) -> dict[str, Any]:
    """Returns a room that the user has left or was removed from, up to that event.

    If the user was not in the room at stream position `since`, or has forgotten it, the answer contains only the user's
    own member event: devices that did not forget the room have to learn that it was left.
    """
    room_id = membership.room_id
    since_point = after_position(since) if since else START
    left = None if membership.forgotten else find_leave(tx, room_id, viewer.user_id)
    if left is None or left.ordering <= since_point:
        answer = _sections(tx, viewer, room_id, _own_membership(tx, membership, since_point), [])
        answer["timeline"]["events"] += _told_outside(viewer, membership)
        return answer
    was = head_at(tx, room_id, since_point) if since else None
    membership_then = None if was is None else _membership_at(tx, was, viewer.user_id)
    timeline = read_timeline(tx, viewer, room_id, START if membership_then is None else since_point, left.ordering)
    before = was if membership_then == "join" and not viewer.full_state else None
    then = state_after(tx, left)
    heroes = list_heroes(tx, room_id, viewer.user_id) if before is None and not is_named(tx, then) else []
    timeline, state = read_state(tx, viewer, room_id, before, then, timeline, heroes)
    return _sections(tx, viewer, room_id, timeline, state)


def _own_membership(tx: Transaction, membership: RoomMembership, since_point: int) -> Timeline:
    """Returns a timeline of the event behind the user's current membership, or an empty one if this server lacks it."""
    event = find_stored(tx, membership.event_position)
    if not isinstance(event, TimelineEvent) or event.ordering <= since_point:
        return Timeline([], False, since_point)
    return Timeline([event], False, event.ordering - 1)


def _told_outside(viewer: Viewer, membership: RoomMembership) -> list[JsonObject]:
    """Returns the event that ended an out-of-band invite or knock, unless the filter excludes it."""
    filter_ = viewer.filter.room.timeline
    if not wants_room(filter_, membership.room_id):
        return []
    told = [event for event in membership.stripped or () if wants(filter_, event["type"], event["sender"])]
    return select_fields(told, viewer.filter.event_fields)


def was_joined(tx: Transaction, room_id: RoomID, user_id: str, since: int) -> bool:
    """Returns whether the user was in the room at a stream position."""
    state = head_at(tx, room_id, after_position(since))
    return state is not None and _membership_at(tx, state, user_id) == "join"


def read_timeline(
    tx: Transaction,
    viewer: Viewer,
    room_id: RoomID,
    since_point: int,
    upto_point: int,
    reader: Reader | Everyone | None = None,
) -> Timeline:
    """Returns the newest events between two points that the user may see and wants, as many as the filter allows.

    The timeline stops at a gap, where other servers have events that we lack: a client that paginates back from there
    makes us fetch them. reader: the viewer, unless someone else is given.
    """
    filter_ = viewer.filter.room.timeline
    if reader is None:
        reader = Reader(viewer.user_id, room_id, filter_, viewer.ignored)
    page = read_page(tx, reader, upto_point, since_point, timeline_limit(filter_.limit))
    if page.at_gap:
        start = page.end
    elif page.events:
        # Not `page.end`: another filter may want the events between.
        start = point_beside(page.events[-1], is_after=False)
    else:
        start = upto_point if page.more or since_point == START else since_point
    return Timeline(page.events[::-1], page.more, after_position(tx.position) if start == END else start)


def read_state(
    tx: Transaction,
    viewer: Viewer,
    room_id: RoomID,
    before: StateAt | None,
    head: StateAt,
    timeline: Timeline,
    heroes: Sequence[UserID],
) -> tuple[Timeline, list[StoredEvent]]:
    """Returns the timeline, and the state events that take a client from the state `before` (None: nothing) to `head`.

    With lazy loading, members who have not sent an event in the timeline and are neither heroes nor new are left out.
    The timeline may have to be shortened, see `_without_overruled`.
    """
    if not viewer.use_state_after:
        timeline = _without_overruled(tx, head, timeline)
    members = _wanted_members(tx, viewer, timeline, heroes, whole=before is None)
    if before is None:
        positions = entries_of(tx, head)
    else:
        changes = changes_between(tx, before, head)
        positions = {key: after for key, (_, after) in changes.items() if after is not None}
    shown = list_by_key(tx, timeline)
    if not viewer.use_state_after and timeline.events:
        _rewind(tx, positions, shown, before, timeline.events[0])
    if members is not None and before is None:
        member_nid = tx.find("m.room.member")
        positions = {key: at for key, at in positions.items() if key[0] != member_nid or key[1] in members}
    elif members is not None:
        positions.update(list_unknown_members(tx, viewer, room_id, members, head, shown))
    filter_ = viewer.filter.room.state
    if not wants_room(filter_, room_id):
        return timeline, []
    if not viewer.use_state_after:
        in_timeline = {event.position for event in timeline.events}
        positions = {key: at for key, at in positions.items() if at not in in_timeline}
    stored = list_stored(tx, set(positions.values()))
    shown_state = without_withheld(tx, [stored[at] for at in sorted(stored)])
    return timeline, list_wanted(filter_, list(shown_state))


def _without_overruled(tx: Transaction, head: StateAt, timeline: Timeline) -> Timeline:
    """Returns the timeline after the last event that would leave a client with another state than `head`.

    State resolution may have rejected a state event in the timeline. A client that does not use `state_after` takes the
    last event of a timeline as the current state, so it may see such an event only when it paginates back.
    """
    overruled = [
        event for key, event in list_by_key(tx, timeline).items() if position_in(tx, head, key) != event.position
    ]
    if not overruled:
        return timeline
    cut = max(timeline.events.index(event) for event in overruled)
    return Timeline(timeline.events[cut + 1 :], True, timeline.events[cut].ordering)


def _rewind(
    tx: Transaction, positions: dict[Key, int], shown: Collection[Key], before: StateAt | None, first: TimelineEvent
) -> None:
    """Replaces the state that the timeline itself changes by what it was before the timeline."""
    for key in shown:
        positions.pop(key, None)
        at_start = position_in(tx, StateAt(first.state_before), key)
        if at_start is not None and (before is None or position_in(tx, before, key) != at_start):
            positions[key] = at_start


def _wanted_members(
    tx: Transaction, viewer: Viewer, timeline: Timeline, heroes: Sequence[UserID], *, whole: bool
) -> set[int] | None:
    """Returns the state key nids of the members that the client needs, with lazy loading; None for all members."""
    if not viewer.loads_lazily:
        return None
    users: set[str] = {event.sender for event in timeline.events} | set(heroes)
    if whole:
        users.add(viewer.user_id)
    return {nid for user_id in users if (nid := tx.find(user_id)) is not None}


def list_unknown_members(
    tx: Transaction,
    viewer: Viewer,
    room_id: RoomID,
    members: Collection[int],
    head: StateAt,
    shown: Collection[Key],
) -> dict[Key, int]:
    """Returns the positions of the member events that the device lacks, or of all if it wants redundant ones."""
    member_nid = tx.find("m.room.member")
    found: dict[Key, int] = {}
    if member_nid is not None:
        again = viewer.filter.room.state.include_redundant_members
        for nid in members:
            position = position_in(tx, head, (member_nid, nid))
            if position is not None and (member_nid, nid) not in shown:
                if again or not viewer.members.knows(room_id, nid, position):
                    found[member_nid, nid] = position
    return found


def _sections(
    tx: Transaction, viewer: Viewer, room_id: RoomID, timeline: Timeline, state: list[StoredEvent]
) -> dict[str, Any]:
    if viewer.loads_lazily:
        for event in (*state, *timeline.events):
            if event.type == "m.room.member" and event.state_key is not None:
                if (nid := tx.find(event.state_key)) is not None:
                    viewer.members.tell(room_id, nid, event.position)
    fields = viewer.filter.event_fields
    # Without a gap the client knows the children of these events, or gets them now.
    show = partial(bundled_events, ignored=viewer.ignored) if timeline.limited else client_events
    events = show(tx, timeline.events, user_id=viewer.user_id, device_id=viewer.device_id, with_room_id=False)
    now_ms = tx.now_ms
    state_events = [
        client_event(tx, event, {"age": now_ms - event.origin_server_ts}, with_room_id=False) for event in state
    ]
    if viewer.filter.event_format == "federation":
        events = federation_events(tx, timeline.events, events)
        state_events = federation_events(tx, state, state_events)
    return {
        "timeline": {
            "events": select_fields(events, fields),
            "limited": timeline.limited,
            "prev_batch": viewer.tokens.timeline(timeline.start),
        },
        "state_after" if viewer.use_state_after else "state": {"events": select_fields(state_events, fields)},
    }


def federation_events(
    tx: Transaction, stored: Sequence[StoredEvent], shown: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Returns events as servers send them to one another, each with its ID and with `unsigned` as in `shown`.

    Spec: client-server-api/#post_matrixclientv3useruseridfilter (event_format)
    """
    return [
        {**event.pdu, "event_id": event.event_id, "unsigned": client["unsigned"]}
        for event, client in zip(to_events(tx, stored), shown, strict=True)
    ]


def read_summary(tx: Transaction, room_id: RoomID, heroes: Sequence[UserID]) -> dict[str, Any]:
    """Returns how many members a room has, with the heroes of a nameless one."""
    counts = {
        "m.joined_member_count": count_members(tx, room_id, "join"),
        "m.invited_member_count": count_members(tx, room_id, "invite"),
    }
    return {"m.heroes": list(heroes), **counts} if heroes else counts


def _membership_at(tx: Transaction, state: StateAt, user_id: str) -> str | None:
    event = find_in_state(tx, state, "m.room.member", user_id)
    membership = event.content.get("membership") if event is not None else None
    return membership if isinstance(membership, str) else None


def list_by_key(tx: Transaction, timeline: Timeline) -> dict[Key, TimelineEvent]:
    """Returns the last state event of each key in the timeline."""
    return {get_key(tx, event.type, event.state_key): event for event in timeline.events if event.state_key is not None}
