"""What is new in a room, read and encoded once for all members who get it.

Theory of operation. A member who was in the room at every event of a span may see all of it, and is told the same as
any other such member, except for parts of `unsigned`, the members that lazy loading leaves out, and the heroes of a
nameless room. So the rest is read once, with prepared events, and kept as `RoomNews`. It depends on the span, the
limit, and on what the room's row says: its newest event, its state, its memberships and its rewrites
(`homeserver.rooms.rewrites`). All of these are part of the key or compared, and they are read in the snapshot that the
answer is made from. So many syncs that wake for one message, and first syncs of a room's members, share the work.

`find_room_entry` returns None for everybody else, whom `homeserver.sync.room` answers: users who were not in the room
all the time, who ignore a sender, or whose filter selects events or fields; and for rooms with events of erased users,
which look different to each reader.

Invariant: a reader gets the same from here as from `joined_room`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from homeserver.api.filters import Filter, RoomEventFilter, RoomFilter, timeline_limit
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import UserID
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.erasure import find_erased
from homeserver.rooms.heads import Head
from homeserver.rooms.history import Everyone
from homeserver.rooms.membership import RoomMembership, list_heroes
from homeserver.rooms.prepared import PreparedEvent, encode_bare, encode_events, list_prepared
from homeserver.rooms.relations import list_aggregations
from homeserver.rooms.resolve import StateAt, head_at
from homeserver.rooms.timeline import END, START, after_position
from homeserver.rooms.visibility import Memberships
from homeserver.sync.room import (
    Timeline,
    Viewer,
    is_named,
    is_summary_news,
    list_by_key,
    list_unknown_members,
    read_state,
    read_summary,
    read_timeline,
)

NEWS_BYTES_MAX = 24 << 20  # the first syncs of some 300 rooms


class RoomNews(msgspec.Struct, frozen=True):
    """What is new in a room to its members after a point of the timeline, or all of it.

    roots: the states before the events. senders: of all events read. shown: the events of the timeline. bundled: the
    positions of those that other events relate to, if the client may lack these. state: the state events to be told.
    summary: counts of the members if they are news.
    """

    timeline: Timeline
    roots: frozenset[bytes]
    senders: frozenset[str]
    shown: Sequence[PreparedEvent]
    bundled: frozenset[int]
    state: Sequence[PreparedEvent]
    summary: Mapping[str, Any] | None
    is_named: bool

    @property
    def size_bytes(self) -> int:
        """About how much memory it takes, with its events."""
        return sum(each.size_bytes for each in self.shown) + sum(each.size_bytes for each in self.state)


def is_shareable(viewer: Viewer) -> bool:
    """Returns whether the viewer's filter lets all events through as they are."""
    filter_ = viewer.filter
    is_whole = filter_.event_fields is None and filter_.event_format == "client" and not viewer.full_state
    return is_whole and filter_.room.timeline.accepts_all and filter_.room.state.accepts_all


def find_room_entry(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, head: Head, since: int, *, whole: bool
) -> dict[str, Any] | None:
    """Does the same as `joined_room` for a shareable viewer. Returns None if it has to be read for this user alone."""
    news = _find_news(tx, viewer, membership, head, since, whole=whole)
    if news is None or not viewer.ignored.isdisjoint(news.senders):
        return None
    memberships = Memberships(tx, viewer.user_id, {membership.event_position: membership.membership})
    if any(memberships.at(root) != "join" for root in news.roots):
        return None
    state = news.state
    heroes: list[UserID] = []
    if news.summary is not None and not news.is_named:
        heroes = list_heroes(tx, head.room_id, viewer.user_id)
    if viewer.loads_lazily:
        state = _list_lazily(tx, viewer, head, news, heroes, whole=whole)
    if not (whole or news.summary is not None or news.shown or news.timeline.limited or state):
        return {}
    entry: dict[str, Any] = {
        "timeline": {
            "events": encode_events(
                tx, head.room_id, news.shown, user_id=viewer.user_id, device_id=viewer.device_id, with_room_id=False,
                encoded=_encode_bundled(tx, viewer, news), memberships=memberships,
            ),
            "limited": news.timeline.limited,
            "prev_batch": viewer.tokens.timeline(news.timeline.start),
        },
        "state_after" if viewer.use_state_after else "state": {"events": encode_bare(tx, state)},
    }  # fmt: skip
    if news.summary is not None:
        entry["summary"] = {"m.heroes": heroes, **news.summary} if heroes else {**news.summary}
    return entry


class SharedMessages(msgspec.Struct, frozen=True):
    """New messages of a room as all members get them who were in it all the time, and sent none of them.

    parts: those of the room's entry in an answer, as JSON without its braces. roots, senders: as in `RoomNews`.
    """

    parts: bytes
    roots: frozenset[bytes]
    senders: frozenset[str]
    positions: Sequence[int]


def find_shared_messages(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, head: Head, since: int
) -> SharedMessages | None:
    """Returns the news of a room in which there are only new messages since a position of the stream.

    viewer: any member. None if the news is not the same for all: it is too much, or has more than messages.
    """
    news = _find_news(tx, viewer, membership, head, since, whole=False)
    if news is None or news.summary is not None or news.state or news.timeline.limited or not news.shown:
        return None
    if any(each.event.state_key is not None or each.is_individual for each in news.shown):
        return None
    memberships = Memberships(tx, viewer.user_id, {membership.event_position: membership.membership})
    if any(memberships.at(root) != "join" for root in news.roots):
        return None  # each event says what the reader's membership was
    events = encode_events(
        tx, head.room_id, news.shown, user_id=viewer.user_id, with_room_id=False, memberships=memberships
    )
    entry = {
        "timeline": {
            "events": events,
            "limited": False,
            "prev_batch": viewer.tokens.timeline(news.timeline.start),
        },
        "state_after" if viewer.use_state_after else "state": {"events": []},
    }
    return SharedMessages(to_json(entry)[1:-1], news.roots, news.senders, [each.event.position for each in news.shown])


def _find_news(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, head: Head, since: int, *, whole: bool
) -> RoomNews | None:
    point = START if whole else after_position(since)
    limit = timeline_limit(viewer.filter.room.timeline.limit)
    cache = tx.sized_cache("room_news", NEWS_BYTES_MAX)
    key = (head.room_nid, point, limit, viewer.use_state_after)
    version = (head.last_position, head.members_position, head.rewrites, head.state_root)
    known: tuple[tuple[int, int, int, bytes], RoomNews | None] | None = cache.get(key)
    if known is not None and known[0] == version:
        return known[1]
    news = _read_news(tx, viewer, membership, head, since, limit, whole=whole)
    if not tx.is_write:
        cache.put(key, (version, news), 200 if news is None else news.size_bytes)
    return news


def _read_news(
    tx: Transaction, viewer: Viewer, membership: RoomMembership, head: Head, since: int, limit: int, *, whole: bool
) -> RoomNews | None:
    room_id, since_point, now = head.room_id, after_position(since), StateAt(head.state_root)
    everyone = replace(viewer, filter=Filter(room=RoomFilter(timeline=RoomEventFilter(limit=limit))))
    reader = Everyone(room_id)
    timeline = read_timeline(tx, everyone, room_id, START if whole else since_point, END, reader)
    if find_erased(tx, reader.senders):
        return None
    before = None if whole else head_at(tx, room_id, since_point)
    with_summary = whole or is_summary_news(tx, everyone, membership, before, now, since)
    timeline, state = read_state(tx, everyone, room_id, before, now, timeline, ())
    if not timeline.events:  # the token of an empty timeline changes all the time
        return None
    positions = [event.position for event in timeline.events]
    return RoomNews(
        timeline,
        frozenset(reader.roots),
        frozenset(reader.senders),
        list_prepared(tx, head, positions),
        frozenset(each.parent for each in list_aggregations(tx, positions)) if timeline.limited else frozenset(),
        list_prepared(tx, head, [event.position for event in state]),
        read_summary(tx, room_id, ()) if with_summary else None,
        is_named(tx, now),
    )


def _list_lazily(
    tx: Transaction, viewer: Viewer, head: Head, news: RoomNews, heroes: Sequence[UserID], *, whole: bool
) -> Sequence[PreparedEvent]:
    """Returns the state events for a client that loads members lazily, and notes which members it gets."""
    needed: set[str] = {each.event.sender for each in news.shown} | set(heroes)
    state = news.state
    if whole:
        needed.add(viewer.user_id)
        state = [each for each in state if each.event.type != "m.room.member" or each.event.state_key in needed]
    else:
        nids = {nid for user_id in needed if (nid := tx.find(user_id)) is not None}
        shown = list_by_key(tx, news.timeline)
        unknown = list_unknown_members(tx, viewer, head.room_id, nids, StateAt(head.state_root), shown).values()
        if unknown:
            told = {each.event.position: each for each in state}
            told |= {each.event.position: each for each in list_prepared(tx, head, unknown)}
            in_timeline = frozenset() if viewer.use_state_after else {each.event.position for each in news.shown}
            state = [told[position] for position in sorted(told) if position not in in_timeline]
    for each in (*state, *news.shown):
        if each.event.type == "m.room.member" and each.event.state_key is not None:
            if (nid := tx.find(each.event.state_key)) is not None:
                viewer.members.tell(head.room_id, nid, each.event.position)
    return state


def _encode_bundled(tx: Transaction, viewer: Viewer, news: RoomNews) -> dict[int, bytes]:
    """Returns the events that other events relate to, as JSON, by position."""
    if not news.bundled:
        return {}
    events = [each.event for each in news.shown if each.event.position in news.bundled]
    shown = bundled_events(
        tx, events, user_id=viewer.user_id, device_id=viewer.device_id, ignored=viewer.ignored, with_room_id=False
    )
    return {event.position: to_json(each) for event, each in zip(events, shown, strict=True)}
