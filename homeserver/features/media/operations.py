"""The table that the modules of this folder register their operations in."""

from __future__ import annotations

from homeserver.api.routes import Routes

routes = Routes()
