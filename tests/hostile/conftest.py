"""A server with a few things in it, in the process of the test, that everything can be thrown at."""

from __future__ import annotations

import pytest

from tests.hostile.world import World, make_world
from tests.support.federation import federation
from tests.support.homeservers import homeserver, homeservers


@pytest.fixture
async def world(homeserver):  # type: ignore[no-untyped-def]
    """alice, bob, their room, and a server that trusts them."""
    return await make_world(homeserver)


__all__ = ["World", "federation", "homeserver", "homeservers", "world"]
