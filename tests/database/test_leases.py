"""One node at a time leads what only one may do. Whoever has lost the lead writes nothing any more."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest
import trio

from homeserver.database import Database, Transaction
from homeserver.database.leases import Lease
from homeserver.database.postgres import connect
from homeserver.limits import DATABASE_LEASE_SECONDS
from tests.database import items
from tests.support.database import opened

pytestmark = pytest.mark.postgres


@pytest.fixture
async def nodes(postgres_url: str) -> AsyncIterator[tuple[Database, Database]]:
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        yield one, two


@asynccontextmanager
async def leading(database: Database, name: str = "work") -> AsyncIterator[trio.Event]:
    """Runs a task of the node that leads until the end. Yields an event that is set once it does."""
    began = trio.Event()

    async def lead() -> None:
        async with database.hold(name):
            began.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lead)
        yield began
        nursery.cancel_scope.cancel()


def find_fence(tx: Transaction) -> int:
    (fence,) = tx.values("SELECT fence FROM leases WHERE name = 'work'")
    return int(fence)


def let_expire(tx: Transaction) -> None:
    """Lets the time of the lease pass, as it does while its owner stands still."""
    tx.run("UPDATE leases SET until_ms = 1 WHERE name = 'work'")


async def test_a_lease_changes_hands_when_it_is_given_back_and_its_fence_rises(
    nodes: tuple[Database, Database],
) -> None:
    one, two = nodes
    async with one.hold("work"):
        before = await two.read(find_fence)
        async with leading(two) as began:
            with trio.move_on_after(2):
                await began.wait()
            assert not began.is_set()
    with trio.fail_after(10):
        async with two.hold("work"):
            assert await two.read(find_fence) > before


async def test_a_node_that_stood_still_is_replaced_and_can_write_nothing_any_more(
    nodes: tuple[Database, Database],
) -> None:
    one, two = nodes
    is_over = False
    async with one.hold("work"):
        await one.write(items.store, "in time")
        await two.write(let_expire)
        async with leading(two) as began:
            with trio.fail_after(10):
                await began.wait()
            await one.write(items.store, "too late")
            is_over = True
    assert not is_over
    assert await two.read(items.list_names) == ["in time"]
    await one.write(items.store, "without a lease")


async def test_a_node_that_has_lost_its_lease_is_told(nodes: tuple[Database, Database]) -> None:
    one, two = nodes
    with trio.fail_after(20):
        async with one.hold("work"):
            await two.write(let_expire)
            async with leading(two):
                await trio.sleep_forever()


async def test_a_dead_node_is_replaced_at_once(nodes: tuple[Database, Database]) -> None:
    one, two = nodes

    def end_sessions_with_locks(tx: Transaction) -> None:
        tx.all(
            "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database ON pg_database.oid = database"
            " WHERE locktype = 'advisory' AND datname = current_database()"
        )

    async with leading(one) as began:
        await began.wait()
        await two.read(end_sessions_with_locks)
        begin = time.monotonic()
        async with two.hold("work"):
            assert time.monotonic() - begin < DATABASE_LEASE_SECONDS / 2


def test_a_lease_expires_by_the_clock_of_its_owner_too() -> None:
    now = time.monotonic()
    assert not Lease("work", 1, now).has_expired()
    assert Lease("work", 1, now - DATABASE_LEASE_SECONDS - 1).has_expired()
    assert Lease("work", 1, -math.inf).has_expired()


async def test_a_node_that_stands_still_in_a_write_does_not_stop_others_for_long(postgres_url: str) -> None:
    """PostgreSQL itself does not count a session as idle if its last statements were a pipeline."""
    async with opened(postgres_url, items.SCHEMA) as node:
        with connect(postgres_url) as other:
            other.execute("BEGIN; CREATE TABLE anything (number integer)")
            other.execute("SELECT pg_advisory_xact_lock(7053162)")
            other.cursor().executemany("INSERT INTO anything VALUES (%s)", [(1,), (2,)])
            with trio.fail_after(10):
                await node.write(items.store, "mine")
            assert other.info.status == psycopg.pq.ConnStatus.OK  # it does not know yet
            with pytest.raises(psycopg.OperationalError):
                other.execute("COMMIT")
