"""Fixtures of the tests of friends."""

from __future__ import annotations

import pytest

from tests.support.federation import federation
from tests.support.homeservers import Client, Server, homeserver, homeservers
from tests.support.people import server

__all__ = ["federation", "homeserver", "homeservers", "server"]


@pytest.fixture
async def alice(homeserver: Server) -> Client:
    return await homeserver.register("alice")


@pytest.fixture
async def bob(homeserver: Server) -> Client:
    return await homeserver.register("bob")
