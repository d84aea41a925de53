"""Reads and writes that need something from elsewhere are repeated when it is there; nothing of a write remains."""

from __future__ import annotations

from collections.abc import Hashable

import pytest

from homeserver.database import Needed, Transaction
from tests.database import items
from tests.support.database import opened


def _store_signed(tx: Transaction, *names: str) -> list[object]:
    """Stores items, each of which needs something first."""
    for name in names:
        items.store(tx, name)
        if name not in tx.given:
            raise Needed(name)
    return [tx.given[name] for name in names]


async def test_a_write_is_repeated_with_what_it_needs(database_url: str) -> None:
    asked: list[object] = []

    async def get(needed: Needed) -> dict[Hashable, object]:
        asked.append((needed.key, await database.read(items.list_names)))  # nothing is half-written meanwhile
        return {needed.key: f"signed {needed.key}"}

    async with opened(database_url, items.SCHEMA) as database:
        database.get_needed_by(get)
        assert await database.write(_store_signed, "one", "two") == ["signed one", "signed two"]
        assert asked == [("one", []), ("two", [])]
        assert await database.read(items.list_names) == ["one", "two"]


async def test_a_write_that_does_not_get_what_it_needs_leaves_nothing(database_url: str) -> None:
    async def fail(needed: Needed) -> dict[Hashable, object]:
        raise ValueError(needed.key)

    async with opened(database_url, items.SCHEMA) as database:
        with pytest.raises(RuntimeError):
            await database.write(_store_signed, "one")
        database.get_needed_by(fail)
        with pytest.raises(ValueError, match="one"):
            await database.write(_store_signed, "one")
        assert await database.read(items.list_names) == []


async def test_a_read_is_repeated_with_what_it_needs(database_url: str) -> None:
    def look(tx: Transaction) -> list[object]:
        try:
            return [tx.given["one"], items.list_names(tx)] if "one" in tx.given else [_need("one")]
        except Exception as error:  # code that goes on after any failure
            return [error]

    async def get(needed: Needed) -> dict[Hashable, object]:
        await database.write(items.store, "new")
        return {needed.key: "here"}

    async with opened(database_url, items.SCHEMA) as database:
        database.get_needed_by(get)
        assert await database.read(look) == ["here", ["new"]]
        assert await database.read(items.list_names) == ["new"]


def _need(key: str) -> object:
    raise Needed(key)
