"""What archived messages cost: bytes of each in the database and in blobs, and CPU of a page of 100, against stored
ones. Prints one JSON object.

python -m tests.bench.bench_archive [MESSAGES]

One room with 50 members, ten made-up words a message, two minutes between two messages. "first" pages are read once,
after everything was forgotten, so rows are converted and blocks are fetched from a folder, opened and decoded; "again"
pages are read a second time. Events are older than the days for which transaction IDs are kept.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import trio

from homeserver import Homeserver
from homeserver.config import DatabaseSection
from homeserver.federation.identifiers import RoomID
from homeserver.rooms.archive.blocks import list_blocks
from homeserver.rooms.archiving import Wanted, archive
from tests.rooms.test_bytes_per_message import _join, _say, _used_bytes
from tests.support.homeservers import config_for_tests

PAGE = 100


class Clock:
    """Each look at it is two minutes later."""

    now_ms = 1_700_000_000_000

    def __call__(self) -> int:
        self.now_ms += 120_000
        return self.now_ms


async def measure(folder: Path, messages: int) -> dict[str, Any]:
    rng = random.Random(20_000)
    words = ["".join(rng.choices(ascii_lowercase, k=rng.randint(2, 9))) for _ in range(500)]
    clock = Clock()
    config = config_for_tests("a.example", folder, database=DatabaseSection())
    async with Homeserver(config, inline_database=True, now_ms=clock) as hs:
        client = await hs.register("user0")
        room_id = await client.create_room(preset="public_chat")
        database = hs.resources.database
        await database.write(_join, room_id)
        begin = await database.read(_used_bytes)
        for number in range(messages):
            await database.write(_say, room_id, rng, words, range(number, number + 1))
        stored = await database.read(_used_bytes)
        pages = {"stored": await _read(hs, room_id)}
        room_nid = await database.read(lambda tx: tx.find(room_id))
        assert room_nid is not None
        clock.now_ms += 8 * 24 * 3_600_000
        began = time.process_time()
        await archive(hs.resources, [room_nid], Wanted(clock.now_ms))
        spent = time.process_time() - began
        pages["archived"] = await _read(hs, room_id)
        left = await database.read(_used_bytes)
        blocks = await database.read(list_blocks, room_nid)
    in_blobs = sum(block.size_bytes for block in blocks)
    return {
        "messages": messages,
        "stored_bytes": round((stored - begin) / messages, 1),
        "archived_bytes": round((left - begin + in_blobs) / messages, 1),
        "of_which_in_blobs": round(in_blobs / messages, 1),
        "blocks": len(blocks),
        "archiving_ms": round(spent * 1000 / messages, 3),
        "page_ms": pages,
    }


async def _read(hs: Homeserver, room_id: RoomID) -> dict[str, float]:
    """Returns the CPU of a page, in milliseconds, when all pages are read for the first time and again."""
    client = await hs.log_in("user0")
    hs.resources.database.drop_caches()
    times = {}
    for turn in ("first", "again"):
        pages, start = 0, None
        began = time.process_time()
        while pages == 0 or start is not None:
            query = {"dir": "b", "limit": str(PAGE)} | ({} if start is None else {"from": start})
            page = await client.call("get_room_events", room_id, query=query)
            start, pages = page.get("end"), pages + 1
        times[turn] = round((time.process_time() - began) * 1000 / pages, 2)
    return times


def main() -> None:
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trio.run(measure, Path(folder), messages)))


if __name__ == "__main__":
    main()
