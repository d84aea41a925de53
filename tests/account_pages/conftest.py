"""Fixtures of the account pages' tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.browser import Browser
from tests.support.homeservers import Server, homeserver, homeservers

__all__ = ["homeserver", "homeservers"]

OpenBrowser = Callable[..., Browser]


@pytest.fixture
def browser(homeserver: Server) -> Browser:
    """A browser that has not visited the server yet."""
    return Browser(homeserver.app, homeserver.name)
