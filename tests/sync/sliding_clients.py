"""A client of sliding sync, as MSC4186 describes what it has to do with each answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from homeserver.authenticate import Requester
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.federation.identifiers import UserID
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.sections import Sections
from homeserver.sync.sliding.engine import compute
from homeserver.sync.sliding.request import Extensions, ListConfig, RoomFilters, SlidingRequest
from homeserver.sync.sliding.required_state import RequiredState, RoomConfig
from homeserver.users.sync_connections import store_connection_answer
from tests.support.rooms import Rooms

EVERYTHING = RequiredState(((None, None),))
REQUIRED = (EVERYTHING, RequiredState((("m.room.name", ""), ("m.room.topic", ""))), RequiredState(((None, ""),)))
LASTS = (0, 19, 1, 0)


def forget_states(tx: Transaction) -> None:
    """Makes the server read what connections have been told from its tables, as after a restart."""
    cache = tx.cache("sync_connections", 1)
    for connection, *serials in tx.all("SELECT connection, acknowledged, pending FROM sync_connections"):
        for serial in serials:
            cache.forget((connection, serial))


@dataclass
class SlidingRoom:
    """What the client knows of a room. `timeline` is unbroken: what came before a gap is forgotten."""

    membership: str = ""
    state: dict[tuple[str, str], str] = field(default_factory=dict)
    timeline: list[str] = field(default_factory=list)
    joined_count: int = 0


@dataclass
class SlidingClient:
    """One connection of a user. Its window and required state change from turn to turn, and some answers are lost."""

    rooms: Rooms
    user_id: str
    conn_id: str = ""
    limit: int = 10
    since: int | None = None
    serial: int = 0
    turn: int = 0
    known: dict[str, SlidingRoom] = field(default_factory=dict)
    told: ToldMembers = field(default_factory=ToldMembers)

    async def sync(self) -> None:
        """Asks what is new, and takes it in unless the answer is lost."""
        self.turn += 1
        await self.ask(LASTS[self.turn % 4], REQUIRED[self.turn % 3], is_lost=self.turn % 5 == 4)

    async def ask(self, last: int, required: RequiredState, *, is_lost: bool = False) -> dict[str, Any]:
        """Asks for the rooms of a window."""
        config = ListConfig(((0, last),), RoomFilters(), RoomConfig(self.limit, (required,)))
        request = SlidingRequest(
            Requester(UserID(self.user_id), "D"), self.conn_id, self.since, self.serial, 0, 0, {"all": config}, {},
            Extensions(), is_merged=True,
        )  # fmt: skip
        if self.turn % 2:
            await self.rooms.read(forget_states)
        answer = await self.rooms.read(compute, Sections(), request, "", self.told)
        serial: int | None = self.serial
        if answer.changed or self.since is None:
            serial = await self.rooms.write(
                store_connection_answer, request.key, self.serial, answer.changed, answer.configs, answer.upto
            )
        assert serial is not None
        body: dict[str, Any] = orjson.loads(to_json(answer.body))
        if not is_lost:
            self.since, self.serial = answer.upto, serial
            for room_id, update in body["rooms"].items():
                self._take_in(room_id, update)
        return body

    def _take_in(self, room_id: str, update: dict[str, Any]) -> None:
        if update.get("initial"):
            self.known[room_id] = SlidingRoom()
        room = self.known[room_id]
        room.membership = update.get("membership", room.membership)
        room.joined_count = update.get("joined_count", room.joined_count)
        for event in update.get("required_state", []):
            if "content" in event:
                room.state[event["type"], event["state_key"]] = event["event_id"]
            else:
                room.state.pop((event["type"], event["state_key"]), None)
        if update.get("expanded_timeline") or update.get("limited"):
            room.timeline = []
        room.timeline += [event["event_id"] for event in update.get("timeline", [])]
