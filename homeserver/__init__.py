"""A Matrix homeserver that is a library.

    async with Homeserver(Config(server_name="example.org", data_dir="data")) as hs:
        alice = await hs.register("alice", "a good password", exist_ok=True)
        room = await alice.create_room(name="Kitchen")
        await alice.send(room, "The kettle is on.")
        await hs.serve()

`Homeserver` runs on trio; `AsyncioHomeserver` is the same for asyncio programs. Both give out clients, one for each
user that the program acts for. What the server refuses raises `MatrixError`; a configuration that cannot work raises
`ConfigError`. `homeserver.testing` has what tests of an embedding program need. docs/embedding.md is the guide.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = [
    "AsyncioClient",
    "AsyncioHomeserver",
    "Client",
    "ClosedError",
    "Config",
    "ConfigError",
    "DatabaseError",
    "File",
    "Homeserver",
    "Listener",
    "MatrixError",
    "RoomEvent",
]

__version__ = "0.1.0"

# Importing the server takes a good part of a second, which `homeserver --help` has no use for. So each public name is
# imported when it is first used. Type checkers cannot follow that: for them the same names stand in __init__.pyi.
_HOMES = {
    "AsyncioClient": "homeserver.asyncio_adapter",
    "AsyncioHomeserver": "homeserver.asyncio_adapter",
    "Client": "homeserver.client",
    "ClosedError": "homeserver.errors",
    "Config": "homeserver.config",
    "ConfigError": "homeserver.config",
    "DatabaseError": "homeserver.database",
    "File": "homeserver.client",
    "Homeserver": "homeserver.server",
    "Listener": "homeserver.config",
    "MatrixError": "homeserver.errors",
    "RoomEvent": "homeserver.client",
}


def __getattr__(name: str) -> Any:
    """The public name, imported now."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'homeserver' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    """The public names, whether or not they have been imported, and what every module has."""
    return sorted({*globals(), *__all__})
