"""A sync's answer, computed from one snapshot: the rooms, the features' news, and what every answer includes.

Spec: client-server-api/#get_matrixclientv3sync
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from homeserver.api.filters import RoomEventFilter, wants, wants_room
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.encoding import to_json
from homeserver.feature import JsonObject, RoomSection, SyncContext
from homeserver.federation.identifiers import RoomID
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import RoomMembership, list_memberships
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.storage import count_messages
from homeserver.rooms.timeline import Tokens, after_position
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.room import Viewer, joined_room, left_room, was_joined
from homeserver.sync.room_news import find_room_entry, is_shareable
from homeserver.sync.sections import Sections, add_sections
from homeserver.users.blocking import ignored_users, read_invite_filter

# The longest span in which we count messages before we ask the features: a few µs each, against some 20 µs per feature.
SPAN_EXAMINED_MAX = 10


class SyncAnswer(msgspec.Struct, frozen=True):
    """An answer, the position that it covers, whether it has news, and the keys to wait for if it has none.

    body: the answer without `next_batch` and without `always`, the top-level parts that every answer includes.
    ignored: by the user; None if it has not been read. counts: the `unread_notifications` of rooms that are known.
    """

    body: dict[str, Any]
    always: dict[str, Any]
    upto: int
    queue_upto: int
    has_news: bool
    keys: frozenset[str]
    members: DeviceMembers
    ignored: frozenset[str] | None = None
    counts: Mapping[RoomID, JsonObject] = {}


def counts_in(answer: SyncAnswer) -> Mapping[RoomID, JsonObject]:
    """Returns the unread counts of rooms that an answer tells."""
    rooms: dict[RoomID, JsonObject] = answer.body.get("rooms", {}).get("join", {})
    return {room_id: room["unread_notifications"] for room_id, room in rooms.items() if "unread_notifications" in room}


def encode_always(always: JsonObject) -> bytes:
    """Returns the parts of every answer as JSON, each with a comma before it."""
    return b"," + to_json(always)[1:-1] if always else b""


def body_of(hs: Resources, answer: SyncAnswer) -> dict[str, Any]:
    """Returns the body of the answer."""
    token = Tokens(answer.upto, hs.database.generation).stream(answer.queue_upto)
    return {"next_batch": token, **answer.body, **answer.always}


def members_of(request: SyncRequest, told: ToldMembers) -> DeviceMembers:
    """Returns what the request's device knows of members, for an answer to it."""
    return DeviceMembers(told, (request.user_id, request.requester.device_id), request.since)


def compute(
    tx: Transaction,
    sections: Sections,
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer:
    """Computes an answer as of now, with tokens of that generation of the stream.

    told: the member events that each device has received.
    around_damage: unreadable parts are left out, and an unreadable room is reduced to a gap.
    """
    upto = tx.position
    since = request.since or 0
    memberships = list_memberships(tx, request.user_id, around_damage=around_damage)
    viewer = Viewer(
        request.user_id,
        request.requester.device_id,
        request.filter,
        request.full_state,
        request.use_state_after,
        Tokens(upto, generation),
        members_of(request, told),
        ignored_users(tx, request.user_id),
    )
    wanted = [membership for membership in memberships if wants_room(request.filter.room, membership.room_id)]
    rooms = _Rooms(tx, viewer, request.since, is_anew=request.is_anew)
    for membership in wanted:
        if around_damage:
            rooms.add_if_readable(membership)
        else:
            rooms.add(membership)
    rooms.add_invites()
    joined = [membership for membership in wanted if membership.membership == "join"]
    context = SyncContext(
        user_id=request.user_id,
        device_id=request.requester.device_id,
        since=since,
        upto=upto,
        queue_since=request.queue_begin,
        queue_upto=upto,
        is_anew=request.is_anew,
        filter=request.filter,
        rooms={each.room_id: _section(each, 0 if each.room_id in rooms.newly_joined else since) for each in joined},
        left={each.room_id: RoomSection(since) for each in wanted if rooms.tells_of_left(each)},
        ignored=viewer.ignored,
    )
    if not _has_only_messages(tx, context):
        add_sections(tx, sections.news, context, around_damage=around_damage)
    context.rooms_told = frozenset(rooms.join)
    body = _body(request, rooms, context)
    has_news = bool(body)
    if sections.always:
        add_sections(tx, sections.always, context, around_damage=around_damage)
        _add_counts(body, rooms, context)
    keys = {request.user_id, *(each.room_id for each in memberships if each.membership == "join")}
    return SyncAnswer(
        body, context.always, upto, context.queue_upto, has_news, frozenset(keys), viewer.members, viewer.ignored
    )


def _has_only_messages(tx: Transaction, context: SyncContext) -> bool:
    """Returns whether the span of a sync is short and all of its positions are those of messages.

    Then there is no news of features, because each change takes a position of its own. Memberships may change with a
    message, if it merges two branches of a room.
    """
    number = context.upto - context.since
    if context.since == 0 or not 0 < number <= SPAN_EXAMINED_MAX:
        return False
    if context.left or context.queue_since < context.since:
        return False
    if any(section.since != context.since or section.members_changed for section in context.rooms.values()):
        return False
    return count_messages(tx, context.since, context.upto) == number


def _section(membership: RoomMembership, since: int) -> RoomSection:
    return RoomSection(since, members_changed=since > 0 and membership.members_position > since)


class _Rooms:
    """Collects the rooms of an answer by membership."""

    def __init__(self, tx: Transaction, viewer: Viewer, since: int | None, *, is_anew: bool) -> None:
        self._tx = tx
        self._viewer = viewer
        self._since = since
        self._is_anew = is_anew
        self._is_shareable = is_shareable(viewer)
        self._invites: list[RoomMembership] = []
        self.newly_joined: set[RoomID] = set()
        self.join: dict[RoomID, dict[str, Any]] = {}
        self.invite: dict[str, dict[str, Any]] = {}
        self.knock: dict[str, dict[str, Any]] = {}
        self.leave: dict[str, dict[str, Any]] = {}

    def add(self, membership: RoomMembership) -> None:
        """Adds the room if it has news."""
        since, room_id = self._since, membership.room_id
        is_changed = since is None or membership.changed_position > since
        if membership.membership == "join":
            self._add_joined(membership)
        elif membership.membership == "invite" and is_changed:
            self._invites.append(membership)
        elif membership.membership == "knock" and is_changed:
            self.knock[room_id] = self._outside_entry("knock_state", membership)
        elif membership.membership in ("leave", "ban") and is_changed:
            if since is not None:
                self.leave[room_id] = left_room(self._tx, self._viewer, membership, since)
            elif (self._viewer.filter.room.include_leave or self._is_anew) and not membership.forgotten:
                self.leave[room_id] = left_room(self._tx, self._viewer, membership, 0)

    def tells_of_left(self, membership: RoomMembership) -> bool:
        """Returns whether the user has left the room, and the client gets it or wants to hear of such rooms."""
        if membership.membership not in ("leave", "ban"):
            return False
        wants_left = self._viewer.filter.room.include_leave and not membership.forgotten
        return wants_left or membership.room_id in self.leave

    def add_if_readable(self, membership: RoomMembership) -> None:
        """Like `add`, but shows a damaged room of the user as a gap. A client that paginates into it gets an error."""
        try:
            self._tx.attempt(self.add, membership)
        except DatabaseDamaged:
            if membership.membership == "join":
                token = self._viewer.tokens.timeline(after_position(self._tx.position))
                self.join[membership.room_id] = {"timeline": {"events": [], "limited": True, "prev_batch": token}}

    def add_invites(self) -> None:
        """Adds the invites, except those that the user does not want to see."""
        if not self._invites:
            return
        unwanted = read_invite_filter(self._tx, self._viewer.user_id, self._viewer.ignored)
        for membership in self._invites:
            if not unwanted.hides(self._tx, membership.stripped or ()):
                self.invite[membership.room_id] = self._outside_entry("invite_state", membership)

    def _outside_entry(self, name: str, membership: RoomMembership) -> dict[str, Any]:
        """Returns the entry of an invite or knock: the stripped state of the room, and the user's full event.

        Current clients look for that event in the stripped state, future ones in `state`. Spec: MSC4319
        """
        events = list(membership.stripped or ())
        entry: dict[str, Any] = {name: {"events": events}}
        if events and "origin_server_ts" in events[-1]:
            own = events[-1]
            age = max(0, self._tx.now_ms - own["origin_server_ts"])
            events[-1] = {**own, "unsigned": {"age": age, **own.get("unsigned", {})}}
            entry["state"] = {"events": [events[-1]]}
        return entry

    def _add_joined(self, membership: RoomMembership) -> None:
        since, room_id = self._since, membership.room_id
        full_state = self._viewer.full_state
        if since is not None and membership.last_position <= since and not full_state:
            return
        whole = since is None
        if since is not None and membership.changed_position > since:
            whole = not was_joined(self._tx, room_id, self._viewer.user_id, since)
        if whole:
            self.newly_joined.add(room_id)
        head = find_head(self._tx, room_id)
        assert head is not None
        entry = None
        if self._is_shareable:
            entry = find_room_entry(self._tx, self._viewer, membership, head, since or 0, whole=whole)
        if entry is None:
            entry = joined_room(self._tx, self._viewer, membership, StateAt(head.state_root), since or 0, whole=whole)
        if entry:
            entry["timeline"]["limited"] |= self._is_anew
            self.join[room_id] = entry


def _body(request: SyncRequest, rooms: _Rooms, context: SyncContext) -> dict[str, Any]:
    """Returns the news of an answer, without empty parts."""
    filter_ = request.filter
    for room_id, section in context.rooms.items():
        if room_id not in rooms.join and not (section.ephemeral or section.account_data or section.summary):
            continue
        ephemeral = _wanted(filter_.room.ephemeral, room_id, section.ephemeral)
        account_data = _wanted(filter_.room.account_data, room_id, section.account_data)
        if room_id not in rooms.join and not (ephemeral or account_data or section.summary):
            continue
        entry = rooms.join.setdefault(room_id, {})
        if ephemeral:
            entry["ephemeral"] = {"events": ephemeral}
        if account_data:
            entry["account_data"] = {"events": account_data}
        if section.summary:
            entry["summary"] = {**entry.get("summary", {}), **section.summary}
    for room_id, section in context.left.items():
        account_data = _wanted(filter_.room.account_data, room_id, section.account_data)
        if account_data:
            rooms.leave.setdefault(room_id, {})["account_data"] = {"events": account_data}
    body: dict[str, Any] = {}
    by_membership = {"join": rooms.join, "invite": rooms.invite, "knock": rooms.knock, "leave": rooms.leave}
    if any(by_membership.values()):
        body["rooms"] = {membership: entries for membership, entries in by_membership.items() if entries}
    for name, events, kind in (
        ("account_data", context.account_data, filter_.account_data),
        ("presence", context.presence, filter_.presence),
    ):
        passed = [event for event in events if wants(kind, event["type"], event.get("sender"))]
        if passed:
            body[name] = {"events": passed if kind.limit is None else passed[: kind.limit]}
    if context.to_device:
        body["to_device"] = {"events": context.to_device}
    return {**body, **context.extra}


def _add_counts(body: dict[str, Any], rooms: _Rooms, context: SyncContext) -> None:
    """Adds the rooms' notification counts to an answer, which may not contain these rooms yet."""
    for room_id, section in context.rooms.items():
        counts = {
            "unread_notifications": section.unread_notifications,
            "unread_thread_notifications": section.unread_thread_notifications,
        }
        told = {name: each for name, each in counts.items() if each}
        if told:
            rooms.join.setdefault(room_id, {}).update(told)
            body.setdefault("rooms", {})["join"] = rooms.join


def _wanted(filter_: RoomEventFilter, room_id: str, events: Iterable[JsonObject]) -> list[JsonObject]:
    if not wants_room(filter_, room_id):
        return []
    return [event for event in events if wants(filter_, event["type"], event.get("sender"))]
