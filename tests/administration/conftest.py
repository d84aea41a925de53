"""Fixtures for the admin API's tests: a server, its administrator, and an ordinary user."""

from __future__ import annotations

import pytest

from homeserver.authenticate import AccountFlags, store_account_flags
from tests.support.homeservers import Client, Server, homeserver, homeservers
from tests.support.people import server

__all__ = ["alice", "boss", "homeserver", "homeservers", "server"]


@pytest.fixture
async def boss(server: Server) -> Client:
    client = await server.register("boss")
    await server.write(store_account_flags, client.user_id, AccountFlags(is_admin=True))
    return client


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")
