"""A server with a few things in it, in the process of the test, that everything can be thrown at."""

from __future__ import annotations

import pytest

from homeserver.config import Email
from tests.hostile.world import World, make_world
from tests.support.federation import federation
from tests.support.homeservers import Homeservers, homeserver, homeservers

EMAIL = Email(smtp_host="localhost", smtp_port=1, from_address="noreply@example.org", smtp_tls="none")


@pytest.fixture
async def world(homeservers: Homeservers) -> World:
    """alice, bob, their room, and a server that trusts them. Its mail server is away."""
    return await make_world(await homeservers.start(email=EMAIL))


__all__ = ["World", "federation", "homeserver", "homeservers", "world"]
