"""Parked items are listed, tried again, forgotten, and gone once they have succeeded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest
import trio
import trio.testing

from homeserver import limits
from homeserver.database import Database
from homeserver.database.lane import Lane
from homeserver.database.parked import delete_parked_items, list_parked, set_parked_due, store_parked
from homeserver.database.tail import Tail
from homeserver.process.metrics import Metrics
from tests.database import items
from tests.support.database import opened


@pytest.fixture
async def database() -> AsyncIterator[Database]:
    async with opened("sqlite::memory:", items.SCHEMA, inline=True) as database:
        yield database


class Work:
    """Fails of what is in `bad`; remembers what it has done."""

    def __init__(self, *bad: object) -> None:
        self.bad = set(bad)
        self.done: list[object] = []

    async def __call__(self, part: Sequence[object]) -> None:
        for item in part:
            if item in self.bad:
                raise ValueError(item)
        self.done += part


async def parked(database: Database) -> list[tuple[str, str, bool]]:
    return [(each.lane, each.item, each.is_due) for each in await database.read(list_parked)]


async def test_an_item_is_tried_again_without_a_restart(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    lane, work = Lane("l", database, Metrics()), Work("b")
    await lane.work(["a", "b"], work)
    assert await parked(database) == [("l", "b", False)]
    work.bad.clear()
    await lane.work(["b"], work)
    assert work.done == ["a"]
    assert await database.write(set_parked_due, "l", "b") == 1
    assert await parked(database) == [("l", "b", True)]
    await lane.work(["b"], work)
    assert work.done == ["a", "b"]
    assert await parked(database) == []


async def test_an_item_that_fails_again_is_parked_again(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    lane, work = Lane("l", database, Metrics()), Work("b")
    await lane.work(["a", "b"], work)
    await database.write(set_parked_due)
    await lane.work(["b"], work)
    assert await parked(database) == [("l", "b", False)]
    work.bad.clear()
    await lane.work(["b"], work)
    assert work.done == ["a"]


async def test_an_item_that_succeeds_after_a_restart_is_no_longer_parked(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    await Lane("l", database, Metrics()).work(["a", "b"], Work("a", "b"))
    work = Work("a")
    await Lane("l", database, Metrics()).work(["a", "b"], work)
    assert work.done == ["b"]
    assert await parked(database) == [("l", "a", False)]


async def test_an_item_that_recovers_during_a_retry_is_no_longer_parked(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    await Lane("l", database, Metrics()).work(["a"], Work("a"))
    left = limits.LANE_TRIES - 1

    async def work(part: Sequence[str]) -> None:
        nonlocal left
        if left:
            left -= 1
            raise ValueError

    await Lane("l", database, Metrics()).work(["a"], work)
    assert await parked(database) == []


async def test_cleared_items_are_not_tried_again(autojump_clock: trio.testing.MockClock, database: Database) -> None:
    lane, work = Lane("l", database, Metrics()), Work("b")
    await lane.work(["a", "b"], work)
    assert await database.write(delete_parked_items, "l", "no such item") == 0
    assert await database.write(delete_parked_items, "l", "b") == 1
    assert await parked(database) == []
    work.bad.clear()
    await lane.work(["b"], work)
    assert work.done == ["a"]


async def test_a_lane_without_parked_items_reads_nothing(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    lane, work = Lane("l", database, Metrics()), Work()
    await lane.work(["a"], work)
    inner, asked = database.read, 0

    async def read(fn: object, *args: object) -> object:
        nonlocal asked
        asked += 1
        return await inner(fn, *args)  # type: ignore[arg-type]

    database.read = read  # type: ignore[method-assign, assignment]
    for _ in range(3):
        await lane.work(["a"], work)
    assert asked == 0


async def test_the_newest_parked_items_of_each_lane_are_kept(database_url: str) -> None:
    async with opened(database_url, items.SCHEMA) as database:
        names = [f"{number:04}" for number in range(limits.PARKED_ITEMS_MAX + 2)]
        await database.write(store_parked, "m", "1", "no")
        for name in names:
            await database.write(store_parked, "l", name, "no")
        kept = await parked(database)
        assert len(kept) == limits.PARKED_ITEMS_MAX + 1
        assert ("m", "1", False) in kept
        assert await database.write(set_parked_due, "l", None) == limits.PARKED_ITEMS_MAX
        assert await database.write(delete_parked_items) == limits.PARKED_ITEMS_MAX + 1


async def test_a_tail_returns_to_a_position_that_is_retried(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    told: list[tuple[int, int]] = []
    bad = {2}

    async def follow(since: int, upto: int) -> None:
        if bad.intersection(range(since + 1, upto + 1)):
            raise ValueError
        told.append((since, upto))

    for name in "abc":
        await database.write(items.store, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Tail("t", database, database.stream, Metrics()).run, follow)
        await trio.sleep(60)
        assert [item for _, item, _ in await parked(database)] == ["2"]
        assert (1, 2) not in told
        bad.clear()
        await database.write(set_parked_due, "tail t", "2")
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert (1, 2) in told
    assert await parked(database) == []


async def test_pending_retries_of_a_tail_survive_a_restart(
    autojump_clock: trio.testing.MockClock, database: Database
) -> None:
    told: list[int] = []
    bad = {2}

    async def follow(since: int, upto: int) -> None:
        if bad.intersection(range(since + 1, upto + 1)):
            raise ValueError
        told.extend(range(since + 1, upto + 1))

    for name in "abc":
        await database.write(items.store, name)
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Tail("t", database, database.stream, Metrics()).run, follow)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        bad.clear()
        await database.write(set_parked_due, "tail t", "2")
    assert told.count(2) == 1
