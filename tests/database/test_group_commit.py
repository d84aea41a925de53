"""Writes that arrive together are committed together, and each stands or falls alone."""

from __future__ import annotations

import gc
import threading

import pytest
import trio
import trio.testing

from homeserver.database import Database, DatabaseError, Transaction
from homeserver.database.batch import Request, run_batch
from homeserver.database.interning import StringCache
from homeserver.errors import MatrixError
from tests.database import items
from tests.support.database import opened


async def write_together(database: Database, *calls: tuple[object, ...]) -> list[object]:
    """Asks for all writes while the writer is held up, so that they form one batch; the results in order."""
    begun, gate = threading.Event(), threading.Event()
    results: list[object] = [None] * len(calls)

    def hold_up(tx: Transaction) -> None:
        begun.set()
        gate.wait(30)

    async def write(number: int, fn: object, *args: object) -> None:
        try:
            results[number] = await database.write(fn, *args)  # type: ignore[arg-type]
        except Exception as error:
            results[number] = error

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.write, hold_up)
        await trio.to_thread.run_sync(begun.wait)
        for number, call in enumerate(calls):
            nursery.start_soon(write, number, *call)
            await trio.testing.wait_all_tasks_blocked()
        gate.set()
    return results


async def test_a_write_is_seen_by_the_next_read(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        position = await database.write(items.store, "one")
        assert await database.read(items.list_names) == ["one"]
        assert await database.read(lambda tx: tx.position) == position == database.stream.position


async def test_a_failing_write_does_not_affect_its_batch(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        results = await write_together(
            database,
            (items.store, "one"),
            (items.store_and_fail, "two"),
            (items.store, "three"),
            (items.store, "one"),  # breaks UNIQUE
            (items.store, "four"),
        )
        assert [isinstance(result, int) for result in results] == [True, False, True, False, True]
        assert isinstance(results[1], MatrixError) and results[1].error == "two"
        assert await database.read(items.list_names) == ["one", "three", "four"]


async def test_a_failing_write_stores_nothing(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        with pytest.raises(MatrixError, match="one"):
            await database.write(items.store_and_fail, "one")
        assert await database.read(items.list_names) == []
        assert database.stream.position == 0


async def test_a_batch_runs_in_the_order_of_the_requests(database_url: str) -> None:
    names = [f"item {number}" for number in range(50)]
    async with opened(database_url, items.SCHEMA) as database:
        positions = await write_together(database, *((items.store, name) for name in names))
        assert positions == sorted(positions)  # type: ignore[type-var]
        assert await database.read(items.list_names) == names


async def test_a_batch_is_one_commit(sqlite_url: str) -> None:
    """Another connection sees all of it or nothing, and never a part."""
    async with opened(sqlite_url, items.SCHEMA) as database, opened(sqlite_url, items.SCHEMA, exclusive=False) as other:
        seen: set[int] = set()
        done = False

        async def watch() -> None:
            while not done:
                seen.add(len(await other.read(items.list_names)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await write_together(database, *((items.store, f"item {number}") for number in range(100)))
            done = True
        assert seen <= {0, 100}


async def test_results_callbacks_and_wakes_come_after_the_commit(database_url: str) -> None:
    calls: list[str] = []

    def write(tx: Transaction, name: str) -> None:
        tx.after_commit(calls.append, name + " first")
        tx.after_commit(calls.append, name + " second")
        items.store(tx, name)

    def write_and_fail(tx: Transaction) -> None:
        tx.after_commit(calls.append, "never")
        items.store_and_fail(tx, "failed")

    async with opened(database_url, items.SCHEMA) as database:
        await write_together(database, (write, "a"), (write_and_fail,), (write, "b"))
        assert calls == ["a first", "a second", "b first", "b second"]
        assert database.stream.has_news(["a"], 0) and database.stream.has_news(["b"], 0)
        assert not database.stream.has_news(["failed"], 0)


async def test_a_failing_callback_affects_nobody_else(database_url: str) -> None:
    calls: list[int] = []

    def write(tx: Transaction) -> str:
        tx.after_commit(lambda: 1 // 0)
        tx.after_commit(calls.append, 1)
        return "written"

    async with opened(database_url, items.SCHEMA) as database:
        assert await database.write(write) == "written"
        assert calls == [1]


async def test_a_cancelled_waiter_does_not_undo_the_write(database_url: str) -> None:
    gate = threading.Event()

    def write(tx: Transaction) -> None:
        gate.wait()
        items.store(tx, "one")

    async with opened(database_url, items.SCHEMA) as database:
        with trio.move_on_after(0.05) as scope:
            await database.write(write)
        assert scope.cancelled_caught
        with trio.move_on_after(0.05):
            await database.write(items.store, "two")  # waits behind it, and its waiter goes too
        gate.set()
        await database.write(items.store, "three")
        assert await database.read(items.list_names) == ["one", "two", "three"]


async def test_a_read_cancelled_before_it_starts_is_not_run(database_url: str) -> None:
    gate = threading.Event()
    calls: list[int] = []

    async with opened(database_url, items.SCHEMA) as database:
        async with trio.open_nursery() as nursery:
            for _ in range(10):  # more than there are readers
                nursery.start_soon(database.read, lambda tx: gate.wait())
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.05):
                await database.read(lambda tx: calls.append(1))
            gate.set()
        assert await database.read(lambda tx: 1) == 1
        assert calls == []


async def test_closing_finishes_accepted_writes_and_refuses_new_ones(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(database.write, items.store, f"item {number}")
            await trio.testing.wait_all_tasks_blocked()
            await database.aclose()
        with pytest.raises(DatabaseError, match="closed"):
            await database.read(items.list_names)
    async with opened(database_url, items.SCHEMA) as database:
        assert len(await database.read(items.list_names)) == 20


async def test_a_read_sees_one_snapshot(database_url: str) -> None:
    """Every statement of a read sees the same snapshot, whatever is committed meanwhile."""
    begun, written = threading.Event(), threading.Event()

    def read_twice(tx: Transaction) -> tuple[list[str], list[str], int]:
        before = items.list_names(tx)
        begun.set()
        assert written.wait(10)
        return before, items.list_names(tx), tx.position

    async with opened(database_url, items.SCHEMA) as database:
        await database.write(items.store, "one")
        results: list[object] = []

        async def read() -> None:
            results.append(await database.read(read_twice))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.to_thread.run_sync(begun.wait)
            await database.write(items.store, "two")
            written.set()
        assert results == [(["one"], ["one"], 1)]


async def test_a_read_cannot_write(database_url: str) -> None:
    for inline in (False, True):
        async with opened(database_url, items.SCHEMA, inline=inline) as database:
            with pytest.raises(AssertionError):
                await database.read(items.store, "one")
            with pytest.raises(Exception, match=r"(?i)read-?\s?only"):
                await database.read(
                    lambda tx: tx.one("INSERT INTO tails (name, position) VALUES ('x', 1) RETURNING name")
                )
            await database.write(items.store, f"inline {inline}")
            await database.read(items.list_names)


async def test_inline_runs_on_the_trio_thread(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA, inline=True) as database:
        assert await database.write(lambda tx: threading.current_thread()) is threading.main_thread()
        assert await database.read(lambda tx: threading.current_thread()) is threading.main_thread()
        with pytest.raises(MatrixError):
            await database.write(items.store_and_fail, "one")
        await database.write(items.store, "two")
        assert await database.read(items.list_names) == ["two"]


async def test_an_in_memory_database_must_be_inline() -> None:
    async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
        await database.write(items.store, "one")
    with pytest.raises(DatabaseError, match="inline"):
        async with opened("sqlite::memory:", items.SCHEMA):
            pass


async def test_errors_leave_no_reference_cycles(sqlite_url: str) -> None:
    """Refusals are common: each must be freed at once, not by the garbage collector."""
    async with opened(sqlite_url, items.SCHEMA) as database:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with pytest.raises(MatrixError):
                    await database.write(items.store_and_fail, "one")
            assert sum(isinstance(thing, Request) for thing in gc.get_objects()) <= 1
        finally:
            gc.enable()


class _Exhausted:
    """A session whose engine gives up the transaction at the third statement, as SQLite does when the disk is full."""

    def __init__(self) -> None:
        self.statements = 0
        self.alive = True

    def execute(self, sql: str, params: object) -> None:
        self.statements += 1
        if self.statements == 3:
            self.alive = False
            raise OSError("the disk is full")

    def begin_write(self, within: object, taken: int) -> int:
        return 7

    def is_alive(self) -> bool:
        return self.alive

    def explain(self, error: BaseException) -> BaseException:
        return error

    def recover(self) -> bool:
        return False

    def savepoint(self) -> None: ...

    def release(self) -> None: ...


def test_if_the_commit_fails_all_writes_of_the_batch_fail() -> None:
    def write(tx: Transaction) -> None:
        tx.next_position()
        tx._execute("", ())

    requests = [Request(write, (), 0, None) for _ in range(4)]
    batch = run_batch(_Exhausted(), StringCache(), requests, 0)  # type: ignore[arg-type]
    assert batch.position is None and batch.taken == 10
    for request in requests:
        assert request.result is not None
        with pytest.raises(DatabaseError, match="the disk is full"):
            request.result.unwrap()
