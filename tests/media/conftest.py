"""Fixtures of the tests of media."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.media.servers import server_with_media
from tests.support.homeservers import Client, Server


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running server with the content repository."""
    async with server_with_media(tmp_path) as server:
        yield server


@pytest.fixture
async def alice(server: Server) -> Client:
    """A user of the server."""
    return await server.register("alice")


@pytest.fixture
async def bob(server: Server) -> Client:
    """Another one."""
    return await server.register("bob")
