"""A Matrix homeserver that is a library: `async with Homeserver(config) as hs`. See docs/embedding.md."""

from __future__ import annotations

from typing import Any

__all__ = ["Config", "Homeserver", "MatrixError"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: commands that need no server start without it."""
    if name == "Homeserver":
        from homeserver.server import Homeserver

        return Homeserver
    if name == "Config":
        from homeserver.config import Config

        return Config
    if name == "MatrixError":
        from homeserver.errors import MatrixError

        return MatrixError
    raise AttributeError(f"module 'homeserver' has no attribute {name!r}")
