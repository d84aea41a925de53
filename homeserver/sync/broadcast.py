"""Broadcast: the news of rooms for many waiting clients at once, in one read and encoded once.

Theory of operation. Features say which positions of a span belong to news that all members of a room are told alike
(`Share`): receipts, who types. If all others are those of messages, nothing else has changed, for each change takes a
position of its own. So for a client that has everything up to the beginning of the span, everything that was read for
its last answer still holds: the rooms it is in (`keys`), whom it ignores, its counts, and the parts of every answer.
What is left is the same for all members of a room: its new messages, which are read and encoded once (`room_news`), and
its ephemeral events. Added for each client are its counts (`Recount`) and the parts of every answer, as bytes. The news
of features may leave out some things for each member, such as the receipts of people whom the member ignores.

`broadcast` returns None for a client to whom this does not apply: it sent one of the messages or has read some, ignores
a sender, was not in the room all the time, filters events, lacks members that it loads lazily, or has counts that must
be counted again. The engine answers it.

Invariant: what a client gets from here is what the engine would answer in the same read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.feature import JsonObject, RoomShare
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.activity import list_rooms_with_events
from homeserver.rooms.heads import Head, find_head
from homeserver.rooms.membership import find_room_membership
from homeserver.rooms.resolve import StateAt
from homeserver.rooms.storage import count_messages
from homeserver.rooms.timeline import Tokens
from homeserver.rooms.visibility import Memberships
from homeserver.sync.lazy_members import DeviceMembers, ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.room import Viewer, list_unknown_members
from homeserver.sync.room_news import SharedMessages, find_shared_messages, is_shareable
from homeserver.sync.sections import Sections

SPAN_MAX = 500  # positions: a client that is further behind gets an answer of its own
_JOINED_CACHED_MAX = 50_000  # (user, state): some 200 bytes each


class Listener(msgspec.Struct, frozen=True):
    """A client that waits for news, and what its last answer was made of.

    since: from where it has everything: the request's `since`, or a later position up to which its keys had no news.
    always: the parts of every answer as JSON, each with a comma before it. counts: the `unread_notifications` of rooms,
    as far as they are known.
    """

    request: SyncRequest
    since: int
    keys: frozenset[str]
    ignored: frozenset[str]
    always: bytes
    counts: Mapping[RoomID, JsonObject]


class Told(msgspec.Struct, frozen=True):
    """An answer, as JSON, b"" if there is no news; up to which position it goes; and the counts that it tells."""

    body: bytes
    upto: int
    counts: Mapping[RoomID, JsonObject]


def can_listen(request: SyncRequest) -> bool:
    """Returns whether the client's filter lets all events of rooms through, except ephemeral ones."""
    filter_ = request.filter
    is_plain = filter_.event_fields is None and filter_.event_format == "client"
    rooms = filter_.room
    passes = rooms.timeline.accepts_all and rooms.state.accepts_all and not rooms.timeline.unread_thread_notifications
    return is_plain and passes and rooms.rooms is None and not rooms.not_rooms


def broadcast(
    tx: Transaction, sections: Sections, told: ToldMembers, generation: str, listeners: Sequence[Listener]
) -> list[Told | None]:
    """Returns what each client gets of the news, in the same order; None for those that the engine must answer.

    told: the member events that each device has received. generation: of the stream, for tokens.
    """
    spans: dict[int, _Span | None] = {}
    answers: list[Told | None] = []
    for listener in listeners:
        since = listener.since
        if since not in spans:
            spans[since] = _Span.read(tx, sections, told, generation, since)
        span = spans[since]
        answers.append(None if span is None else span.tell(listener))
    return answers


class _Shared(NamedTuple):
    """The news of one room, and what it does to the counts of its members; None if nobody counts."""

    head: Head
    messages: SharedMessages
    recount: Callable[[UserID, JsonObject], JsonObject | None] | None


class _Span:
    """A span of the stream with nothing but messages and what features share, and the rooms that these are in."""

    def __init__(
        self,
        tx: Transaction,
        sections: Sections,
        told: ToldMembers,
        tokens: Tokens,
        since: int,
        rooms: Collection[RoomID],
        shares: Mapping[RoomID, Sequence[RoomShare]],
    ) -> None:
        self._tx = tx
        self._sections = sections
        self._told = told
        self._tokens = tokens
        self._since = since
        self._rooms = rooms  # those with messages
        self._shares = shares
        self._joined = tx.cache("joined_at", _JOINED_CACHED_MAX)
        self._shared: dict[tuple[RoomID, int | None, bool], _Shared | None] = {}
        self._begin = b'{"next_batch":' + to_json(tokens.stream()) + b',"rooms":{"join":{'

    @classmethod
    def read(cls, tx: Transaction, sections: Sections, told: ToldMembers, generation: str, since: int) -> _Span | None:
        """Returns the span from a position to the newest one; None if it is too long or has news of other kinds."""
        upto = tx.position
        if not since or not 0 <= upto - since <= SPAN_MAX:
            return None
        others = upto - since - count_messages(tx, since, upto)
        shares: dict[RoomID, list[RoomShare]] = {}
        if others:
            shared = [share(tx, since, upto) for share in sections.shares]
            if sum(each.positions for each in shared) != others:
                return None
            for each in shared:
                for room_id, share in each.rooms.items():
                    shares.setdefault(room_id, []).append(share)
        rooms = list_rooms_with_events(tx, since, upto)
        return cls(tx, sections, told, Tokens(upto, generation), since, rooms, shares)

    def tell(self, listener: Listener) -> Told | None:
        """Returns what a client is told; None if the engine must answer it."""
        entries: list[bytes] = []
        counts: dict[RoomID, JsonObject] = {}
        for room_id in {*self._rooms, *self._shares}:
            if room_id not in listener.keys:
                continue
            parts = self._list_parts(listener, room_id, counts)
            if parts is None:
                return None
            if parts:
                entries.append(b"%b:{%b}" % (to_json(room_id), b",".join(parts)))
        if not entries:
            return Told(b"", self._tokens.position, counts)
        body = self._begin + b",".join(entries) + b"}}" + listener.always + b"}"
        return Told(body, self._tokens.position, counts)

    def _list_parts(self, listener: Listener, room_id: RoomID, counts: dict[RoomID, JsonObject]) -> list[bytes] | None:
        """Returns the parts of a room's entry, and adds its counts to `counts`; None if the engine must answer."""
        parts: list[bytes] = []
        if room_id in self._rooms:
            shared = self._find_shared(listener, room_id)
            if shared is None or not self._is_for(listener, room_id, shared):
                return None
            parts.append(shared.messages.parts)
            if shared.recount is not None:
                before = listener.counts.get(room_id)
                count = None if before is None else shared.recount(listener.request.user_id, before)
                if count is None:
                    return None
                counts[room_id] = count
                parts.append(b'"unread_notifications":' + to_json(count))
        if room_id in self._shares:
            if not listener.request.filter.room.ephemeral.accepts_all:
                return None
            events: list[bytes] = []
            for share in self._shares[room_id]:
                found = share.tell(self._tx, listener.request.user_id, listener.ignored)
                if found is None:
                    return None
                events += found
            if events:
                parts.append(b'"ephemeral":{"events":[%b]}' % b",".join(events))
        return parts

    def _find_shared(self, listener: Listener, room_id: RoomID) -> _Shared | None:
        request = listener.request
        key = (room_id, request.filter.room.timeline.limit, request.use_state_after)
        if key not in self._shared:
            self._shared[key] = self._read_shared(listener, room_id)
        return self._shared[key]

    def _read_shared(self, listener: Listener, room_id: RoomID) -> _Shared | None:
        head = find_head(self._tx, room_id)
        membership = find_room_membership(self._tx, room_id, listener.request.user_id)
        # A message that merges two branches of a room may change memberships.
        if head is None or membership is None or head.members_position > self._since:
            return None
        viewer = self._viewer(listener)
        if membership.membership != "join" or not is_shareable(viewer):
            return None
        messages = find_shared_messages(self._tx, viewer, membership, head, self._since)
        if messages is None:
            return None
        recount = None
        if self._sections.recount is not None:
            recount = self._sections.recount(self._tx, messages.positions)
            if recount is None:
                return None
        return _Shared(head, messages, recount)

    def _viewer(self, listener: Listener) -> Viewer:
        request = listener.request
        device = (request.user_id, request.requester.device_id)
        return Viewer(
            request.user_id, request.requester.device_id, request.filter, request.full_state, request.use_state_after,
            self._tokens, DeviceMembers(self._told, device, request.since), listener.ignored,
        )  # fmt: skip

    def _is_for(self, listener: Listener, room_id: RoomID, shared: _Shared) -> bool:
        """Returns whether a client is told the same as all others."""
        user_id = listener.request.user_id
        senders = shared.messages.senders
        if user_id in senders or not listener.ignored.isdisjoint(senders):
            return False
        joined = self._joined
        for root in shared.messages.roots:
            if joined.get((user_id, root)) is None:
                if Memberships(self._tx, user_id).at(root) != "join":
                    return False
                joined.put((user_id, root), True)  # a state never changes
        if not listener.request.filter.room.state.lazy_load_members:
            return True
        nids = self._tx.find_all(senders).values()
        return not list_unknown_members(
            self._tx, self._viewer(listener), room_id, nids, StateAt(shared.head.state_root), ()
        )
