"""A client that syncs step by step ends up with the same state as one that syncs afresh, whenever they sync."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver.errors import MatrixError
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID
from homeserver.rooms.receive import Received
from homeserver.users.account_data import SCHEMA as ACCOUNT_DATA
from tests.federation.rooms_for_tests import BOB, CAROL, Room
from tests.support.archive import archive_all
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, OUR_BOB, OUR_CAROL, Rooms, opened_rooms, room_of_peer
from tests.sync.clients import SyncClient

OURS = [OUR_ALICE, OUR_BOB, OUR_CAROL]
THEIRS = [BOB, CAROL]
PLACES = [("m.room.topic", "topic"), ("m.room.name", "name"), ("org.example.thing", "value")]

numbers = st.integers(0, 7)
steps = st.lists(
    st.tuples(
        st.sampled_from(
            ["say"] * 3 + ["state"] * 4 + ["member"] * 5 + ["redact", "branch"] + ["deliver"] * 4
            + ["build"] * 6 + ["sync"] * 6 + ["archive"]
        ),
        numbers,
        numbers,
        numbers,
    ),
    min_size=60,
    max_size=80,
)  # fmt: skip


@dataclass
class World:
    """Rooms of this server, what peers do in them, and clients that look now and then."""

    rooms: Rooms
    room_ids: list[RoomID]
    clients: list[SyncClient]
    sent: dict[RoomID, list[EventID]] = field(default_factory=dict)
    branches: list[Room] = field(default_factory=list)
    undelivered: list[list[Event]] = field(default_factory=list)

    async def do(self, what: str, a: int, b: int, c: int) -> None:
        room_id = self.room_ids[a % len(self.room_ids)]
        try:
            await getattr(self, f"_{what}")(room_id, a, b, c)
        except MatrixError:
            pass  # not allowed, and hence nothing has happened

    async def _say(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        event = await self.rooms.append(room_id, OURS[b % 3], content={"body": f"{a} {b} {c}"})
        self.sent.setdefault(room_id, []).append(event.event_id)

    async def _state(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        kind, name = PLACES[c % len(PLACES)]
        await self.rooms.append(room_id, OURS[b % 3], kind, {name: f"{a} {b} {c}"}, "")

    async def _member(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        sender, target = OURS[b % 3], OURS[c % 3]
        if a < 4:
            await self.rooms.member(room_id, target, ("join", "join", "leave", "knock")[a])
        else:
            await self.rooms.member(room_id, sender, ("invite", "leave", "ban", "leave")[a - 4], target)

    async def _redact(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        sent = self.sent.get(room_id, [])
        if sent:
            await self.rooms.append(room_id, OURS[b % 3], "m.room.redaction", {}, redacts=sent[c % len(sent)])

    async def _branch(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        """A peer has seen all events, and continues from here without us."""
        self.branches.append(await self.rooms.read(room_of_peer, room_id))
        self.undelivered.append([])

    async def _build(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        if not self.branches:
            return
        branch = self.branches[a % len(self.branches)]
        sender = THEIRS[b % 2]
        branch.clock += (1, 2, 5, 10, 100, 200, 500, 1000)[b]
        if c < 2:
            wanted = (sender, "m.room.message", {"body": f"{a} {b} {c}"}, None)
        elif c < 5:
            kind, name = PLACES[c - 2]
            wanted = (sender, kind, {name: f"theirs {a} {b} {c}"}, "")
        elif c == 5:
            wanted = (sender, "m.room.member", {"membership": "join", "displayname": f"{a}{b}"}, sender)
        else:
            target = [OUR_BOB, OUR_CAROL, THEIRS[(b + 1) % 2]][a % 3]
            wanted = (sender, "m.room.member", {"membership": "ban" if c == 6 else "leave"}, target)
        if branch.check(*wanted) is None:
            number = next(n for n, each in enumerate(self.branches) if each is branch)
            self.undelivered[number].append(branch.append(branch.build(*wanted)))

    async def _deliver(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        waiting = [events for events in self.undelivered if events]
        for events in waiting[a % len(waiting) :][:1] if waiting else ():
            for event in events[: 1 + b]:
                outcome = await self.rooms.receive(event)
                assert isinstance(outcome, Received), outcome
            del events[: 1 + b]

    async def _archive(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        await archive_all(self.rooms.archive)

    async def _sync(self, room_id: RoomID, a: int, b: int, c: int) -> None:
        client = self.clients[(a + 8 * b) % len(self.clients)]
        client.limit = (1, 2, 5, 20)[c % 4]
        await client.sync()


async def make_world(rooms: Rooms) -> World:
    room_ids = [await rooms.create(OUR_ALICE, OUR_BOB), await rooms.create(OUR_ALICE, OUR_BOB, version="10")]
    for room_id in room_ids:
        levels = {"users": {OUR_BOB: 50, BOB: 50, CAROL: 50}, "invite": 0}
        if room_id == room_ids[1]:
            levels["users"] = {OUR_ALICE: 100, **levels["users"]}
        await rooms.append(room_id, OUR_ALICE, "m.room.power_levels", levels, "")
        for user_id in THEIRS:
            branch = await rooms.read(room_of_peer, room_id)
            await rooms.receive_all([branch.member(user_id, "join")])
    clients = [
        SyncClient(rooms, user_id, use_state_after=use_state_after)
        for user_id in OURS
        for use_state_after in (False, True)
    ]
    world = World(rooms, room_ids, clients)
    for number in range(4):
        await world.do("branch", number, 0, 0)
    return world


async def check_as_fresh(rooms: Rooms, client: SyncClient) -> None:
    """The client, up to date, knows what a new one is told."""
    await client.sync()
    fresh = SyncClient(rooms, client.user_id, client.use_state_after, limit=500)
    await fresh.sync()
    assert client.known.keys() == fresh.known.keys()
    for room_id, expected in fresh.known.items():
        known = client.known[room_id]
        assert known.section == expected.section
        # /sync cannot express that state resolution has removed a state event: clients that have seen it keep it.
        told = {key: known.state.get(key) for key in expected.state}
        if expected.section == "leave" and (known.was_invited or ("m.room.create", "") not in known.state):
            pass  # an invitation hides how an earlier stay ended; who was never in the room learns nothing of it
        elif expected.section == "leave":
            own = ("m.room.member", client.user_id)
            assert {**told, own: ""} == {**expected.state, own: ""}
        else:
            assert told == expected.state
        assert len(set(known.timeline)) == len(known.timeline), "an event was told twice"
        if expected.section == "join":
            shorter, longer = sorted((known.timeline, expected.timeline), key=len)
            assert longer[len(longer) - len(shorter) :] == shorter
            head = await rooms.state(RoomID(room_id))
            assert expected.state == head
            members = [await rooms.stored(head[key]) for key in head if key[0] == "m.room.member"]
            count = sum(member.content["membership"] == "join" for member in members)
            assert known.summary["m.joined_member_count"] == count


async def run(script: list[tuple[Any, ...]]) -> None:
    async with opened_rooms(ACCOUNT_DATA) as rooms:
        world = await make_world(rooms)
        for step in script:
            await world.do(*step)
        for client in world.clients:
            await check_as_fresh(rooms, client)


@seed(20)
@settings(max_examples=share_of_examples(0.4))
@given(steps)
def test_incremental_syncs_add_up_to_an_initial_sync(script: list[tuple[Any, ...]]) -> None:
    trio.run(run, script)
