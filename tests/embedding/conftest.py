"""The library in the hands of another program: homeservers in process, with clients in the same process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from homeserver import Homeserver
from homeserver.testing import FakeNetwork
from tests.support.database import own_cluster
from tests.support.homeservers import config_for_tests, now_ms

__all__ = ["own_cluster"]

Open = Callable[[str], AbstractAsyncContextManager[Homeserver]]


@pytest.fixture
def homeservers(tmp_path: Path, virtual_clock: None) -> Open:
    """`async with homeservers("a.example") as a:`; those that are open reach one another."""
    network = FakeNetwork()

    @asynccontextmanager
    async def open_one(name: str) -> AsyncIterator[Homeserver]:
        config = config_for_tests(name, tmp_path)
        async with Homeserver(config, wire=network.wire_for(name), now_ms=now_ms, inline_database=True) as hs:
            network.join(name, hs.app)
            yield hs

    return open_one
