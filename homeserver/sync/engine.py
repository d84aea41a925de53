"""The sync engine: what has changed for a user since a position, and waiting until something has.

One answer is one read on one snapshot; features add their sections to it. Spec: client-server-api/#syncing
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from homeserver.api.filters import Filter, RoomEventFilter, wants, wants_room
from homeserver.authenticate import Requester, check_token
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.cache import Cache
from homeserver.feature import JsonObject, RoomSection, SyncContext, SyncSection
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import RoomMembership, list_memberships
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.timeline import Tokens, after_position
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.room import Viewer, joined_room, left_room, was_joined
from homeserver.users.blocking import blocks_invites, ignored_users

USERS_REMEMBERED_MAX = 10_000


@dataclass(frozen=True, slots=True)
class SyncRequest:
    """A `/sync` request, decoded. `since` is None on an initial sync; `timeout_ms` is how long to wait for news.

    is_anew: the client has synced before, but what it knows is of another history. It is told everything, with every
    timeline `limited`, so that it keeps no events as if the new ones followed on them, and of the rooms that were left.
    """

    requester: Requester
    since: int | None
    filter: Filter
    is_anew: bool = False
    timeout_ms: int = 0
    full_state: bool = False
    use_state_after: bool = False

    @property
    def user_id(self) -> UserID:
        return self.requester.user_id


@dataclass(frozen=True, slots=True)
class SyncAnswer:
    """The body without `next_batch`, the position it goes up to, whether it has news, and what to wait for if not."""

    body: dict[str, Any]
    upto: int
    has_news: bool
    keys: frozenset[str]
    members: DeviceMembers


class Engine:
    """Answers syncs. Remembers what each user waits for: a client that has everything is answered without a read."""

    def __init__(self, sections: Sequence[SyncSection]) -> None:
        self._sections = tuple(sections)
        self._told = ToldMembers()
        self._keys = Cache(USERS_REMEMBERED_MAX)  # user id → (keys, the position at which they held)

    async def sync(self, hs: Resources, request: SyncRequest) -> dict[str, Any]:
        """The answer: at once if there is news (or all is asked for), else when there is, or after the timeout."""
        if request.since is None or request.full_state:
            return _whole(hs, await self._compute(hs, request))
        deadline = trio.current_time() + request.timeout_ms / 1000
        answer = self._nothing_new(hs, request) or await self._compute(hs, request)
        while not answer.has_news and trio.current_time() < deadline:
            position = await hs.stream.wait(answer.keys, answer.upto, deadline)
            if position <= answer.upto:
                break
            answer = await self._compute(hs, request, has_waited=True)
        return _whole(hs, answer)

    async def _compute(self, hs: Resources, request: SyncRequest, *, has_waited: bool = False) -> SyncAnswer:
        compute_ = _compute_again if has_waited else compute
        known = (self._sections, request, hs.database.generation, self._told)
        try:
            answer = await hs.database.read(compute_, *known)
        except DatabaseDamaged:
            # One room that cannot be read must not keep a user from all the others. Each room on its own costs more.
            answer = await hs.database.read(compute_, *known, True)
        answer.members.remember(answer.upto)
        self._keys.put(request.user_id, (answer.keys, answer.upto))
        return answer

    def _nothing_new(self, hs: Resources, request: SyncRequest) -> SyncAnswer | None:
        """The answer of a user none of whose keys has news since; None where there may be some."""
        known = self._keys.get(request.user_id)
        assert request.since is not None
        if known is None:
            return None
        keys, position = known
        # The keys hold as long as the user's own key has no news: every change of a membership is told to its user.
        if hs.stream.has_news((request.user_id,), position) or hs.stream.has_news(keys, request.since):
            return None
        upto = max(hs.stream.position, request.since)  # never back: the client may know of a commit before the stream
        return SyncAnswer({}, upto, False, keys, _members_of(request, self._told))


def _whole(hs: Resources, answer: SyncAnswer) -> dict[str, Any]:
    return {"next_batch": Tokens(answer.upto, hs.database.generation).stream(), **answer.body}


def _compute_again(
    tx: Transaction,
    sections: Sequence[SyncSection],
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer:
    """As `compute`, for a request that has waited. Raises MatrixError 401 if its token was revoked meanwhile."""
    check_token(tx, request.requester)
    return compute(tx, sections, request, generation, told, around_damage)


def _members_of(request: SyncRequest, told: ToldMembers) -> DeviceMembers:
    return DeviceMembers(told, (request.user_id, request.requester.device_id), request.since)


def compute(
    tx: Transaction,
    sections: Sequence[SyncSection],
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer:
    """One answer, as of now, with tokens of that generation of the stream. told: to whom which members were told.

    around_damage: of a room that cannot be read it tells only that there is something.
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
        _members_of(request, told),
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
    changed = {each.room_id for each in joined if each.members_position > since} if since else set()
    context = SyncContext(
        user_id=request.user_id,
        device_id=request.requester.device_id,
        since=since,
        upto=upto,
        rooms={membership.room_id: RoomSection() for membership in joined},
        newly_joined=frozenset(rooms.newly_joined),
        members_changed=frozenset(changed - rooms.newly_joined),
    )
    for section in sections:
        if around_damage:
            with contextlib.suppress(DatabaseDamaged):
                tx.attempt(section, tx, context)
        else:
            section(tx, context)
    body = _body(request, rooms, context)
    keys = {request.user_id, *(each.room_id for each in memberships if each.membership == "join")}
    return SyncAnswer(body, upto, bool(body), frozenset(keys), viewer.members)


class _Rooms:
    """The rooms of an answer, by membership, as they are found."""

    def __init__(self, tx: Transaction, viewer: Viewer, since: int | None, *, is_anew: bool) -> None:
        self._tx = tx
        self._viewer = viewer
        self._since = since
        self._is_anew = is_anew
        self._invites: list[RoomMembership] = []
        self.newly_joined: set[RoomID] = set()
        self.join: dict[str, dict[str, Any]] = {}
        self.invite: dict[str, dict[str, Any]] = {}
        self.knock: dict[str, dict[str, Any]] = {}
        self.leave: dict[str, dict[str, Any]] = {}

    def add(self, membership: RoomMembership) -> None:
        """Adds the room where there is news of it."""
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

    def add_if_readable(self, membership: RoomMembership) -> None:
        """As `add`. A damaged room that the user is in is shown as a gap: who pages back into it gets an error."""
        try:
            self._tx.attempt(self.add, membership)
        except DatabaseDamaged:
            if membership.membership == "join":
                token = self._viewer.tokens.timeline(after_position(self._tx.position))
                self.join[membership.room_id] = {"timeline": {"events": [], "limited": True, "prev_batch": token}}

    def add_invites(self) -> None:
        """Adds the invitations that the user wants to hear of."""
        if not self._invites or blocks_invites(self._tx, self._viewer.user_id):
            return
        for membership in self._invites:
            stripped = membership.stripped or []
            if _inviter(stripped, self._viewer.user_id) not in self._viewer.ignored:
                self.invite[membership.room_id] = self._outside_entry("invite_state", membership)

    def _outside_entry(self, name: str, membership: RoomMembership) -> dict[str, Any]:
        """A room that the user is invited to or knocks upon: its stripped state, and the user's own event whole.

        Clients of today look for that event in the stripped state, those to come in `state`. Spec: MSC4319
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
        entry = joined_room(self._tx, self._viewer, membership, StateAt(head.state_root), since or 0, whole=whole)
        if entry:
            entry["timeline"]["limited"] |= self._is_anew
            self.join[room_id] = entry


def _inviter(stripped: list[JsonObject], user_id: UserID) -> str | None:
    found = [event for event in stripped if (event.get("type"), event.get("state_key")) == ("m.room.member", user_id)]
    return found[-1].get("sender") if found else None


def _body(request: SyncRequest, rooms: _Rooms, context: SyncContext) -> dict[str, Any]:
    """The answer without what is empty."""
    filter_ = request.filter
    for room_id, section in context.rooms.items():
        ephemeral = _wanted(filter_.room.ephemeral, room_id, section.ephemeral)
        account_data = _wanted(filter_.room.account_data, room_id, section.account_data)
        unread = section.unread_notifications
        if room_id not in rooms.join and not (ephemeral or account_data or unread or section.summary):
            continue
        entry = rooms.join.setdefault(room_id, {})
        if ephemeral:
            entry["ephemeral"] = {"events": ephemeral}
        if account_data:
            entry["account_data"] = {"events": account_data}
        if unread:
            entry["unread_notifications"] = unread
        if section.summary:
            entry["summary"] = {**entry.get("summary", {}), **section.summary}
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


def _wanted(filter_: RoomEventFilter, room_id: str, events: Iterable[JsonObject]) -> list[JsonObject]:
    if not wants_room(filter_, room_id):
        return []
    return [event for event in events if wants(filter_, event["type"], event.get("sender"))]
