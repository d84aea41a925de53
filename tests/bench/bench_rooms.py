"""What rooms cost: CPU per append, page, sync and member list, and bytes per message. Prints one JSON object.

python -m tests.bench.bench_rooms [append|notified|pages|sync|members|bytes …]
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from homeserver.api.filters import EVERYTHING, parse_filter
from homeserver.authenticate import Requester
from homeserver.client import Client
from homeserver.config import Config, DatabaseSection, FederationSection, RateLimitsSection
from homeserver.database import Transaction
from homeserver.database.tail import find_position
from homeserver.encoding import to_json
from homeserver.feature import Feature
from homeserver.features import FEATURES
from homeserver.features.room_history import MessagesQuery, get_room_events
from homeserver.features.room_members import MembersQuery, get_joined_members_by_room, get_members_by_room
from homeserver.features.room_state import get_room_state
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.resources import Resources
from homeserver.rooms.append import append_local
from homeserver.server import Homeserver
from homeserver.sync.answer import compute
from homeserver.sync.lazy_members import ToldMembers
from homeserver.sync.request import SyncRequest
from homeserver.sync.sections import Sections

WORDS = tuple("the quick brown fox jumps over a lazy dog and some bees buzz in the garden behind our old house".split())  # noqa: SIM905
SECTIONS = Sections.of(FEATURES)


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass(frozen=True, slots=True)
class Place:
    """A server on a file of its own, without federation, and the user who makes its rooms."""

    homeserver: Homeserver
    hs: Resources
    founder: Client
    database: Path

    async def make_room(self, members: int) -> RoomID:
        """A public room with so many members."""
        room_id = await self.founder.create_room(preset="public_chat", name="Room")
        await self.hs.database.write(_join_many, room_id, members)
        return room_id


@asynccontextmanager
async def running(features: Sequence[Feature] = FEATURES) -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=Path.cwd(), ignore_cleanup_errors=True) as folder:
        config = Config(
            server_name="bench.example",
            data_dir=folder,
            federation=FederationSection(enabled=False),
            rate_limits=RateLimitsSection(enabled=False),
            database=DatabaseSection(url="sqlite:bench.db"),
        )
        async with Homeserver(config, features=features) as homeserver:
            founder = await homeserver.register("user0")
            yield Place(homeserver, homeserver.resources, founder, Path(folder) / "bench.db")


def user(number: int) -> UserID:
    return UserID(f"@user{number}:bench.example")


def requester(number: int) -> Requester:
    return Requester(user_id=user(number), device_id="BENCH")


def text(number: int, words: int = 10) -> dict[str, Any]:
    body = " ".join(WORDS[(number * 7 + step * (1 + number % 5)) % len(WORDS)] for step in range(words))
    return {"msgtype": "m.text", "body": f"{body} {number}"}


def _join_many(tx: Transaction, room_id: RoomID, members: int) -> None:
    for member in range(1, members):
        content = {"membership": "join", "displayname": f"User {member}"}
        append_local(tx, Draft(room_id, user(member), "m.room.member", content, state_key=user(member)))


def append(tx: Transaction, room_id: RoomID, sender: int, number: int) -> None:
    append_local(
        tx, Draft(room_id, user(sender), "m.room.message", text(number)), device_id="BENCH", txn_id=f"m{number}"
    )


async def measure(count: int, do: Callable[[int], Awaitable[Any]]) -> float:
    """CPU µs of each of `count` runs."""
    await do(0)
    before = cpu_seconds()
    for number in range(1, count + 1):
        await do(number)
    return round((cpu_seconds() - before) / count * 1e6, 1)


async def bench_append(writers: int = 32, seconds: float = 3.0) -> dict[str, Any]:
    """append_local by 32 writers in rooms of their own, and one after the other."""
    async with running() as place:
        hs = place.hs
        room_ids = [await place.make_room(20) for _ in range(writers)]
        count = 0
        end = trio.current_time() + seconds

        async def write(writer: int) -> None:
            nonlocal count
            while trio.current_time() < end:
                count += 1
                await hs.database.write(append, room_ids[writer], writer % 20, count)

        before = cpu_seconds()
        async with trio.open_nursery() as nursery:
            for writer in range(writers):
                nursery.start_soon(write, writer)
        cpu = cpu_seconds() - before
        single = await measure(500, lambda number: hs.database.write(append, room_ids[0], 0, 10_000_000 + number))
        return {
            "append_us_at_32_writers": round(cpu / count * 1e6, 1),
            "appends_per_second": round(count / seconds),
            "append_us_alone": single,
        }


async def bench_notified(messages: int = 400) -> dict[str, Any]:
    """A message with all that follows from it, such as notifications, in a room of 10 and in one of 1000 members."""
    async with running() as place:
        hs = place.hs
        figures: dict[str, Any] = {}
        for members in (10, 1000):
            room_id = await place.make_room(members)
            await trio.sleep(2)  # for the tails
            before = cpu_seconds()
            for number in range(messages):
                await hs.database.write(append, room_id, 0, number)
            for _ in range(1200):
                if (await hs.database.read(find_position, "notifications") or 0) >= hs.stream.position:
                    break
                await trio.sleep(0.05)
            figures[f"message_to_{members}_us"] = round((cpu_seconds() - before) / messages * 1e6, 1)
        return figures


async def bench_pages() -> dict[str, Any]:
    """GET /messages, 100 events a page."""
    async with running() as place:
        hs = place.hs
        room_id = await place.make_room(50)
        for start in range(0, 2000, 100):
            await hs.database.write(_append_many, room_id, start, 100)
        query = MessagesQuery("b", limit=100)
        return {
            "page_of_100_us": await measure(100, lambda _: _json(get_room_events(hs, requester(1), room_id, query)))
        }


def _append_many(tx: Transaction, room_id: RoomID, start: int, count: int, members: int = 20) -> None:
    for number in range(start, start + count):
        append(tx, room_id, number % members, number)


async def _json(answer: Awaitable[Any]) -> int:
    return len(to_json(await answer))


async def bench_sync() -> dict[str, Any]:
    """Syncs of a user in 100 rooms with 20 messages and 20 members each."""
    async with running() as place:
        hs = place.hs
        room_ids = []
        for number in range(100):
            room_ids.append(await place.make_room(20))
            await hs.database.write(_append_many, room_ids[-1], 100 * number, 20)
        initial = SyncRequest(requester(1), None, parse_filter({"room": {"timeline": {"limit": 20}}}))

        told = ToldMembers()

        async def sync(request: SyncRequest) -> dict[str, Any]:
            answer = await hs.database.read(compute, SECTIONS, request, "", told)
            to_json(answer.body)
            return answer.body

        since = hs.stream.position

        async def one_message(number: int) -> None:
            nonlocal since
            await hs.database.write(append, room_ids[number % 100], 2, 20_000 + number)
            request = SyncRequest(requester(1), since, EVERYTHING)
            answer = await hs.database.read(compute, SECTIONS, request, "", told)
            to_json(answer.body)
            since = answer.upto

        lazy = {"room": {"timeline": {"limit": 20}, "state": {"lazy_load_members": True}}}
        return {
            "initial_sync_ms": await measure(5, lambda _: sync(initial)) / 1000,
            "initial_sync_lazy_ms": await measure(
                5, lambda _: sync(SyncRequest(requester(1), None, parse_filter(lazy)))
            ) / 1000,
            "message_and_sync_us": await measure(300, one_message),
        }  # fmt: skip


async def bench_members(members: int = 1000) -> dict[str, Any]:
    """Measures the queries about a room of 1000 members."""
    async with running() as place:
        hs = place.hs
        room_id = await place.make_room(members)
        who = requester(1)

        async def state(_: int) -> int:
            return len(to_json((await get_room_state(hs, who, room_id)).body))

        return {
            "joined_members_ms": await measure(
                20, lambda _: _json(get_joined_members_by_room(hs, who, room_id))
            ) / 1000,
            "members_ms": await measure(
                20, lambda _: _json(get_members_by_room(hs, who, room_id, MembersQuery()))
            ) / 1000,
            "state_ms": await measure(20, state) / 1000,
            "message_in_large_room_us": await measure(
                300, lambda number: hs.database.write(append, room_id, number % members, number)
            ),
        }  # fmt: skip


async def bench_bytes(messages: int = 20_000, members: int = 50) -> dict[str, Any]:
    """Measures the growth of the file per message, beyond the room itself."""
    async with running() as place:
        room_id = await place.make_room(members)
        before = await place.hs.database.read(_used_bytes)
        for start in range(0, messages, 100):
            await place.hs.database.write(_append_many, room_id, start, 100, members)
        after = await place.hs.database.read(_used_bytes)
        return {"bytes_per_message": round((after - before) / messages, 1)}


def _used_bytes(tx: Transaction) -> int:
    (pages,) = tx.one("PRAGMA page_count") or (0,)
    (free,) = tx.one("PRAGMA freelist_count") or (0,)
    (size,) = tx.one("PRAGMA page_size") or (0,)
    return int((pages - free) * size)


BENCHES = {
    "append": bench_append,
    "notified": bench_notified,
    "pages": bench_pages,
    "sync": bench_sync,
    "members": bench_members,
    "bytes": bench_bytes,
}


async def main(names: list[str]) -> None:
    results: dict[str, Any] = {}
    for name in names or BENCHES:
        results |= await BENCHES[name]()
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    trio.run(main, sys.argv[1:])
