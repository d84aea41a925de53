"""`homeserver keys rotate`, killed with SIGKILL: nothing becomes unreadable, and the same command finishes it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from homeserver.config.loading import load_config
from homeserver.database import Transaction
from homeserver.rooms.keys import create_key
from homeserver.server import Homeserver
from tests.end_to_end.programs import Place, run
from tests.end_to_end.test_killed_imports import kill_when
from tests.support.engine import ENGINE, file_url

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]

KEYS = 20_000
BY_MASTER = "SELECT master, COUNT(*) FROM sealing_keys WHERE wrapped IS NOT NULL GROUP BY master"


def make_keys(tx: Transaction) -> None:
    for _ in range(KEYS):
        create_key(tx, None)


async def prepare(config: Path) -> str:
    async with Homeserver(load_config(config), beside=True) as hs:
        alice = await hs.register("alice")
        room_id = await alice.create_room(name="Kitchen")
        await alice.send(room_id, "The kettle is on.")
        await hs.resources.database.write(make_keys)
    return room_id


async def read_and_write(config: Path, room_id: str, text: str) -> list[str]:
    """Starts a server, says something, and returns the room's texts."""
    async with Homeserver(load_config(config), beside=True) as hs:
        alice = await hs.log_in("alice")
        await alice.send(room_id, text)
        page = await alice.call("get_room_events", room_id, query={"dir": "f", "limit": "100"})
        return [each["content"]["body"] for each in page["chunk"] if each["type"] == "m.room.message"]


def count_by_master(data: Path) -> dict[Any, int]:
    """Returns how many keys each master key wraps."""
    if ENGINE == "sqlite":
        with closing(sqlite3.connect(data / "homeserver.db", timeout=30)) as database:
            return dict(database.execute(BY_MASTER).fetchall())
    with psycopg.connect(file_url(data)) as connection:
        return dict(connection.execute(BY_MASTER).fetchall())


def is_rotating(data: Path) -> bool:
    return len(count_by_master(data)) > 1


def test_a_rotation_that_is_killed_loses_no_key_and_is_finished_by_the_same_command(place: Place) -> None:
    server = place.organisation("rotated")
    config, data = server.config, server.folder / "data"
    room_id = trio.run(prepare, Path(config))
    before = (data / "master.key").read_text()
    kill_when(["keys", "rotate", "--config", config, "--json"], "a rotation", partial(is_rotating, data))

    # Both master keys are in the file, and everything that either wraps can be read.
    wrapped = count_by_master(data)
    assert len(wrapped) == 2 and sum(wrapped.values()) >= KEYS
    assert before.splitlines()[-1] in (data / "master.key").read_text()
    status = json.loads(run("keys", "status", "--config", config, "--json").stdout)
    assert sum(status["replaced"].values()) in wrapped.values()
    assert trio.run(read_and_write, Path(config), room_id, "It boils.") == ["The kettle is on.", "It boils."]

    done = run("keys", "rotate", "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    assert list(count_by_master(data)) == [json.loads(done.stdout)["master_key"]]
    assert before.splitlines()[-1] not in (data / "master.key").read_text()
    texts = trio.run(read_and_write, Path(config), room_id, "Tea is ready.")
    assert texts == ["The kettle is on.", "It boils.", "Tea is ready."]
