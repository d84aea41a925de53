"""Fixtures of the tests of WebSockets."""

from tests.support.federation import federation
from tests.support.homeservers import homeserver, homeservers

__all__ = ["federation", "homeserver", "homeservers"]
