"""What a group of 500 people on two servers costs: CPU of both servers together, and what goes between them. Prints one
JSON object.

python -m tests.bench.bench_groups

Half of the people live on each server; both servers are in one process with their databases in files, and the network
between them is simulated, so there are neither TLS nor sockets in the figures. Times are CPU times. "message": sent on
one server and stored on the other. "syncs": an incremental sync of each of the 500, with one message. "receipts": each
of them says that they have read the newest message; "arrived" counts the requests between the servers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from homeserver import Homeserver
from homeserver.client import Client
from homeserver.federation.identifiers import RoomID
from homeserver.testing import FakeNetwork, run, two_servers
from tests.bench.bench_rooms import cpu_seconds, text

PEOPLE = 500
MESSAGES = 100
STATUS = 20


async def _wait(is_so: Callable[[], Awaitable[bool]]) -> None:
    while not await is_so():  # noqa: ASYNC110 (what it waits for is on two servers)
        await trio.sleep(0.2)


async def _count_members(hs: Homeserver, room_id: RoomID) -> int:
    database = hs.resources.database
    return await database.read(
        lambda tx: tx.values(
            "SELECT COUNT(*) FROM memberships WHERE room_nid = ? AND membership = 'join'", tx.find(room_id)
        )[0]
    )


async def _has(client: Client, room_id: RoomID, event_id: str) -> bool:
    page = await client.call("get_room_events", room_id, query={"dir": "b", "limit": "1"})
    return any(each["event_id"] == event_id for each in page["chunk"])


async def _measure(network: FakeNetwork, a: Homeserver, b: Homeserver) -> dict[str, Any]:
    people = [await (a, b)[number % 2].register(f"person{number}") for number in range(PEOPLE)]
    founder = people[0]
    figures: dict[str, Any] = {"people": PEOPLE}

    before, requests = cpu_seconds(), len(network.exchanges)
    room_id = RoomID(await founder.create_room(preset="public_chat", name="Group"))
    for person in people[1:]:
        await person.join(room_id, via=("a.example",))

    async def are_all_in() -> bool:
        return [await _count_members(hs, room_id) for hs in (a, b)] == [PEOPLE, PEOPLE]

    await _wait(are_all_in)
    figures["join_ms"] = (cpu_seconds() - before) * 1000 / PEOPLE
    figures["join_requests"] = len(network.exchanges) - requests
    for person in people:
        await person.sync()
        await person.sync()
    await trio.sleep(60)

    before, requests = cpu_seconds(), len(network.exchanges)
    for number in range(MESSAGES):
        sender = people[(number * 14) % PEOPLE]
        sent = await sender.call("send_message", room_id, "m.room.message", f"t{number}", body=text(number))
        await trio.sleep(1)
    last = str(sent["event_id"])
    await _wait(lambda: _has(people[1], room_id, last))
    figures["message_ms"] = (cpu_seconds() - before) * 1000 / MESSAGES
    figures["message_requests"] = (len(network.exchanges) - requests) / MESSAGES

    for person in people:
        await person.sync()
    await founder.call("send_message", room_id, "m.room.message", "one", body=text(1))
    await trio.sleep(10)
    before = cpu_seconds()
    for person in people:
        await person.sync()
    figures["syncs_ms"] = (cpu_seconds() - before) * 1000 / PEOPLE

    newest = (await founder.call("get_room_events", room_id, query={"dir": "b", "limit": "1"}))["chunk"][0]["event_id"]
    before, requests = cpu_seconds(), len(network.exchanges)
    for person in people[1:]:
        await person.read(room_id, newest)

    async def have_all_read() -> bool:
        answer = await founder.call("get_message_status", room_id, newest)
        return int(answer["counts"]["read"]) == PEOPLE - 1

    await _wait(have_all_read)
    figures["receipts_ms"] = (cpu_seconds() - before) * 1000 / (PEOPLE - 1)
    figures["receipts_requests"] = len(network.exchanges) - requests

    before = cpu_seconds()
    for _ in range(STATUS):
        await founder.call("get_message_status", room_id, newest)
    figures["status_ms"] = (cpu_seconds() - before) * 1000 / STATUS
    return figures


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        network = FakeNetwork(latency_s=0.02)
        async with two_servers(network=network, folder=folder) as (a, b):
            figures = await _measure(network, a, b)
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}, indent=2))


if __name__ == "__main__":
    run(main)
