"""Reads a room's timeline for a user, on behalf of `/sync`, `/messages` and `/context`.

Theory of operation. `read_page` reads from one point of the timeline towards another, in batches, and keeps the events
that the user may see and that the filter wants. It stops at the first of:

- the limit: one event more than the limit was found, so there certainly are more;
- the cap on work: with a selective filter at most SCAN_FACTOR times the requested number of events are read. There may
  be more, unless the types of the remaining events (cheap to read) show that the filter rejects all of them;
- a gap, when reading backwards: other servers have events between this point and the next older event that we have. The
  page ends there, so that a client that goes on from `end` makes us fetch them;
- the point `to`: there are no more.

`start` and `end` are points of the timeline, see `homeserver.rooms.timeline`. Reading on from `end` misses nothing and
repeats nothing, as long as user and filter stay the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from homeserver.api.filters import RoomEventFilter, wants, wants_room
from homeserver.database import DatabaseDamaged, Transaction
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.gaps import find_newest_gap
from homeserver.rooms.storage import SomeEvent, StoredEvent, TimelineEvent, without_withheld
from homeserver.rooms.timeline import find_types, list_backwards, list_forwards
from homeserver.rooms.visibility import filter_visible

SCAN_FACTOR = 10  # with a selective filter this many times the requested events may be read
TYPES_SCANNED_MAX = 2_000  # events of which only the types are read: some milliseconds of work


class Reader(msgspec.Struct, frozen=True):
    """A user who reads a room. `ignored`: users whose events are hidden, except state events."""

    user_id: str
    room_id: RoomID
    filter: RoomEventFilter
    ignored: frozenset[str] = frozenset()

    def list_shown(self, tx: Transaction, events: Sequence[TimelineEvent]) -> list[TimelineEvent]:
        """Returns the events that the user may see, that the filter accepts, and whose sender is not ignored."""
        visible = filter_visible(tx, self.user_id, self.room_id, events)
        if self.ignored:
            visible = [event for event in visible if event.is_state or event.sender not in self.ignored]
        return list_wanted(self.filter, visible)


class Everyone(msgspec.Struct, frozen=True):
    """Reads a room for all who were in it at each of the events. It notes what their view depends on.

    roots: the states before the events that were read. senders: of these events.
    """

    room_id: RoomID
    filter: RoomEventFilter = msgspec.field(default_factory=RoomEventFilter)
    roots: set[bytes] = msgspec.field(default_factory=set)
    senders: set[str] = msgspec.field(default_factory=set)

    def list_shown(self, tx: Transaction, events: Sequence[TimelineEvent]) -> list[TimelineEvent]:
        """Returns the events without redactions that have no effect."""
        shown = without_withheld(tx, events)
        self.roots.update([event.state_before for event in shown])
        self.senders.update([event.sender for event in shown])
        return list(shown)


class Administrator(msgspec.Struct, frozen=True):
    """Reads a room for an administrator of the server, who sees everything."""

    room_id: RoomID
    filter: RoomEventFilter

    def list_shown(self, tx: Transaction, events: Sequence[TimelineEvent]) -> list[TimelineEvent]:
        """Returns the events that the filter accepts, without redactions that have no effect."""
        return list_wanted(self.filter, list(without_withheld(tx, events)))


class Page(NamedTuple):
    """Events in the order of reading. `start`: the point before the first event read; `end`: where to continue.

    more: whether there are more events beyond `end`, or may be. at_gap: the page ends where other servers have more.
    """

    events: list[TimelineEvent]
    start: int
    end: int
    more: bool
    at_gap: bool = False


def read_page(
    tx: Transaction,
    reader: Reader | Everyone | Administrator,
    point: int,
    to: int,
    limit: int,
    *,
    forwards: bool = False,
) -> Page:
    """Reads at most `limit` events between two points of the timeline: `to` < `point`, or vice versa if `forwards`."""
    filter_, room_id = reader.filter, reader.room_id
    if filter_.types == [] or not wants_room(filter_, room_id):
        return Page([], point, point, more=False)
    gap = None if forwards else find_newest_gap(tx, room_id, to, point)
    if gap is not None:
        to = gap - 1
    found: list[TimelineEvent] = []
    start, end, scanned = point, point, 0
    while True:
        list_events = list_forwards if forwards else list_backwards
        is_next_damaged = False
        try:
            batch = tx.attempt(list_events, tx, room_id, end, limit + 1, to)
        except DatabaseDamaged:  # if it is only the event beyond the page, the next page is the one that fails
            batch, is_next_damaged = list_events(tx, room_id, end, limit, to), True
        if batch:
            start = point_beside(batch[0], is_after=not forwards) if scanned == 0 else start
            end = point_beside(batch[-1], is_after=forwards)
            scanned += len(batch)
            found += reader.list_shown(tx, batch)
        if is_next_damaged and len(found) <= limit:
            return Page(found, start, end, more=True)
        if len(found) > limit:
            del found[limit:]
            end = point_beside(found[-1], is_after=forwards) if found else point
            return Page(found, start, end, more=True)
        if len(batch) <= limit:
            if gap is not None:
                return Page(found, start, to, more=True, at_gap=True)
            return Page(found, start, end, more=False)
        if scanned > SCAN_FACTOR * (limit + 1):
            low, high = (end, to) if forwards else (to, end)
            is_rest_hidden = _is_hidden(tx, filter_, room_id, low, high)
            if is_rest_hidden and gap is not None:
                return Page(found, start, to, more=True, at_gap=True)
            return Page(found, start, end, more=not is_rest_hidden)


def list_wanted(filter_: RoomEventFilter, events: list[SomeEvent]) -> list[SomeEvent]:
    """Returns the events of rooms that the filter accepts."""
    return events if filter_.accepts_all else [event for event in events if _wants(filter_, event)]


def _wants(filter_: RoomEventFilter, event: StoredEvent) -> bool:
    if not (wants_room(filter_, event.room_id) and wants(filter_, event.type, event.sender)):
        return False
    return filter_.contains_url is None or ("url" in event.content) == filter_.contains_url


def point_beside(event: TimelineEvent, *, is_after: bool) -> int:
    """Returns the point of the timeline just after or just before an event."""
    return event.ordering if is_after else event.ordering - 1


def _is_hidden(tx: Transaction, filter_: RoomEventFilter, room_id: RoomID, since_point: int, upto_point: int) -> bool:
    """Returns whether the filter certainly rejects all events between two points."""
    if filter_.types is None and not filter_.not_types:
        return False
    types = find_types(tx, room_id, since_point, upto_point, TYPES_SCANNED_MAX)
    return types is not None and not any(wants(filter_, event_type, None) for event_type in types)
