"""Gaps in the history of a room: where they are, and which places the events get that fill them.

Theory of operation. The table `missing_events` has every ancestor of a timeline event that has no place in the graph,
with that timeline event, its child. A gap lies just before each child. Events that are rejected or soft-failed are not
in the timeline, so `look_behind` looks through them for the ancestors behind.

- When an event gets its place, it stops being missing (`delete_missing`), and its own missing ancestors are noted
  (`note_missing`): for itself if it is in the timeline, else for the children that it was missing for.
- Readers of a timeline stop at the newest gap (`find_newest_gap`), so that nobody is shown history with holes.
- Backfill asks other servers for what is missing near a point (`list_missing`), and stores what it gets at the
  orderings that `find_places` chooses: below the child, and in the order of the events.
- An event that is fetched by its time (`find_gap_at`) goes to the middle of its gap, which leaves a gap on both sides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.rooms.archive.reading import has_archived
from homeserver.rooms.envelope import event_id_of_key, event_key
from homeserver.rooms.events import to_events
from homeserver.rooms.heads import Head
from homeserver.rooms.storage import PlacedEvent, Status, StoredEvent, find_positions, list_in_timeline, list_stored
from homeserver.rooms.timeline import START, list_backwards, list_by_timestamp, list_forwards

BEHIND_EVENTS_MAX = 100  # how many ancestors are searched for one event
BEGINNING_SHIFT = 40  # the gap before the first event has room for so many bits of orderings


class Past(NamedTuple):
    """The events just behind an event. `missing`: ancestors without a place in the graph."""

    positions: frozenset[int]
    missing: frozenset[EventID]


NOTHING_BEHIND = Past(frozenset(), frozenset())


def look_behind(tx: Transaction, event: Event) -> Past:
    """Returns the timeline events that the event follows, looking through rejected and soft-failed ones.

    No timeline event follows those. The search is bounded, because a banned server could chain them indefinitely.
    """
    found: set[int] = set()
    missing: set[EventID] = set()
    waiting = set(event.prev_events)
    while waiting and len(found) < BEHIND_EVENTS_MAX:
        positions = find_positions(tx, waiting)
        rows = list_stored(tx, set(positions.values()) - found)
        missing.update(waiting - positions.keys())
        missing.update(row.event_id for row in rows.values() if not isinstance(row, PlacedEvent))
        placed = {position: row for position, row in rows.items() if isinstance(row, PlacedEvent)}
        found.update(placed)
        through = [row for row in placed.values() if row.status != Status.TIMELINE]
        waiting = {prev_id for each in to_events(tx, through) for prev_id in each.prev_events}
    return Past(frozenset(found), frozenset(missing))


def delete_missing(tx: Transaction, head: Head, event: Event) -> list[int]:
    """Returns the positions of timeline events that cite this one, and removes it from the missing events."""
    key = event_key(event.event_id)
    children = tx.values("SELECT child FROM missing_events WHERE room_nid = ? AND event_id = ?", head.room_nid, key)
    if children:
        tx.run("DELETE FROM missing_events WHERE room_nid = ? AND event_id = ?", head.room_nid, key)
    return children


def note_missing(tx: Transaction, head: Head, children: Sequence[int], missing: Collection[EventID]) -> None:
    """Stores which ancestors of timeline events have no place in the graph."""
    if missing:
        tx.many(
            "INSERT INTO missing_events (room_nid, event_id, child) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            [(head.room_nid, event_key(event_id), child) for event_id in missing for child in children],
        )


class Gap(NamedTuple):
    """A gap between two points of a timeline. nearest_ts: the time of the nearest event that is stored, if any."""

    low: int
    high: int
    nearest_ts: int | None


def find_gap_at(tx: Transaction, room_id: RoomID, ts: int, direction: Literal["f", "b"]) -> Gap | None:
    """Returns the gap that may have an event nearer to a time than the ones that are stored, None if there is none."""
    nearest = next(iter(list_by_timestamp(tx, room_id, ts, direction, 1)), None)
    if (nearest is None and direction == "f") or (nearest is not None and nearest.origin_server_ts == ts):
        return None
    if direction == "f":
        after = nearest
    else:
        after = next(iter(list_forwards(tx, room_id, START if nearest is None else nearest.ordering, 1)), None)
    if after is None or find_newest_gap(tx, room_id, after.ordering - 1, after.ordering) is None:
        return None
    before = next(iter(list_backwards(tx, room_id, after.ordering - 1, 1)), None)
    low = after.ordering - (1 << BEGINNING_SHIFT) if before is None else before.ordering
    return Gap(low, after.ordering, None if nearest is None else nearest.origin_server_ts)


def find_place_within(gap: Gap) -> int | None:
    """Returns the ordering in the middle of a gap, None if there is no room."""
    middle = (gap.low + gap.high) // 2
    return middle if middle > gap.low else None


def find_newest_gap(tx: Transaction, room_id: RoomID, since: int, upto: int) -> int | None:
    """Returns the ordering of the newest event in since < ordering ≤ upto with missing history just before it.

    Returns None if there is none.
    """
    row = tx.one(
        "SELECT MAX(e.ordering) FROM missing_events m JOIN events e ON e.position = m.child"
        " WHERE m.room_nid = ? AND e.ordering > ? AND e.ordering <= ?",
        tx.find(room_id),
        since,
        upto,
    )
    return None if row is None else row[0]


def list_missing(tx: Transaction, room_id: RoomID, point: int, limit: int) -> list[tuple[EventID, StoredEvent]]:
    """Returns ancestors that are not in the timeline, each with a child that is not after `point`, newest first.

    A page of history ends just before its oldest event. Missing events there lie behind the event after the point.
    """
    rows = tx.all(
        "SELECT m.event_id, m.child FROM missing_events m JOIN events e ON e.position = m.child"
        " WHERE m.room_nid = ? AND e.ordering <= ? ORDER BY e.ordering DESC LIMIT ?",
        tx.find(room_id),
        point + 1,
        limit,
    )
    stored = list_stored(tx, {child for _, child in rows})
    return [(event_id_of_key(bytes(key)), stored[child]) for key, child in rows]


def find_places(tx: Transaction, room_id: RoomID, events: Sequence[Event]) -> dict[EventID, int]:
    """Returns orderings for events of the past, given oldest first: each just before the events that follow it.

    Leaves out events that have a place already, and events that no timeline event follows.
    """
    room_nid = tx.find(room_id)
    rows = list_stored(tx, find_positions(tx, [event.event_id for event in events]).values())
    placed = {row.event_id: row.ordering for row in rows.values() if isinstance(row, PlacedEvent)}
    places: dict[EventID, int] = {}
    bounds: dict[EventID, int] = {}  # the earliest of the events that follow an event
    taken: set[int] = set()
    for event in reversed(events):
        ordering = placed.get(event.event_id)
        if event.event_id not in placed:
            children = tx.values(
                "SELECT child FROM missing_events WHERE room_nid = ? AND event_id = ?",
                room_nid,
                event_key(event.event_id),
            )
            after = [row.ordering for row in list_in_timeline(tx, children).values()]
            if event.event_id in bounds:
                after.append(bounds[event.event_id])
            if after:
                ordering = places[event.event_id] = _get_free_place(tx, room_nid, min(after) - 1, taken)
                taken.add(ordering)
        if ordering is not None:
            for event_id in event.prev_events:
                bounds[event_id] = min(ordering, bounds.get(event_id, ordering))
    return places


def _get_free_place(tx: Transaction, room_nid: int | None, place: int, taken: Collection[int]) -> int:
    """Returns the highest free ordering up to `place`."""
    while True:
        while place in taken:
            place -= 1
        if tx.one("SELECT 1 FROM events WHERE room_nid = ? AND ordering = ?", room_nid, place) is None:
            if not has_archived(tx, room_nid, place):
                return place
            place -= 1
            continue
        (beyond,) = tx.values(
            "SELECT MAX(e.ordering) FROM events e WHERE e.room_nid = ? AND e.ordering <= ? AND NOT EXISTS"
            " (SELECT 1 FROM events before WHERE before.room_nid = e.room_nid AND before.ordering = e.ordering - 1)",
            room_nid,
            place,
        )
        place = beyond - 1
