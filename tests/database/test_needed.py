"""Writes that need something from elsewhere are undone, and repeated when it is there."""

from __future__ import annotations

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

    async def get(needed: Needed) -> object:
        asked.append((needed.key, await database.read(items.list_names)))  # nothing is half-written meanwhile
        return f"signed {needed.key}"

    async with opened(database_url, items.SCHEMA) as database:
        database.get_needed_by(get)
        assert await database.write(_store_signed, "one", "two") == ["signed one", "signed two"]
        assert asked == [("one", []), ("two", [])]
        assert await database.read(items.list_names) == ["one", "two"]


async def test_a_write_that_does_not_get_what_it_needs_leaves_nothing(database_url: str) -> None:
    async def fail(needed: Needed) -> object:
        raise ValueError(needed.key)

    async with opened(database_url, items.SCHEMA) as database:
        with pytest.raises(RuntimeError):
            await database.write(_store_signed, "one")
        database.get_needed_by(fail)
        with pytest.raises(ValueError, match="one"):
            await database.write(_store_signed, "one")
        assert await database.read(items.list_names) == []
