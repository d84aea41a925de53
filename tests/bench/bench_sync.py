"""What syncs cost as rooms, members and waiting clients grow: CPU below HTTP. Prints one JSON object.

python -m tests.bench.bench_sync [send|waking|sliding …]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import msgspec
import trio

from homeserver.api.filters import parse_filter
from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.features import FEATURES, user_directory
from homeserver.features.sending import send_message
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID
from homeserver.federation.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from homeserver.rooms.append import append_create, append_local
from homeserver.sync.answer import compute
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.sliding.engine import SlidingEngine
from homeserver.sync.sliding.request import Extensions, SlidingBody, SlidingRequest, parse_lists
from tests.bench.bench_rooms import SECTIONS, append, cpu_seconds, measure, requester, running, text, user


async def settle() -> None:
    """Waits until what follows the writes is done, such as notifications and the user directory."""
    for _ in range(600):
        before = cpu_seconds()
        await trio.sleep(1)
        if cpu_seconds() - before < 0.02:
            return
    raise TimeoutError("The server does not become quiet.")


async def bench_send(messages: int = 400) -> dict[str, Any]:
    """A message that a client sends to a room of 10 members, and to one of 1,000."""
    async with running() as place:
        hs = place.hs
        figures: dict[str, Any] = {}
        for members in (10, 1000):
            room_id = await place.make_room(members)
            await settle()

            async def send(number: int, room_id: RoomID = room_id) -> Any:
                return await send_message(hs, requester(1), room_id, "m.room.message", f"t{number}", text(number))

            figures[f"send_to_{members}_us"] = await measure(messages, send)
        return figures


async def bench_waking(members: int = 1000, clients: int = 500) -> dict[str, Any]:
    """The syncs of clients that have waited, in a room of 1,000 members, after one message."""
    async with running() as place:
        hs, told = place.hs, ToldMembers()
        room_id = await place.make_room(members)
        filter_ = parse_filter({"room": {"timeline": {"limit": 1}, "state": {"lazy_load_members": True}}})
        since = hs.stream.position

        async def wake(number: int) -> int:
            request = SyncRequest(requester(1 + number % clients), since, filter_, set_presence="offline")
            answer = await hs.database.read(compute, SECTIONS, request, "", told)
            return len(to_json(answer.body))

        first = 0.0
        for number in range(2):
            since = hs.stream.position
            await hs.database.write(append, room_id, 0, number)
            await settle()
            first = first or await measure(clients, wake)
        return {"wake_first_us": first, "wake_us": await measure(clients, wake)}


def _create_rooms(tx: Transaction, count: int) -> None:
    version = ROOM_VERSIONS[DEFAULT_ROOM_VERSION]
    for number in range(count):
        create = {"room_version": DEFAULT_ROOM_VERSION, "number": number}
        room_id = append_create(tx, Draft(None, user(1), "m.room.create", create, ""), version).room_id
        join = {"membership": "join", "displayname": "User 1"}
        append_local(tx, Draft(room_id, user(1), "m.room.member", join, state_key=user(1)))
        append_local(tx, Draft(room_id, user(1), "m.room.message", text(number)))


async def bench_sliding(rooms: int = 5000) -> dict[str, Any]:
    """The first page of a sliding sync, 20 rooms, of a user in 5,000 rooms.

    Without the user directory, which takes a minute to index that many joins of one user.
    """
    async with running([feature for feature in FEATURES if feature is not user_directory.FEATURE]) as place:
        hs, engine = place.hs, SlidingEngine(SECTIONS)
        for _ in range(0, rooms, 100):
            await hs.database.write(_create_rooms, 100)
        await settle()
        listed = {"ranges": [[0, 19]], "timeline_limit": 1, "required_state": [["m.room.name", ""]]}
        body = msgspec.convert({"lists": {"all": listed}}, SlidingBody)

        async def first_page(number: int) -> int:
            request = SlidingRequest(
                requester(1), f"c{number}", None, 0, 0, 0, parse_lists(body, requester(1)), {}, Extensions(), 0,
                "offline", True,
            )  # fmt: skip
            return len(to_json(await engine.sync(hs, request)))

        return {"sliding_first_page_ms": await measure(30, first_page) / 1000}


BENCHES = {"send": bench_send, "waking": bench_waking, "sliding": bench_sliding}


async def main(names: list[str]) -> None:
    results: dict[str, Any] = {}
    for name in names or BENCHES:
        results |= await BENCHES[name]()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
