"""Fixtures of the tests of friends."""

from tests.support.federation import federation
from tests.support.homeservers import homeserver, homeservers
from tests.support.people import server

__all__ = ["federation", "homeserver", "homeservers", "server"]
