"""WebSockets: one connection for everything. Sync answers are pushed, and every operation is called by its name.

`Sockets` is the door: its operation agrees to the upgrade, then `serve` or `serve_asgi` serves the connection.
- `handshake` negotiates, `wire` carries messages on our own listeners, `asgi` on those of an embedding program.
- `messages` reads the JSON of clients, and `session` does what it says, by the way that HTTP requests go.
- `pushes` sends sync answers the moment that there is news, for all connections in one task.

The protocol is described in docs/websocket.md.
"""

from __future__ import annotations

from homeserver.websocket.door import Sockets

__all__ = ["Sockets"]
