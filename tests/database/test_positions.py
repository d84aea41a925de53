"""Positions rise in the order of commits, on every engine and with several nodes writing."""

from __future__ import annotations

import math

import pytest
import trio

from homeserver.database import Database, Transaction
from homeserver.errors import MatrixError
from tests.database import items
from tests.support.database import opened


async def write_many(database: Database, name: str, count: int) -> None:
    for number in range(count):
        if number % 7 == 0:
            with pytest.raises(MatrixError):
                await database.write(items.store_and_fail, f"{name} {number}")
        else:
            await database.write(items.store, f"{name} {number}")


async def watch(database: Database, history: list[tuple[int, list[int]]]) -> None:
    """Notes again and again the position, and the positions of the items that are visible."""
    while True:
        history.append(await database.read(lambda tx: (tx.position, tx.values("SELECT position FROM items"))))


def check_history(history: list[tuple[int, list[int]]], final: list[int]) -> None:
    """Checks that a reader who saw position n had seen everything up to n, and nothing beyond it."""
    assert [position for position, _ in history] == sorted(position for position, _ in history)
    for position, visible in history:
        assert sorted(visible) == [item for item in final if item <= position]


async def test_positions_of_many_writers_are_unique_and_ordered(database_url: str) -> None:
    history: list[tuple[int, list[int]]] = []
    async with opened(database_url, items.SCHEMA) as database:
        async with trio.open_nursery() as watchers:
            watchers.start_soon(watch, database, history)
            async with trio.open_nursery() as writers:
                for number in range(8):
                    writers.start_soon(write_many, database, f"writer {number}", 15)
            watchers.cancel_scope.cancel()
        final = await database.read(lambda tx: tx.values("SELECT position FROM items ORDER BY position"))
        check_history(history, final)


async def test_positions_of_two_nodes_are_unique_and_ordered(postgres_url: str) -> None:
    histories: list[list[tuple[int, list[int]]]] = [[], []]
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as watchers:
            for node, history in zip((one, two), histories, strict=True):
                watchers.start_soon(watch, node, history)
            async with trio.open_nursery() as writers:
                for number in range(6):
                    writers.start_soon(write_many, (one, two)[number % 2], f"writer {number}", 15)
            watchers.cancel_scope.cancel()
        final = await one.read(lambda tx: tx.values("SELECT position FROM items ORDER BY position"))
        assert len(final) == len(set(final)) == 6 * 12
        for history in histories:
            check_history(history, final)
        last = await one.write(lambda tx: tx.next_position("last"))
        assert await two.stream.wait(["last"], last - 1, math.inf) == last


async def test_positions_continue_after_a_restart(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        first = await database.write(items.store, "one")
        await database.write(lambda tx: [tx.next_position() for _ in range(10)])
    async with opened(database_url, items.SCHEMA) as database:
        assert database.stream.position == first + 10
        assert await database.write(items.store, "two") == first + 11


async def test_a_position_is_not_reused_after_a_rollback(database_url: str) -> None:
    """So that what a failed write has left in a cache under its position cannot be taken for another."""
    taken: list[int] = []

    def take_and_fail(tx: Transaction) -> None:
        taken.append(tx.next_position())
        raise MatrixError(400, "M_UNKNOWN", "")

    for inline in (False, True):
        async with opened(database_url, items.SCHEMA, inline=inline) as database:
            for number in range(5):
                with pytest.raises(MatrixError):
                    await database.write(take_and_fail)
                taken.append(await database.write(items.store, f"{inline} {number}"))
    assert len(taken) == len(set(taken)) and taken == sorted(taken)


async def test_a_write_knows_its_position(database_url: str) -> None:
    def write(tx: Transaction) -> tuple[int, ...]:
        return tx.position, tx.next_position("a"), tx.position, tx.next_position("b"), tx.position

    async with opened(database_url) as database:
        before, first, between, second, after = await database.write(write)
        assert (first, between, second, after) == (before + 1, first, first + 1, second)
        assert database.stream.position == second


async def test_a_write_without_changes_takes_no_position(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        await database.write(lambda tx: tx.run("INSERT INTO items (position, name) VALUES (1, 'x')"))
        assert database.stream.position == await database.read(lambda tx: tx.position) == 0
        await database.write(lambda tx: tx.wake("key"))
        assert database.stream.position == 1 and database.stream.has_news(["key"], 0)
