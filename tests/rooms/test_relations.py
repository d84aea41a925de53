"""What is bundled with the events of a room follows from the events alone, in whatever order they came."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.federation.canonical_json import NotCanonical
from homeserver.federation.event import Event, InvalidEvent
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.federation.room_versions import ROOM_VERSIONS
from homeserver.rooms.bundles import bundled_events
from homeserver.rooms.gaps import find_places
from homeserver.rooms.receive import Received
from homeserver.rooms.relations import Wanted, has_backlog, list_parents_below, store_backlog
from homeserver.rooms.storage import Status, TimelineEvent
from homeserver.rooms.timeline import END, list_backwards
from tests.federation.rooms_for_tests import ALICE, BOB, Room, new_room
from tests.support.consistency import check_consistency
from tests.support.consistent_relations import is_edit, relation_of
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, Rooms, opened_rooms

MESSAGE = "m.room.message"
RELATIONS = ["m.replace", "m.replace", "m.thread", "m.thread", "m.reference", "m.annotation", "org.example.other"]

numbers = st.integers(0, 30)
actions = st.lists(
    st.tuples(st.sampled_from(["say", "relate", "relate", "relate", "redact"]), numbers, numbers, numbers),
    min_size=10,
    max_size=30,
)


def relating(parent: EventID, number: int) -> dict[str, Any]:
    """The content of an event that relates to the parent."""
    rel_type = RELATIONS[number % len(RELATIONS)]
    content: dict[str, Any] = {"body": "x", "m.relates_to": {"rel_type": rel_type, "event_id": parent, "key": "x"}}
    return content if number % 5 == 0 else {**content, "m.new_content": {"body": f"{number}"}}


class Peer:
    """A room of a peer and what its people do there. before: the state before each event."""

    def __init__(self, version: str) -> None:
        self.room: Room = new_room(ROOM_VERSIONS[version])
        self.room.member(BOB, "join")
        self.events: list[Event] = []
        self.before: dict[EventID, list[EventID]] = {}

    def act(self, what: str, a: int, b: int, c: int) -> None:
        sender = (ALICE, BOB)[a % 2]
        known = [event.event_id for event in self.events]
        state = [event.event_id for event in self.room.state.values()]
        self.room.clock -= 1000 * (c % 3)  # timestamps may be equal, or go back
        if what == "say" or not known:
            event = self.room.send(sender, MESSAGE, {"body": f"{a} {b} {c}"})
        elif what == "relate":
            event = self.room.send(sender, MESSAGE, relating(known[b % len(known)], c))
        else:
            redacted = known[b % len(known)]
            content = {"redacts": redacted} if self.room.version.redacts_in_content else {}
            event = self.room.send(ALICE, "m.room.redaction", content, redacts=redacted)
        self.before[event.event_id] = state
        self.events.append(event)


async def backfill(rooms: Rooms, peer: Peer, events: list[Event]) -> None:
    """Stores events of the past, given oldest first."""

    def find(tx: Transaction) -> dict[EventID, int]:
        return find_places(tx, RoomID(str(peer.room.room_id)), events)

    places = await rooms.write(find)
    for event in events:
        outcome = await rooms.receive(event, state=peer.before[event.event_id], ordering=places[event.event_id])
        assert isinstance(outcome, Received), outcome


def summary(tx: Transaction, events: list[TimelineEvent]) -> dict[str, Any]:
    """The bundles of the events as clients get them, reduced to IDs and numbers."""
    found = {}
    for answer in bundled_events(tx, events, user_id=OUR_ALICE):
        bundle = answer["unsigned"].get("m.relations", {})
        reduced: dict[str, Any] = {}
        if "m.replace" in bundle:
            reduced["m.replace"] = bundle["m.replace"]["event_id"]
        if "m.reference" in bundle:
            reduced["m.reference"] = [each["event_id"] for each in bundle["m.reference"]["chunk"]]
        if "m.thread" in bundle:
            thread = bundle["m.thread"]
            latest = thread["latest_event"]["event_id"]
            reduced["m.thread"] = (latest, thread["count"], thread["current_user_participated"])
        if reduced:
            found[answer["event_id"]] = reduced
    return found


def walk(events: list[TimelineEvent]) -> dict[str, Any]:
    """The same from the events alone, given oldest first."""
    known = {event.event_id: event for event in events}
    related: dict[str, dict[str, list[TimelineEvent]]] = {}
    for event in events:
        relation = relation_of(event)
        if relation is not None and relation["event_id"] in known:
            related.setdefault(relation["event_id"], {}).setdefault(relation["rel_type"], []).append(event)
    found = {}
    for event_id, children in related.items():
        parent = known[event_id]
        own = relation_of(parent)
        reduced: dict[str, Any] = {}
        edits = [each for each in children.get("m.replace", ()) if is_edit(parent, each)]
        if edits and parent.redacted_by is None and (own is None or own["rel_type"] != "m.replace"):
            reduced["m.replace"] = max(edits, key=lambda each: (each.origin_server_ts, each.event_id)).event_id
        if "m.reference" in children:
            reduced["m.reference"] = [each.event_id for each in children["m.reference"]]
        if "m.thread" in children and own is None:
            replies = children["m.thread"]
            participated = OUR_ALICE in {parent.sender, *(each.sender for each in replies)}
            reduced["m.thread"] = (replies[-1].event_id, len(replies), participated)
        if reduced and parent.state_key is None:
            found[event_id] = reduced
    return found


async def check_bundles(rooms: Rooms, room_id: RoomID) -> None:
    events = (await rooms.read(list_backwards, room_id, END, 10_000))[::-1]
    assert await rooms.read(summary, events) == walk(events)


async def run(version: str, old: list[Any], new: list[Any], own: list[Any], size: int) -> None:
    async with opened_rooms() as rooms:
        peer = Peer(version)
        for action in old:
            peer.act(*action)
        past = list(peer.events)
        await rooms.adopt(peer.room)
        for action in new:
            peer.act(*action)
        room_id = RoomID(str(peer.room.room_id))
        await rooms.receive_all(peer.events[len(past) :])
        mine: list[EventID] = []
        for what, a, b, c in own:  # also with events that are not here yet
            try:
                if what == "redact" and mine:
                    await rooms.append(room_id, OUR_ALICE, "m.room.redaction", {}, redacts=mine[b % len(mine)])
                else:
                    content = relating(peer.events[b % len(peer.events)].event_id, c + a % 2)
                    mine.append((await rooms.append(room_id, OUR_ALICE, MESSAGE, content)).event_id)
            except MatrixError as error:  # the same annotation, or a thread within a thread
                assert error.status == 400
        await check_bundles(rooms, room_id)
        while past:
            await backfill(rooms, peer, past[-size:])
            del past[-size:]
            await check_bundles(rooms, room_id)


@seed(21)
@settings(max_examples=share_of_examples(0.5))
@given(st.sampled_from(["1", "10", "12"]), actions, actions, actions, st.sampled_from([1, 3, 10, 50]))
def test_bundles_follow_from_the_events(
    version: str, old: list[Any], new: list[Any], own: list[Any], size: int
) -> None:
    trio.run(run, version, old, new, own, size)


async def test_relations_of_older_databases_are_stored_step_by_step(rooms: Rooms) -> None:
    room_id = await rooms.create()
    root = await rooms.append(room_id, OUR_ALICE)
    for number in range(30):
        await rooms.append(room_id, OUR_ALICE, MESSAGE, relating(root.event_id, 2 + 7 * number))

    def forget(tx: Transaction) -> None:
        for table in ("relations", "aggregations", "thread_senders"):
            tx.run(f"DELETE FROM {table}")
        tx.run("UPDATE relations_backlog SET position = 0, upto = ?", tx.position)

    await rooms.write(forget)
    await rooms.append(room_id, OUR_ALICE, MESSAGE, relating(root.event_id, 2))
    steps = 1
    while await rooms.write(store_backlog, 10):
        steps += 1
    assert steps > 3
    assert not await rooms.read(has_backlog)
    await rooms.read(check_consistency)
    await check_bundles(rooms, room_id)


HOSTILE: list[Any] = [
    "\ud800",
    {"rel_type": "\ud800", "event_id": "PARENT"},
    {"rel_type": "m.thread\0", "event_id": "PARENT"},
    {"rel_type": "é" * 200, "event_id": "PARENT"},
    {"rel_type": "m.thread", "event_id": "$\ud800"},
    {"rel_type": "m.thread", "event_id": "$\0"},
    {"rel_type": "m.thread", "event_id": "$" + "\0" * 200},
    {"rel_type": "m.thread", "event_id": "$" + "é" * 200},
    {"rel_type": "m.annotation", "event_id": "PARENT", "key": "\ud800"},
    {"rel_type": "m.annotation", "event_id": "PARENT", "key": {"a": [1]}},
    {"rel_type": "m.replace", "event_id": "PARENT", "key": 1 << 80},
    {"rel_type": {"a": 1}, "event_id": ["PARENT"]},
    [[[[[]]]]],
]


@pytest.mark.parametrize("version", ["1", "12"])
@pytest.mark.parametrize("relates_to", HOSTILE)
async def test_hostile_relations_of_peers_break_nothing(rooms: Rooms, version: str, relates_to: Any) -> None:
    peer = Peer(version)
    await rooms.adopt(peer.room)
    peer.act("say", 0, 0, 0)
    if isinstance(relates_to, dict) and relates_to["event_id"] == "PARENT":
        relates_to = {**relates_to, "event_id": peer.events[0].event_id}
    try:
        event = peer.room.send(ALICE, MESSAGE, {"m.relates_to": relates_to})
    except (InvalidEvent, NotCanonical):
        return  # no server could sign it
    outcomes = await rooms.receive_all([peer.events[0], event])
    assert [outcome.status for outcome in outcomes] == [Status.TIMELINE] * 2
    await check_bundles(rooms, RoomID(str(peer.room.room_id)))


async def test_an_event_that_relates_to_itself_is_harmless(rooms: Rooms) -> None:
    peer = Peer("1")  # in which servers choose event IDs
    await rooms.adopt(peer.room)
    peer.room.numbers[0] += 1
    event_id = EventID(f"$event{peer.room.numbers[0] + 1}:alpha.test")
    event = peer.room.send(ALICE, MESSAGE, relating(event_id, 2))
    assert event.event_id == event_id
    await rooms.receive_all([event])
    await check_bundles(rooms, RoomID(str(peer.room.room_id)))


async def test_events_that_relate_to_each_other_are_harmless(rooms: Rooms) -> None:
    peer = Peer("1")
    await rooms.adopt(peer.room)
    second_id = EventID(f"$event{peer.room.numbers[0] + 2}:alpha.test")
    first = peer.room.build(ALICE, MESSAGE, relating(second_id, 2))
    peer.room.append(first)
    second = peer.room.build(ALICE, MESSAGE, relating(first.event_id, 2))
    assert second.event_id == second_id
    await rooms.receive_all([first, second])
    room_id = RoomID(str(peer.room.room_id))
    await check_bundles(rooms, room_id)
    position = (await rooms.stored(first.event_id)).position
    assert len(await rooms.read(list_parents_below, position, Wanted(), 100)) == 2
