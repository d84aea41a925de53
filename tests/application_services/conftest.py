"""Fixtures of the tests of application services."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.application_services import AS_TOKEN, register, registration
from tests.support.homeservers import Client, Homeservers, Server, homeservers

__all__ = ["homeservers"]


@pytest.fixture
async def server(homeservers: Homeservers, tmp_path: Path) -> Server:
    return await homeservers.start(application_services=register(tmp_path, registration()))


@pytest.fixture
def bridge(server: Server) -> Client:
    """Acts as the sender of the application service, or as the user in the query."""
    return server.with_token(AS_TOKEN)
