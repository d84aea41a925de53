"""One room of an answer: its timeline, required state, name, members. Spec: MSC4186 (Room results)

Invariant: a client that applies the `required_state` of each answer has the required state of the room's head. It takes
no state from timelines. Timelines are read by the reader of `/v3/sync`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver.api.filters import Filter, RoomEventFilter, RoomFilter
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.feature import JsonObject
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.access import find_in_state
from homeserver.rooms.activity import RoomActivity
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.client_event import client_event, client_events
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import (
    RoomMembership,
    count_members,
    find_room_membership,
    has_come_or_gone,
    list_heroes,
)
from homeserver.rooms.resolve import StateAt, changes_between, entries_of, head_at, position_in, state_after
from homeserver.rooms.state_tree import Key, find_key
from homeserver.rooms.storage import StoredEvent, TimelineEvent, find_stored, list_stored, without_withheld
from homeserver.rooms.timeline import END, START, after_position, find_newest_of_types
from homeserver.rooms.visibility import find_leave
from homeserver.sync.room import Timeline, Viewer, read_timeline, was_joined
from homeserver.sync.sliding.required_state import MEMBER, RequiredState, RoomConfig, is_required, list_named

# "Proper" activity. Spec: MSC4186 (bump_stamp)
BUMP_TYPES = (
    "m.room.create",
    "m.room.message",
    "m.room.encrypted",
    "m.sticker",
    "m.call.invite",
    "m.poll.start",
    "org.matrix.msc3381.poll.start",
    "m.beacon_info",
    "org.matrix.msc3672.beacon_info",
)
# In a room without a message among this many events, the oldest of them counts as its last activity.
BUMP_SCANNED_MAX = 200


class Known(msgspec.Struct, frozen=True):
    """What the client knows of a room: everything up to a position, with this config."""

    upto: int
    timeline_limit: int
    required: tuple[RequiredState, ...]


class RoomAnswer(msgspec.Struct):
    """A room of an answer. is_initial: it tells everything. is_gappy: events between were left out."""

    body: JsonObject
    is_initial: bool = False
    is_gappy: bool = False


class RoomReader(msgspec.Struct, frozen=True):
    """Reads rooms for one answer. since: the position of the client's `pos`; None in the first answer."""

    tx: Transaction
    viewer: Viewer
    since: int | None
    is_merged: bool
    _viewers: dict[int, Viewer] = msgspec.field(default_factory=dict)

    def read(self, activity: RoomActivity, config: RoomConfig, known: Known | None) -> RoomAnswer | None:
        """Returns what the client lacks of a room, None if nothing."""
        room_id = RoomID(self.tx.name(activity.room_nid))
        if known is not None and activity.last_position <= known.upto:
            is_same = known.timeline_limit >= config.timeline_limit and known.required == config.required
            if is_same or activity.membership != "join":
                return None
        if activity.membership == "join":
            return self._joined(room_id, activity, config, known)
        membership = find_room_membership(self.tx, room_id, self.viewer.user_id)
        if membership is None:
            raise DatabaseDamaged(f"The membership of {self.viewer.user_id} in {room_id} is missing.")
        if activity.membership in ("invite", "knock"):
            return self._outside(activity, membership)
        return self._left(room_id, activity, membership, config, known)

    def _joined(
        self, room_id: RoomID, activity: RoomActivity, config: RoomConfig, known: Known | None
    ) -> RoomAnswer | None:
        if known is not None and activity.changed_position > known.upto:
            if not was_joined(self.tx, room_id, self.viewer.user_id, known.upto):
                known = None
        head = find_head(self.tx, room_id)
        if head is None:
            raise DatabaseDamaged(f"The room {room_id} is missing.")
        return self._inside(room_id, StateAt(head.state_root), END, config, known, activity)

    def _inside(
        self,
        room_id: RoomID,
        head: StateAt,
        upto_point: int,
        config: RoomConfig,
        known: Known | None,
        activity: RoomActivity,
    ) -> RoomAnswer | None:
        """Returns a room in which the user is, or was up to a point of the timeline."""
        before = None if known is None else head_at(self.tx, room_id, after_position(known.upto))
        if known is None or before is None:
            known = None
            self.viewer.members.reset.add(room_id)
        since_point = START if known is None else after_position(known.upto)
        is_expanded = known is not None and config.timeline_limit > known.timeline_limit
        viewer = self._viewer_of(config.timeline_limit)
        timeline = read_timeline(self.tx, viewer, room_id, START if is_expanded else since_point, upto_point)
        if timeline.limited:
            self.viewer.members.reset.add(room_id)  # with a gap, clients forget the members that they know
        changes = {} if before is None or known is None else changes_between(self.tx, before, head)
        required = _Required(self.tx, self.viewer, room_id, config, head)
        state, gone = required.list_changes(timeline, changes, known)
        body = self._describe(room_id, head, changes, known)
        if known is not None and not (timeline.events or timeline.limited or state or gone or body):
            return None
        body |= self._timeline(timeline, is_expanded=is_expanded)
        if known is None:
            body["initial"] = True
        elif is_expanded:
            body["expanded_timeline" if self.is_merged else "unstable_expanded_timeline"] = True
        stubs = gone if self.is_merged else []
        if state or stubs:
            body["required_state"] = [*self._state_events(state), *stubs]
        self._add_common(body, activity, self._bump_stamp(room_id, since_point, upto_point, activity))
        return RoomAnswer(body, is_initial=known is None, is_gappy=timeline.limited and not is_expanded)

    def _viewer_of(self, limit: int) -> Viewer:
        """Returns the viewer with a filter for the reader of timelines."""
        viewer = self._viewers.get(limit)
        if viewer is None:
            filter_ = Filter(room=RoomFilter(timeline=RoomEventFilter(limit=limit)))
            viewer = self._viewers[limit] = replace(self.viewer, filter=filter_)
        return viewer

    def _timeline(self, timeline: Timeline, *, is_expanded: bool) -> JsonObject:
        live_point = END if self.since is None else after_position(self.since)
        show = bundled_events if timeline.limited or is_expanded else client_events
        user_id, device_id = self.viewer.user_id, self.viewer.device_id
        events = show(self.tx, timeline.events, user_id=user_id, device_id=device_id, with_room_id=False)
        return {
            "timeline": events,
            "limited": timeline.limited,
            "prev_batch": self.viewer.tokens.timeline(timeline.start),
            "num_live": sum(event.ordering > live_point for event in timeline.events),
        }

    def _state_events(self, events: Sequence[StoredEvent]) -> list[JsonObject]:
        now_ms = self.tx.now_ms
        return [
            client_event(self.tx, event, {"age": now_ms - event.origin_server_ts}, with_room_id=False)
            for event in events
        ]

    def _describe(
        self, room_id: RoomID, head: StateAt, changes: Mapping[Key, object], known: Known | None
    ) -> JsonObject:
        """Returns the name, picture and members of a room, as far as they have changed."""
        body: JsonObject = {}
        is_named = True
        for name, event_type, content_field in (
            ("name", "m.room.name", "name"),
            ("avatar", "m.room.avatar", "url"),
        ):
            is_changed = known is None or find_key(self.tx, event_type, "") in changes
            value = self._find_text(head, event_type, content_field) if is_changed or name == "name" else None
            if is_changed and (value is not None or known is not None):
                body[name] = value
            is_named = is_named if name != "name" else value is not None
        is_moved = known is None or has_come_or_gone(self.tx, room_id, known.upto)
        if is_moved:
            body["joined_count"] = count_members(self.tx, room_id, "join")
            body["invited_count"] = count_members(self.tx, room_id, "invite")
        if not is_named and (is_moved or "name" in body):
            body["heroes"] = self._list_heroes(room_id, head)
        return body

    def _find_text(self, head: StateAt, event_type: str, content_field: str) -> str | None:
        event = find_in_state(self.tx, head, event_type, "")
        value = None if event is None else event.content.get(content_field)
        return value if isinstance(value, str) and value else None

    def _list_heroes(self, room_id: RoomID, head: StateAt) -> list[JsonObject]:
        heroes = []
        for user_id in list_heroes(self.tx, room_id, self.viewer.user_id):
            event = find_in_state(self.tx, head, MEMBER, user_id)
            content = {} if event is None else event.content
            hero: JsonObject = {"user_id": user_id}
            hero |= {
                name: content[name] for name in ("displayname", "avatar_url") if isinstance(content.get(name), str)
            }
            heroes.append(hero)
        return heroes

    def _bump_stamp(self, room_id: RoomID, since_point: int, upto_point: int, activity: RoomActivity) -> int | None:
        """Returns the position of the last proper activity, None if there was none since the client knows the room."""
        if activity.membership != "join":
            return activity.changed_position
        return find_newest_of_types(self.tx, room_id, BUMP_TYPES, since_point, upto_point, BUMP_SCANNED_MAX)

    def _add_common(self, body: JsonObject, activity: RoomActivity, bump_stamp: int | None) -> None:
        if bump_stamp is not None:
            body["bump_stamp"] = bump_stamp
        if self.is_merged:
            body["membership"] = activity.membership

    def _outside(self, activity: RoomActivity, membership: RoomMembership) -> RoomAnswer:
        """Returns an invite or a knock: the stripped state of the room."""
        body: JsonObject = {
            "initial": True,
            "stripped_state" if self.is_merged else "invite_state": list(membership.stripped or ()),
        }
        self._add_common(body, activity, activity.changed_position)
        return RoomAnswer(body, is_initial=True)

    def _left(
        self,
        room_id: RoomID,
        activity: RoomActivity,
        membership: RoomMembership,
        config: RoomConfig,
        known: Known | None,
    ) -> RoomAnswer | None:
        """Returns a room that the user has left or was removed from, up to that event.

        If the user was never in the room, or has forgotten it, only the end of their invite is told.
        """
        left = None if membership.forgotten else find_leave(self.tx, room_id, self.viewer.user_id)
        if left is not None:
            then = state_after(self.tx, left)
            if known is not None and not was_joined(self.tx, room_id, self.viewer.user_id, known.upto):
                known = None
            return self._with_own_leave(self._inside(room_id, then, left.ordering, config, known, activity), [left])
        if known is None:
            return None
        event = find_stored(self.tx, membership.event_position) if membership.event_position else None
        timeline = [] if event is None else client_events(
            self.tx, [event], user_id=self.viewer.user_id, device_id=self.viewer.device_id, with_room_id=False
        )  # fmt: skip
        timeline += membership.stripped or ()
        body: JsonObject = {"initial": True, "timeline": timeline, "required_state": timeline}
        if self.is_merged:
            body["stripped_state"] = timeline
        self._add_common(body, activity, activity.changed_position)
        return RoomAnswer(body, is_initial=True)

    def _with_own_leave(self, answer: RoomAnswer | None, left: Sequence[TimelineEvent]) -> RoomAnswer | None:
        """Adds the event that ended the user's stay to the required state: clients find out by it that they left."""
        if answer is not None:
            state: list[Any] = answer.body.setdefault("required_state", [])
            if left[0].event_id not in {event.get("event_id") for event in state}:
                state += self._state_events(left)
        return answer


class _Required(msgspec.Struct, frozen=True):
    """Finds the required state of a room that a client lacks."""

    tx: Transaction
    viewer: Viewer
    room_id: RoomID
    config: RoomConfig
    head: StateAt

    def list_changes(
        self, timeline: Timeline, changes: Mapping[Key, tuple[int | None, int | None]], known: Known | None
    ) -> tuple[list[StoredEvent], list[JsonObject]]:
        """Returns the state events that the client lacks, and stubs of those that are no longer part of the state."""
        gone: list[JsonObject] = []
        if known is None:
            positions = self._list_new(())
        else:
            positions, gone = self._split(changes, is_lazy=self.config.lazy_members and not timeline.limited)
            if known.required != self.config.required:
                positions |= self._list_new(known.required)
        if self.config.lazy_members:
            positions |= self._list_speakers(timeline)
        stored = list_stored(self.tx, set(positions.values()))
        events = list(without_withheld(self.tx, [stored[at] for at in sorted(stored)]))
        if self.config.lazy_members:
            for key, at in positions.items():
                if key[0] == self.tx.find(MEMBER):
                    self.viewer.members.tell(self.room_id, key[1], at)
        return events, gone

    def _split(
        self, changes: Mapping[Key, tuple[int | None, int | None]], *, is_lazy: bool
    ) -> tuple[dict[Key, int], list[JsonObject]]:
        """Returns the required ones among changes. is_lazy: all changes of members are required."""
        names = self.tx.names({nid for key in changes for nid in key})
        positions: dict[Key, int] = {}
        gone: list[JsonObject] = []
        for key, (_, after) in changes.items():
            event_type, state_key = names[key[0]], names[key[1]]
            if (is_lazy and event_type == MEMBER) or is_required(self.config.required, event_type, state_key):
                if after is None:
                    gone.append({"type": event_type, "state_key": state_key})
                else:
                    positions[key] = after
        return positions, gone

    def _list_new(self, known: tuple[RequiredState, ...]) -> dict[Key, int]:
        """Returns the positions of the required events that were not required so far."""
        required = [each for each in self.config.required if each not in known]
        named = list_named(required)
        if named is None:
            entries = entries_of(self.tx, self.head)
            names = self.tx.names({nid for key in entries for nid in key})
            texts = {key: (names[key[0]], names[key[1]]) for key in entries}
        else:
            found = {key: text for text in named if (key := find_key(self.tx, *text)) is not None}
            at = {key: position_in(self.tx, self.head, key) for key in found}
            entries = {key: position for key, position in at.items() if position is not None}
            texts = found
        return {
            key: position
            for key, position in entries.items()
            if is_required(required, *texts[key]) and not is_required(known, *texts[key])
        }

    def _list_speakers(self, timeline: Timeline) -> dict[Key, int]:
        """Returns the positions of the member events of the senders and of the members in a timeline."""
        users = {UserID(event.sender) for event in timeline.events}
        users |= {UserID(event.state_key) for event in timeline.events if event.type == MEMBER and event.state_key}
        found: dict[Key, int] = {}
        for user_id in users:
            key = find_key(self.tx, MEMBER, user_id)
            position = None if key is None else position_in(self.tx, self.head, key)
            if key is not None and position is not None:
                if not self.viewer.members.knows(self.room_id, key[1], position):
                    found[key] = position
        return found
