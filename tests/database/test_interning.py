"""Strings keep their numbers, whatever is rolled back."""

from __future__ import annotations

import threading

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from homeserver.database import DatabaseDamaged, Transaction
from homeserver.database.batch import Request, run_batch, run_read
from homeserver.database.interning import StringCache
from homeserver.database.schema import CORE_SCHEMA
from homeserver.database.sqlite import open_sqlite
from homeserver.errors import MatrixError
from tests.support.database import opened
from tests.support.examples import share_of_examples


class _Refused(Exception):
    pass


def intern_all(tx: Transaction, values: list[str], refuse: bool) -> dict[str, int]:
    nids = {value: tx.intern(value) for value in values}
    assert tx.names(nids.values()) == {nid: value for value, nid in nids.items()}
    if refuse:
        raise _Refused
    return nids


values = st.lists(st.sampled_from([f"@user{number}:x" for number in range(8)]), max_size=4)
batches = st.lists(st.lists(st.tuples(values, st.booleans()), min_size=1, max_size=4), max_size=6)


@given(batches, st.integers(1, 8))
@settings(max_examples=share_of_examples(2))
def test_a_rollback_leaves_no_wrong_numbers(batches: list[list[tuple[list[str], bool]]], cached: int) -> None:
    """After any sequence of batches with failing writes, each number still stands for its one string."""
    opened_database = open_sqlite(":memory:", [CORE_SCHEMA], inline=True, exclusive=False)
    session, cache = opened_database.writer, StringCache(cached)
    known: dict[str, int] = {}
    try:
        for batch in batches:
            requests = [Request(intern_all, call, 0, None) for call in batch]
            run_batch(session, cache, requests, 0)
            for request, (_, refuse) in zip(requests, batch, strict=True):
                assert request.result is not None
                if refuse:
                    with pytest.raises(_Refused):
                        request.result.unwrap()
                    continue
                for value, nid in request.result.unwrap().items():
                    assert known.setdefault(value, nid) == nid
            stored = dict(session.execute("SELECT value, nid FROM strings", ()).fetchall())
            assert stored == known
            assert cache.nids.items() <= known.items()
            assert cache.names.items() <= {(nid, value) for value, nid in known.items()}
            read = Request(lambda tx: [tx.find(value) for value in known], (), 0, None)
            run_read(session, cache, read)
            assert read.result is not None and read.result.unwrap() == list(known.values())
    finally:
        session.close()


async def test_numbers_of_strings_are_stable_across_threads_and_restarts(database_url: str) -> None:
    async with opened(database_url) as database:
        found: list[int] = []

        async def intern(value: str) -> None:
            found.append(await database.write(lambda tx: tx.intern(value)))

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(intern, f"string {number % 10}")
        assert len(set(found)) == 10
        nid = await database.read(lambda tx: tx.find("string 3"))
        assert nid is not None
    async with opened(database_url) as database:
        assert await database.read(lambda tx: tx.name(nid)) == "string 3"
        assert await database.read(lambda tx: tx.find("string 3")) == nid
        assert await database.write(lambda tx: tx.intern("string 3")) == nid
        assert await database.read(lambda tx: tx.find("no such string")) is None
        for missing in (lambda tx: tx.name(10**6), lambda tx: tx.names([nid, 10**6])):
            with pytest.raises(DatabaseDamaged):
                await database.read(missing)


async def test_strings_of_an_earlier_write_in_the_batch_are_known(database_url: str) -> None:
    gate = threading.Event()
    results: dict[str, int] = {}

    async def intern(name: str, value: str) -> None:
        results[name] = await database.write(lambda tx: tx.intern(value))

    async with opened(database_url) as database:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, lambda tx: gate.wait())
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(intern, "first", "same")
            nursery.start_soon(intern, "second", "same")
            await trio.testing.wait_all_tasks_blocked()
            gate.set()
        assert results["first"] == results["second"]


@pytest.mark.parametrize("value", ["a\0b", "\ud800", "x" * 5000, "ü" * 1500])
async def test_strings_that_cannot_be_stored_are_refused(database_url: str, value: str) -> None:
    async with opened(database_url) as database:
        for fn in (lambda tx: tx.intern(value), lambda tx: tx.find(value)):
            with pytest.raises(MatrixError) as raised:
                await database.write(fn)
            assert (raised.value.status, raised.value.errcode) == (400, "M_INVALID_PARAM")


async def test_empty_and_long_strings_are_stored(database_url: str) -> None:
    async with opened(database_url) as database:
        for value in ("", "x" * 2048, "m.room.message", "👍"):
            nid = await database.write(lambda tx, value=value: tx.intern(value))
            assert await database.read(lambda tx, nid=nid: tx.name(nid)) == value
