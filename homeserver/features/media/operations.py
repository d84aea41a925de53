"""The table in which the modules of this folder register their operations."""

from __future__ import annotations

from homeserver.api.routes import Routes

routes = Routes()
