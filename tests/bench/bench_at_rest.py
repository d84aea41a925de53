"""What sealing costs: CPU per message sent, and per event read that is in no cache. Prints one JSON object.

Two servers, one of which seals nothing, take turns in the same process, so that both meet the same noise.

python -m tests.bench.bench_at_rest
"""

from __future__ import annotations

import json
import random
import statistics
import tempfile
import time
from contextlib import AsyncExitStack

import trio

from homeserver.client import Client
from homeserver.config import AtRest, DatabaseSection
from homeserver.database import Transaction
from homeserver.features.media import sealed_blobs
from homeserver.process.sealing import SealingKey
from homeserver.rooms.storage import list_stored
from homeserver.server import Homeserver
from homeserver.testing import config_for_tests

WORDS = [f"word{number}" for number in range(500)]
TURNS, MESSAGES, PAGE = 16, 150, 100


def _read_page(tx: Transaction, room_id: str) -> int:
    positions = tx.values(
        "SELECT position FROM events WHERE room_nid = ? ORDER BY ordering DESC LIMIT 100", tx.find(room_id)
    )
    return len(list_stored(tx, positions))


async def main() -> None:
    """Runs the benchmark."""
    rng = random.Random(1)
    sends: dict[bool, list[float]] = {True: [], False: []}
    reads: dict[bool, list[float]] = {True: [], False: []}
    places: dict[bool, tuple[Homeserver, Client, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            for is_sealed in (True, False):
                at_rest = AtRest(events=is_sealed, media=is_sealed, archive=is_sealed)
                name = "sealed.example" if is_sealed else "open.example"
                config = config_for_tests(name, folder, database=DatabaseSection(), at_rest=at_rest)
                hs = await stack.enter_async_context(Homeserver(config, inline_database=True))
                founder = await hs.register("founder")
                places[is_sealed] = (hs, founder, await founder.create_room(preset="public_chat"))
            for turn in range(TURNS):
                for is_sealed in (turn % 2 == 0, turn % 2 == 1):
                    hs, founder, room_id = places[is_sealed]
                    began = time.process_time()
                    for _ in range(MESSAGES):
                        await founder.send(room_id, " ".join(rng.choices(WORDS, k=10)))
                    sends[is_sealed].append((time.process_time() - began) / MESSAGES * 1e6)
                    hs.resources.database.drop_caches()
                    began = time.process_time()
                    await hs.resources.database.read(_read_page, room_id)
                    reads[is_sealed].append((time.process_time() - began) / PAGE * 1e6)
    content = bytes(64 << 20)
    began = time.process_time()
    sealed_blobs.seal_content(sealed_blobs.subkey(SealingKey(1, bytes(32)), "media/0/bench"), content)
    media_s = time.process_time() - began
    send = {name: statistics.median(sends[is_sealed]) for name, is_sealed in (("sealed", True), ("open", False))}
    read = {name: statistics.median(reads[is_sealed]) for name, is_sealed in (("sealed", True), ("open", False))}
    print(json.dumps({
        "send_us": send, "send_ratio": send["sealed"] / send["open"],
        "read_event_us": read, "seal_media_s_per_gb": media_s * 16,
    }, indent=2))  # fmt: skip


if __name__ == "__main__":
    trio.run(main)
