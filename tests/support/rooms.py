"""Rooms without a server around them: a database, this server's name and key, and other servers' users.

    async def test_something(rooms):
        room_id = await rooms.create()
        event = await rooms.append(room_id, ALICE, "m.room.message", {"body": "hello"})

At the end of every test, `check_consistency` must find no fault in the tables.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from homeserver.config import Config
from homeserver.database import Database, Schema, Transaction, open_database
from homeserver.database.server_identity import ServerIdentity
from homeserver.federation.build import Draft
from homeserver.federation.event import Event
from homeserver.federation.identifiers import EventID, RoomID, ServerName, UserID
from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from homeserver.federation.signing import SigningKey
from homeserver.rooms import SCHEMAS, state_tree
from homeserver.rooms.append import append_create, append_local
from homeserver.rooms.events import load_events
from homeserver.rooms.graph import Missing
from homeserver.rooms.heads import get_head
from homeserver.rooms.outliers import store_outliers
from homeserver.rooms.receive import Received, adopt_room, receive_event
from homeserver.rooms.storage import StoredEvent, find_stored_by_id, list_event_ids
from homeserver.rooms.timeline import END, list_backwards
from tests.federation.rooms_for_tests import Room
from tests.support.archive import Archive, archive_of
from tests.support.consistency import check_consistency
from tests.support.engine import memory_url
from tests.support.sealing import MASTER_KEYS

OURS = ServerName("test.example")
OUR_ALICE, OUR_BOB, OUR_CAROL = (
    UserID("@alice:test.example"),
    UserID("@bob:test.example"),
    UserID("@carol:test.example"),
)
START_MS = 1_700_000_000_000


KEY = SigningKey("1", sha256(OURS.encode()).digest())


def take_over(tx: Transaction, join: Event, state: Sequence[Event], chain: Sequence[Event]) -> Received | Missing:
    """Enters a room with the state and the auth chain that a resident has told."""
    lacking = store_outliers(tx, [*chain, *state])
    if lacking:
        return Missing(auth_events=lacking)
    by_key = {event.key: event.event_id for event in state}
    return adopt_room(tx, join, by_key.get(("m.room.create", "")), list(by_key.values()))


@dataclass
class Rooms:
    """The rooms of this server."""

    database: Database
    archive: Archive

    async def write(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """fn(tx, …) in a write."""
        return await self.database.write(lambda tx: fn(tx, *args, **kwargs))

    async def read(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """fn(tx, …) on a snapshot."""
        return await self.database.read(lambda tx: fn(tx, *args, **kwargs))

    async def create(
        self, creator: UserID = OUR_ALICE, *members: UserID, version: str = DEFAULT_ROOM_VERSION, **create: Any
    ) -> RoomID:
        """A public room of this server with these members."""

        def make(tx: Transaction) -> RoomID:
            room_version = ROOM_VERSIONS[version]
            content = {"room_version": version, **create}
            if room_version.create_content_has_creator:
                content["creator"] = creator
            given = None if room_version.room_id_is_create_event_id else RoomID(f"!{tx.position}:{OURS}")
            draft = Draft(given, creator, "m.room.create", content, "")
            room_id = append_create(tx, draft, room_version).room_id
            users = {} if room_version.creators_privileged else {creator: 100}
            for event_type, state_key, what in (
                ("m.room.member", creator, {"membership": "join"}),
                ("m.room.power_levels", "", {"users": users}),
                ("m.room.join_rules", "", {"join_rule": "public"}),
            ):
                append_local(tx, Draft(room_id, creator, event_type, what, state_key))
            for member in members:
                append_local(tx, Draft(room_id, member, "m.room.member", {"membership": "join"}, member))
            return room_id

        return await self.write(make)

    async def append(
        self,
        room_id: RoomID,
        sender: UserID,
        event_type: str = "m.room.message",
        content: dict[str, Any] | None = None,
        state_key: str | None = None,
        *,
        redacts: EventID | None = None,
        **options: Any,
    ) -> Event:
        """An event of this server's user, appended."""
        content = {"msgtype": "m.text", "body": "hello"} if content is None else content
        draft = Draft(room_id, sender, event_type, content, state_key, redacts)
        return await self.write(append_local, draft, **options)

    async def member(self, room_id: RoomID, sender: UserID, membership: str, target: UserID | None = None) -> Event:
        return await self.append(room_id, sender, "m.room.member", {"membership": membership}, target or sender)

    async def receive(self, event: Event, **options: Any) -> Received | Missing:
        """An event of a peer, received."""
        return await self.write(receive_event, event, **options)

    async def receive_all(self, events: Iterable[Event]) -> list[Received]:
        """Events of a peer for which nothing is missing."""
        outcomes = [await self.receive(event) for event in events]
        assert all(isinstance(outcome, Received) for outcome in outcomes), outcomes
        return outcomes  # type: ignore[return-value]

    async def adopt(self, room: Room, user_id: UserID = OUR_ALICE) -> Event:
        """Joins a room of a peer, who told the state and the auth chain of the join."""
        join = room.build(user_id, "m.room.member", {"membership": "join"}, user_id)
        chain = [event for event in room.events.values() if event.is_state]
        outcome = await self.write(take_over, join, list(room.state.values()), chain)
        assert isinstance(outcome, Received), outcome
        return room.append(join)

    async def stored(self, event_id: str) -> StoredEvent:
        found = await self.read(find_stored_by_id, event_id)
        assert found is not None, f"{event_id} is not stored"
        return found

    async def state(self, room_id: RoomID) -> dict[tuple[str, str], EventID]:
        """The state of the head."""
        return await self.read(lambda tx: named_state(tx, get_head(tx, room_id).state_root))

    async def state_before(self, event_id: str) -> dict[tuple[str, str], EventID]:
        stored = await self.stored(event_id)
        assert stored.state_before is not None
        return await self.read(named_state, stored.state_before)

    async def extremities(self, room_id: RoomID) -> set[EventID]:
        return set(await self.read(lambda tx: list_event_ids(tx, get_head(tx, room_id).extremities).values()))

    async def timeline(self, room_id: RoomID) -> list[EventID]:
        """The event ids of the timeline, oldest first."""
        events = await self.read(list_backwards, room_id, END, 10_000)
        return [event.event_id for event in reversed(events)]


def room_of_peer(tx: Transaction, room_id: RoomID) -> Room:
    """The room as a peer knows it that has received everything."""
    head = get_head(tx, room_id)
    positions = set(state_tree.items(tx, head.state_root).values())
    events = load_events(tx, {*positions, *head.extremities})
    state = {event.key: events[position] for position, event in events.items() if position in positions}
    last = [events[position] for position in head.extremities]
    by_id = {event.event_id: event for event in events.values()}
    clock = max(event.origin_server_ts for event in events.values()) + 1
    return Room(head.version, OUR_ALICE, state, by_id, last, clock, room_id, [1000 * len(by_id)])


def named_state(tx: Transaction, root: bytes) -> dict[tuple[str, str], EventID]:
    """A state as the specification writes it."""
    entries = state_tree.items(tx, root)
    event_ids = list_event_ids(tx, entries.values())
    return {(tx.name(kind), tx.name(key)): event_ids[position] for (kind, key), position in entries.items()}


@asynccontextmanager
async def opened_rooms(*schemas: Schema) -> AsyncIterator[Rooms]:
    """The rooms in a new database, with further tables; consistent at the end."""
    clock = itertools.count(START_MS, 20)
    database = await open_database(memory_url(), [*SCHEMAS, *schemas], inline=True, now_ms=lambda: next(clock))
    database.serve_as(ServerIdentity(OURS, KEY, Config(server_name=OURS, data_dir="nowhere"), MASTER_KEYS))
    try:
        rooms = Rooms(database, archive_of(database))
        yield rooms
        await rooms.read(check_consistency)
    finally:
        await database.aclose()
