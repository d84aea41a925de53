"""The sync engine: computes what has changed for a user since a position, and waits until something has.

Theory of operation. A sync goes through these steps; the first two share one read.

1. Features say whether they have something to write first (`before_sync`), which is rare. If so, all of it is written
   in one transaction, and the answer is read after that.
2. The answer is read from one snapshot: the rooms, then the news of the features, then what every answer includes.
3. If there is news, or the client asked for everything, it gets the answer.
4. Otherwise the engine waits until one of the answer's keys (the user, the rooms) has news, and reads again, together
   with the other clients that wake, if the news is the same for all of them (`together`). The parts that every answer
   includes never end the wait; the client gets them with the next news, or at the timeout.

A quiet sync skips step 2, and step 1 while every feature has said that it will have nothing to write. The engine
remembers the keys of each user, and the parts for every answer of each device, with the position at which they were
read. If none of the keys has had news since, nothing can have changed: every change that affects a sync wakes one of
them.

Spec: client-server-api/#syncing
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import msgspec
import orjson
import trio

from homeserver.api.filters import RoomEventFilter, wants, wants_room
from homeserver.authenticate import check_token
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.cache import Cache
from homeserver.encoding import to_json
from homeserver.feature import JsonObject, RoomSection, SyncContext, SyncStart
from homeserver.federation.identifiers import RoomID
from homeserver.process.token_cache import tokens_key
from homeserver.resources import Resources
from homeserver.rooms.heads import find_head
from homeserver.rooms.membership import RoomMembership, list_memberships
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.storage import count_messages
from homeserver.rooms.timeline import Tokens, after_position
from homeserver.sync.broadcast import Listener, Told, can_listen
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.room import Viewer, joined_room, left_room, was_joined
from homeserver.sync.room_news import find_room_entry, is_shareable
from homeserver.sync.sections import Sections, add_sections, is_due
from homeserver.sync.together import Together
from homeserver.sync.waiting import USERS_REMEMBERED_MAX, Preparation
from homeserver.users.blocking import ignored_users, read_invite_filter

# The longest span in which we count messages before we ask the features: a few µs each, against some 20 µs per feature.
SPAN_EXAMINED_MAX = 10
# Rooms whose unread counts are kept for a device: those with the latest news. 2 KiB at most.
COUNTS_KEPT_MAX = 8


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


class _Kept(NamedTuple):
    """What is known of a device's last answer, and up to which position it holds. See `SyncAnswer`."""

    upto: int
    always: JsonObject
    ignored: frozenset[str] | None
    counts: Mapping[RoomID, JsonObject]


class Engine:
    """Answers syncs. It remembers the keys of each user, so a client that is up to date costs no read."""

    def __init__(self, sections: Sections) -> None:
        self._sections = sections
        self._preparation = Preparation(sections)
        self.told = ToldMembers()  # which member events each device has received
        self.together = Together(sections, self.told)
        self._keys = Cache(USERS_REMEMBERED_MAX)  # user ID → (keys, the position at which they were read)
        self._kept = Cache(USERS_REMEMBERED_MAX)  # (user ID, device ID) → _Kept

    async def sync(
        self, hs: Resources, request: SyncRequest, wait_ended: Callable[[], Awaitable[None]] = trio.sleep_forever
    ) -> dict[str, Any] | orjson.Fragment:
        """Returns the answer: at once with news or if all was asked for, else with the next news or at the timeout.

        wait_ended: raises when nobody waits for the answer any more.
        """
        began = trio.current_time() if request.timeout_ms else 0.0
        answer = await self.first_answer(hs, request)
        if answer.has_news or request.is_whole or not request.timeout_ms:
            return body_of(hs, answer)
        return await self._wait(hs, request, answer, began + request.timeout_ms / 1000, wait_ended)

    async def _wait(
        self,
        hs: Resources,
        request: SyncRequest,
        answer: SyncAnswer,
        deadline: float,
        wait_ended: Callable[[], Awaitable[None]],
    ) -> dict[str, Any] | orjson.Fragment:
        """Returns the first answer with news; at the deadline the last one."""
        while trio.current_time() < deadline:
            position, quiet_upto = await hs.stream.wait_longer(answer.keys, answer.upto, deadline, wait_ended)
            if position <= answer.upto:
                break
            told = await self._hear(hs, request, answer, quiet_upto)
            if told is None:
                answer = await self._read(hs, request, _recompute(hs, request))
                if answer.has_news:
                    return body_of(hs, answer)
                continue
            answer = msgspec.structs.replace(
                answer, upto=told.upto, queue_upto=told.upto, counts=_newest(answer.counts, told.counts)
            )
            if told.body:
                self._keep(request, answer)
                return orjson.Fragment(told.body)
        self._keep(request, answer)
        return body_of(hs, answer)

    async def _hear(self, hs: Resources, request: SyncRequest, answer: SyncAnswer, quiet_upto: int) -> Told | None:
        """Returns what a client is told together with others; None if it must be answered alone.

        answer: its last one, which still holds at `quiet_upto`.
        """
        if answer.ignored is None or answer.queue_upto < answer.upto or not can_listen(request):
            return None
        if hs.database.is_shared or hs.stream.has_news((tokens_key(request.user_id),), request.token_position):
            return None  # other nodes' changes may not be announced yet; and the token may have ended
        listener = Listener(
            request, quiet_upto, answer.keys, answer.ignored, encode_always(answer.always), answer.counts
        )
        return await self.together.hear(hs, listener)

    def _keep(self, request: SyncRequest, answer: SyncAnswer) -> None:
        self._kept.put(request.device, _Kept(answer.upto, answer.always, answer.ignored, answer.counts))

    def _counts_after(self, request: SyncRequest, answer: SyncAnswer) -> Mapping[RoomID, JsonObject]:
        """Returns the counts that the answer tells, and those that the device has been told before."""
        if not can_listen(request):
            return {}
        kept: _Kept | None = self._kept.get(request.device)
        is_next = kept is not None and kept.upto == request.since and kept.ignored == answer.ignored
        return _newest(kept.counts if kept is not None and is_next else {}, counts_in(answer))

    async def prepare(self, hs: Resources, start: SyncStart) -> None:
        """Lets features write what is due, without an answer: the client has everything up to `start.since`."""
        if await self._preparation.is_due(hs, start):
            await self._preparation.write(hs, start)

    async def read(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Returns an answer as of now, for a client that has acknowledged nothing since its last one."""
        quiet = self._quiet_answer(hs, request)
        return await self._read(hs, request, compute) if quiet is None else quiet

    async def read_again(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Does the same as `read`, and raises MatrixError 401 if the request's token has ended meanwhile."""
        return await self._read(hs, request, _recompute(hs, request))

    async def first_answer(self, hs: Resources, request: SyncRequest) -> SyncAnswer:
        """Lets features write what is due, then answers. If nothing is due, one read does both."""
        quiet = self._quiet_answer(hs, request)
        if quiet is None:
            self._preparation.acknowledge(hs, request.start)
            answer = await self._read(hs, request, _compute_unless_due)
        else:
            answer = None if await self._preparation.is_due(hs, request.start) else quiet
        if answer is not None:
            return answer
        await self._preparation.write(hs, request.start)
        quiet = self._quiet_answer(hs, request)
        return await self._read(hs, request, compute) if quiet is None else quiet

    async def _read(self, hs: Resources, request: SyncRequest, compute_: _Compute[_Answer]) -> _Answer:
        known = (self._sections, request, hs.database.generation, self.told)
        around_damage = False
        try:
            answer = await hs.database.read(compute_, *known, around_damage)
        except DatabaseDamaged:
            # One unreadable room must not keep the user from all the others. Reading each room on its own costs more.
            around_damage = True
            answer = await hs.database.read(compute_, *known, around_damage)
        if answer is not None:
            answer.members.remember(answer.upto)
            self._keys.put(request.user_id, (answer.keys, answer.upto))
            if not around_damage:  # else parts may be missing
                answer = msgspec.structs.replace(answer, counts=self._counts_after(request, answer))
                self._keep(request, answer)
        return answer

    def _quiet_answer(self, hs: Resources, request: SyncRequest) -> SyncAnswer | None:
        """Returns the answer without a read, if none of the user's keys has had news since; otherwise None."""
        if request.since is None or request.full_state or request.queue_begin < request.since:
            return None
        if request.timeout_ms == 0 and hs.database.is_shared:
            return None  # the client asks what is new now, and another node's commit may not be known here yet
        known = self._keys.get(request.user_id)
        kept: _Kept | None = self._kept.get(request.device)
        if known is None or kept is None:
            return None
        keys, position = known
        # The keys are valid as long as the user's own key has no news: every membership change wakes its user.
        if hs.stream.has_news((request.user_id,), position) or hs.stream.has_news(keys, min(request.since, kept.upto)):
            return None
        # never backwards: a client may know of a commit before the stream does
        upto = max(hs.stream.position, request.since)
        return SyncAnswer(
            {}, kept.always, upto, upto, False, keys, _members_of(request, self.told), kept.ignored, kept.counts
        )


def counts_in(answer: SyncAnswer) -> Mapping[RoomID, JsonObject]:
    """Returns the unread counts of rooms that an answer tells."""
    rooms: dict[RoomID, JsonObject] = answer.body.get("rooms", {}).get("join", {})
    return {room_id: room["unread_notifications"] for room_id, room in rooms.items() if "unread_notifications" in room}


def encode_always(always: JsonObject) -> bytes:
    """Returns the parts of every answer as JSON, each with a comma before it."""
    return b"".join(b",%b:%b" % (to_json(name), to_json(each)) for name, each in always.items())


def _newest(before: Mapping[RoomID, JsonObject], told: Mapping[RoomID, JsonObject]) -> Mapping[RoomID, JsonObject]:
    """Returns the counts of the rooms that had news last."""
    counts = {**{room_id: count for room_id, count in before.items() if room_id not in told}, **told}
    return dict(islice(counts.items(), max(0, len(counts) - COUNTS_KEPT_MAX), None))


def body_of(hs: Resources, answer: SyncAnswer) -> dict[str, Any]:
    """Returns the body of the answer."""
    token = Tokens(answer.upto, hs.database.generation).stream(answer.queue_upto)
    return {"next_batch": token, **answer.body, **answer.always}


_Answer = TypeVar("_Answer", bound=SyncAnswer | None)
_Compute = Callable[[Transaction, Sections, SyncRequest, str, ToldMembers, bool], _Answer]


def _compute_unless_due(
    tx: Transaction,
    sections: Sections,
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer | None:
    """Like `compute`, but returns None if a feature has something to write first. Around damage, nothing is written."""
    if not around_damage and is_due(tx, sections.before, request.start):
        return None
    return compute(tx, sections, request, generation, told, around_damage)


def _recompute(hs: Resources, request: SyncRequest) -> _Compute[SyncAnswer]:
    """Returns what answers a request that has waited: with a look at its token, unless it is known to be valid."""
    key = tokens_key(request.user_id)
    if hs.database.is_shared or hs.stream.has_news((key,), request.token_position):
        return _compute_again
    return compute


def _compute_again(
    tx: Transaction,
    sections: Sections,
    request: SyncRequest,
    generation: str,
    told: ToldMembers,
    around_damage: bool = False,
) -> SyncAnswer:
    """Like `compute`, for a request that has waited. Raises MatrixError 401 if its token was revoked meanwhile."""
    check_token(tx, request.requester)
    return compute(tx, sections, request, generation, told, around_damage)


def _members_of(request: SyncRequest, told: ToldMembers) -> DeviceMembers:
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
