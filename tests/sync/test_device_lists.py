"""A client that heeds `device_lists` knows the newest keys of exactly those with whom its user shares a room."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import trio
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from homeserver.database import Transaction
from homeserver.errors import MatrixError
from homeserver.features.device_lists import list_news
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.membership import list_joined_rooms, list_members
from homeserver.users.encryption import cross_signing, device_lists
from homeserver.users.encryption.device_lists import note_device_list_changed
from tests.federation.rooms_for_tests import BOB, CAROL
from tests.support.examples import share_of_examples
from tests.support.rooms import OUR_ALICE, OUR_BOB, OUR_CAROL, Rooms, opened_rooms, room_of_peer

OURS = [OUR_ALICE, OUR_BOB, OUR_CAROL]
THEIRS = [BOB, CAROL]

numbers = st.integers(0, 7)
steps = st.lists(
    st.tuples(
        st.sampled_from(["join"] * 4 + ["leave"] * 4 + ["ban", "profile", "say", "remote", "remote", "remote"]
                        + ["change"] * 4 + ["sync"] * 6),
        numbers, numbers, numbers,
    ),
    min_size=40,
    max_size=60,
)  # fmt: skip


@dataclass
class DeviceListClient:
    """A client, which keeps the version of the keys of each user that it tracks."""

    user_id: UserID
    since: int = 0
    known: dict[UserID, int] = field(default_factory=dict)

    async def sync(self, rooms: Rooms, versions: Counter[UserID]) -> None:
        def read(tx: Transaction) -> tuple[set[UserID], set[UserID], int]:
            return *list_news(tx, self.user_id, self.since, tx.position), tx.position

        changed, left, self.since = await rooms.read(read)
        assert not changed & left
        for user_id in changed:
            is_known = self.known.get(user_id) == versions[user_id]
            assert not is_known or user_id in (self.user_id, *THEIRS), "told for nothing"
            self.known[user_id] = versions[user_id]
        for user_id in left:
            self.known.pop(user_id, None)


@dataclass
class World:
    rooms: Rooms
    room_ids: list[RoomID]
    clients: list[DeviceListClient]
    versions: Counter[UserID] = field(default_factory=Counter)

    async def do(self, what: str, a: int, b: int, c: int) -> None:
        room_id, ours = self.room_ids[a % len(self.room_ids)], OURS[b % 3]
        if what == "sync":
            await self.clients[(a + 8 * b) % len(self.clients)].sync(self.rooms, self.versions)
        elif what == "change":
            user_id = [*OURS, *THEIRS][a % 5]
            self.versions[user_id] += 1
            await self.rooms.write(note_device_list_changed, user_id)
        elif what == "remote":
            await self._remote(room_id, THEIRS[b % 2], "join" if c < 4 else "leave")
        elif what == "say":
            await self.rooms.append(room_id, ours)
        elif what == "profile":
            content = {"membership": "join", "displayname": f"{c}"}
            await self.rooms.append(room_id, ours, "m.room.member", content, ours)
        elif what == "ban":
            await self.rooms.member(room_id, OUR_ALICE, "ban" if c < 4 else "leave", OURS[1 + b % 2])
        else:
            await self.rooms.member(room_id, ours, what)

    async def _remote(self, room_id: RoomID, user_id: UserID, membership: str) -> None:
        room = await self.rooms.read(room_of_peer, room_id)
        if room.check(user_id, "m.room.member", {"membership": membership}, user_id) is None:
            await self.rooms.receive_all([room.member(user_id, membership)])


def list_sharers(tx: Transaction, user_id: UserID) -> set[UserID]:
    found = {other for room_id in list_joined_rooms(tx, user_id) for other in list_members(tx, room_id, "join")}
    return found - {user_id}


async def run(script: list[tuple[Any, ...]]) -> None:
    async with opened_rooms(device_lists.SCHEMA, cross_signing.SCHEMA) as rooms:
        room_ids = [
            await rooms.create(OUR_ALICE, OUR_BOB),
            await rooms.create(OUR_BOB),
            await rooms.create(OUR_CAROL, OUR_ALICE),
        ]
        world = World(rooms, room_ids, [DeviceListClient(user_id) for user_id in OURS + OURS])
        for step in script:
            try:
                await world.do(*step)
            except MatrixError:
                pass  # not allowed, and hence nothing has happened
        for client in world.clients:
            await client.sync(rooms, world.versions)
            fresh = DeviceListClient(client.user_id)
            await fresh.sync(rooms, world.versions)
            others = {user_id: version for user_id, version in client.known.items() if user_id != client.user_id}
            assert others == {other: world.versions[other] for other in await rooms.read(list_sharers, client.user_id)}
            assert {**others, client.user_id: 0} == {**fresh.known, client.user_id: 0}
            assert client.known.get(client.user_id, 0) == world.versions[client.user_id]


@seed(20)
@settings(max_examples=share_of_examples(0.4))
@given(steps)
def test_incremental_syncs_add_up_to_an_initial_sync(script: list[tuple[Any, ...]]) -> None:
    trio.run(run, script)
