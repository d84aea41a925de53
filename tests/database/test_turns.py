"""Writes that say what they keep within: on PostgreSQL several nodes run them at the same time, and commit in order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest
import trio
import trio.testing

from homeserver.database import Database, Transaction
from homeserver.database.stream import Stream
from homeserver.errors import MatrixError
from tests.database import items
from tests.support.database import opened

pytestmark = pytest.mark.postgres

PATIENCE_S = 10


def meet(barrier: threading.Barrier) -> Callable[[Transaction, str], int]:
    """Returns a write that stores an item once another one has come as far."""

    def store(tx: Transaction, name: str) -> int:
        barrier.wait(PATIENCE_S)
        return items.store(tx, name)

    return store


async def test_writes_within_other_keys_run_at_the_same_time(postgres_url: str) -> None:
    write = meet(threading.Barrier(2))
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.write(write, "a", within=("!a:x",)))
            nursery.start_soon(lambda: two.write(write, "b", within=("!b:x",)))
        assert sorted(await one.read(items.list_names)) == ["a", "b"]


@pytest.mark.parametrize("others", [("!a:x", "@other:x"), ()], ids=["one key in common", "none named"])
async def test_a_write_within_a_key_excludes_others(postgres_url: str, others: tuple[str, ...]) -> None:
    begun, goes_on = threading.Event(), threading.Event()
    seen: list[list[str]] = []

    def slow(tx: Transaction) -> int:
        begun.set()
        assert goes_on.wait(PATIENCE_S)
        return items.store(tx, "first")

    def look(tx: Transaction) -> int:
        seen.append(items.list_names(tx))
        return items.store(tx, "second")

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        positions: list[int] = []

        async def write(database: Database, fn: Callable[[Transaction], int], within: tuple[str, ...]) -> None:
            positions.append(await database.write(fn, within=within))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, one, slow, ("!a:x", "@one:x"))
            await trio.to_thread.run_sync(begun.wait)
            nursery.start_soon(write, two, look, others)
            with trio.move_on_after(0.05):
                await two.stream.wait(["second"], 0, PATIENCE_S)
            goes_on.set()
    assert seen == [["first"]]
    assert positions == sorted(positions)


async def test_nobody_sees_a_position_before_those_that_were_drawn_earlier(postgres_url: str) -> None:
    """A quick write waits for the slow one that began before it, so a reader's position never passes an unseen row."""
    drawn, goes_on = threading.Event(), threading.Event()

    def slow(tx: Transaction) -> int:
        position = items.store(tx, "slow")
        drawn.set()
        assert goes_on.wait(PATIENCE_S)
        return position

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.write(slow, within=("!a:x",)))
            await trio.to_thread.run_sync(drawn.wait)
            nursery.start_soon(lambda: two.write(items.store, "quick", within=("!b:x",)))
            with trio.move_on_after(0.05):
                await two.stream.wait(["quick"], 0, PATIENCE_S)
            assert await two.read(lambda tx: (tx.position, items.list_names(tx))) == (0, [])
            goes_on.set()
        assert await two.read(items.list_names) == ["slow", "quick"]


async def test_a_turn_ends_with_its_connection(postgres_url: str) -> None:
    drawn, goes_on = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow(tx: Transaction) -> int:
        if not ended:
            (pid,) = tx.values("SELECT pg_backend_pid()")
            ended.append(str(pid))
            drawn.set()
            assert goes_on.wait(PATIENCE_S)
        return items.store(tx, "slow")

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.write(slow, within=("!a:x",)))
            await trio.to_thread.run_sync(drawn.wait)
            await two.read(lambda tx: tx.values("SELECT pg_terminate_backend(CAST(? AS INTEGER)::int)", int(ended[0])))
            with trio.fail_after(PATIENCE_S):
                await two.write(items.store, "quick", within=("!b:x",))
            goes_on.set()
        assert await two.read(items.list_names) == ["quick", "slow"]


async def test_a_write_that_takes_many_positions_runs_alone(postgres_url: str) -> None:
    def take(tx: Transaction) -> int:
        return [tx.next_position("key") for _ in range(100)][-1]

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        position = await one.write(take, within=("!a:x",))
        assert await two.read(lambda tx: tx.position) == position
        assert await two.write(items.store, "next", within=("!b:x",)) > position


async def test_a_failing_write_does_not_undo_those_beside_it(postgres_url: str) -> None:
    async with opened(postgres_url, items.SCHEMA) as one:
        failed: list[MatrixError] = []

        async def fail() -> None:
            try:
                await one.write(items.store_and_fail, "failed", within=("!a:x",))
            except MatrixError as error:
                failed.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(lambda: one.write(items.store, "one", within=("!b:x",)))
            nursery.start_soon(lambda: one.write(items.store, "two"))
        assert len(failed) == 1
        assert sorted(await one.read(items.list_names)) == ["one", "two"]


async def test_writes_beside_each_other_intern_the_same_string_once(postgres_url: str) -> None:
    barrier = threading.Barrier(2)

    def intern(tx: Transaction) -> int:
        nid = tx.intern("org.example.type")
        barrier.wait(PATIENCE_S)
        return nid

    async with opened(postgres_url) as one, opened(postgres_url) as two:
        found: list[int] = []

        async def write(database: Database, key: str) -> None:
            found.append(await database.write(intern, within=(key,)))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write, one, "!a:x")
                nursery.start_soon(write, two, "!b:x")
        assert found[0] == found[1]


async def test_writes_that_meet_in_a_row_of_no_common_key_both_succeed(postgres_url: str) -> None:
    """PostgreSQL ends one of them, and it runs again alone."""
    drawn, changed = threading.Event(), threading.Event()

    def earlier(tx: Transaction) -> int:
        drawn.set()
        assert changed.wait(PATIENCE_S)
        tx.run("UPDATE items SET size = size + 1 WHERE name = 'shared'")
        return items.store(tx, "earlier")

    def later(tx: Transaction) -> int:
        tx.run("UPDATE items SET size = size + 1 WHERE name = 'shared'")
        changed.set()
        return items.store(tx, "later")

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        shared = await one.write(items.store, "shared")
        await one.write(lambda tx: tx.run("UPDATE items SET size = 0 WHERE position = ?", shared))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one.write(earlier, within=("!a:x",)))
            await trio.to_thread.run_sync(drawn.wait)
            nursery.start_soon(lambda: two.write(later, within=("!b:x",)))
        assert await two.read(lambda tx: tx.values("SELECT size FROM items WHERE position = ?", shared)) == [2]
        assert sorted(await two.read(items.list_names)) == ["earlier", "later", "shared"]


async def test_positions_of_nodes_that_draw_at_once_are_read_in_order(postgres_url: str) -> None:
    """Readers that read from where they were, on any node, get all items, each once, and in the order of positions."""
    chance = random.Random(7)
    writers, writes = 6, 25
    ended = 0

    async def write(database: Database, name: str) -> None:
        nonlocal ended
        for number in range(writes):
            within = () if chance.random() < 0.1 else (name, chance.choice("xyz"))
            await database.write(items.store, f"{name} {number}", within=within)
        ended += 1

    def news(tx: Transaction, since: int) -> tuple[int, list[int]]:
        sql = "SELECT position FROM items WHERE position > ? ORDER BY position"
        return tx.position, tx.values(sql, since)

    async def read(nodes: list[Database]) -> None:
        since, seen = 0, list[int]()
        while True:
            is_last = ended == writers
            upto, positions = await chance.choice(nodes).read(news, since)
            assert all(since < position <= upto for position in positions)
            seen += positions
            since = upto
            if is_last:
                break
        assert len(seen) == writers * writes and seen == sorted(seen)

    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as nursery:
            for number in range(writers):
                nursery.start_soon(write, (one, two)[number % 2], f"writer {number}")
            nursery.start_soon(read, [one, two])


async def test_announcements_of_writes_beside_each_other_leave_no_gap(postgres_url: str) -> None:
    """Each announcement begins where the commit before ended, however the blocks were drawn."""
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        for number in range(6):
            position = await (one, two)[number % 2].write(lambda tx: tx.next_position("key"), within=(str(number),))
        await two.stream.wait(["key"], position - 1, trio.current_time() + PATIENCE_S)
        await one.stream.wait(["key"], position - 1, trio.current_time() + PATIENCE_S)
        for stream in (one.stream, two.stream):
            assert await quiet_from(stream, position)


async def quiet_from(stream: Stream, position: int) -> bool:
    """Returns whether the stream knows that another key has no news, as soon as it has heard of everything."""
    with trio.move_on_after(PATIENCE_S):
        while stream.has_news(["another key"], 0):  # noqa: ASYNC110 (it is not told what it need not assume any more)
            await trio.sleep(0.01)
    return stream.position == position and not stream.has_news(["another key"], 0)


async def test_on_sqlite_keys_change_nothing(sqlite_url: str) -> None:
    async with opened(sqlite_url, items.SCHEMA) as database:
        assert await database.write(items.store, "one", within=("!a:x",)) == 1
        assert await database.write(items.store, "two", within=("!a:x", "@a:x")) == 2
