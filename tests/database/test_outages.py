"""Failing engines: which errors count as an outage, as busy or as damage, and that no request waits in vain."""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
import time
from pathlib import Path

import psycopg
import pytest
import trio

from homeserver.blobs import BlobError, Blobs
from homeserver.database import Database, DatabaseDamaged, DatabaseUnavailable, Transaction, open_database
from homeserver.database.postgres import PostgresSession, connect
from homeserver.database.schema import DatabaseBusy
from homeserver.process.outages import BLOBS, DATABASE_READS, DATABASE_WRITES, Outages
from tests.database import items
from tests.support.database import now_ms, opened
from tests.support.object_store import running_object_store
from tests.support.postgres import Cluster
from tests.support.storage import full_disk, read_only


async def open_items(url: str) -> Database:
    return await open_database(url, [items.SCHEMA], now_ms=now_ms)


async def test_a_full_disk_is_an_outage_that_ends(sqlite_url: str) -> None:
    database = await open_items(sqlite_url)
    outages = database.outages
    await database.write(items.store, "before")
    with full_disk():
        for _ in range(3):
            with pytest.raises(DatabaseUnavailable):
                await database.write(items.store, "x" * 100_000)
        assert await database.read(items.list_names) == ["before"]
        assert outages.is_out(DATABASE_WRITES) and not outages.is_out(DATABASE_READS)
        with pytest.raises(DatabaseUnavailable):
            await database.prove_writable()
        await database.note(items.store, "not while it is out")
    await database.prove_writable()
    await database.write(items.store, "after")
    assert await database.read(items.list_names) == ["before", "after"]
    await database.aclose()


async def test_a_full_disk_is_noticed_without_any_writes(sqlite_url: str) -> None:
    database = await open_items(sqlite_url)
    outages = database.outages
    with full_disk(), pytest.raises(DatabaseUnavailable):
        await database.prove_writable()
    assert outages.is_out(DATABASE_WRITES)
    await database.aclose()


async def test_after_a_start_on_a_full_disk_the_first_write_begins_the_generation(sqlite_url: str) -> None:
    """Each start begins a generation of the stream; before the first write all positions are of the one before."""
    async with opened(sqlite_url, items.SCHEMA) as database:
        await database.write(items.store, "before")
        earlier = database.generation
        database._opened.writer.begins_generation = True  # type: ignore[attr-defined]
        with full_disk(), pytest.raises(DatabaseUnavailable):
            await database.write(items.store, "during")
        with pytest.raises(ZeroDivisionError):
            await database.write(lambda tx: 1 // 0)
        assert database.generation == earlier
        await database.write(items.store, "after")
        begun = database.generation
        assert begun != earlier
        await database.write(items.store, "later")
        assert database.generation == begun
        assert await database.read(items.list_names) == ["before", "after", "later"]


async def test_junk_pages_are_reported_as_damage(tmp_path: Path, sqlite_url: str) -> None:
    """Whatever lies in a damaged page is an error, and never just not there."""
    async with opened(sqlite_url, items.SCHEMA) as database:
        for number in range(400):
            await database.write(items.store, f"{number:04} " + "w" * 300)
    damage(tmp_path / "test.db")
    database = await open_items(sqlite_url)
    outages = database.outages
    with pytest.raises(DatabaseDamaged):
        await database.read(items.list_names)
    assert "damage" in outages.reasons and "malformed" in outages.reasons["damage"]
    await database.aclose()


def damage(path: Path) -> None:
    """Overwrites a good part of one page in the middle of the table."""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    data = bytearray(path.read_bytes())
    starts = range(0, len(data), 4096)
    leaves = [start for start in starts if data[start] == 0x0D and b"w" * 100 in data[start : start + 4096]]
    victim = leaves[len(leaves) // 2]
    data[victim + 100 : victim + 2100] = b"\xff" * 2000
    path.write_bytes(data)


@pytest.mark.postgres
async def test_a_read_only_postgresql_is_an_outage(postgres_url: str) -> None:
    """As after a failover, where the connections still lead to what is a standby now."""
    database = await open_items(postgres_url)
    outages = database.outages
    await database.write(items.store, "before")
    with read_only(postgres_url):
        with pytest.raises(DatabaseUnavailable):
            await database.write(items.store, "during")
        assert await database.read(items.list_names) == ["before"]
        assert outages.is_out(DATABASE_WRITES)
    await database.write(items.store, "after")
    await database.aclose()


@pytest.mark.postgres
async def test_a_read_only_connection_is_replaced(postgres_url: str) -> None:
    async with opened(postgres_url, items.SCHEMA) as database:
        session = database._opened.writer
        session._connection.execute("SET default_transaction_read_only = on")  # type: ignore[attr-defined]
        await database.write(items.store, "one")
        assert await database.read(items.list_names) == ["one"]


@pytest.mark.postgres
async def test_terminated_backends_are_replaced(postgres_url: str) -> None:
    """Between calls and during one: the batch runs again as a whole."""
    async with opened(postgres_url, items.SCHEMA) as database:
        terminate(postgres_url)
        await database.write(items.store, "one")
        ended = threading.Event()

        def write(tx: Transaction) -> None:
            items.store(tx, "two")
            if not ended.is_set():
                ended.set()
                terminate(postgres_url)
            items.store(tx, "three")

        await database.write(write)
        terminate(postgres_url)
        assert await database.read(items.list_names) == ["one", "two", "three"]


def terminate(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )


@pytest.mark.postgres
async def test_a_statement_timeout_is_not_an_outage(postgres_url: str) -> None:
    database = await open_items(postgres_url)
    outages = database.outages

    def wait(tx: Transaction) -> None:
        tx.run("SET statement_timeout = '50ms'")
        tx.one("SELECT pg_sleep(10)")

    with pytest.raises(DatabaseBusy):
        await database.write(wait)
    await database.write(items.store, "after")
    assert not outages.reasons
    await database.aclose()


@pytest.mark.postgres
async def test_a_stalled_transaction_loses_the_write_lock(postgres_url: str) -> None:
    """A process that is stopped during a write holds the write lock. PostgreSQL ends its transaction."""
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        stopped = threading.Event()

        def stand_still(tx: Transaction) -> None:
            items.store(tx, "one")
            if not stopped.is_set():
                tx.run("SET LOCAL idle_in_transaction_session_timeout = '100ms'")
                stopped.set()
                time.sleep(0.5)
                items.list_names(tx)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.write, stand_still)
            await trio.to_thread.run_sync(stopped.wait)
            with trio.fail_after(30):
                await two.write(items.store, "two")
        assert sorted(await two.read(items.list_names)) == ["one", "two"]


@pytest.mark.postgres
async def test_while_postgresql_is_down_requests_fail_at_once(own_cluster: Cluster) -> None:
    """The first call waits for PostgreSQL to come back, as after a restart. Later calls fail at once."""
    database = await open_items(own_cluster.make_database())
    outages = database.outages
    await database.write(items.store, "before")
    own_cluster.stop()
    for _ in range(8):  # more than there are connections
        with pytest.raises(DatabaseUnavailable):
            await database.read(items.list_names)
    with pytest.raises(DatabaseUnavailable):
        await database.write(items.store, "during")
    began = trio.current_time()
    for _ in range(20):
        with pytest.raises(DatabaseUnavailable):
            await database.read(items.list_names)
        with pytest.raises(DatabaseUnavailable):
            await database.write(items.store, "during")
    assert trio.current_time() - began < 20
    assert set(outages.reasons) == {DATABASE_READS, DATABASE_WRITES}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outages.watch)
        own_cluster.start()
        with trio.fail_after(10):
            await outages.wait_over()
        nursery.cancel_scope.cancel()
    assert await database.read(items.list_names) == ["before"]
    await database.aclose()


async def test_a_full_folder_of_blobs_is_an_outage(tmp_path: Path) -> None:
    outages = Outages()
    blobs = Blobs(f"file:{tmp_path}/blobs", outages=outages)
    await blobs.prepare()
    await blobs.put("a", b"before")
    with full_disk():
        for data in (b"x" * 100, b"x" * 100_000):
            with pytest.raises(BlobError):
                await blobs.put("b", data)
        with pytest.raises(BlobError):
            await blobs.prove_writable()
        assert await blobs.get("a") == b"before"
        assert outages.is_out(BLOBS)
    assert not await blobs.exists("b")
    await blobs.put("b", b"after")


async def test_a_missing_folder_of_blobs_does_not_count_as_lost_blobs(tmp_path: Path) -> None:
    """As of a file system that is not mounted."""
    blobs = Blobs(f"file:{tmp_path}/blobs")
    await blobs.prepare()
    await blobs.put("a", b"1")
    (tmp_path / "blobs").rename(tmp_path / "unmounted")
    (tmp_path / "blobs").mkdir()
    with pytest.raises(BlobError, match="not mounted"):
        await blobs.get("a")


@pytest.mark.sockets
async def test_a_failing_object_store_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    outages = Outages()
    with running_object_store() as (environment, objects):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        blobs = Blobs("s3://bucket", outages=outages)
        await blobs.put("a", b"1")
        objects.fails = True
        with trio.fail_after(60), pytest.raises(BlobError):
            await blobs.put("b", b"2")
        with trio.fail_after(60), pytest.raises(BlobError):
            await blobs.get("a")
        assert outages.is_out(BLOBS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outages.watch)
            await trio.sleep(1.5)
            assert outages.is_out(BLOBS)
            objects.fails = False
            with trio.fail_after(30):
                await outages.wait_over()
            nursery.cancel_scope.cancel()
        await blobs.put("b", b"2")
        assert set(objects) == {"a", "b"}


async def test_a_server_that_closes_the_connection_is_an_outage(postgres_url: str) -> None:
    """As one that was killed does, at whichever statement it is noticed."""
    connection = connect(postgres_url)
    session = PostgresSession(lambda: connection, "test")
    with socket.socket(fileno=os.dup(connection.fileno())) as wire:
        wire.shutdown(socket.SHUT_RDWR)
    with pytest.raises(psycopg.OperationalError) as raised:
        session.begin_read()
    assert isinstance(session.explain(raised.value), DatabaseUnavailable)
    session.close()
