"""What heartbeats, statuses and delivered receipts cost: CPU below HTTP. Prints one JSON object.

python -m tests.bench.bench_status [heartbeats|statuses|quiet|delivered …]
"""

from __future__ import annotations

import json
import sys
from typing import Any

import trio
from msgspec.structs import replace

from homeserver import limits
from homeserver.api.filters import EVERYTHING
from homeserver.authenticate import note_heartbeat
from homeserver.database import Transaction
from homeserver.process.acknowledged import Acknowledged
from homeserver.rooms.access import get_visible_event
from homeserver.rooms.storage import list_event_ids
from homeserver.sync.engine import Engine
from homeserver.sync.request import SyncRequest
from homeserver.users.delivered import list_undelivered, store_delivered
from homeserver.users.message_status import read_message_status
from homeserver.users.status import read_statuses, store_heartbeats
from tests.bench.bench_rooms import SECTIONS, append, cpu_seconds, measure, requester, running, user
from tests.bench.bench_sync import settle

HEARTBEAT_EVERY_S = 30
"""How often a client that long-polls makes a request."""


async def bench_heartbeats(people: int = 10_000) -> dict[str, Any]:
    """People who each make a request every half minute: noting their heartbeats, and storing them once a minute."""
    async with running() as place:
        hs = place.hs

        async def note_all(_: int) -> None:
            for number in range(people):
                note_heartbeat(hs, user(number))

        note_us = await measure(10, note_all)
        await hs.database.write(store_heartbeats)  # the first time, their names are stored as well
        writes = 0

        async def store_all(_: int) -> None:
            nonlocal writes
            await note_all(0)
            while hs.heartbeats.list_unstored(1):
                await hs.database.write(store_heartbeats)
                writes += 1

        position = hs.stream.position
        store_us = await measure(5, store_all) - note_us
        per_minute_us = note_us * 60 / HEARTBEAT_EVERY_S + store_us * 60 / limits.users.HEARTBEATS_STORED_INTERVAL_S
        return {
            "heartbeat_us": round(note_us / people, 3),
            "store_10000_ms": round(store_us / 1000, 1),
            "writes_a_minute": writes // 6,
            "positions_taken": hs.stream.position - position,
            "percent_of_a_core": round(per_minute_us / 60e6 * 100, 3),
        }


async def bench_statuses(people: int = 500) -> dict[str, Any]:
    """The statuses of 500 people, half of them in memory and half in the database."""
    async with running() as place:
        hs = place.hs
        users = [user(number) for number in range(people)]
        for user_id in users[::2]:
            note_heartbeat(hs, user_id)
        await hs.database.write(store_heartbeats)
        for user_id in users[1::2]:
            note_heartbeat(hs, user_id)

        def read(tx: Transaction) -> int:
            return sum(each is not None for each in read_statuses(tx, users[0], users, "en").values())

        return {"statuses_of_500_us": await measure(50, lambda _: hs.database.read(read))}


async def bench_quiet(syncs: int = 2000) -> dict[str, Any]:
    """A sync without news, and the same if acks are not noted."""
    async with running() as place:
        hs = place.hs
        await place.make_room(20)
        await settle()
        position = hs.stream.position
        figures: dict[str, Any] = {}
        for name, sections in (("", SECTIONS), ("_without_acks", replace(SECTIONS, acknowledged=()))):
            engine = Engine(sections)

            async def sync(_: int, engine: Engine = engine) -> None:
                await engine.sync(hs, SyncRequest(requester(1), hs.stream.position, EVERYTHING, set_presence="offline"))

            figures[f"quiet_sync{name}_us"] = await measure(syncs, sync)
        return {**figures, "positions_taken_by_quiet_syncs": hs.stream.position - position}


async def bench_delivered(members: int = 50, messages: int = 100) -> dict[str, Any]:
    """A second in a room of 50 who get 100 messages: their acks, the pointers, and the status of one message."""
    async with running() as place:
        hs, acknowledged = place.hs, Acknowledged()
        room_id = await place.make_room(members)
        await settle()
        note_s = store_s = 0.0
        writes = 10
        for number in range(writes + 1):
            for message in range(messages):
                await hs.database.write(append, room_id, 0, number * messages + message)
            began = cpu_seconds()
            for member in range(1, members):
                for back in range(messages):
                    acknowledged.note(user(member), hs.stream.position - messages + back + 1, hs.now_ms())
            noted = cpu_seconds()
            acks = acknowledged.take()
            pointers, done = await hs.database.read(list_undelivered, acks, acknowledged.find_done(acks))
            await hs.database.write(store_delivered, pointers, done)
            for user_id, position in done.items():
                acknowledged.note_done(user_id, position)
            assert len(pointers) == members - 1
            if number:
                note_s, store_s = note_s + noted - began, store_s + cpu_seconds() - noted
        deliveries = writes * messages * (members - 1)
        (newest,) = (await hs.database.read(_list_newest)).values()

        def read_status(tx: Transaction) -> Any:
            return read_message_status(tx, user(0), get_visible_event(tx, room_id, newest, user(0)))

        return {
            "ack_us": round(note_s / deliveries * 1e6, 2),
            "pointer_us": round(store_s / writes / (members - 1) * 1e6, 1),
            "delivered_per_delivery_us": round((note_s + store_s) / deliveries * 1e6, 2),
            "status_of_message_to_50_us": await measure(50, lambda _: hs.database.read(read_status)),
        }


def _list_newest(tx: Transaction) -> dict[int, Any]:
    (position,) = tx.values("SELECT MAX(position) FROM events WHERE state_key_nid IS NULL")
    return list_event_ids(tx, [position])


BENCHES = {
    "heartbeats": bench_heartbeats,
    "statuses": bench_statuses,
    "quiet": bench_quiet,
    "delivered": bench_delivered,
}


async def main(names: list[str]) -> None:
    results: dict[str, Any] = {}
    for name in names or BENCHES:
        results |= await BENCHES[name]()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
