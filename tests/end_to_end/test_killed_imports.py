"""`homeserver export` and `import`, killed with SIGKILL: the same command goes on, and nothing comes twice."""

from __future__ import annotations

import json
import signal
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
from homeserver.federation.build import Draft
from homeserver.federation.identifiers import RoomID, UserID
from homeserver.rooms.append import append_local
from homeserver.server import Homeserver
from tests.end_to_end.programs import Place, run, wait_until
from tests.support.engine import ENGINE, file_url
from tests.support.forks import forks

pytestmark = [pytest.mark.sockets, pytest.mark.slow, pytest.mark.timeout(300)]

MESSAGES = 1500
IMPORTED = "SELECT 1 FROM imports WHERE lines > 0"


def say_much(tx: Transaction, room_id: RoomID, user_id: UserID) -> None:
    for number in range(MESSAGES):
        append_local(tx, Draft(room_id, user_id, "m.room.message", {"msgtype": "m.text", "body": f"message {number}"}))


async def make_room(config: Path) -> str:
    async with Homeserver(load_config(config), beside=True) as hs:
        alice = await hs.register("alice")
        room_id = RoomID(await alice.create_room(name="Kitchen"))
        await hs.resources.database.write(say_much, room_id, UserID(alice.user_id))
    return room_id


def kill_when(arguments: list[Any], what: str, is_time: Any) -> None:
    process = forks().start(*arguments)
    try:
        wait_until(what, is_time)
    finally:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it was done before it was killed"


def has_imported(data: Path) -> bool:
    """Returns whether some events of a folder are imported."""
    if ENGINE == "sqlite":
        with closing(sqlite3.connect(data / "homeserver.db", timeout=30)) as database:
            return bool(database.execute(IMPORTED).fetchall())
    with psycopg.connect(file_url(data)) as connection:
        return bool(connection.execute(IMPORTED).fetchall())


def texts(folder: Path) -> list[str]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [each["content"]["body"] for each in events if each["type"] == "m.room.message"]


def test_an_export_and_an_import_that_are_killed_go_on(place: Place, tmp_path: Path) -> None:
    server = place.organisation("killed")
    config = server.config
    room_id = trio.run(make_room, Path(config))
    export = ["export", "room", room_id, "--config", config, "--json", "--out"]
    out, unfinished = tmp_path / "out", tmp_path / ".out.unfinished" / "events.jsonl"
    kill_when([*export, out], "an export", unfinished.exists)
    assert not out.exists()
    assert run(*export, out).returncode == 0
    assert texts(out) == [f"message {number}" for number in range(MESSAGES)]
    assert {path.name for path in tmp_path.iterdir() if "out" in path.name} == {"out"}

    kill_when(["import", out, "--config", config, "--json"], "an import", partial(has_imported, server.folder / "data"))
    done = run("import", out, "--config", config, "--json")
    assert done.returncode == 0, done.stderr
    again = run("import", out, "--config", config, "--json")
    assert json.loads(again.stdout) == json.loads(done.stdout)
    export[2] = json.loads(done.stdout)["room_id"]
    assert run(*export, tmp_path / "again").returncode == 0
    assert texts(tmp_path / "again") == texts(out)
