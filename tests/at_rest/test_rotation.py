"""The master key can be replaced while servers run, and whatever interrupts that."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeserver import Homeserver
from homeserver.config import Config, ConfigError, SearchSection
from homeserver.database import Transaction
from homeserver.process.sealing import MasterKey, MasterKeys, new_secret
from homeserver.rooms import keys, rotation
from homeserver.rooms.keys import create_key, room_key
from homeserver.rooms.master_keys import VARIABLE, read_keys
from homeserver.rooms.rotation import get_status, rotate
from homeserver.testing import one_server

ROOMS = 7
STEPS = 12


class Killed(Exception):
    """The process ends here."""


class Mortal:
    """A database whose process ends before the call of this number, or just after it."""

    def __init__(self, database: Any, calls: int, *, after: bool) -> None:
        self._database, self._left, self._after = database, calls, after

    async def _run(self, call: Callable[..., Any], *args: Any) -> Any:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        result = await call(*args)
        if self._left == 0:
            raise Killed
        return result

    async def read(self, *args: Any) -> Any:
        return await self._run(self._database.read, *args)

    async def write(self, *args: Any) -> Any:
        return await self._run(self._database.write, *args)

    async def scrub(self, *args: Any) -> Any:
        return await self._run(self._database.scrub, *args)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Homeserver]:
    """A server without a search index, which would have a key of its own."""
    async with one_server("a.example", folder=folder, search=SearchSection(enabled=False)) as hs:
        yield hs


def make_keys(tx: Transaction) -> list[tuple[int, bytes]]:
    made = [room_key(tx, number) for number in range(100, 100 + ROOMS)] + [create_key(tx, None)]
    return [(key.number, key.secret) for key in made]


def read_made(tx: Transaction, made: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    """The keys as the table has them."""
    rows = tx.all("SELECT number, room_nid, master, wrapped FROM sealing_keys ORDER BY number")
    wanted = {number for number, _ in made}
    return [(row[0], keys.unwrap(tx, *row)) for row in rows if row[0] in wanted]


async def run_rotation(hs: Homeserver, database: Any = None) -> str:
    database = database or hs.resources.database
    new, _ = await rotate(hs.config, database, hs.resources.database.server.master_keys, lambda done, of: None)
    return new


def held_in(folder: Path) -> list[str]:
    config = Config(server_name="a.example", data_dir=str(folder / "a.example"))
    return [key.fingerprint for key in read_keys(config)]


async def test_a_rotation_wraps_every_key_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as hs:
        made = await hs.resources.database.write(make_keys)
        (old,) = held_in(tmp_path)
        new = await run_rotation(hs)
        assert held_in(tmp_path) == [new] != [old]
        status = await hs.resources.database.read(get_status)
        assert (status.current, status.rooms, status.files, status.replaced) == (new, ROOMS, 1, {}), (
            "one is that of the index"
        )
        assert await hs.resources.database.read(read_made, made) == made
    async with opened(tmp_path) as hs:
        assert await hs.resources.database.read(read_made, made) == made
        assert await run_rotation(hs) not in (old, new)


async def test_a_running_server_uses_the_new_key_at_once(tmp_path: Path) -> None:
    """The command is another process: what it has in memory is its own."""
    async with opened(tmp_path) as hs:
        made = await hs.resources.database.write(make_keys)
        other = MasterKeys(lambda: read_keys(hs.config), "the file")
        await rotate(hs.config, hs.resources.database, other, lambda done, of: None)
        later = await hs.resources.database.write(room_key, 999)
        hs.resources.database.drop_caches()
        assert await hs.resources.database.read(read_made, made) == made
        assert await hs.resources.database.read(read_made, [(later.number, b"")]) == [(later.number, later.secret)]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("calls", range(1, STEPS))
async def test_a_rotation_that_ends_at_any_step_is_finished_by_the_next(
    tmp_path: Path, calls: int, after: bool
) -> None:
    async with opened(tmp_path) as hs:
        made = await hs.resources.database.write(make_keys)
        (old,) = held_in(tmp_path)
        with contextlib.suppress(Killed):
            await run_rotation(hs, Mortal(hs.resources.database, calls, after=after))
    async with opened(tmp_path) as hs:  # starts with whatever is in the file
        assert await hs.resources.database.read(read_made, made) == made
        sealed = await hs.resources.database.write(room_key, 500)
        new = await run_rotation(hs)
        assert held_in(tmp_path) == [new] != [old]
        assert await hs.resources.database.read(read_made, made) == made
        status = await hs.resources.database.read(get_status)
        assert (status.current, status.rooms, status.replaced) == (new, ROOMS + 1, {})
    async with opened(tmp_path) as hs:
        assert (await hs.resources.database.write(room_key, 500)).secret == sealed.secret


async def test_a_key_from_the_environment_is_replaced_by_the_administrator(tmp_path: Path) -> None:
    first, second = MasterKey(new_secret()), MasterKey(new_secret())
    environment = {VARIABLE: first.format()}
    async with opened(tmp_path) as hs:
        database = hs.resources.database
        await run_rotation(hs)  # of the file, which is not used below
        await database.write(keys.set_current_master, first.fingerprint)
        await database.write(rotation._delete_old_masters)
        held = MasterKeys(lambda: read_keys(hs.config, environment), "the environment")
        database.serve_as(dataclasses.replace(database.server, master_keys=held))
        with pytest.raises(ConfigError, match="put a new key before the old one there"):
            await rotate(hs.config, database, held, lambda done, of: None, environment)
        environment[VARIABLE] = f"{second.format()} {first.format()}"
        held.reload()
        assert await rotate(hs.config, database, held, lambda done, of: None, environment) == (second.fingerprint, True)
        with pytest.raises(ConfigError, match="put a new key before"):
            await rotate(hs.config, database, held, lambda done, of: None, environment)
