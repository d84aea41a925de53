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
