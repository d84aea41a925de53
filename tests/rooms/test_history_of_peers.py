"""History that comes later takes its place before what follows on it."""

from __future__ import annotations

import pytest

from homeserver.database import Transaction
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.gaps import find_places, list_missing
from homeserver.rooms.receive import Received
from homeserver.rooms.storage import Status
from homeserver.rooms.timeline import END
from tests.federation.rooms_for_tests import ALICE, BOB, Room, new_room
from tests.support.rooms import OUR_ALICE, Rooms


class Past:
    """A room of a peer, with the state before each of its events."""

    def __init__(self, version: str = "12") -> None:
        self.room = new_room(ROOM_VERSIONS[version])
        self.room.member(BOB, "join")
        self.before: dict[EventID, list[EventID]] = {}
        self.events: list[Event] = []

    def say(self, count: int, room: Room | None = None) -> list[Event]:
        room = room or self.room
        events = []
        for number in range(count):
            state = [event.event_id for event in room.state.values()]
            event = room.send(BOB, "m.room.message", {"body": f"{len(self.events)} {number}"})
            self.before[event.event_id] = state
            events.append(event)
        self.events += events
        return events


async def take_in(rooms: Rooms, past: Past, events: list[Event]) -> None:
    """Does the work of the backfill driver: places all of the events, and sets the state before the first."""

    def find(tx: Transaction) -> dict[EventID, int]:
        return find_places(tx, past.room.room_id, events)

    places = await rooms.write(find)
    assert places.keys() == set(ids(events))
    for event in events:
        outcome = await rooms.receive(event, state=past.before[event.event_id], ordering=places[event.event_id])
        assert isinstance(outcome, Received) and outcome.status == Status.TIMELINE, outcome


def ids(events: list[Event]) -> list[EventID]:
    return [event.event_id for event in events]


@pytest.mark.parametrize("size", [1, 3, 10])
async def test_backfilled_history_is_placed_before_the_join(rooms: Rooms, size: int) -> None:
    past = Past()
    old = past.say(30)
    join = await rooms.adopt(past.room)
    new = past.say(2)
    await rooms.receive_all(new)
    for start in range(30 - size, -1, -size):
        await take_in(rooms, past, old[start : start + size])
        assert await rooms.timeline(past.room.room_id) == [*ids(old[start:]), join.event_id, *ids(new)]
    assert await rooms.extremities(past.room.room_id) == {new[-1].event_id}


async def test_a_gap_is_filled_in_its_place(rooms: Rooms) -> None:
    past = Past()
    join = await rooms.adopt(past.room)
    first, gap, last = past.say(3), past.say(4), past.say(2)
    await rooms.receive_all(first)
    await rooms.receive(last[0], state=past.before[last[0].event_id])
    await rooms.receive_all(last[1:])
    await take_in(rooms, past, gap)
    assert await rooms.timeline(past.room.room_id) == [join.event_id, *ids([*first, *gap, *last])]
    missing = await rooms.read(list_missing, past.room.room_id, END, 10)
    assert [child.event_id for _, child in missing] == [join.event_id]


async def test_two_gaps_are_filled_independently(rooms: Rooms) -> None:
    past = Past()
    join = await rooms.adopt(past.room)
    parts = [past.say(3) for _ in range(5)]
    for part in (parts[0], parts[2], parts[4]):
        await rooms.receive(part[0], state=past.before[part[0].event_id])
        await rooms.receive_all(part[1:])
    await take_in(rooms, past, parts[3])
    await take_in(rooms, past, parts[1])
    expected = [event_id for part in parts for event_id in ids(part)]
    assert await rooms.timeline(past.room.room_id) == [join.event_id, *expected]


async def test_events_from_before_an_earlier_gap_are_placed_before_it(rooms: Rooms) -> None:
    """A peer answers with as many events as were asked for: some that are known, and some from before the next gap."""
    past = Past()
    oldest = past.say(3)
    join = await rooms.adopt(past.room)
    known, gap, last = past.say(2), past.say(4), past.say(1)
    await rooms.receive_all(known)
    await rooms.receive(last[0], state=past.before[last[0].event_id])
    answer = [*oldest, join, *known, *gap]
    places = await rooms.read(find_places, past.room.room_id, answer)
    assert places.keys() == {*ids(oldest), *ids(gap)}
    for event in answer:
        if event.event_id in places:
            ordering, state = places[event.event_id], past.before[event.event_id]
            assert isinstance(await rooms.receive(event, state=state, ordering=ordering), Received)
    assert await rooms.timeline(past.room.room_id) == [*ids(oldest), join.event_id, *ids([*known, *gap, *last])]


async def test_a_gap_is_found_from_the_end_of_a_page(rooms: Rooms) -> None:
    """A page that ends with the child of a gap gives the point just before that child."""
    past = Past()
    old = past.say(2)
    join = await rooms.adopt(past.room)
    child = await rooms.stored(join.event_id)
    assert child.ordering is not None
    for point in (END, child.ordering, child.ordering - 1):
        (missing,) = await rooms.read(list_missing, past.room.room_id, point, 10)
        assert (missing[0], missing[1].event_id) == (old[-1].event_id, join.event_id)
    assert await rooms.read(list_missing, past.room.room_id, child.ordering - 2, 10) == []


async def test_after_a_complete_backfill_nothing_is_missing(rooms: Rooms) -> None:
    past = Past()
    whole = list(past.room.events.values())
    await rooms.adopt(past.room)
    assert await rooms.read(list_missing, past.room.room_id, END, 1)
    places = await rooms.read(find_places, past.room.room_id, whole)
    for event in whole:
        state = [] if event.type == "m.room.create" else None
        outcome = await rooms.receive(event, state=state, ordering=places[event.event_id])
        assert isinstance(outcome, Received) and outcome.status == Status.TIMELINE, outcome
    assert not await rooms.read(list_missing, past.room.room_id, END, 1)
    assert (await rooms.timeline(past.room.room_id))[:-1] == ids(whole)


async def test_rejected_history_is_not_requested_again(rooms: Rooms) -> None:
    past = Past()
    (old,) = past.say(1)
    state = [event.event_id for event in past.room.state.values()]
    bad = past.room.append(past.room.build(BOB, "m.room.join_rules", {"join_rule": "public"}, ""))
    past.room.state["m.room.join_rules", ""] = past.room.events[state[-2]]
    assert past.room.state["m.room.join_rules", ""].type == "m.room.join_rules"
    join = await rooms.adopt(past.room)
    places = await rooms.read(find_places, past.room.room_id, [bad])
    outcome = await rooms.receive(bad, state=state, ordering=places[bad.event_id])
    assert isinstance(outcome, Received) and outcome.status == Status.REJECTED
    # What comes before it is now what the join misses.
    (missing,) = await rooms.read(list_missing, past.room.room_id, END, 10)
    assert (missing[0], missing[1].event_id) == (old.event_id, join.event_id)
    await take_in(rooms, past, [old])
    assert await rooms.timeline(past.room.room_id) == [old.event_id, join.event_id]


async def test_unrelated_events_are_not_accepted_as_history(rooms: Rooms) -> None:
    past = Past()
    await rooms.adopt(past.room)
    assert await rooms.read(find_places, past.room.room_id, past.say(3)) == {}


async def test_two_branches_of_history_are_placed(rooms: Rooms) -> None:
    past = Past()
    branch = past.room.fork()
    left, right = past.say(3), past.say(3, branch)
    past.room.last = [left[-1], right[-1]]
    join = await rooms.adopt(past.room)
    await take_in(rooms, past, left)
    await take_in(rooms, past, right)
    timeline = await rooms.timeline(past.room.room_id)
    assert timeline[-1] == join.event_id
    assert set(timeline[:-1]) == {*ids(left), *ids(right)}
    for part in (left, right):
        places = [timeline.index(event.event_id) for event in part]
        assert places == sorted(places)


async def test_history_does_not_change_the_current_state(rooms: Rooms) -> None:
    past = Past()
    old = past.room.send(ALICE, "m.room.topic", {"topic": "old"}, "")
    past.room.send(ALICE, "m.room.topic", {"topic": "new"}, "")
    await rooms.adopt(past.room)
    before = await rooms.state(past.room.room_id)
    state = [event.event_id for event in past.room.state.values() if event.type not in ("m.room.topic",)]
    state.remove(past.room.state["m.room.member", OUR_ALICE].event_id)
    outcome = await rooms.receive(old, state=state, ordering=5)
    assert isinstance(outcome, Received) and outcome.status == Status.TIMELINE
    assert await rooms.state(past.room.room_id) == before
