"""Fixtures of the tests of application services."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.application_services import AS_TOKEN, Bridge, register, registration
from tests.support.federation import Federation, federation
from tests.support.homeservers import Client, Homeservers, Server, homeservers

__all__ = ["federation", "homeservers"]


@pytest.fixture
async def server(homeservers: Homeservers, tmp_path: Path) -> Server:
    return await homeservers.start(application_services=register(tmp_path, registration()))


@pytest.fixture
async def federated(federation: Federation, bridge: Bridge, tmp_path: Path) -> Server:
    """A server of a federation, whose bridge hears everything and has a user."""
    services = register(tmp_path, registration(receive_ephemeral=True))
    server = await federation.start("a.example", application_services=services)
    body = {"type": "m.login.application_service", "username": "irc_ghost"}
    await server.with_token(AS_TOKEN).ok("POST", "register", json=body)
    return server


@pytest.fixture
async def alice(server: Server) -> Client:
    return await server.register("alice")


@pytest.fixture
def bot(server: Server) -> Client:
    """Acts as the sender of the application service, or as the user in the query."""
    return server.with_token(AS_TOKEN)


@pytest.fixture
def bridge(federation: Federation) -> Iterator[Bridge]:
    """The homeservers of the federation reach it under the URL of the registration."""
    bridge = Bridge()
    federation.network.join("bridge.example", bridge)
    yield bridge
    assert bridge.faults == []
