"""Fixtures of the client-server API's tests."""

from tests.support.homeservers import homeserver, homeservers

__all__ = ["homeserver", "homeservers"]
