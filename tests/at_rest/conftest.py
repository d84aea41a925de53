"""Fixtures of the tests of keys at rest."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.rooms import Rooms, opened_rooms


@pytest.fixture
async def rooms() -> AsyncIterator[Rooms]:
    """The rooms of a server; consistent at the end of the test."""
    async with opened_rooms() as opened:
        yield opened
