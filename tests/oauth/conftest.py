"""Fixtures of the tests of the OAuth 2.0 API."""

from tests.support.homeservers import homeserver, homeservers

__all__ = ["homeserver", "homeservers"]
