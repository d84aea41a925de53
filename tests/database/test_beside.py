"""Commands of the administrator write while the server is running, and it notices at once."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import trio

from homeserver.database import DatabaseError, peek
from tests.database import items
from tests.support.database import opened


async def test_a_write_by_another_process_wakes_everyone(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as server:
        for _ in range(2):
            async with opened(database_url, items.SCHEMA, exclusive=False) as beside:
                position = await beside.write(lambda tx: tx.next_position("@alice:x"))
            with trio.fail_after(10):
                assert await server.stream.wait(["@alice:x"], position - 1, math.inf) == position
        assert await server.write(lambda tx: tx.next_position()) > position


async def test_a_write_without_a_server_is_visible_at_the_next_start(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA, exclusive=False) as beside:
        position = await beside.write(lambda tx: tx.next_position("@alice:x"))
    async with opened(database_url, items.SCHEMA) as server:
        assert server.stream.position == position


async def test_a_second_server_on_the_same_file_is_refused_but_a_command_is_not(sqlite_url: str) -> None:
    async with opened(sqlite_url, items.SCHEMA):
        with pytest.raises(DatabaseError, match="is in use by another server process"):
            async with opened(sqlite_url, items.SCHEMA):
                pass
        async with opened(sqlite_url, items.SCHEMA, exclusive=False):
            pass


@pytest.mark.parametrize("exclusive", [True, False])
async def test_a_missing_database_is_not_created_again(sqlite_url: str, exclusive: bool) -> None:
    """After a wrong mount, or a restore that forgot the file, a new database would look like a good start."""
    path = Path(sqlite_url.removeprefix("sqlite:"))
    async with opened(sqlite_url, items.SCHEMA):
        pass
    path.rename(path.with_name("elsewhere"))
    with pytest.raises(DatabaseError, match="restore it from your backup, or remove"):
        async with opened(sqlite_url, items.SCHEMA, exclusive=exclusive):
            pass
    with pytest.raises(DatabaseError, match="is gone"):
        peek(sqlite_url, [items.SCHEMA], lambda tx: tx.position)
    assert not path.exists()
    path.with_name("elsewhere").rename(path)
    async with opened(sqlite_url, items.SCHEMA):
        pass
