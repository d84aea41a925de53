"""A server that is killed at any moment has every write that it acknowledged, once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.database import items
from tests.support.database import opened

# Writes with many callers at once, and prints the name of each write that is acknowledged. Every fifth fails.
PROGRAM = """
import sys, time, trio
from homeserver.database import open_database
from tests.database import items

async def caller(database, run, number):
    count = 0
    while True:
        count += 1
        name = f"{run}-{number}-{count}"
        try:
            await database.write(items.store_and_fail if count % 5 == 0 else items.store, name)
        except Exception:
            continue
        sys.stdout.write(name + "\\n")
        sys.stdout.flush()

async def main(url, run):
    database = await open_database(url, [items.SCHEMA], now_ms=lambda: 0)
    async with trio.open_nursery() as nursery:
        for number in range(16):
            nursery.start_soon(caller, database, run, number)

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def sqlite_url(folder_on_disk: Path) -> str:
    """The URL of a new database on a disk, as in production."""
    return f"sqlite:{folder_on_disk}/test.db"


def write_until_killed(url: str, run: int, seconds: float) -> list[str]:
    """The names that were acknowledged before the process was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url, str(run)], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    rest = process.stdout.read()
    process.wait()
    names = (first + rest).split("\n")
    return names[:-1]  # what follows the last newline was cut off by the kill


@pytest.mark.slow
async def test_a_killed_server_loses_no_acknowledged_write(database_url: str) -> None:
    acknowledged: list[str] = []
    moments = random.Random(5)
    for run in range(6):
        acknowledged += write_until_killed(database_url, run, moments.uniform(0.0, 0.3))
        async with opened(database_url, items.SCHEMA) as database:
            names = await database.read(items.list_names)
            assert set(acknowledged) <= set(names)
            assert len(names) == len(set(names))
            assert not any(int(name.split("-")[2]) % 5 == 0 for name in names)
            highest = await database.read(lambda tx: tx.one("SELECT MAX(position) FROM items"))
            assert highest is not None and highest[0] <= database.stream.position
            position = await database.write(items.store, f"{run}-99-1")
            assert position > highest[0]
    assert len(acknowledged) > 100
