"""Fixtures of the client-server API's tests."""

from tests.support.federation import federation
from tests.support.homeservers import homeserver, homeservers
from tests.support.people import server

__all__ = ["federation", "homeserver", "homeservers", "server"]
