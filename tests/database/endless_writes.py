"""A program that writes with many callers at once, and prints the name of each write that is acknowledged.

Every fifth fails. Its arguments are the URL of a database, and a prefix of all names.
"""

from __future__ import annotations

import sys
from contextlib import suppress

import trio

from homeserver.database import Database, open_database
from tests.database import items

CALLERS = 16


async def call(database: Database, run: str, number: int) -> None:
    """Writes until the process ends."""
    count = 0
    while True:
        count += 1
        name = f"{run}-{number}-{count}"
        with suppress(Exception):  # every fifth write fails
            await database.write(items.store_and_fail if count % 5 == 0 else items.store, name)
            sys.stdout.write(f"{name}\n")
            sys.stdout.flush()


async def write_endlessly(url: str, run: str) -> None:
    database = await open_database(url, [items.SCHEMA], now_ms=lambda: 0)
    async with trio.open_nursery() as nursery:
        for number in range(CALLERS):
            nursery.start_soon(call, database, run, number)


def main() -> int:
    trio.run(write_endlessly, *sys.argv[1:])
    return 0
