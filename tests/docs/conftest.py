"""Homeservers for the pages that show how to extend one."""

from __future__ import annotations

from tests.support.federation import federation
from tests.support.homeservers import homeserver, homeservers

__all__ = ["federation", "homeserver", "homeservers"]
