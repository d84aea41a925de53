"""A tail sees every change at least once, through restarts, and on one node at a time."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from homeserver.database import Database, DatabaseDamaged, DatabaseError, DatabaseUnavailable, Transaction
from homeserver.database.lane import PARKED_COUNTER, Lane, try_each
from homeserver.database.tail import Tail, find_position, store_position
from homeserver.limits import TAIL_LAG_MAX
from homeserver.process.metrics import Metrics
from tests.database import items
from tests.support.database import opened
from tests.support.postgres import Cluster
from tests.support.storage import list_parked


def list_names_between(tx: Transaction, since: int, upto: int) -> list[str]:
    return tx.values("SELECT name FROM items WHERE position > ? AND position <= ? ORDER BY position", since, upto)


class Follower:
    """Records the names that it sees. Ends the run after `crash_at` spans, as a crash would."""

    def __init__(self, database: Database, crash_at: int | None = None) -> None:
        self.database = database
        self.crash_at = crash_at
        self.spans: list[tuple[int, int]] = []
        self.names: list[str] = []

    async def follow(self, since: int, upto: int) -> None:
        self.spans.append((since, upto))
        if self.crash_at == len(self.spans):
            raise DatabaseError("crash")
        self.names += await self.database.read(list_names_between, since, upto)


async def wait_until(condition: object) -> None:
    while not condition():  # type: ignore[operator]  # noqa: ASYNC110
        await trio.sleep(0.005)


async def test_a_tail_gets_past_and_future_changes(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        await database.write(items.store, "before")
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics()).run, follower.follow)
            await wait_until(lambda: follower.names == ["before"])
            await database.write(items.store, "after")
            await wait_until(lambda: follower.names == ["before", "after"])
            nursery.cancel_scope.cancel()
        assert follower.spans == [(0, 1), (1, 2)]
        assert await database.read(find_position, "t") == 2


async def test_a_tail_that_starts_now_gets_no_past_changes(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        await database.write(items.store, "before")
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            tail = Tail("t", database, database.stream, Metrics())
            nursery.start_soon(lambda: tail.run(follower.follow, from_now=True))
            await trio.testing.wait_all_tasks_blocked(0.2)
            await database.write(items.store, "after")
            await wait_until(lambda: follower.names)
            nursery.cancel_scope.cancel()
        assert follower.names == ["after"]


async def test_spans_are_limited(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        for number in range(10):
            await database.write(items.store, f"item {number}")
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics(), span_max=4).run, follower.follow)
            await wait_until(lambda: len(follower.names) == 10)
            nursery.cancel_scope.cancel()
        assert follower.spans == [(0, 4), (4, 8), (8, 10)]


async def test_a_tail_resumes_after_a_crash(database_url: str) -> None:
    names = [f"item {number}" for number in range(9)]
    async with opened(database_url, items.SCHEMA) as database:
        for name in names:
            await database.write(items.store, name)
        follower = Follower(database, crash_at=3)
        with pytest.raises(DatabaseError, match="crash"):
            await Tail("t", database, database.stream, Metrics(), span_max=2, store_seconds=0).run(follower.follow)
        assert follower.names == names[:4]
    async with opened(database_url, items.SCHEMA) as database:
        again = Follower(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics()).run, again.follow)
            await wait_until(lambda: again.names)
            nursery.cancel_scope.cancel()
        assert again.names == names[4:]


async def test_a_position_stored_with_the_work_is_exactly_once(database_url: str) -> None:
    done: list[tuple[int, int]] = []

    async with opened(database_url, items.SCHEMA) as database:
        await database.write(items.store, "one")

        async def work(since: int, upto: int) -> None:
            await database.write(lambda tx: store_position(tx, "t", upto))
            done.append((since, upto))
            raise DatabaseError("crash")

        with pytest.raises(DatabaseError, match="crash"):
            await Tail("t", database, database.stream, Metrics()).run(work)
        await database.write(items.store, "two")
        with pytest.raises(DatabaseError, match="crash"):
            await Tail("t", database, database.stream, Metrics()).run(work)
        assert done == [(0, 1), (1, 2)]
        await database.write(store_position, "t", 1)
        assert await database.read(find_position, "t") == 2  # never back


async def test_a_quiet_tail_stores_its_position_from_time_to_time(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics(), store_seconds=0.05).run, follower.follow)
            await database.write(items.store, "one")
            while await database.read(find_position, "t") != 1:  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


async def test_a_tail_with_keys_reads_all_that_has_come_when_one_of_them_has_news() -> None:
    async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            tail = Tail("t", database, database.stream, Metrics(), wake_keys=("c",))
            nursery.start_soon(tail.run, follower.follow)
            for name in ("a", "b"):
                await database.write(items.store, name)
            await trio.testing.wait_all_tasks_blocked()
            assert follower.names == []
            await database.write(items.store, "c")
            await trio.testing.wait_all_tasks_blocked()
            assert follower.spans == [(0, 3)]
            for number in range(TAIL_LAG_MAX + 1):
                await database.write(items.store, f"{number}")
            await trio.testing.wait_all_tasks_blocked()
            assert follower.spans == [(0, 3), (3, 3 + TAIL_LAG_MAX + 1)]
            nursery.cancel_scope.cancel()
        assert await database.read(find_position, "t") == 3 + TAIL_LAG_MAX + 1


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=6),
    st.integers(1, 4),
    st.sampled_from(["", "item 001", "item 007", "item 011"]),
    st.random_module(),
)
def test_a_tail_delivers_at_least_once_and_in_order_despite_crashes(
    crashes: list[int], span_max: int, key: str, random: object
) -> None:
    """Each run crashes at some span; all together have told of every change, none of an older one after a newer.

    A tail that only one key wakes has told of every change up to that one.
    """

    async def main() -> None:
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
            told: list[str] = []
            names: list[str] = []
            for crash_at in [*crashes, None]:
                for _ in range(4):
                    names.append(f"item {len(names):03}")
                    await database.write(items.store, names[-1])
                follower = Follower(database, crash_at)
                tail = Tail(
                    "t", database, database.stream, Metrics(), wake_keys=(key,) if key else (), span_max=span_max,
                    store_seconds=0,
                )  # fmt: skip
                with trio.move_on_after(60):
                    try:
                        await tail.run(follower.follow)
                    except DatabaseError:
                        pass
                assert follower.names == sorted(follower.names)
                told += follower.names
            upto = names.index(key) + 1 if key in names else 0
            assert set(told) >= set(names[:upto])
            assert key or set(told) == set(names)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_a_tail_runs_on_one_node_at_a_time(postgres_url: str) -> None:
    async with opened(postgres_url, items.SCHEMA) as one, opened(postgres_url, items.SCHEMA) as two:
        first, second = Follower(one), Follower(two)
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def run_first() -> None:
                with scope:
                    await Tail("t", one, one.stream, Metrics()).run(first.follow)

            nursery.start_soon(run_first)
            await one.write(items.store, "one")
            await wait_until(lambda: first.names == ["one"])
            nursery.start_soon(Tail("t", two, two.stream, Metrics()).run, second.follow)
            await two.write(items.store, "two")
            await wait_until(lambda: first.names == ["one", "two"])
            assert second.names == []
            scope.cancel()
            await two.write(items.store, "three")
            await wait_until(lambda: second.names == ["three"])
            nursery.cancel_scope.cancel()


async def test_a_tail_continues_after_a_restart_of_postgresql(own_cluster: Cluster) -> None:
    async with opened(own_cluster.make_database(), items.SCHEMA) as database:
        follower = Follower(database)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics()).run, follower.follow)
            await database.write(items.store, "one")
            await wait_until(lambda: follower.names == ["one"])
            own_cluster.stop()
            own_cluster.start()
            await database.write(items.store, "two")
            await wait_until(lambda: follower.names[-1:] == ["two"])
            nursery.cancel_scope.cancel()


async def test_two_tasks_cannot_run_the_same_tail(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        running = 0

        async def hold() -> None:
            nonlocal running
            async with database.hold("name"):
                running += 1
                assert running == 1
                await trio.sleep(0.01)
                running -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hold)


def test_positions_that_keep_failing_are_skipped(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"item {number}" for number in range(20)]
    bad = {"item 3", "item 4", "item 19"}

    async def main() -> None:
        metrics = Metrics()
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
            done: list[str] = []

            async def follow(since: int, upto: int) -> None:
                told = await database.read(list_names_between, since, upto)
                if bad & set(told):
                    raise ValueError(f"a bad item among {told}")
                done.extend(told)

            for name in names:
                await database.write(items.store, name)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Tail("t", database, database.stream, metrics, span_max=8).run, follow)
                await trio.sleep(60)
                await database.write(items.store, "later")
                await trio.sleep(60)
                nursery.cancel_scope.cancel()
            assert done == [name for name in (*names, "later") if name not in bad]
            assert metrics.counters()[PARKED_COUNTER, (("lane", "tail t"),)] == 3
            parked = await database.read(list_parked)
            assert {(lane, item) for lane, item, _, _ in parked} == {("tail t", "4"), ("tail t", "5"), ("tail t", "20")}
            assert "ValueError: a bad item among ['item 3']" in [reason for _, _, reason, _ in parked]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [record.message for record in caplog.records] == [
        "an item failed repeatedly and is left out from now on; see `homeserver parked list`"
    ] * 3


@pytest.mark.parametrize("failures", [1, 2])
def test_an_item_that_fails_occasionally_is_not_skipped(failures: int) -> None:
    async def main() -> None:
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
            left = {"a": 0, "b": failures + 1, "c": 0}  # the first failure is of all together
            done: list[str] = []

            async def work(part: Sequence[str]) -> None:
                for item in part:
                    if left[item]:
                        left[item] -= 1
                        raise ValueError(item)
                done.extend(part)

            await Lane("l", database, Metrics()).work(["a", "b", "c"], work)
            assert done == ["a", "b", "c"]
            assert await database.read(list_parked) == []

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_parked_item_is_not_tried_again() -> None:
    async def main() -> None:
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
            tried: list[str] = []

            async def work(part: Sequence[str]) -> None:
                tried.extend(part)
                if "bad" in part:
                    raise ValueError

            lane = Lane("l", database, Metrics())
            await lane.work(["bad", "good"], work)
            tried.clear()
            await lane.work(["good", "bad"], work)
            assert tried == ["good"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_item_that_cannot_be_read_is_reported_as_damage() -> None:
    """The health check tells of it, although the transaction that met it went on around it."""

    async def main() -> None:
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
            assert not database.outages.reasons
            await Lane("l", database, Metrics()).park("a", DatabaseDamaged("The row of a is damaged."))
            assert database.outages.reasons == {"damage": "The row of a is damaged."}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_storage_failure_is_not_blamed_on_an_item() -> None:
    async def main() -> None:
        async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:

            async def work(part: Sequence[str]) -> None:
                raise ExceptionGroup("nursery", [DatabaseError("out of reach")])

            with pytest.raises(ExceptionGroup):
                await Lane("l", database, Metrics()).work(["a", "b"], work)
            assert await database.read(list_parked) == []

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_failing_items_of_a_read_are_isolated_and_the_rest_is_read(database_url: str) -> None:
    def names(tx: Transaction, numbers: Sequence[int]) -> list[str]:
        for number in numbers:
            tx.one("SELECT no_such_column FROM strings" if number == 3 else "SELECT 1")
        return [f"read {number}" for number in numbers]

    async with opened(database_url, items.SCHEMA) as database:
        read, failed = await database.read(lambda tx: try_each(tx, range(6), lambda some: names(tx, some)))
        assert read == [f"read {number}" for number in (0, 1, 2, 4, 5)]
        assert [number for number, _ in failed] == [3]


async def test_a_storage_failure_is_not_blamed_on_an_item_of_a_read(database_url: str) -> None:
    def fail(numbers: Sequence[int]) -> list[str]:
        raise DatabaseUnavailable("out of reach")

    async with opened(database_url, items.SCHEMA) as database:
        with pytest.raises(DatabaseUnavailable):
            await database.read(lambda tx: try_each(tx, range(6), fail))
