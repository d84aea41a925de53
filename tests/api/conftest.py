"""Fixtures of the tests of HTTP: a server with operations that the test writes itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from homeserver.api import Routes
from homeserver.feature import Feature
from tests.support.homeservers import NoWire, Server, config_for_tests, run_under_virtual_clock, running

StartServer = Callable[..., AbstractAsyncContextManager[Server]]


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Every test with `start_server` runs under the virtual clock."""
    for item in items:
        if "start_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.trio(run=run_under_virtual_clock))


@pytest.fixture
def start_server(tmp_path: Path) -> StartServer:
    """`async with start_server(routes, rate_limits=…) as server`: answers these routes and nothing else."""

    @asynccontextmanager
    async def start(routes: Routes, **sections: Any) -> AsyncIterator[Server]:
        config = config_for_tests("test.example", tmp_path, **sections)
        async with running(config, wire=NoWire(), features=[Feature("test", "", routes=routes)]) as server:
            yield server

    return start
