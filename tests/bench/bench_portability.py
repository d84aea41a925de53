"""What analytics, export and import cost, as one JSON object.

python -m tests.bench.bench_portability [MESSAGES]

A room with ten-word messages is filled, counted, exported as pages, and imported. Times are CPU of the process; memory
is the growth of its peak while it exports.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from homeserver.database import Transaction
from homeserver.features.analytics.counting import count_span
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.portability.importing import import_room
from homeserver.portability.rooms import export_room
from homeserver.rooms.append import append_local
from homeserver.server import Homeserver
from homeserver.testing import config_for_tests

MESSAGES = 20_000
PER_WRITE = 100


def fill(tx: Transaction, room_id: RoomID, user_id: UserID, first: int) -> int:
    """Appends PER_WRITE messages. Returns the last position."""
    for number in range(first, first + PER_WRITE):
        content = {"msgtype": "m.text", "body": f"message {number} of ten words that nobody has to read"}
        append_local(tx, Draft(room_id, user_id, "m.room.message", content))
    return tx.position


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def nothing(done: int, of: int) -> None:
    """No progress bar."""


async def measure(folder: Path, messages: int) -> dict[str, Any]:
    config = config_for_tests("bench.example", folder)
    async with Homeserver(config, inline_database=True, beside=True) as server:
        alice = await server.register("alice")
        room_id = RoomID(await alice.create_room(name="Bench"))
        database = server.resources.database
        began = time.process_time()
        for first in range(0, messages, PER_WRITE):
            await database.write(fill, room_id, UserID(alice.user_id), first)
        sending = time.process_time() - began
        upto = await database.read(lambda tx: tx.position)
        began = time.process_time()
        for since in range(0, upto, 1000):
            await database.read(count_span, 0, since, min(upto, since + 1000))
        counting = time.process_time() - began
        before, began = peak_mib(), time.process_time()
        await export_room(server.resources, room_id, folder / "out", "html", nothing)
        exporting, grown = time.process_time() - began, peak_mib() - before
        began = time.process_time()
        await import_room(server.resources, folder / "out", nothing)
        importing = time.process_time() - began
    return {
        "messages": messages,
        "sending_us_per_message": round(sending / messages * 1e6, 1),
        "counting_us_per_message": round(counting / messages * 1e6, 2),
        "counting_share_of_a_send": round(counting / sending, 4),
        "export_us_per_message": round(exporting / messages * 1e6, 1),
        "export_peak_grows_mib": round(grown, 1),
        "import_us_per_message": round(importing / messages * 1e6, 1),
    }


def main() -> None:
    """Prints the figures."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else MESSAGES
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(trio.run(measure, Path(folder), messages)))


if __name__ == "__main__":
    main()
