"""A server that is killed at any moment has every write that it acknowledged, once."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from tests.database import items
from tests.support.database import opened
from tests.support.forks import PIPE, forks


@pytest.fixture
def sqlite_url(folder_on_disk: Path) -> str:
    """The URL of a new database on a disk, as in production."""
    return f"sqlite:{folder_on_disk}/test.db"


def write_until_killed(url: str, run: int, seconds: float) -> list[str]:
    """The names that were acknowledged before the process was killed."""
    process = forks().start(url, str(run), stdout=PIPE, program="tests.database.endless_writes:main")
    assert process.stdout is not None
    with process.stdout as output:
        first = output.readline()
        time.sleep(seconds)
        process.kill()
        rest = output.read()
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
