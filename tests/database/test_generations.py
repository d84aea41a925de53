"""Generations of the stream: by them, what was told after a backup was made is known from what is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from homeserver.database import Database, Transaction
from homeserver.database.generations import GENERATIONS_KEPT, begin_generation, find_reach
from tests.support.database import opened

Told = tuple[int, str]


SESSIONS_OF_OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


@asynccontextmanager
async def opened_alone(url: str) -> AsyncIterator[Database]:
    """The database, opened once PostgreSQL has ended the sessions of those who left: it does so a moment later."""
    if url.startswith("postgres"):
        with psycopg.connect(url, autocommit=True) as connection, trio.fail_after(20):
            while connection.execute(SESSIONS_OF_OTHERS).fetchone() != (0,):  # noqa: ASYNC110
                await trio.sleep(0.01)
    async with opened(url) as database:
        yield database


def advance(tx: Transaction) -> int:
    return tx.next_position()


async def told(database: Database) -> Told:
    """Makes a change, and returns what a client gets: the position and the generation."""
    return await database.write(advance), database.generation


async def holds(database: Database, token: Told) -> bool:
    """Returns whether the client's position belongs to the history of this database."""
    reach = await database.read(find_reach, token[1])
    return reach is not None and token[0] <= reach


def take_back(tx: Transaction, position: int, generation: str) -> None:
    """Leaves the database as it was at a position, in a generation: what a restore from a backup does."""
    tx.run("UPDATE stream_position SET position = ?", position)
    tx.run(
        "DELETE FROM stream_generations WHERE number > (SELECT number FROM stream_generations WHERE name = ?)",
        generation,
    )


async def test_tokens_stay_valid_after_a_restart(database_url: str) -> None:
    tokens: list[Told] = []
    for _ in range(3):
        async with opened_alone(database_url) as database:
            tokens += [await told(database), await told(database)]
            assert [await holds(database, token) for token in tokens] == [True] * len(tokens)
    assert len({generation for _, generation in tokens}) == 3


@pytest.mark.parametrize("restarts", [0, 1, 3])
async def test_tokens_issued_after_a_backup_are_invalid_once_it_is_restored(database_url: str, restarts: int) -> None:
    async with opened_alone(database_url) as database:
        early = await told(database)
        backup = await told(database)
        lost = [await told(database) for _ in range(3)]
    for _ in range(restarts):
        async with opened_alone(database_url) as database:
            lost += [await told(database), await told(database)]
    async with opened_alone(database_url) as database:
        await database.write(take_back, *backup)
    async with opened_alone(database_url) as database:
        for _ in range(20):  # also when the stream has passed the positions that were told
            assert await holds(database, early) and await holds(database, backup)
            assert not any([await holds(database, token) for token in lost])
            assert await holds(database, await told(database))


async def test_a_backup_may_be_restored_twice(database_url: str) -> None:
    async with opened_alone(database_url) as database:
        backup = await told(database)
        lost = [await told(database)]
    for _ in range(2):
        async with opened_alone(database_url) as database:
            await database.write(take_back, *backup)
        async with opened_alone(database_url) as database:
            lost.append(await told(database))
    async with opened_alone(database_url) as database:
        assert [await holds(database, token) for token in [backup, *lost]] == [True, False, False, True]


async def test_a_token_without_a_generation_is_valid(database_url: str) -> None:
    async with opened_alone(database_url) as database:
        position, _ = await told(database)
        await database.write(lambda tx: tx.run("DELETE FROM stream_generations WHERE name <> ''"))
    async with opened_alone(database_url) as database:
        assert await holds(database, (position, ""))
        later, _ = await told(database)
        assert not await holds(database, (later, ""))


async def test_only_the_latest_generations_are_kept(database_url: str) -> None:
    async with opened_alone(database_url) as database:
        token = await told(database)

        def begin_many(tx: Transaction) -> list[int]:
            for _ in range(GENERATIONS_KEPT):
                begin_generation(lambda sql, params: tx.run(sql, *params))
            return tx.values("SELECT COUNT(*) FROM stream_generations")

        assert await database.write(begin_many) == [GENERATIONS_KEPT]
        assert not await holds(database, token)


async def test_commands_share_the_generation_of_the_running_server(database_url: str) -> None:
    async with opened_alone(database_url) as server:
        async with opened(database_url, inline=True, exclusive=False) as command:
            assert command.generation == server.generation
            token = await told(command)
        assert await holds(server, token)
    async with opened_alone(database_url) as later:
        assert later.generation != server.generation


async def test_all_nodes_share_one_generation(postgres_url: str) -> None:
    async with opened_alone(postgres_url) as one:
        async with opened(postgres_url) as two:
            assert one.generation == two.generation
        async with opened(postgres_url) as three:
            assert one.generation == three.generation
            await told(one)
            token = await told(three)
    async with opened_alone(postgres_url) as four:
        assert four.generation != one.generation
        assert await holds(four, token)
