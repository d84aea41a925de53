"""Nodes on one PostgreSQL: they wake one another, and live through a restart of it."""

from __future__ import annotations

import math
import threading

import pytest
import trio
import trio.testing

from homeserver.database import Database, DatabaseError, Transaction
from tests.database import items
from tests.support.database import opened
from tests.support.postgres import Cluster


async def wait_for_news(database: Database, key: str, after: int) -> int:
    return await database.stream.wait([key], after, math.inf)


async def test_a_commit_wakes_the_other_node(postgres_url: str) -> None:
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        async with trio.open_nursery() as nursery:
            results: list[int] = []

            async def wait() -> None:
                results.append(await wait_for_news(two, "@alice:x", 0))

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await one.write(lambda tx: tx.next_position("@bob:x"))
            position = await one.write(lambda tx: tx.next_position("@alice:x", "'quoted' \\ \"ü\""))
        assert results == [position]
        assert not two.stream.has_news(["@carol:x"], 0)


async def test_an_inline_node_is_notified_too(postgres_url: str) -> None:
    async with opened(postgres_url, inline=True) as one, opened(postgres_url, inline=True) as two:
        position = await one.write(lambda tx: tx.next_position("key"))
        assert await wait_for_news(two, "key", 0) == position


async def test_too_many_keys_for_one_notification_wake_everyone(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        keys = [f"@user{number}:example.org" for number in range(2000)]
        position = await one.write(lambda tx: tx.next_position(*keys))
        assert await wait_for_news(two, "@nobody:x", 0) == position
        assert not one.stream.has_news(["@nobody:x"], 0)


async def test_both_nodes_share_the_numbers_of_strings(postgres_url: str) -> None:
    async with opened(postgres_url) as one, opened(postgres_url) as two:
        found: dict[str, set[int]] = {}

        async def intern(database: Database, value: str) -> None:
            found.setdefault(value, set()).add(await database.write(lambda tx: tx.intern(value)))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(intern, (one, two)[number % 2], f"string {number // 4}")
        assert [len(nids) for nids in found.values()] == [1] * 10


async def test_nodes_survive_a_restart_of_postgresql(own_cluster: Cluster) -> None:
    """Writes and reads continue on new connections, and no notification of other nodes is missed."""
    url = own_cluster.make_database()
    async with opened(url, items.SCHEMA) as one, opened(url, items.SCHEMA) as two:
        await one.write(items.store, "before")
        own_cluster.stop()
        own_cluster.start()
        assert await one.read(items.list_names) == ["before"]
        position = await one.write(items.store, "after")
        assert await two.read(items.list_names) == ["before", "after"]
        assert await wait_for_news(two, "after", position - 1) == position


async def test_a_write_whose_connection_is_lost_runs_again(own_cluster: Cluster) -> None:
    """The uncommitted batch runs again as a whole, and takes effect only once."""
    url = own_cluster.make_database()
    calls: list[str] = []
    lost = threading.Event()

    def write(tx: Transaction, name: str) -> int:
        calls.append(name)
        position = items.store(tx, name)
        if not lost.is_set():
            lost.set()
            own_cluster.stop()
            own_cluster.start()
        return position + len(items.list_names(tx)) * 0

    async with opened(url, items.SCHEMA) as database:
        await database.write(write, "one")
        assert calls == ["one", "one"]
        assert await database.read(items.list_names) == ["one"]


async def test_without_postgresql_requests_fail_with_an_outage(own_cluster: Cluster) -> None:
    url = own_cluster.make_database()
    async with opened(url, items.SCHEMA) as database:
        own_cluster.stop()
        for call in (database.write(items.store, "one"), database.read(items.list_names)):
            with pytest.raises(DatabaseError, match="cannot be reached"):
                await call
        own_cluster.start()
        await trio.sleep(0.6)  # it is not tried at every call
        await database.write(items.store, "two")
        assert await database.read(items.list_names) == ["two"]
