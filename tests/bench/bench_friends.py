"""What a list of 500 friends costs: CPU per request, the answer's JSON included. Prints one JSON object.

python -m tests.bench.bench_friends
"""

from __future__ import annotations

import json

import trio

from homeserver.database import Transaction
from homeserver.encoding import to_json
from homeserver.features.friends.asking import Asking, ask
from homeserver.features.friends.listing import ListQuery, read_list
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.append import append_local
from tests.bench.bench_rooms import Place, cpu_seconds, measure, running, text, user

FRIENDS = 500
MESSAGES = 3


def _befriend(tx: Transaction, owner: UserID, other: UserID) -> RoomID:
    """Makes two people friends, with a few messages of which the owner has not read the last."""
    room_id = ask(tx, Asking(other, owner, "", False)).room_id
    assert room_id is not None
    ask(tx, Asking(owner, other, "", False))
    for number, sender in enumerate((other, owner, other)[:MESSAGES]):
        append_local(tx, Draft(room_id, sender, "m.room.message", text(number)))
    return room_id


def _say(tx: Transaction, room_id: RoomID, sender: UserID, number: int) -> None:
    append_local(tx, Draft(room_id, sender, "m.room.message", text(number)))


async def _make_friends(place: Place, owner: UserID) -> list[RoomID]:
    homeserver, rooms = place.homeserver, []
    for number in range(1, FRIENDS + 1):
        await homeserver.register(f"user{number}")
        rooms.append(await place.hs.database.write(_befriend, owner, user(number)))
    return rooms


async def main() -> None:
    async with running() as place:
        database, owner = place.hs.database, user(0)
        rooms = await _make_friends(place, owner)
        await trio.sleep(2)  # the tails catch up

        async def read(_: int, query: ListQuery = ListQuery()) -> int:
            return len(to_json(await database.read(read_list, owner, query, database.generation, "en")))

        async def read_after_message(number: int) -> int:
            await database.write(_say, rooms[number], user(number + 1), number)
            return await read(number)

        before = cpu_seconds()
        size = await read(0)
        first_ms = (cpu_seconds() - before) * 1000
        again_ms = await measure(50, read) / 1000
        before = cpu_seconds()
        for number in range(50):
            await database.write(_say, rooms[-number - 1], user(FRIENDS - number), number)
        write_ms = (cpu_seconds() - before) * 1000 / 50
        message_ms = await measure(50, read_after_message) / 1000
        answer = await database.read(read_list, owner, ListQuery(), database.generation, "en")
        query = ListQuery(since=answer["next_batch"])
        results = {
            "friends": FRIENDS,
            "answer_bytes": size,
            "first_after_start_ms": first_ms,
            "again_ms": again_ms,
            "write_of_a_message_ms": write_ms,
            "message_and_list_ms": message_ms,
            "since_without_news_ms": await measure(50, lambda number: read(number, query)) / 1000,
        }
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    trio.run(main)
